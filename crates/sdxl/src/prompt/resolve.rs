//! From the tree to what is encoded at one step.

use super::{
    Prompt, PromptBody, PromptNode, PromptPart, ResolvedContent, ResolvedPart, ResolvedPrompt,
    WeightedSpan,
};
use crate::request::PromptSyntax;

/// A text before it is fused with its neighbours.
enum Piece<'a> {
    Text(&'a str, f64),
    Break,
    /// Nothing is fused across this.
    Border,
}

/// The step to resolve for: `number` counts from 1.
#[derive(Clone, Copy)]
struct Step {
    number: usize,
    of: usize,
}

impl Prompt {
    /// Gives the parts to encode at `step` (from 0) of `steps`: the same at all steps unless
    /// [`Prompt::changes_by_step`].
    ///
    /// With `[a:b:8]` the first 8 steps see `a`, as the web UI documents it; `[a|b]` begins with
    /// `a`.
    pub fn at(&self, step: usize, steps: usize) -> ResolvedPrompt {
        let step = Step {
            number: step.saturating_add(1),
            of: steps,
        };
        let mut parts = Vec::new();
        for item in &self.items {
            let content = match &item.body {
                PromptBody::Text(nodes) => ResolvedContent::Text(self.spans(nodes, step)),
                PromptBody::Blend { members, normalize } => ResolvedContent::Blend {
                    members: members
                        .iter()
                        .map(|(nodes, weight)| (or_empty(self.spans(nodes, step)), *weight))
                        .collect(),
                    normalize: *normalize,
                },
            };
            // Compel drops what says nothing, its weight included
            if matches!(&content, ResolvedContent::Text(spans) if spans.is_empty()) {
                continue;
            }
            parts.push(ResolvedPart {
                content,
                weight: item.weight,
            });
        }
        ResolvedPrompt {
            parts,
            join: self.join,
        }
    }

    /// Whether the prompt has edits or alternations.
    pub fn changes_by_step(&self) -> bool {
        self.items.iter().any(|PromptPart { body, .. }| match body {
            PromptBody::Text(nodes) => changes(nodes),
            PromptBody::Blend { members, .. } => members.iter().any(|(nodes, _)| changes(nodes)),
        })
    }

    fn spans(&self, nodes: &[PromptNode], step: Step) -> Vec<WeightedSpan> {
        let mut pieces = Vec::new();
        flatten(nodes, 1.0, step, &mut pieces);
        match self.syntax {
            PromptSyntax::Compel => fuse_compel(&pieces),
            PromptSyntax::A1111 | PromptSyntax::Plain => fuse_a1111(&pieces),
        }
    }
}

fn or_empty(mut spans: Vec<WeightedSpan>) -> Vec<WeightedSpan> {
    if spans.is_empty() {
        spans.push(WeightedSpan::Text {
            text: String::new(),
            weight: 1.0,
        });
    }
    spans
}

fn changes(nodes: &[PromptNode]) -> bool {
    nodes.iter().any(|node| match node {
        PromptNode::Edit { .. } | PromptNode::Alternate(_) => true,
        PromptNode::Group { children, .. } => changes(children),
        PromptNode::Swap { original, .. } => changes(original),
        PromptNode::Text(_) | PromptNode::Lora(_) | PromptNode::Break => false,
    })
}

fn flatten<'a>(nodes: &'a [PromptNode], scale: f64, step: Step, out: &mut Vec<Piece<'a>>) {
    for node in nodes {
        match node {
            PromptNode::Text(text) => out.push(Piece::Text(text, scale)),
            PromptNode::Group { weight, children } => flatten(children, scale * weight, step, out),
            PromptNode::Swap { original, .. } => {
                out.push(Piece::Border);
                let start = out.len();
                flatten(original, scale, step, out);
                if out.len() == start {
                    // Compel stands an empty text in for a target without any; it notices
                    // brackets with a weight only after having multiplied
                    let weight = if vacant(original) { scale } else { 1.0 };
                    out.push(Piece::Text("", weight));
                }
                out.push(Piece::Border);
            }
            PromptNode::Break => out.push(Piece::Break),
            PromptNode::Edit {
                before,
                after,
                when,
            } => {
                let last = if *when < 1.0 {
                    when * step.of as f64
                } else {
                    *when
                };
                let now = if step.number as f64 <= last.floor() {
                    before
                } else {
                    after
                };
                flatten(now, scale, step, out);
            }
            PromptNode::Alternate(choices) => {
                if let Some(now) = choices.get((step.number - 1) % choices.len().max(1)) {
                    flatten(now, scale, step, out);
                }
            }
            PromptNode::Lora(_) => {}
        }
    }
}

/// Whether there is nothing but brackets without a weight.
fn vacant(nodes: &[PromptNode]) -> bool {
    nodes
        .iter()
        .all(|node| matches!(node, PromptNode::Group { weight: 1.0, children } if vacant(children)))
}

/// Neighbours of equal weight become one text with a space between. Each time two are joined, Compel
/// takes one backslash more from before every bracket and quote of the joined text.
fn fuse_compel(pieces: &[Piece]) -> Vec<WeightedSpan> {
    let mut spans = Vec::new();
    let mut start = 0;
    while start < pieces.len() {
        let Piece::Text(_, weight) = pieces[start] else {
            start += 1;
            continue;
        };
        let run: Vec<&str> = pieces[start..]
            .iter()
            .map_while(|piece| match piece {
                Piece::Text(text, w) if *w == weight => Some(*text),
                _ => None,
            })
            .collect();
        // a NaN equals nothing, itself included
        let run = if run.is_empty() {
            vec![first_text(&pieces[start])]
        } else {
            run
        };
        let mut text = String::new();
        for (i, part) in run.iter().enumerate() {
            if i > 0 {
                text.push(' ');
            }
            text.push_str(&unescape(part, run.len() - i.max(1)));
        }
        start += run.len();
        spans.push(WeightedSpan::Text { text, weight });
    }
    spans
}

fn first_text<'a>(piece: &Piece<'a>) -> &'a str {
    match piece {
        Piece::Text(text, _) => text,
        Piece::Break | Piece::Border => "",
    }
}

/// Takes away up to `times` backslashes from before every bracket and double quote.
pub(super) fn unescape(text: &str, times: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut slashes = 0;
    for c in text.chars() {
        if c == '\\' {
            slashes += 1;
            continue;
        }
        let taken = if matches!(c, '(' | ')' | '"') {
            times
        } else {
            0
        };
        out.extend(std::iter::repeat_n(
            '\\',
            usize::saturating_sub(slashes, taken),
        ));
        slashes = 0;
        out.push(c);
    }
    out.extend(std::iter::repeat_n('\\', slashes));
    out
}

/// Neighbours of equal weight become one text, with nothing between.
fn fuse_a1111(pieces: &[Piece]) -> Vec<WeightedSpan> {
    let mut spans: Vec<WeightedSpan> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text("", _) | Piece::Border => {}
            Piece::Break => spans.push(WeightedSpan::Break),
            Piece::Text(more, weight) => match spans.last_mut() {
                Some(WeightedSpan::Text { text, weight: w }) if w == weight => text.push_str(more),
                _ => spans.push(WeightedSpan::Text {
                    text: (*more).to_string(),
                    weight: *weight,
                }),
            },
        }
    }
    or_empty(spans)
}
