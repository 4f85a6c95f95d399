//! Reads the prompt language of AUTOMATIC1111's web UI.
//!
//! | written | means |
//! |---|---|
//! | `(x)`, `[x]`, `(x:1.3)` | weight 1.1, 1/1.1, 1.3; they multiply |
//! | `\(`, `\[`, `\\`, ... | the character itself; any lone backslash goes |
//! | `BREAK` | the next chunk of 75 tokens |
//! | `a :0.7 AND b` | two predictions, summed by weight |
//! | `[a:b:when]`, `[b:when]`, `[a::when]` | `a` up to step `when`, then `b`; either may be nothing |
//! | `[a\|b]` | one at each step, in turn |
//! | `<lora:name:0.8>`, `<lora:name:0.5:0.8>` | a LoRA (text encoders, UNet); no text |
//!
//! A bracket without partner reaches to the end if it opens and is literal if it closes; round and
//! square brackets may cross. Where the web UI gives up (a `|` outside of brackets makes it ignore
//! every edit in the prompt, `BREAK` inside of brackets becomes a word of negative weight, a colon
//! and number at the end of a prompt without `AND` become its weight), this reader does what the
//! text plainly says.
//!
//! Source: the behaviour documented in the web UI's wiki ("Features": attention, prompt editing,
//! alternating words, composable diffusion, extra networks).

use super::python::{float, is_space, is_word};
use super::{Join, LoraUse, MAX_DEPTH, PromptNode, PromptPart, too_deep};
use crate::error::{Error, Result};
use crate::weights::lora::blocks::read_list;

/// The factor by which one pair of round brackets multiplies a weight; square ones divide by it.
pub(super) const STEP: f64 = 1.1;

/// Reads `text`.
///
/// # Errors
/// [`Error::Request`] for a LoRA's weight that is not a number, and brackets nested too deep.
pub(super) fn parse(text: &str) -> Result<(Vec<PromptPart>, Join)> {
    let (text, loras) = take_networks(text)?;
    let texts = split_at_word(&text, "AND");
    let mut items = Vec::new();
    if let [text] = texts[..] {
        items.push(PromptPart::text(nodes(text)?));
    } else {
        for text in texts {
            let (text, weight) = take_weight(text);
            items.push(PromptPart {
                weight,
                ..PromptPart::text(nodes(text)?)
            });
        }
    }
    // where a LoRA stands does not matter
    if let Some(super::PromptBody::Text(nodes)) = items.first_mut().map(|item| &mut item.body) {
        nodes.extend(loras.into_iter().map(PromptNode::Lora));
    }
    let join = if items.len() > 1 {
        Join::Compose
    } else {
        Join::Concat
    };
    Ok((items, join))
}

/// Takes `<kind:arguments>` out of the text. `lora` and `lyco` are kept; other kinds of networks are
/// dropped, as the web UI drops those it does not know.
fn take_networks(text: &str) -> Result<(String, Vec<LoraUse>)> {
    let mut out = String::with_capacity(text.len());
    let mut loras = Vec::new();
    let mut rest = text;
    // behind the last bracket that closes there is no network
    let closed = text.rfind('>').map_or(text.len(), |last| text.len() - last);
    while let Some(open) = rest.find('<').filter(|open| rest.len() - open > closed) {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        match network(tag) {
            Some((kind, arguments, after)) => {
                if matches!(kind, "lora" | "lyco") {
                    loras.push(lora(arguments)?);
                }
                rest = after;
            }
            None => {
                out.push('<');
                rest = &tag[1..];
            }
        }
    }
    out.push_str(rest);
    Ok((out, loras))
}

/// Kind, arguments and what follows of a text that begins with `<kind:arguments>`.
fn network(tag: &str) -> Option<(&str, &str, &str)> {
    let inside = tag.strip_prefix('<')?;
    let colon = inside.find(|c| !is_word(c)).filter(|at| *at > 0)?;
    let arguments = inside[colon..].strip_prefix(':')?;
    let close = arguments.find('>').filter(|at| *at > 0)?;
    Some((
        &inside[..colon],
        &arguments[..close],
        &arguments[close + 1..],
    ))
}

/// `name`, `name:weight`, or `name:text:unet` with a weight for the text encoders and one for the
/// UNet; also by name, as in `name:te=0.5:unet=0.8`. `lbw=` has weights by block. Other settings, which extensions of the web UI
/// read, are passed over.
fn lora(arguments: &str) -> Result<LoraUse> {
    let mut words = arguments.split(':');
    let name = words.next().unwrap_or_default();
    let (mut places, mut text, mut unet, mut rank) = (Vec::new(), None, None, false);
    let mut block_weights = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("te", value)) => text = Some(value),
            Some(("unet", value)) => unet = Some(value),
            Some(("dyn", _)) => rank = true,
            Some(("lbw", list)) => {
                block_weights = read_list(list).map_err(|told| {
                    Error::request("prompt", format!("<lora:{arguments}>: {told}"))
                })?;
            }
            Some(_) => {}
            None => places.push(word),
        }
    }
    if rank || places.len() > 2 {
        let message = format!(
            "<lora:{arguments}> asks for a part of the LoRA's rank (`dyn`), which this program \
             cannot take"
        );
        return Err(Error::request("prompt", message).with_hint("leave it out"));
    }
    let number = |word: &str| {
        float(word.trim()).filter(|n| n.is_finite()).ok_or_else(|| {
            let message = format!("`{word}` in <lora:{arguments}> is not a weight");
            Error::request("prompt", message).with_hint("write <lora:NAME:0.8>")
        })
    };
    let place = |at: usize| places.get(at).copied();
    let text = text.or(place(0)).map_or(Ok(1.0), number)?;
    let weight = unet.or(place(1)).map_or(Ok(text), number)?;
    Ok(LoraUse {
        name: name.to_string(),
        weight,
        text_weight: (text != weight).then_some(text),
        block_weights,
    })
}

/// The text between occurrences of `word` that stand alone.
fn split_at_word<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(word) {
        let end = at + word.len();
        let joined = text[..at].chars().next_back().is_some_and(is_word)
            || text[end..].chars().next().is_some_and(is_word);
        if !joined {
            parts.push(&text[start..at]);
            start = end;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Takes `:weight` off the end of a part of a composition.
fn take_weight(text: &str) -> (&str, f64) {
    let text = text.trim_matches(is_space);
    if let Some((before, number)) = text.rsplit_once(':')
        && let number = number.trim_start_matches(is_space)
        && let digits = number.strip_prefix(['+', '-']).unwrap_or(number)
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
        && let Some(weight) = float(number)
    {
        return (before.trim_end_matches(is_space), weight);
    }
    (text, 1.0)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    /// `(` or `[`.
    Open(char),
    /// `)` or `]`; with a weight `:1.3)`, and all of it as written.
    Close(char, Option<f64>, &'a str),
    Colon,
    Bar,
    Text(&'a str),
    Break,
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, after) = rest.split_at(c.len_utf8());
        rest = after;
        match c {
            '(' | '[' => tokens.push(Token::Open(c)),
            ')' | ']' => tokens.push(Token::Close(c, None, token)),
            '|' => tokens.push(Token::Bar),
            '\\' => {
                let escaped = rest.chars().next().map_or(0, char::len_utf8);
                tokens.push(Token::Text(&rest[..escaped]));
                rest = &rest[escaped..];
            }
            ':' => match weight_and_bracket(rest) {
                Some((weight, after)) => {
                    let length = 1 + rest.len() - after.len();
                    let start = text.len() - rest.len() - 1;
                    tokens.push(Token::Close(
                        ')',
                        Some(weight),
                        &text[start..start + length],
                    ));
                    rest = after;
                }
                None => tokens.push(Token::Colon),
            },
            _ => {
                let start = text.len() - rest.len() - token.len();
                let special = |c| matches!(c, '(' | ')' | '[' | ']' | '|' | '\\' | ':');
                let end = rest.find(special).unwrap_or(rest.len());
                rest = &rest[end..];
                let run = &text[start..text.len() - rest.len()];
                push_run(run, &mut tokens);
            }
        }
    }
    tokens
}

/// Text without special characters: only `BREAK` is one, with the blanks around it.
fn push_run<'a>(run: &'a str, tokens: &mut Vec<Token<'a>>) {
    let parts = split_at_word(run, "BREAK");
    let last = parts.len() - 1;
    for (i, mut part) in parts.into_iter().enumerate() {
        if i > 0 {
            tokens.push(Token::Break);
            part = part.trim_start_matches(is_space);
        }
        if i < last {
            part = part.trim_end_matches(is_space);
        }
        if !part.is_empty() {
            tokens.push(Token::Text(part));
        }
    }
}

/// The number of `1.3)` after a colon, and what follows the bracket.
fn weight_and_bracket(text: &str) -> Option<(f64, &str)> {
    let number = text.trim_start_matches(is_space);
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = unsigned.trim_start_matches(|c| super::python::digit(c).is_some() || c == '.');
    let number = &number[..number.len() - after.len()];
    let after = after.trim_start_matches(is_space).strip_prefix(')')?;
    Some((float(number)?, after))
}

/// For every bracket that opens: where it closes (or the end) and what it multiplies by. For every
/// one that closes: what it closes.
struct Partners {
    close: Vec<usize>,
    factor: Vec<f64>,
    open: Vec<Option<usize>>,
}

fn partners(tokens: &[Token]) -> Partners {
    let n = tokens.len();
    let mut partners = Partners {
        close: vec![n; n],
        factor: vec![1.0; n],
        open: vec![None; n],
    };
    let (mut round, mut square) = (Vec::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open(bracket) => {
                let (stack, factor) = match bracket {
                    '(' => (&mut round, STEP),
                    _ => (&mut square, 1.0 / STEP),
                };
                stack.push(at);
                partners.factor[at] = factor;
            }
            Token::Close(bracket, weight, _) => {
                let stack = if *bracket == ')' {
                    &mut round
                } else {
                    &mut square
                };
                if let Some(open) = stack.pop() {
                    partners.close[open] = at;
                    partners.open[at] = Some(open);
                    if let Some(weight) = weight {
                        partners.factor[open] = *weight;
                    }
                }
            }
            _ => {}
        }
    }
    partners
}

/// A bracket that is still open, with its contents so far.
struct Frame {
    open: usize,
    /// The part of a bracket after it was crossed by another: a weight and nothing else.
    crossed: bool,
    /// The nodes between separators.
    segments: Vec<Vec<PromptNode>>,
    /// `:` or `|`, one fewer than there are segments.
    separators: Vec<char>,
}

impl Frame {
    fn new(open: usize) -> Frame {
        Frame {
            open,
            crossed: false,
            segments: vec![Vec::new()],
            separators: Vec::new(),
        }
    }

    fn push(&mut self, node: PromptNode) {
        if let Some(segment) = self.segments.last_mut() {
            push(segment, node);
        }
    }

    fn separate(&mut self, separator: char) {
        self.separators.push(separator);
        self.segments.push(Vec::new());
    }

    /// The content with the separators as text.
    fn literal(self) -> Vec<PromptNode> {
        let mut nodes = Vec::new();
        let mut separators = self.separators.into_iter();
        for (i, segment) in self.segments.into_iter().enumerate() {
            if i > 0 {
                push(
                    &mut nodes,
                    PromptNode::Text(separators.next().into_iter().collect()),
                );
            }
            segment.into_iter().for_each(|node| push(&mut nodes, node));
        }
        nodes
    }

    /// Makes the node of a square bracket that closes and was not crossed by another.
    fn square(mut self) -> PromptNode {
        let bars = self.separators.iter().filter(|c| **c == '|').count();
        let colons = self.separators.len() - bars;
        if bars > 0 && colons == 0 {
            return PromptNode::Alternate(self.segments);
        }
        if bars == 0
            && (colons == 1 || colons == 2)
            && let Some(when) = self.segments.last().and_then(|nodes| number(nodes))
        {
            self.segments.pop();
            let after = self.segments.pop().unwrap_or_default();
            let before = self.segments.pop().unwrap_or_default();
            return PromptNode::Edit {
                before,
                after,
                when,
            };
        }
        PromptNode::Group {
            weight: 1.0 / STEP,
            children: self.literal(),
        }
    }
}

/// Texts that touch are one.
fn push(nodes: &mut Vec<PromptNode>, node: PromptNode) {
    match (nodes.last_mut(), node) {
        (Some(PromptNode::Text(text)), PromptNode::Text(more)) => text.push_str(&more),
        (_, node) => nodes.push(node),
    }
}

/// The step of an edit.
fn number(nodes: &[PromptNode]) -> Option<f64> {
    let [PromptNode::Text(text)] = nodes else {
        return None;
    };
    let text = text.trim_matches(is_space);
    let signs = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-' | 'e' | 'E');
    text.chars().all(signs).then(|| text.parse().ok())?
}

fn nodes(text: &str) -> Result<Vec<PromptNode>> {
    let tokens = tokens(text);
    let partners = partners(&tokens);
    let mut root = Frame::new(usize::MAX);
    let mut stack: Vec<Frame> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let top = stack.last_mut().unwrap_or(&mut root);
        match *token {
            Token::Text(text) => top.push(PromptNode::Text(text.to_string())),
            Token::Break => top.push(PromptNode::Break),
            Token::Colon => top.separate(':'),
            Token::Bar => top.separate('|'),
            Token::Open(_) => {
                if stack.len() == MAX_DEPTH {
                    return Err(too_deep());
                }
                stack.push(Frame::new(at));
            }
            Token::Close(_, _, written) => match partners.open[at] {
                None => top.push(PromptNode::Text(written.to_string())),
                Some(open) => close(open, &tokens, &partners, &mut stack, &mut root),
            },
        }
    }
    while let Some(frame) = stack.pop() {
        let node = weighted(frame, &partners);
        stack.last_mut().unwrap_or(&mut root).push(node);
    }
    Ok(root.literal())
}

fn weighted(frame: Frame, partners: &Partners) -> PromptNode {
    PromptNode::Group {
        weight: partners.factor[frame.open],
        children: frame.literal(),
    }
}

/// Closes the bracket that opened at `open`. Those that opened after it and are still open go on
/// behind it, so that the tree is nested where the text is not.
fn close(
    open: usize,
    tokens: &[Token],
    partners: &Partners,
    stack: &mut Vec<Frame>,
    root: &mut Frame,
) {
    let mut go_on = Vec::new();
    while let Some(frame) = stack.pop() {
        let last = frame.open == open;
        let node = if !last {
            go_on.push(frame.open);
            weighted(frame, partners)
        } else if tokens[open] == Token::Open('[') && !frame.crossed && go_on.is_empty() {
            frame.square()
        } else {
            weighted(frame, partners)
        };
        stack.last_mut().unwrap_or(&mut *root).push(node);
        if last {
            break;
        }
    }
    stack.extend(go_on.into_iter().rev().map(|open| Frame {
        crossed: true,
        ..Frame::new(open)
    }));
}
