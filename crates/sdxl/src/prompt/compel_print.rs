//! Writes a tree in Compel's language.
//!
//! Compel has no escape that works everywhere: `\(` stands for a bracket, but `\+` stays as it is,
//! and whether a sign means something depends on what surrounds it. So single words are tried in
//! several spellings and read back, and so is a whole prompt that came from Compel.

use super::a1111_print::{backslash_before_bracket, decimal};
use super::python::{is_ascii_space, is_space};
use super::{
    Join, LoraUse, Prompt, PromptBody, PromptNode, PromptPart, ResolvedContent, ResolvedPart,
    WeightedSpan, compel,
};
use crate::request::PromptSyntax;

/// `prompt` in Compel's language; what it cannot say is added to `lost`.
pub(super) fn print(prompt: &Prompt, lost: &mut Vec<String>) -> String {
    if prompt.syntax != PromptSyntax::Compel {
        let text = foreign(prompt, free_word, lost);
        if !lost.is_empty() || reads_alike(&text, prompt) {
            return text;
        }
        // brackets of different words have found one another: signs stand alone then
        let text = foreign(prompt, apart, lost);
        if !reads_alike(&text, prompt) {
            lost.push(
                "Compel gives some signs of this text a meaning that cannot be kept out".into(),
            );
        }
        return text;
    }
    // signs in literal words as they are, if that reads back; else with escapes where they work
    let same = |text: &String| {
        Prompt::parse(text, PromptSyntax::Compel)
            .is_ok_and(|again| again.at(0, 1) == prompt.at(0, 1) && again.loras == prompt.loras)
    };
    [Spelling::Raw, Spelling::Escaped, Spelling::Lines]
        .into_iter()
        .map(|spelling| native(prompt, spelling))
        .find(same)
        .unwrap_or_else(|| native(prompt, Spelling::Escaped))
}

/// Brackets and quotes of a word that are tried with and without a backslash, at most.
const TRIED: usize = 5;

/// Which spelling of a literal word is tried first.
#[derive(Clone, Copy, PartialEq)]
enum Spelling {
    Raw,
    Escaped,
    /// As `Raw`, one word a line: no quote finds its partner on another line.
    Lines,
}

/// The tree of a Compel prompt, bracket by bracket.
fn native(prompt: &Prompt, spelling: Spelling) -> String {
    let texts: Vec<&PromptPart> = prompt
        .items
        .iter()
        .filter(|item| !item.only_loras())
        .collect();
    let implicit = texts.len() <= 1 && texts.iter().all(|item| item.weight == 1.0);
    if !implicit {
        let members = prompt
            .items
            .iter()
            .map(|PromptPart { body, weight }| match body {
                PromptBody::Text(nodes) => (nodes.as_slice(), *weight),
                PromptBody::Blend { .. } => (&[][..], *weight),
            });
        return list(members.collect(), ".and", None, spelling);
    }
    let items: Vec<String> = prompt
        .items
        .iter()
        .map(|PromptPart { body, .. }| match body {
            PromptBody::Text(nodes) => match nodes.as_slice() {
                [PromptNode::Text(text)] if text.is_empty() && prompt.items.len() == 1 => {
                    String::new()
                }
                nodes => free(nodes, spelling),
            },
            PromptBody::Blend { members, normalize } => {
                let members = members
                    .iter()
                    .map(|(nodes, w)| (nodes.as_slice(), *w))
                    .collect();
                let option = (!normalize).then_some("no_normalize");
                list(members, ".blend", option, spelling)
            }
        })
        .collect();
    items.join(" ")
}

fn list(
    members: Vec<(&[PromptNode], f64)>,
    operator: &str,
    option: Option<&str>,
    spelling: Spelling,
) -> String {
    let texts: Vec<String> = members
        .iter()
        .map(|(nodes, _)| member(nodes, spelling))
        .collect();
    let mut options: Vec<String> = Vec::new();
    if members.iter().any(|(_, weight)| *weight != 1.0) {
        options.extend(members.iter().map(|(_, weight)| option_number(*weight)));
    }
    options.extend(option.map(String::from));
    format!("({}){operator}({})", texts.join(", "), options.join(", "))
}

/// A weight among options, where the words for what is no number are numbers too.
fn option_number(weight: f64) -> String {
    if weight.is_finite() {
        weight.to_string()
    } else {
        weight.to_string().to_lowercase()
    }
}

/// A text of a list: in brackets if all of its words may stand there, else in quotes.
fn member(nodes: &[PromptNode], spelling: Spelling) -> String {
    let fits = |node: &PromptNode| match node {
        PromptNode::Text(text) => bracketable(text),
        _ => true,
    };
    if nodes.iter().all(fits) {
        let inside = fragment(nodes);
        let quotable = !inside.is_empty() && !inside.contains(['"', '\\']);
        return if quotable {
            format!("\"{inside}\"")
        } else {
            brackets(&inside)
        };
    }
    quotes(&free(nodes, spelling))
}

/// In quotes every quote is literal, with a backslash and without.
fn quotes(inside: &str) -> String {
    let inside = inside.replace("\\\"", "\"").replace('"', "\\\"");
    let space = if inside.ends_with('\\') { " " } else { "" };
    format!("\"{inside}{space}\"")
}

fn brackets(inside: &str) -> String {
    // a backslash before the bracket would make it literal
    let space = if inside.ends_with('\\') { " " } else { "" };
    format!("({inside}{space})")
}

/// Nodes outside of brackets.
fn free(nodes: &[PromptNode], spelling: Spelling) -> String {
    let mut out = String::new();
    for node in nodes {
        let text = match node {
            PromptNode::Text(text) if text.is_empty() => "\"\"".into(),
            // reading sets a space behind every comma but the second of two
            PromptNode::Text(text)
                if out.ends_with(',') && text.len() > 1 && text.starts_with(',') =>
            {
                out.pop();
                out.push_str(&literal(&format!(",{text}"), spelling));
                continue;
            }
            PromptNode::Text(text) => literal(text, spelling),
            node => bracketed(node),
        };
        if !out.is_empty() {
            out.push(if spelling == Spelling::Lines {
                '\n'
            } else {
                ' '
            });
        }
        out.push_str(&text);
    }
    out
}

/// Nodes inside of brackets.
fn fragment(nodes: &[PromptNode]) -> String {
    let mut out = String::new();
    let mut after_word = false;
    for node in nodes {
        let (text, sign) = match node {
            PromptNode::Text(text) if text.is_empty() => ("\"\"".into(), false),
            PromptNode::Text(text) => (escape(text), matches!(text.as_str(), "," | ".")),
            node => (bracketed(node), false),
        };
        if !(out.is_empty() || sign && after_word) {
            out.push(' ');
        }
        out.push_str(&text);
        after_word = matches!(node, PromptNode::Text(_)) && !text.ends_with(['\\', '"']);
    }
    out
}

/// A node with brackets of its own. The other languages' nodes are gone before (see [`foreign`]).
fn bracketed(node: &PromptNode) -> String {
    match node {
        PromptNode::Group { weight, children } => {
            let suffix = suffix(*weight);
            match children.as_slice() {
                [PromptNode::Text(word)] if plain_word(word) && suffix.starts_with(['+', '-']) => {
                    format!("{word}{suffix}")
                }
                _ => brackets(&fragment(children)) + &suffix,
            }
        }
        PromptNode::Swap {
            original,
            edited,
            options,
        } => {
            let target = match original.as_slice() {
                [PromptNode::Text(word)] if plain_word(word) => word.clone(),
                _ => brackets(&fragment(original)),
            };
            let mut edited = fragment(edited);
            for (name, value) in options {
                edited.push_str(", ");
                edited.push_str(name);
                if let Some(value) = value {
                    edited.push('=');
                    edited.push_str(value);
                }
            }
            target + ".swap" + &brackets(&edited)
        }
        PromptNode::Lora(LoraUse { name, weight, .. }) => match *weight {
            1.0 => format!("withLora({name})"),
            weight => format!("withLora({name}, {})", decimal(weight)),
        },
        PromptNode::Text(_)
        | PromptNode::Break
        | PromptNode::Edit { .. }
        | PromptNode::Alternate(_) => String::new(),
    }
}

/// Gives the suffix that stands for a weight behind brackets: signs where they give exactly that
/// number, else the number itself; nothing for a weight of 1.
fn suffix(weight: f64) -> String {
    if weight == 1.0 {
        return String::new();
    }
    let sign = if weight > 1.0 { '+' } else { '-' };
    match (1..=9).find(|count| compel::power(sign, *count) == weight) {
        Some(count) => String::from(sign).repeat(count),
        // too large for a number of 64 bits reads as infinite
        None if weight == f64::INFINITY => "9".repeat(310),
        None => decimal(weight.max(0.0)),
    }
}

fn plain_word(word: &str) -> bool {
    !word.is_empty() && word.chars().all(char::is_alphanumeric)
}

/// Brackets and quotes with the backslash that makes them text; where backslashes are before them
/// already, with the two that reading takes away.
fn escape(text: &str) -> String {
    escape_where(text, |_| true)
}

/// `escape` for some of the brackets and quotes, by number from 0.
fn escape_where(text: &str, escaped: impl Fn(usize) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = None;
    let mut number = 0;
    for c in text.chars() {
        if !matches!(c, '(' | ')' | '"') {
            out.push(c);
            before = Some(c);
            continue;
        }
        number += 1;
        if escaped(number - 1) {
            out.push_str(if before == Some('\\') { "\\\\" } else { "\\" });
        }
        out.push(c);
        before = Some(c);
    }
    out
}

/// Whether `text` is a word, or a sign, that may stand inside of brackets.
fn bracketable(text: &str) -> bool {
    matches!(text, "" | "," | ".") || pieces(text).len() == 1 && pieces(text)[0].1
}

/// A literal word outside of brackets, in the first spelling that reads back as that word.
fn literal(word: &str, spelling: Spelling) -> String {
    // a bracket without partner needs no backslash, and must not have one where a sign follows
    // that would then weigh what is before it
    let signs = word.matches(['(', ')', '"']).count().min(TRIED);
    let mut spellings: Vec<String> = (0..1_u32 << signs)
        .map(|set| escape_where(word, |number| number >= signs || set >> number & 1 == 1))
        .collect();
    if signs == TRIED {
        spellings.insert(0, word.to_string());
    }
    if spelling == Spelling::Escaped {
        spellings.reverse();
        // a quote would find its partner in some later word
        spellings.retain(|spelling| !spelling.starts_with('"'));
    }
    let read = spellings
        .into_iter()
        .find(|spelling| reads_as(spelling, word));
    read.unwrap_or_else(|| apart(word))
}

fn free_word(word: &str) -> String {
    literal(word, Spelling::Escaped)
}

/// A word with blanks where Compel would see a sign.
fn apart(word: &str) -> String {
    let pieces: Vec<String> = pieces(word).into_iter().map(|(piece, _)| piece).collect();
    pieces.join(" ")
}

/// Whether `text` is read as `word` and nothing more, blanks aside.
fn reads_as(text: &str, word: &str) -> bool {
    let Ok(items) = compel::parse(text) else {
        return false;
    };
    let mut read = String::new();
    for PromptPart { body, .. } in items {
        let PromptBody::Text(nodes) = body else {
            return false;
        };
        for node in nodes {
            match node {
                PromptNode::Text(text) => read.push_str(&text),
                _ => return false,
            }
        }
    }
    read.chars()
        .filter(|c| !is_ascii_space(*c))
        .eq(word.chars())
}

/// Whether Compel reads the words and weights of `prompt` in `text`.
fn reads_alike(text: &str, prompt: &Prompt) -> bool {
    let Ok(again) = Prompt::parse(text, PromptSyntax::Compel) else {
        return false;
    };
    let (read, wanted) = (weighted_words(&again), weighted_words(prompt));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
    read.len() == wanted.len()
        && read
            .iter()
            .zip(&wanted)
            .all(|(a, b)| a.0 == b.0 && near(a.1, b.1))
}

/// Gives the text of the first step, character by character, with the weight of each. Blanks are
/// left out, since translation adds and removes them.
fn weighted_words(prompt: &Prompt) -> Vec<(char, f64)> {
    let mut words = Vec::new();
    for ResolvedPart { content, .. } in prompt.at(0, usize::MAX).parts {
        let texts = match content {
            ResolvedContent::Text(spans) => vec![spans],
            ResolvedContent::Blend { members, .. } => {
                members.into_iter().map(|(spans, _)| spans).collect()
            }
        };
        for span in texts.into_iter().flatten() {
            if let WeightedSpan::Text { text, weight } = span {
                words.extend(text.chars().filter(|c| !is_space(*c)).map(|c| (c, weight)));
            }
        }
    }
    words
}

/// A word cut where Compel would see a sign: what may stand inside of brackets (`true`, escaped), and
/// signs that may not.
fn pieces(word: &str) -> Vec<(String, bool)> {
    let chars: Vec<char> = word.chars().collect();
    let is_sign = |c: char| matches!(c, '(' | ')' | '"' | ',' | '.' | '+' | '-' | '=');
    let mut pieces: Vec<(String, bool)> = Vec::new();
    let mut open = false;
    let mut at = 0;
    while at < chars.len() {
        let (c, next) = (chars[at], chars.get(at + 1).copied());
        let inside_word = match c {
            // a backslash and a sign are part of a word, and both stay
            '\\' if next.is_some_and(|n| matches!(n, ',' | '.' | '+' | '-' | '=')) => true,
            '+' | '-' => next.is_some_and(|n| !is_sign(n) || matches!(n, '(' | ')' | '"')),
            c => !matches!(c, ',' | '.' | '='),
        };
        let length = if c == '\\' && inside_word && next.is_some_and(is_sign) {
            2
        } else {
            1
        };
        let text: String = chars[at..at + length].iter().collect();
        match pieces.last_mut() {
            Some((piece, true)) if open && inside_word => piece.push_str(&text),
            // signs of one kind that belong together stay together
            Some((piece, false)) if !open && !matches!(c, ',' | '.') && !inside_word => {
                piece.push_str(&text);
            }
            _ => pieces.push((text, inside_word || matches!(c, ',' | '.'))),
        }
        open = inside_word;
        at += length;
    }
    for (piece, safe) in &mut pieces {
        if *safe {
            *piece = escape(piece);
        }
    }
    pieces
}

/// A prompt of another language: its weighted texts as they are at the first step.
fn foreign(prompt: &Prompt, spell: fn(&str) -> String, lost: &mut Vec<String>) -> String {
    if prompt.changes_by_step() {
        lost.push("Compel's prompts are the same at every step; this is the first one's".into());
    }
    let mut texts: Vec<(Vec<(String, f64)>, f64)> = Vec::new();
    let resolved = prompt.at(0, usize::MAX);
    for part in &resolved.parts {
        let spans = match &part.content {
            ResolvedContent::Text(spans) => spans.as_slice(),
            ResolvedContent::Blend { .. } => &[],
        };
        texts.push((Vec::new(), part.weight));
        for span in spans {
            match span {
                WeightedSpan::Text { text, weight } => {
                    if *weight < 0.0 {
                        lost.push(format!("Compel has no negative weights; {weight} is now 0"));
                    }
                    if let Some((spans, _)) = texts.last_mut() {
                        spans.push((text.clone(), *weight));
                    }
                }
                WeightedSpan::Break if resolved.join == Join::Compose => {
                    lost.push("a BREAK in a part of an AND is gone".into());
                }
                WeightedSpan::Break => texts.push((Vec::new(), part.weight)),
            }
        }
    }
    let loras = loras(prompt, lost);
    if resolved.join == Join::Compose {
        lost.push("Compel cannot mix predictions; .blend(...) mixes conditionings instead".into());
        let weights: Vec<String> = texts.iter().map(|(_, w)| option_number(*w)).collect();
        let texts: Vec<String> = texts
            .iter()
            .map(|(spans, _)| foreign_member(spans, lost))
            .collect();
        let blend = format!(
            "({}).blend({}, no_normalize)",
            texts.join(", "),
            weights.join(", ")
        );
        return join(blend, loras);
    }
    if let [(spans, _)] = texts.as_slice() {
        return join(foreign_text(spans, spell, lost), loras);
    }
    // what follows .and(...) is dropped, so LoRAs go inside
    let mut members: Vec<String> = texts
        .iter()
        .map(|(spans, _)| foreign_member(spans, lost))
        .collect();
    if !loras.is_empty() {
        members.push(format!("({})", loras.join(" ")));
    }
    format!("({}).and()", members.join(", "))
}

fn join(text: String, mut words: Vec<String>) -> String {
    if !text.is_empty() {
        words.insert(0, text);
    }
    words.join(" ")
}

fn loras(prompt: &Prompt, lost: &mut Vec<String>) -> Vec<String> {
    let sayable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut loras = Vec::new();
    for lora in &prompt.loras {
        if !lora.name.is_empty() && lora.name.chars().all(sayable) {
            loras.push(bracketed(&PromptNode::Lora(lora.clone())));
            if lora.text_weight.is_some() {
                lost.push(format!(
                    "Compel has one weight for the LoRA `{}`; that of the text encoders is gone",
                    lora.name
                ));
            }
            if !lora.block_weights.is_empty() {
                lost.push(format!(
                    "Compel has no weights by block; those of the LoRA `{}` are gone",
                    lora.name
                ));
            }
        } else {
            lost.push(format!(
                "Compel cannot name the LoRA `{}`; it is gone",
                lora.name
            ));
        }
    }
    loras
}

/// Words as they are, weighted ones in brackets.
fn foreign_text(
    spans: &[(String, f64)],
    spell: fn(&str) -> String,
    lost: &mut Vec<String>,
) -> String {
    let mut out: Vec<String> = Vec::new();
    let in_brackets = |inside: &mut Vec<String>, out: &mut Vec<String>, weight: f64| {
        if inside.is_empty() {
            return;
        }
        // a bracket behind these words would be their arguments
        if let Some(word) = out.last_mut() {
            for operator in [".swap", ".attend"] {
                if let Some(target) = word.strip_suffix(operator) {
                    *word = format!("{target}. {}", &operator[1..]);
                }
            }
            if word.ends_with("Lora") {
                out.push("()".into());
            }
        }
        out.push(brackets(&inside.join(" ")) + &suffix(weight));
        inside.clear();
    };
    for (text, weight) in spans {
        if backslash_before_bracket(text) {
            lost.push("Compel drops backslashes before brackets and quotes".into());
        }
        let words = text.split(is_ascii_space).filter(|word| !word.is_empty());
        if *weight == 1.0 {
            out.extend(words.map(spell));
            continue;
        }
        let mut inside: Vec<String> = Vec::new();
        for (piece, safe) in words.flat_map(pieces) {
            if safe {
                inside.push(piece);
                continue;
            }
            in_brackets(&mut inside, &mut out, *weight);
            lost.push(format!("Compel cannot give `{piece}` a weight"));
            out.push(piece);
        }
        in_brackets(&mut inside, &mut out, *weight);
    }
    out.join(" ")
}

fn foreign_member(spans: &[(String, f64)], lost: &mut Vec<String>) -> String {
    let inside = foreign_text(spans, apart, lost);
    let all_fit = |(text, weight): &(String, f64)| {
        *weight != 1.0
            || text
                .split(is_ascii_space)
                .flat_map(pieces)
                .all(|(_, safe)| safe)
    };
    // backslashes mean more in quotes, but signs can stand only there
    if spans.iter().all(all_fit) && inside.contains(['\\', '"']) {
        return brackets(&inside);
    }
    quotes(&inside)
}
