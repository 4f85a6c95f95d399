//! Reads Compel's prompt language, as Compel 2.5.1 reads it.
//!
//! Compel's grammar is a parsing expression grammar: alternatives are tried in order, and the first
//! that fits is taken for good. Its library tries the inside of a bracket again for every alternative,
//! which takes time exponential in depth. Here every opening bracket is read once, from the last to
//! the first, so that what stands inside is known already ([`Reader::brackets`]); that takes linear
//! time and no recursion.
//!
//! ```text
//! word      = ( "\" SIGN | [+-] before neither blank, SIGN nor end | not blank nor SIGN )+
//! number    = [+-]? ( d+ "." d* | "." d+ ) | "-"? [0-9]+
//! pm        = "+"+ | "-"+
//! quoted    = '"' body '"'                  the body, without its escapes, is read as a fragment
//! paren     = "(" fragment ")"
//! target    = quoted | paren | word
//! attention = target ".attend" "(" (pm | number) ")"
//!           | (quoted | paren) ^(pm | number) | word ^pm           ^: no blank between
//! swap      = target ".swap" "(" part* [ "," options ] ")"
//! lora      = ("useLora" | "withLora") "(" keyword [ "," number ] ")"
//! part      = lora | attention | swap | paren | quoted | word
//! fragment  = ( part | "," | "." )*
//! prompt    = ( swap | lora | attention | quoted | paren | not-blank+ | blank+ )*
//! list      = "(" item ("," item)* ")"      item = target | quoted whose body is a prompt
//! top       = list (".and" | ".add") "(" options ")"               the rest is dropped
//!           | lora* ( list ".blend" "(" options ")" | prompt ) lora* end
//! ```
//!
//! SIGN is one of `( ) " , . + - =`. Blanks are skipped before every terminal. In comments below,
//! "Compel" means the observable behaviour of that library.

use super::python::{digit, float, is_ascii_space, is_space};
use super::resolve::unescape;
use super::{LoraUse, MAX_DEPTH, PromptBody, PromptNode, PromptPart, too_deep};
use crate::error::{Error, Result};

/// Reads `text`.
///
/// # Errors
/// [`Error::Request`] for text after `.blend(...)`, weights of a wrong count, that are not numbers, or
/// that are to be divided by a sum of 0, a swap inside a blend, and brackets nested too deep.
pub(super) fn parse(text: &str) -> Result<Vec<PromptPart>> {
    // Compel refuses most of them; they come with texts that are pasted, and mean a blank.
    let text = text.replace(['\u{b}', '\u{c}'], " ");
    let text = space_commas(&text);
    if text.chars().all(is_space) {
        return Ok(vec![PromptPart::text(vec![
            PromptNode::Text(String::new()),
        ])]);
    }
    let mut reader = Reader::new(&text)?;
    let result = reader.top();
    match reader.failure {
        Some(error) => Err(error),
        None => result,
    }
}

/// A comma directly before anything but a blank gets a space.
fn space_commas(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(c);
        if c != ',' {
            continue;
        }
        // the character after a comma is looked at once: of `,,` only the first is a comma
        if let Some(next) = chars.next() {
            if !is_space(next) {
                out.push(' ');
            }
            out.push(next);
        }
    }
    out
}

fn is_sign(c: char) -> bool {
    matches!(c, '(' | ')' | '"' | ',' | '.' | '+' | '-' | '=')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Says whether pyparsing skips `c` before it looks for blanks at the level of a prompt.
fn is_skipped_before_blank(c: char) -> bool {
    matches!(
        c,
        '\u{c}' | '\u{a0}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200b}'
    ) || matches!(c, '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// A node whose brackets are still only named by where they open.
#[derive(Debug, Clone)]
enum Raw {
    Text(String),
    Group { weight: f64, inside: Inside },
    Swap { original: Inside, arguments: usize },
    Lora(LoraUse),
}

/// The contents of a pair of brackets or quotes, named by the position where the pair opens, or a
/// word without either.
#[derive(Debug, Clone)]
enum Inside {
    Paren(usize),
    Quoted(usize),
    Word(String),
}

/// A bracket or quote that was read: where it ends and what it holds.
#[derive(Debug, Clone)]
struct Pair<T> {
    end: usize,
    depth: usize,
    holds: T,
}

/// The arguments between `.swap(` and `)`.
#[derive(Debug, Clone)]
struct Arguments {
    edited: Vec<Raw>,
    options: Options,
}

type Options = Vec<(String, Option<String>)>;

/// A value that was read, and the position where it ends.
type Read<T> = Option<(T, usize)>;

struct Reader {
    text: Vec<char>,
    /// For every position the first one from there on that is no blank.
    after_blanks: Vec<usize>,
    /// By position of the opening bracket.
    parens: Vec<Option<Pair<Vec<Raw>>>>,
    swaps: Vec<Option<Pair<Arguments>>>,
    /// By position of the opening quote; `None`: not tried.
    quotes: Vec<Option<Option<Pair<Vec<PromptNode>>>>>,
    /// A refusal that no other alternative can mend.
    failure: Option<Error>,
}

impl Reader {
    fn new(text: &str) -> Result<Reader> {
        let text: Vec<char> = text.chars().collect();
        let n = text.len();
        let mut after_blanks = vec![n; n + 1];
        for i in (0..n).rev() {
            after_blanks[i] = if is_blank(text[i]) {
                after_blanks[i + 1]
            } else {
                i
            };
        }
        let mut reader = Reader {
            text,
            after_blanks,
            parens: vec![None; n],
            swaps: vec![None; n],
            quotes: vec![None; n],
            failure: None,
        };
        reader.brackets();
        match reader.failure.take() {
            Some(error) => Err(error),
            None => Ok(reader),
        }
    }

    /// Reads every opening bracket, the last one first. One after a backslash is part of a word
    /// wherever it could be met.
    fn brackets(&mut self) {
        for at in (0..self.text.len()).rev() {
            if self.text[at] != '(' || at > 0 && self.text[at - 1] == '\\' {
                continue;
            }
            self.parens[at] = self.read_paren(at);
            self.swaps[at] = self.read_arguments(at);
        }
    }

    fn read_paren(&mut self, open: usize) -> Option<Pair<Vec<Raw>>> {
        let (holds, at) = self.fragment(open + 1);
        let end = self.literal(at, ")")?;
        let depth = self.depth_within(&holds)?;
        Some(Pair { end, depth, holds })
    }

    fn read_arguments(&mut self, open: usize) -> Option<Pair<Arguments>> {
        // only a bracket after ".swap" is ever asked for; any other is not worth the time
        let before = self.text[..open].iter().rposition(|c| !is_blank(*c))?;
        if before < 4 || self.text[before - 4..=before] != ['.', 's', 'w', 'a', 'p'] {
            return None;
        }
        let mut edited = Vec::new();
        let mut at = open + 1;
        while let Some((part, next)) = self.part(at) {
            edited.push(part);
            at = next;
        }
        let mut options = Vec::new();
        if let Some(next) = self.literal(at, ",") {
            (options, at) = self.options(next);
        }
        let end = self.literal(at, ")")?;
        let depth = self.depth_within(&edited)?;
        let holds = Arguments { edited, options };
        Some(Pair { end, depth, holds })
    }

    /// One more than the deepest bracket inside.
    fn depth_within(&mut self, inside: &[Raw]) -> Option<usize> {
        let depth_of = |inside: &Inside| match inside {
            Inside::Paren(at) => self.parens[*at].as_ref().map_or(0, |pair| pair.depth),
            Inside::Quoted(at) => match &self.quotes[*at] {
                Some(Some(pair)) => pair.depth,
                _ => 0,
            },
            Inside::Word(_) => 0,
        };
        let deepest = inside.iter().map(|node| match node {
            Raw::Group { inside, .. } => depth_of(inside),
            Raw::Swap {
                original,
                arguments,
            } => {
                let arguments = self.swaps[*arguments].as_ref().map_or(0, |pair| pair.depth);
                depth_of(original).max(arguments)
            }
            Raw::Text(_) | Raw::Lora(_) => 0,
        });
        let depth = 1 + deepest.max().unwrap_or(0);
        if depth > MAX_DEPTH {
            self.failure = Some(too_deep());
            return None;
        }
        Some(depth)
    }

    fn peek(&self, at: usize) -> Option<char> {
        self.text.get(at).copied()
    }

    fn skip(&self, at: usize) -> usize {
        self.after_blanks[at.min(self.text.len())]
    }

    /// `word`, after blanks; where it ends.
    fn literal(&self, at: usize, word: &str) -> Option<usize> {
        let mut at = self.skip(at);
        for c in word.chars() {
            if self.peek(at) != Some(c) {
                return None;
            }
            at += 1;
        }
        Some(at)
    }

    fn word(&self, at: usize) -> Read<String> {
        let start = self.skip(at);
        let mut at = start;
        while let Some(c) = self.peek(at) {
            let next = self.peek(at + 1);
            at += match c {
                '\\' if next.is_some_and(is_sign) => 2,
                '+' | '-' if next.is_some_and(|n| !is_blank(n) && !is_sign(n)) => 1,
                c if is_ascii_space(c) || is_sign(c) => break,
                _ => 1,
            };
        }
        (at > start).then(|| (fragment_text(&self.text[start..at]), at))
    }

    fn number(&self, at: usize) -> Read<f64> {
        let start = self.skip(at);
        let digits = |from: usize| {
            let rest = &self.text[from.min(self.text.len())..];
            from + rest.iter().take_while(|c| digit(**c).is_some()).count()
        };
        let signed = usize::from(matches!(self.peek(start), Some('+' | '-')));
        let whole = digits(start + signed);
        let mut end = start;
        if self.peek(whole) == Some('.') {
            let fraction = digits(whole + 1);
            // "2." is a number, "." alone is not
            if fraction > whole + 1 || whole > start + signed {
                end = fraction;
            }
        }
        if end == start {
            // no fraction: ASCII digits and no plus
            let minus = usize::from(self.peek(start) == Some('-'));
            let rest = &self.text[start + minus..];
            let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            end = start + minus + digits;
        }
        let text: String = self.text[start..end].iter().collect();
        Some((float(&text)?, end))
    }

    /// A weight: signs or a number.
    fn operator(&mut self, at: usize) -> Read<f64> {
        match self.signs(at) {
            Some(read) => Some(read),
            None => self.number(at),
        }
    }

    /// `+++` or `---`.
    fn signs(&mut self, at: usize) -> Read<f64> {
        let start = self.skip(at);
        let sign = self.peek(start).filter(|c| matches!(c, '+' | '-'))?;
        let count = self.text[start..]
            .iter()
            .take_while(|c| **c == sign)
            .count();
        let weight = power(sign, count);
        if weight.is_infinite() && self.failure.is_none() {
            self.failure = Some(Error::request(
                "prompt",
                format!("{count} times `{sign}` makes a weight too large to compute with"),
            ));
        }
        Some((weight, start + count))
    }

    fn keyword(&self, at: usize) -> Read<String> {
        let start = self.skip(at);
        let keyword: String = self.text[start..]
            .iter()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
            .collect();
        let end = start + keyword.len();
        (end > start).then_some((keyword, end))
    }

    fn option(&self, at: usize) -> Read<(String, Option<String>)> {
        if let Some((name, next)) = self.keyword(at)
            && let Some(next) = self.literal(next, "=")
        {
            if let Some((value, end)) = self.number(next) {
                return Some(((name, Some(value.to_string())), end));
            }
            if let Some((value, end)) = self.keyword(next) {
                return Some(((name, Some(value)), end));
            }
        }
        if let Some((value, end)) = self.number(at) {
            return Some(((value.to_string(), None), end));
        }
        let (name, end) = self.keyword(at)?;
        Some(((name, None), end))
    }

    /// Options with commas between; none at all are options too.
    fn options(&self, at: usize) -> (Options, usize) {
        let mut options = Vec::new();
        let (mut end, mut next) = (at, Some(at));
        while let Some((option, after)) = next.and_then(|at| self.option(at)) {
            options.push(option);
            end = after;
            next = self.literal(after, ",");
        }
        (options, end)
    }

    fn paren(&self, at: usize) -> Read<Inside> {
        let at = self.skip(at);
        let pair = self.parens.get(at)?.as_ref()?;
        Some((Inside::Paren(at), pair.end))
    }

    /// A quoted fragment.
    fn quoted(&mut self, at: usize) -> Read<Inside> {
        let at = self.skip(at);
        if self.peek(at) != Some('"') {
            return None;
        }
        if self.quotes[at].is_none() {
            let pair = self.quote(at).and_then(|(body, end)| {
                let (holds, depth) = self.within_quotes(&body, |reader| {
                    let (raw, at) = reader.fragment(0);
                    Some((raw, at))
                })?;
                Some(Pair { end, depth, holds })
            });
            self.quotes[at] = Some(pair);
        }
        let pair = self.quotes[at].as_ref()?.as_ref()?;
        Some((Inside::Quoted(at), pair.end))
    }

    /// The body of a quoted string, and where the string ends: at the first quote on the line that has
    /// no backslash before it, and if there is none, at the last that has.
    fn quote(&self, open: usize) -> Read<Vec<char>> {
        let mut escaped = None;
        let mut at = open + 1;
        let close = loop {
            match self.peek(at) {
                Some('\n' | '\r') | None => break escaped?,
                Some('"') => break at,
                Some('\\') if self.peek(at + 1) == Some('"') => {
                    escaped = Some(at + 1);
                    at += 2;
                }
                Some(_) => at += 1,
            }
        };
        Some((unquote(&self.text[open + 1..close]), close + 1))
    }

    /// Reads all of `body`, the inside of quotes, with `rule`.
    fn within_quotes(
        &mut self,
        body: &[char],
        rule: impl FnOnce(&mut Reader) -> Read<Vec<Raw>>,
    ) -> Option<(Vec<PromptNode>, usize)> {
        if body.iter().all(|c| is_space(*c)) {
            return Some((vec![PromptNode::Text(String::new())], 0));
        }
        // every quote that is left is literal, so quotes do not nest, and neither does this call
        let mut text = String::with_capacity(body.len());
        for &c in body {
            if c == '"' {
                text.push('\\');
            }
            text.push(if c == '\t' { ' ' } else { c });
        }
        let mut inner = match Reader::new(&text) {
            Ok(inner) => inner,
            Err(error) => {
                self.failure = Some(error);
                return None;
            }
        };
        let read = rule(&mut inner);
        if let Some(error) = inner.failure.take() {
            self.failure = Some(error);
        }
        let (raw, end) = read?;
        if inner.skip(end) < inner.text.len() {
            return None;
        }
        let depth = inner.depth_within(&raw)?;
        Some((inner.build(&raw), depth))
    }

    fn target(&mut self, at: usize) -> Read<Inside> {
        if let Some(read) = self.quoted(at) {
            return Some(read);
        }
        if let Some(read) = self.paren(at) {
            return Some(read);
        }
        let (word, end) = self.word(at)?;
        Some((Inside::Word(word), end))
    }

    fn attention(&mut self, at: usize) -> Read<Raw> {
        let (inside, end) = self.target(at)?;
        if let Some((weight, end)) = self.attend(end) {
            return Some((Raw::Group { weight, inside }, end));
        }
        if self.peek(end).is_none_or(is_blank) {
            return None;
        }
        let (weight, end) = match inside {
            Inside::Word(_) => self.signs(end)?,
            _ => self.operator(end)?,
        };
        Some((Raw::Group { weight, inside }, end))
    }

    fn attend(&mut self, at: usize) -> Read<f64> {
        let at = self.literal(at, ".attend")?;
        let at = self.literal(at, "(")?;
        let (weight, at) = self.operator(at)?;
        Some((weight, self.literal(at, ")")?))
    }

    fn swap(&mut self, at: usize) -> Read<Raw> {
        let (original, end) = self.target(at)?;
        let open = self.skip(self.literal(end, ".swap")?);
        let pair = self.swaps.get(open)?.as_ref()?;
        let swap = Raw::Swap {
            original,
            arguments: open,
        };
        Some((swap, pair.end))
    }

    fn lora(&self, at: usize) -> Read<Raw> {
        let at = self
            .literal(at, "useLora")
            .or_else(|| self.literal(at, "withLora"))?;
        let at = self.literal(at, "(")?;
        let (name, mut at) = self.keyword(at)?;
        let mut weight = 1.0;
        if let Some(next) = self.literal(at, ",")
            && let Some((number, end)) = self.number(next)
        {
            (weight, at) = (number, end);
        }
        let end = self.literal(at, ")")?;
        let lora = LoraUse {
            name,
            weight,
            text_weight: None,
            block_weights: Vec::new(),
        };
        Some((Raw::Lora(lora), end))
    }

    fn group(&mut self, at: usize) -> Read<Raw> {
        let (inside, end) = self.paren(at).or_else(|| self.quoted(at))?;
        Some((
            Raw::Group {
                weight: 1.0,
                inside,
            },
            end,
        ))
    }

    fn part(&mut self, at: usize) -> Read<Raw> {
        if let Some(read) = self.lora(at) {
            return Some(read);
        }
        if let Some(read) = self.attention(at) {
            return Some(read);
        }
        if let Some(read) = self.swap(at) {
            return Some(read);
        }
        if let Some(read) = self.group(at) {
            return Some(read);
        }
        let (word, end) = self.word(at)?;
        Some((Raw::Text(word), end))
    }

    fn fragment(&mut self, mut at: usize) -> (Vec<Raw>, usize) {
        let mut parts = Vec::new();
        loop {
            if let Some((part, end)) = self.part(at) {
                parts.push(part);
                at = end;
            } else if let Some(sign @ (',' | '.')) = self.peek(self.skip(at)) {
                parts.push(Raw::Text(sign.to_string()));
                at = self.skip(at) + 1;
            } else {
                return (parts, at);
            }
        }
    }

    fn prompt(&mut self, mut at: usize) -> (Vec<Raw>, usize) {
        let mut parts = Vec::new();
        loop {
            let read = match self.swap(at) {
                Some(read) => Some(read),
                None => match self.lora(at) {
                    Some(read) => Some(read),
                    None => match self.attention(at) {
                        Some(read) => Some(read),
                        None => self.group(at),
                    },
                },
            };
            if let Some((part, end)) = read {
                parts.push(part);
                at = end;
                continue;
            }
            // anything else up to the next blank, signs and all
            let run = self.text[at..]
                .iter()
                .take_while(|c| !is_ascii_space(**c))
                .count();
            if run > 0 {
                parts.push(Raw::Text(fragment_text(&self.text[at..at + run])));
                at += run;
                continue;
            }
            let rest = &self.text[at..];
            let blank = at
                + rest
                    .iter()
                    .take_while(|c| is_skipped_before_blank(**c))
                    .count();
            if !self.peek(blank).is_some_and(is_blank) {
                return (parts, at);
            }
            at = self.skip(blank);
        }
    }

    /// `("a", b)` before an operator.
    fn list(&mut self, at: usize) -> Read<Vec<Vec<PromptNode>>> {
        let mut at = self.literal(at, "(")?;
        let mut items = Vec::new();
        loop {
            let (item, end) = self.item(at)?;
            items.push(item);
            match self.literal(end, ",") {
                Some(next) => at = next,
                None => return Some((items, self.literal(end, ")")?)),
            }
        }
    }

    fn item(&mut self, at: usize) -> Read<Vec<PromptNode>> {
        if let Some((target, end)) = self.target(at) {
            return Some((self.build_inside(&target), end));
        }
        let open = self.skip(at);
        if self.peek(open) != Some('"') {
            return None;
        }
        let (body, end) = self.quote(open)?;
        let (nodes, _) = self.within_quotes(&body, |reader| {
            let (raw, at) = reader.prompt(0);
            Some((raw, at))
        })?;
        Some((nodes, end))
    }

    fn operation(&mut self, at: usize, names: &[&str]) -> Read<(Vec<Vec<PromptNode>>, Options)> {
        let (items, at) = self.list(at)?;
        let at = names.iter().find_map(|name| self.literal(at, name))?;
        let at = self.literal(at, "(")?;
        let (options, at) = self.options(at);
        Some(((items, options), self.literal(at, ")")?))
    }

    fn top(&mut self) -> Result<Vec<PromptPart>> {
        if let Some(((items, options), _)) = self.operation(0, &[".and", ".add"]) {
            let weights = weights(".and", &options, items.len())?;
            let items = items.into_iter().zip(weights);
            return Ok(items
                .map(|(nodes, weight)| PromptPart {
                    body: PromptBody::Text(nodes),
                    weight,
                })
                .collect());
        }
        let mut items = Vec::new();
        let mut at = self.loras(0, &mut items);
        let blend = self.operation(at, &[".blend"]);
        let blended = blend.is_some();
        if let Some(((members, options), end)) = blend {
            items.push(blend_item(members, &options)?);
            at = end;
        } else {
            let (raw, end) = self.prompt(at);
            items.push(PromptPart::text(self.build(&raw)));
            at = end;
        }
        at = self.loras(at, &mut items);
        let rest = self.skip(at);
        if rest == self.text.len() {
            return Ok(items);
        }
        let rest: String = self.text[rest..].iter().take(40).collect();
        let message = match blended {
            true => format!("only withLora(...) may follow .blend(...), not `{rest}`"),
            // A prompt reads everything that is no blank.
            false => format!("`{rest}` is not understood"),
        };
        Err(Error::request("prompt", message))
    }

    fn loras(&mut self, mut at: usize, items: &mut Vec<PromptPart>) -> usize {
        let mut loras = Vec::new();
        while let Some((Raw::Lora(lora), end)) = self.lora(at) {
            loras.push(PromptNode::Lora(lora));
            at = end;
        }
        if !loras.is_empty() {
            items.push(PromptPart::text(loras));
        }
        at
    }

    /// The tree of what was read. Its depth was checked when brackets were read.
    fn build(&self, raw: &[Raw]) -> Vec<PromptNode> {
        raw.iter()
            .map(|raw| match raw {
                Raw::Text(text) => PromptNode::Text(text.clone()),
                Raw::Group { weight, inside } => PromptNode::Group {
                    weight: *weight,
                    children: self.build_inside(inside),
                },
                Raw::Lora(lora) => PromptNode::Lora(lora.clone()),
                Raw::Swap {
                    original,
                    arguments,
                } => {
                    let original = self.build_inside(original);
                    let pair = self.swaps[*arguments].as_ref();
                    let (edited, options) = pair.map_or_else(Default::default, |pair| {
                        (self.build(&pair.holds.edited), pair.holds.options.clone())
                    });
                    PromptNode::Swap {
                        original,
                        edited,
                        options,
                    }
                }
            })
            .collect()
    }

    fn build_inside(&self, inside: &Inside) -> Vec<PromptNode> {
        match inside {
            Inside::Paren(at) => match &self.parens[*at] {
                Some(pair) => self.build(&pair.holds),
                None => Vec::new(),
            },
            Inside::Quoted(at) => match &self.quotes[*at] {
                Some(Some(pair)) => pair.holds.clone(),
                _ => Vec::new(),
            },
            Inside::Word(word) => vec![PromptNode::Text(word.clone())],
        }
    }
}

/// 1.1 or 0.9 to the power of the number of signs, by the system's `pow` as in Python, whose last bit decides
/// which texts have equal weights.
pub(super) fn power(sign: char, count: usize) -> f64 {
    let base = if sign == '+' { 1.1 } else { 0.9 };
    f64::powf(base, count as f64)
}

/// A word or run as a text: Compel takes the backslashes before brackets and quotes away when it
/// makes a fragment, and again when it multiplies its weight.
fn fragment_text(chars: &[char]) -> String {
    unescape(&chars.iter().collect::<String>(), 2)
}

/// The body of a quoted string with its escapes undone, by the rules of pyparsing 3.3 and with its
/// slip: where it means three octal, two or four hexadecimal digits it takes one digit and a literal
/// 3, 2 or 4.
fn unquote(body: &[char]) -> Vec<char> {
    let mut out = Vec::with_capacity(body.len());
    let mut at = 0;
    while let Some(&c) = body.get(at) {
        let next = |ahead: usize| body.get(at + ahead).copied();
        let hex = |c: Option<char>| c.and_then(|c| c.to_digit(16)).map(|d| d * 16);
        let (made, length) = match (c, next(1)) {
            ('\\', Some('t')) => ('\t', 2),
            ('\\', Some('n')) => ('\n', 2),
            ('\\', Some('f')) => ('\u{c}', 2),
            ('\\', Some('r')) => ('\r', 2),
            // the backslash goes, the two digits stay
            ('\\', Some(octal @ '0'..='7')) if next(2) == Some('3') => (octal, 2),
            ('\\', Some('0')) => ('\0', 2),
            ('\\', Some(kind @ ('x' | 'u'))) => {
                let last = if kind == 'x' { 2 } else { 4 };
                match (hex(next(2)), next(3).and_then(|c| c.to_digit(10))) {
                    (Some(high), Some(low)) if low == last => {
                        (char::from_u32(high + low).unwrap_or('\u{fffd}'), 4)
                    }
                    _ => (c, 1),
                }
            }
            ('\\', Some('"')) => ('"', 2),
            _ => (c, 1),
        };
        out.push(made);
        at += length;
    }
    out
}

fn blend_item(
    members: Vec<Vec<PromptNode>>,
    options: &[(String, Option<String>)],
) -> Result<PromptPart> {
    let (options, normalize) = match options.split_last() {
        Some(((name, _), rest)) if name == "no_normalize" => (rest, false),
        _ => (options, true),
    };
    let weights = weights(".blend", options, members.len())?;
    let sum: f64 = weights.iter().sum();
    // Sums of decimals are seldom exactly 0.
    if normalize && sum.abs() < 1e-9 {
        let written: Vec<String> = weights.iter().map(f64::to_string).collect();
        let message = format!(
            ".blend({}): each weight is divided by their sum, which is 0",
            written.join(", ")
        );
        let hint = "change one, or add no_normalize behind them, which takes them as they are";
        return Err(Error::request("prompt", message).with_hint(hint));
    }
    if members.iter().any(|nodes| has_swap(nodes)) {
        return Err(Error::request(
            "prompt",
            ".swap(...) cannot be used inside of .blend(...)",
        ));
    }
    Ok(PromptPart {
        body: PromptBody::Blend {
            members: members.into_iter().zip(weights).collect(),
            normalize,
        },
        weight: 1.0,
    })
}

fn has_swap(nodes: &[PromptNode]) -> bool {
    nodes.iter().any(|node| match node {
        PromptNode::Swap { .. } => true,
        PromptNode::Group { children, .. } => has_swap(children),
        _ => false,
    })
}

/// One weight for each of `count` texts; all 1 where none is given.
fn weights(name: &str, options: &[(String, Option<String>)], count: usize) -> Result<Vec<f64>> {
    let mut weights = Vec::with_capacity(count);
    for (option, _) in options {
        weights.push(float(option).ok_or_else(|| {
            let message = format!("`{option}` in {name}(...) is not a number");
            Error::request("prompt", message).with_hint("give one weight for each text")
        })?);
    }
    if weights.is_empty() {
        weights = vec![1.0; count];
    }
    if weights.len() != count {
        let message = format!(
            "{name}(...) has {} weights for {count} texts",
            weights.len()
        );
        return Err(Error::request("prompt", message).with_hint("give one for each, or none"));
    }
    Ok(weights)
}
