//! Weighted spans to sequences: every text encoder reads 77 tokens at a time, so a longer prompt
//! becomes several chunks of 75 with a start, an end and padding each.

use std::ops::RangeInclusive;

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::prompt::WeightedSpan;

/// The rule by which a text that is too long for one chunk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Splitting {
    /// As Compel does by default: after the last full stop that fits, however early; else after
    /// the last `.` `,` `;` or `:`; else after the last whole word; else anywhere.
    Sentences,
    /// As A1111 does: when the chunk is full, but what follows a comma among the last 20 tokens
    /// moves on to the next chunk.
    Commas,
}

/// A1111's `comma_padding_backtrack`: how far back a comma may be.
const BACKTRACK: usize = 20;

/// Chunks that a text may need; a longer one is a mistake.
const MAX_CHUNKS: usize = 100;

/// A span as the tokenizer reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    /// The token ids, without start and end. When prompts are cut, no more than fit in a chunk.
    pub ids: Vec<u32>,
    /// The weight of the span in the prompt.
    pub weight: f64,
}

/// One sequence for a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Start, text, end, padding: 77 ids.
    pub ids: Vec<u32>,
    /// The weight of each id; 1 for start, end and padding.
    pub weights: Vec<f32>,
    /// Which fragment each id of the text belongs to; `owners[0]` goes with `ids[1]`.
    pub owners: Vec<usize>,
}

/// A text as the chunks that are encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkLayout {
    /// The text's spans, breaks left out.
    pub fragments: Vec<Fragment>,
    /// One sequence at least.
    pub chunks: Vec<Chunk>,
    /// Tokens that did not fit; only where prompts are cut.
    pub cut: Vec<u32>,
    truncated: bool,
}

/// A token on its way into a chunk.
#[derive(Clone, Copy)]
struct Token {
    id: u32,
    owner: usize,
}

impl ChunkLayout {
    /// Tokenizes spans one by one and lays the tokens out in chunks; in one chunk, without
    /// breaks, if prompts are cut.
    ///
    /// # Errors
    /// Text that the tokenizer refuses, or that needs more than a hundred chunks.
    pub fn new(
        tokenizer: &Tokenizer,
        spans: &[WeightedSpan],
        splitting: Splitting,
        truncate: bool,
    ) -> Result<ChunkLayout> {
        let room = tokenizer.room();
        let mut fragments = Vec::new();
        let mut cut = Vec::new();
        // What stands between breaks.
        let mut sections: Vec<Vec<Token>> = vec![Vec::new()];
        for span in spans {
            match span {
                WeightedSpan::Break if truncate => {}
                WeightedSpan::Break => sections.push(Vec::new()),
                WeightedSpan::Text { text, weight } => {
                    let mut ids = tokenizer.ids(text)?;
                    if truncate {
                        let held: usize = sections.iter().map(Vec::len).sum();
                        let free = room.saturating_sub(held);
                        cut.extend_from_slice(&ids[free.min(ids.len())..]);
                        ids.truncate(room);
                    }
                    let owner = fragments.len();
                    if let Some(section) = sections.last_mut() {
                        section.extend(ids.iter().map(|&id| Token { id, owner }));
                        if truncate {
                            section.truncate(room);
                        }
                    }
                    fragments.push(Fragment {
                        ids,
                        weight: *weight,
                    });
                }
            }
        }
        let mut parts: Vec<Vec<Token>> = Vec::new();
        let count = sections.len();
        for (i, section) in sections.into_iter().enumerate() {
            // Nothing before a break is a chunk too; nothing after the last one is not.
            if section.is_empty() && i + 1 == count && !parts.is_empty() {
                continue;
            }
            match splitting {
                Splitting::Sentences => parts.extend(by_sentences(tokenizer, &section)),
                Splitting::Commas => parts.extend(by_commas(tokenizer, &section)),
            }
        }
        if parts.len() > MAX_CHUNKS {
            let message = format!(
                "it needs {} chunks of {room} tokens, and at most {MAX_CHUNKS} are encoded",
                parts.len()
            );
            return Err(Error::request("prompt", message)
                .with_hint("shorten it, or cut it with `truncate_long_prompts true`"));
        }
        let chunks = (parts.iter())
            .map(|part| {
                let ids: Vec<u32> = part.iter().map(|t| t.id).collect();
                let ids = tokenizer.sequence(&ids);
                let mut weights = vec![1.0; ids.len()];
                for (weight, token) in weights[1..].iter_mut().zip(part) {
                    *weight = fragments[token.owner].weight as f32;
                }
                let owners = part.iter().map(|t| t.owner).collect();
                Chunk {
                    ids,
                    weights,
                    owners,
                }
            })
            .collect();
        Ok(ChunkLayout {
            fragments,
            chunks,
            cut,
            truncated: truncate,
        })
    }

    /// Gives the first and last position of each fragment, counted through all chunks,
    /// padding included; `None` for one without tokens, and for one that was cut off.
    ///
    /// Compel looks fragments up by their tokens, with these effects: a fragment may begin in the
    /// padding of a chunk that ended early, it includes the tokens between two chunks that it
    /// reaches into, and if it is cut it includes the end token.
    pub fn positions(&self, tokenizer: &Tokenizer) -> Vec<Option<RangeInclusive<usize>>> {
        let ids: Vec<u32> = self.chunks.iter().flat_map(|c| c.ids.clone()).collect();
        let mut found = Vec::with_capacity(self.fragments.len());
        let mut cursor = 0;
        for (index, fragment) in self.fragments.iter().enumerate() {
            let cut_off = self.truncated && cursor + 1 >= ids.len();
            if fragment.ids.is_empty() || cut_off {
                found.push(None);
                continue;
            }
            let range = look_up(tokenizer, &ids, cursor, &fragment.ids, self.truncated)
                .or_else(|| self.position_of(index));
            if let Some(range) = &range {
                cursor = range.end() + 1;
            }
            found.push(range);
        }
        found
    }

    /// The first and last position of a fragment as it was laid out.
    fn position_of(&self, fragment: usize) -> Option<RangeInclusive<usize>> {
        let length = self.chunks.first()?.ids.len();
        let mut places = (self.chunks.iter().enumerate()).flat_map(|(c, chunk)| {
            let own = chunk.owners.iter().enumerate();
            own.filter(move |(_, owner)| **owner == fragment)
                .map(move |(i, _)| c * length + 1 + i)
        });
        let first = places.next()?;
        Some(first..=places.last().unwrap_or(first))
    }
}

/// Compel's way of finding a fragment from `cursor` on; `None` where it gives up.
fn look_up(
    tokenizer: &Tokenizer,
    ids: &[u32],
    cursor: usize,
    fragment: &[u32],
    truncated: bool,
) -> Option<RangeInclusive<usize>> {
    let last = ids.len() - 1;
    let mut start = cursor;
    while start < last && ids[start] != fragment[0] {
        start += 1;
    }
    if start >= last {
        return truncated.then_some(last..=last);
    }
    let between = [tokenizer.eos(), tokenizer.pad(), tokenizer.bos()];
    let (mut end, mut matched) = (start, 0);
    while end < last {
        if ids[end] == fragment[matched] {
            matched += 1;
            if matched == fragment.len() {
                return Some(start..=end);
            }
        } else if truncated || !between.contains(&ids[end]) {
            return None;
        }
        end += 1;
    }
    truncated.then_some(start..=last)
}

fn by_sentences(tokenizer: &Tokenizer, tokens: &[Token]) -> Vec<Vec<Token>> {
    let named = |names: &[&str]| -> Vec<u32> {
        names
            .iter()
            .filter_map(|n| tokenizer.id(&format!("{n}</w>")))
            .collect()
    };
    let (stops, phrases) = (named(&["."]), named(&[".", ",", ";", ":"]));
    let whole_word =
        |t: &Token| -> bool { tokenizer.token(t.id).is_some_and(|t| t.ends_with("</w>")) };
    let room = tokenizer.room();
    let mut rest = tokens;
    let mut chunks = Vec::new();
    while rest.len() > room {
        let window = &rest[..room];
        let last = (window.iter().rposition(|t| stops.contains(&t.id)))
            .or_else(|| window.iter().rposition(|t| phrases.contains(&t.id)))
            .or_else(|| window.iter().rposition(whole_word));
        let (chunk, others) = rest.split_at(last.map_or(room, |i| i + 1));
        chunks.push(chunk.to_vec());
        rest = others;
    }
    chunks.push(rest.to_vec());
    chunks
}

fn by_commas(tokenizer: &Tokenizer, tokens: &[Token]) -> Vec<Vec<Token>> {
    let comma = tokenizer.id(",</w>");
    let room = tokenizer.room();
    let mut chunks = Vec::new();
    let mut chunk: Vec<Token> = Vec::new();
    let mut last_comma = None;
    for token in tokens {
        if Some(token.id) == comma {
            last_comma = Some(chunk.len());
        } else if let Some(at) = last_comma
            && chunk.len() == room
            && room - at <= BACKTRACK
        {
            let moved = chunk.split_off(at + 1);
            chunks.push(std::mem::replace(&mut chunk, moved));
            last_comma = None;
        }
        if chunk.len() == room {
            chunks.push(std::mem::take(&mut chunk));
            last_comma = None;
        }
        chunk.push(*token);
    }
    if !chunk.is_empty() || chunks.is_empty() {
        chunks.push(chunk);
    }
    chunks
}
