//! Writes a tree in the prompt language of AUTOMATIC1111's web UI.

use std::fmt::Write;

use super::a1111::STEP;
use super::python::{is_space, is_word};
use super::{Join, LoraUse, Prompt, PromptBody, PromptNode};
use crate::request::PromptSyntax;

/// `prompt` in the web UI's language; what it cannot say is added to `lost`.
pub(super) fn print(prompt: &Prompt, lost: &mut Vec<String>) -> String {
    let mut printer = Printer {
        // the pieces of a Compel prompt are words; those of the others hold their blanks
        spaced: prompt.syntax == PromptSyntax::Compel,
        lost,
    };
    let mut texts: Vec<(String, f64)> = Vec::new();
    let mut loras = String::new();
    let mut composed = prompt.join == Join::Compose;
    for item in &prompt.items {
        let weight = item.weight;
        match &item.body {
            // Compel sets LoRAs beside its texts
            PromptBody::Text(nodes) if printer.spaced && item.only_loras() => {
                loras.push_str(&printer.nodes(nodes, false));
            }
            PromptBody::Text(nodes) => {
                let mut text = printer.nodes(nodes, false);
                if prompt.join == Join::Compose {
                    // blanks at the ends of a part of AND go too; LoRAs are taken out before
                    let mut words = nodes
                        .iter()
                        .filter(|node| !matches!(node, PromptNode::Lora(_)));
                    if matches!(words.next_back(), Some(PromptNode::Text(last)) if last.ends_with(is_space))
                    {
                        text.push('\\');
                    }
                    if matches!(nodes.first(), Some(PromptNode::Text(_)))
                        && text.starts_with(is_space)
                    {
                        text.insert(0, '\\');
                    }
                }
                texts.push((text, weight));
            }
            PromptBody::Blend { members, normalize } => {
                composed = true;
                printer.lose("A1111 cannot mix conditionings; AND mixes predictions instead");
                let sum: f64 = members.iter().map(|(_, weight)| weight).sum();
                let scale = if *normalize && sum != 0.0 {
                    1.0 / sum
                } else {
                    1.0
                };
                for (nodes, weight) in members {
                    texts.push((printer.nodes(nodes, false), weight * scale));
                }
            }
        }
    }
    let text = if composed {
        printer.compose(&texts)
    } else {
        if texts.len() > 1 && texts.iter().any(|(_, weight)| *weight != 1.0) {
            printer.lose("A1111's BREAK has no weights; those of .and(...) are gone");
        }
        let texts: Vec<String> = texts.into_iter().map(|(text, _)| text).collect();
        texts.join(" BREAK ")
    };
    text + &loras
}

/// A weight without exponent; numbers that cannot be written become the nearest that can.
pub(super) fn decimal(weight: f64) -> String {
    if weight.is_nan() {
        return "0".into();
    }
    weight.clamp(f64::MIN, f64::MAX).to_string()
}

struct Printer<'a> {
    spaced: bool,
    lost: &'a mut Vec<String>,
}

impl Printer<'_> {
    fn lose(&mut self, what: &str) {
        if !self.lost.iter().any(|lost| lost == what) {
            self.lost.push(what.into());
        }
    }

    fn compose(&mut self, texts: &[(String, f64)]) -> String {
        let texts: Vec<String> = texts
            .iter()
            .map(|(text, weight)| match text.is_empty() {
                true => format!(":{}", decimal(*weight)),
                false => format!("{text} :{}", decimal(*weight)),
            })
            .collect();
        texts.join(" AND ")
    }

    /// `within`: inside of brackets, where `:` and `|` separate.
    fn nodes(&mut self, nodes: &[PromptNode], within: bool) -> String {
        let mut out = String::new();
        let mut written = false;
        for (at, node) in nodes.iter().enumerate() {
            let mut text = self.node(node, within);
            // blanks beside BREAK go when they are read, unless a backslash is before them
            if let PromptNode::Text(plain) = node
                && !self.spaced
            {
                if matches!(nodes.get(at + 1), Some(PromptNode::Break)) && plain.ends_with(is_space)
                {
                    text.insert(text.len() - last_length(plain), '\\');
                }
                let after_break = at > 0 && matches!(nodes[at - 1], PromptNode::Break);
                if after_break && text.starts_with(is_space) {
                    text.insert(0, '\\');
                }
            }
            let sign = matches!(node, PromptNode::Text(text) if text == "," || text == ".");
            if self.spaced && written && !sign {
                out.push(' ');
            }
            written |= !matches!(node, PromptNode::Lora(_));
            out.push_str(&text);
        }
        out
    }

    fn node(&mut self, node: &PromptNode, within: bool) -> String {
        match node {
            PromptNode::Text(text) => {
                if self.spaced && backslash_before_bracket(text) {
                    self.lose("Compel drops more backslashes where texts meet; these all stay");
                }
                escape(text, within)
            }
            PromptNode::Group { weight, children } if *weight == 1.0 => {
                self.nodes(children, within)
            }
            PromptNode::Group { weight, children } => {
                let text = self.nodes(children, true);
                // a colon and number before a bracket that closes would be a weight
                if *weight == STEP && !text.contains(':') {
                    format!("({text})")
                } else if *weight == 1.0 / STEP && !text.contains(':') {
                    format!("[{text}]")
                } else {
                    format!("({text}:{})", decimal(*weight))
                }
            }
            PromptNode::Swap { original, .. } => {
                self.lose("A1111 has no .swap(...); its original stays, as SDXL encodes it");
                self.nodes(original, within)
            }
            PromptNode::Lora(LoraUse {
                name,
                weight,
                text_weight,
                block_weights,
            }) => {
                let mut tag = format!("<lora:{name}:");
                if let Some(text) = text_weight {
                    tag += &format!("{}:", decimal(*text));
                }
                tag += &decimal(*weight);
                if !block_weights.is_empty() {
                    let weights: Vec<String> = block_weights.iter().map(f32::to_string).collect();
                    tag += &format!(":lbw={}", weights.join(","));
                }
                tag + ">"
            }
            PromptNode::Break => " BREAK ".into(),
            PromptNode::Edit {
                before,
                after,
                when,
            } => {
                let (before, after) = (self.nodes(before, true), self.nodes(after, true));
                format!("[{before}:{after}:{}]", decimal(*when))
            }
            PromptNode::Alternate(choices) => {
                let choices: Vec<String> = choices
                    .iter()
                    .map(|nodes| self.nodes(nodes, true))
                    .collect();
                format!("[{}]", choices.join("|"))
            }
        }
    }
}

fn last_length(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

/// Whether `text` has a backslash that Compel may still drop.
pub(super) fn backslash_before_bracket(text: &str) -> bool {
    let mut pairs = text.as_bytes().windows(2);
    pairs.any(|pair| pair[0] == b'\\' && matches!(pair[1], b'(' | b')' | b'"'))
}

/// Literal text: special characters get a backslash, and words that mean something get one inside,
/// which goes when they are read.
fn escape(text: &str, within: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = None;
    // behind a character with a backslash a word begins
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        let rest = &text[at..];
        let word = ["AND", "BREAK"].into_iter().find(|word| {
            rest.starts_with(word)
                && !before.is_some_and(is_word)
                && !rest[word.len()..].chars().next().is_some_and(is_word)
        });
        let special = matches!(c, '(' | ')' | '[' | ']' | '\\' | '|') || c == ':' && within;
        let tag = c == '<' && rest[1..].chars().next().is_some_and(is_word);
        let _ = match (special, word.is_some() || tag) {
            (true, _) => write!(out, "\\{c}"),
            (_, true) => write!(out, "{c}\\"),
            _ => write!(out, "{c}"),
        };
        before = (!escaped).then_some(c);
        escaped = tag;
    }
    out
}
