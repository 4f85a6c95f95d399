//! Wildcards: choices in a prompt that are made before it is read.
//!
//! | written | becomes |
//! |---|---|
//! | `{red\|green\|blue}` | one of them; each may hold choices of its own |
//! | `{3::red\|green}` | `red` three times as often as `green` |
//! | `{2$$red\|green\|blue}` | two different ones, with `, ` between; `{1-2$$...}`: one or two |
//! | `{2$$ and $$red\|green\|blue}` | two different ones, with ` and ` between |
//! | `__colours__`, `__cars/old__` | a line of `colours.txt`, of `cars/old.txt` |
//! | `\{`, `\}`, `\__`, and `\|` in braces | the characters themselves |
//!
//! Files hold one option a line; empty lines and lines that begin with `#` do not count, and an option
//! may begin with a weight, as in braces. Braces without partner are text. What was chosen depends on
//! the text, the files and the seed alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::noise::{Generator, Rng};

/// Braces and files inside one another, at most; a file that names itself goes on for ever.
const MAX_DEPTH: usize = 50;
/// Bytes of text, at most: a prompt of that length is a mistake.
const MAX_LENGTH: usize = 1 << 20;
/// Choices, at most.
const MAX_CHOICES: usize = 10_000;

/// `text` with every choice made, by `seed`. `folder` is where `__name__` finds `name.txt`.
///
/// # Errors
/// [`Error::Request`] for a name without a folder, a name that leads out of the folder, an unknown
/// file (naming the folder) or one without options, files that name one another for ever, and text
/// that grows without bound; [`Error::File`] for a file that cannot be read.
pub fn expand(text: &str, folder: Option<&Path>, seed: u64) -> Result<String> {
    let mut expansion = Expansion {
        folder,
        random: Generator::new(Rng::TorchCpu, seed),
        files: HashMap::new(),
        choices: 0,
        length: 0,
    };
    let mut out = String::with_capacity(text.len());
    expansion.text(text, 0, false, &mut out)?;
    Ok(out)
}

/// Whether there are choices or escapes in `text`: whether [`expand`] could change it.
pub fn has_wildcards(text: &str) -> bool {
    let special = |(at, _)| {
        let rest: &str = &text[at..];
        escape_at(rest, false).is_some() || name_at(rest).is_some()
    };
    partners(text).iter().any(|(_, close)| close.is_some())
        || text.match_indices(['\\', '_']).any(special)
}

/// `text` such that [`expand`] gives it back.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        // two underscores behind a backslash would take it away
        let underscores =
            rest.starts_with("__") && (out.ends_with('\\') || name_at(rest).is_some());
        if underscores || matches!(c, '{' | '}') {
            out.push('\\');
        }
        let taken = if underscores { 2 } else { c.len_utf8() };
        out.push_str(&rest[..taken]);
        at += taken;
    }
    out
}

struct Expansion<'a> {
    folder: Option<&'a Path>,
    random: Generator,
    files: HashMap<PathBuf, Vec<String>>,
    choices: usize,
    length: usize,
}

/// One of several texts, and how often it is taken.
struct Choice<'a> {
    text: &'a str,
    weight: f64,
}

impl Expansion<'_> {
    /// `in_braces`: a bar that is text has a backslash.
    fn text(&mut self, text: &str, depth: usize, in_braces: bool, out: &mut String) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::request(
                "prompt",
                format!("wildcards are nested more than {MAX_DEPTH} deep"),
            )
            .with_hint("does a file name itself?"));
        }
        let partners = partners(text);
        let mut braces = partners.iter().peekable();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let rest = &text[at..];
            while braces.next_if(|(open, _)| *open < at).is_some() {}
            if let Some(escaped) = escape_at(rest, in_braces) {
                self.push(escaped, out)?;
                at += 1 + escaped.len();
            } else if let Some((_, Some(close))) = braces.next_if(|(open, _)| *open == at) {
                self.braces(&text[at + 1..*close], depth, out)?;
                at = close + 1;
            } else if let Some(name) = name_at(rest) {
                self.file(name, depth, out)?;
                at += name.len() + 4;
            } else {
                self.push(&rest[..c.len_utf8()], out)?;
                at += c.len_utf8();
            }
        }
        Ok(())
    }

    fn push(&mut self, text: &str, out: &mut String) -> Result<()> {
        self.length += text.len();
        if self.length > MAX_LENGTH {
            return Err(Error::request(
                "prompt",
                format!("wildcards make a text of more than {MAX_LENGTH} bytes"),
            ));
        }
        out.push_str(text);
        Ok(())
    }

    /// A number from 0 up to but without 1: 53 bits, the same on every machine.
    fn uniform(&mut self) -> Result<f64> {
        self.choices += 1;
        if self.choices > MAX_CHOICES {
            return Err(Error::request(
                "prompt",
                format!("wildcards ask for more than {MAX_CHOICES} choices"),
            ));
        }
        Ok((self.random.draw_seed() >> 10) as f64 / (1_u64 << 53) as f64)
    }

    fn braces(&mut self, inside: &str, depth: usize, out: &mut String) -> Result<()> {
        let (count, joiner, inside) = counted(inside);
        let mut left: Vec<Choice> = split(inside, '|').into_iter().map(choice).collect();
        // each of several choices looks at all that are left
        if left.len() > MAX_CHOICES {
            return Err(Error::request(
                "prompt",
                format!("wildcards in braces have more than {MAX_CHOICES} options"),
            )
            .with_hint("a file may have more"));
        }
        let (low, high) = count.unwrap_or((1, 1));
        let span = high.saturating_sub(low);
        let mut wanted = low;
        if span > 0 {
            wanted += (self.uniform()? * (span as f64 + 1.0)) as usize;
        }
        for i in 0..wanted.min(left.len()) {
            if i > 0 {
                self.text(joiner, depth + 1, true, out)?;
            }
            let taken = self.pick(&left)?;
            let choice = left.remove(taken);
            self.text(choice.text, depth + 1, true, out)?;
        }
        Ok(())
    }

    /// The index of one of `choices`, which are not empty.
    fn pick(&mut self, choices: &[Choice]) -> Result<usize> {
        let sum: f64 = choices.iter().map(|choice| choice.weight).sum();
        let point = self.uniform()?;
        if !(sum > 0.0 && sum.is_finite()) {
            // all weights are 0: as if none had been given
            return Ok((point * choices.len() as f64) as usize);
        }
        let mut below = 0.0;
        for (i, choice) in choices.iter().enumerate() {
            below += choice.weight;
            if point * sum < below {
                return Ok(i);
            }
        }
        // rounding: the last that can be taken
        Ok(choices
            .iter()
            .rposition(|choice| choice.weight > 0.0)
            .expect("the weights have a sum above 0"))
    }

    fn file(&mut self, name: &str, depth: usize, out: &mut String) -> Result<()> {
        let Some(folder) = self.folder else {
            let message = format!(
                "`__{name}__` asks for a file of wildcards, but no folder of them is given"
            );
            return Err(Error::request("prompt", message).with_hint(format!(
                "give one, or write \\__{name}__ for the characters themselves"
            )));
        };
        let leads_out = name.split('/').any(|part| matches!(part, "" | "." | ".."));
        if leads_out {
            let folder = folder.display();
            return Err(Error::request(
                "prompt",
                format!("`__{name}__` leads out of the folder of wildcards, {folder}"),
            ));
        }
        let path = folder.join(format!("{name}.txt"));
        let options = match self.files.remove(&path) {
            Some(options) => options,
            None => read_options(folder, &path, name)?,
        };
        let choices: Vec<Choice> = options.iter().map(|line| choice(line)).collect();
        let result = self.pick(&choices);
        let line = result.map(|taken| choices[taken].text.to_string());
        self.files.insert(path, options);
        self.text(&line?, depth + 1, false, out)
    }
}

fn read_options(folder: &Path, path: &Path, name: &str) -> Result<Vec<String>> {
    // a link inside of the folder must not lead out of it either
    let real = std::fs::canonicalize(path);
    match (real, std::fs::canonicalize(folder)) {
        (Ok(real), Ok(folder)) if real.starts_with(&folder) => {}
        (Ok(_), Ok(_)) => {
            let folder = folder.display();
            return Err(Error::request(
                "prompt",
                format!("`__{name}__` leads out of the folder of wildcards, {folder}"),
            ));
        }
        _ => {
            let folder = folder.display();
            return Err(Error::request(
                "prompt",
                format!(
                    "there is no `{name}.txt` for `__{name}__` in the folder of wildcards, {folder}"
                ),
            ));
        }
    }
    let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, &error))?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let options: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(String::from)
        .collect();
    if options.is_empty() {
        return Err(Error::file(path, "it has no options").with_hint("write one a line"));
    }
    Ok(options)
}

/// The character that an escape at the beginning of `text` stands for.
fn escape_at(text: &str, in_braces: bool) -> Option<&str> {
    let rest = text.strip_prefix('\\')?;
    match rest.chars().next()? {
        '|' if in_braces => Some(&rest[..1]),
        '{' | '}' => Some(&rest[..1]),
        '_' if rest.starts_with("__") => Some(&rest[..2]),
        _ => None,
    }
}

/// The name of `__name__` at the beginning of `text`.
fn name_at(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("__")?;
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | ' ');
    let name = &rest[..rest.find("__")?];
    let inner = !name.is_empty() && !name.starts_with(['_', ' ']) && !name.ends_with(' ');
    (inner && name.chars().all(in_name)).then_some(name)
}

/// Every brace that opens, in order, and where its partner closes.
fn partners(text: &str) -> Vec<(usize, Option<usize>)> {
    let mut partners: Vec<(usize, Option<usize>)> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '{' if !escaped => {
                open.push(partners.len());
                partners.push((at, None));
            }
            '}' if !escaped => {
                if let Some(index) = open.pop() {
                    partners[index].1 = Some(at);
                }
            }
            _ => {}
        }
        escaped = c == '\\';
    }
    partners
}

/// `text` between separators that are neither in braces nor escaped.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth, mut escaped) = (0, 0_usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth = depth.saturating_sub(1),
            c if c == separator && depth == 0 && !escaped => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
        escaped = c == '\\';
    }
    parts.push(&text[start..]);
    parts
}

/// `2$$`, `1-3$$` or `2$$ and $$` at the beginning of what braces hold; what stands between those
/// that are taken; and the rest.
fn counted(inside: &str) -> (Option<(usize, usize)>, &str, &str) {
    let none = (None, "", inside);
    let Some((count, rest)) = inside.split_once("$$") else {
        return none;
    };
    let count = count.trim();
    let (low, high) = count.split_once('-').unwrap_or((count, count));
    let (Ok(low), Ok(high)) = (low.trim().parse::<usize>(), high.trim().parse()) else {
        return none;
    };
    match rest.split_once("$$") {
        Some((joiner, rest)) if !joiner.contains(['|', '{', '}']) => {
            (Some((low, high)), joiner, rest)
        }
        _ => (Some((low, high)), ", ", rest),
    }
}

/// A text with the weight before its `::`.
fn choice(text: &str) -> Choice<'_> {
    if let Some((weight, rest)) = text.split_once("::")
        && let weight = weight.trim()
        && weight.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && let Ok(weight) = weight.parse()
    {
        return Choice { text: rest, weight };
    }
    Choice { text, weight: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, seed: u64) -> String {
        expand(text, None, seed).unwrap()
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("cars")).unwrap();
        write(
            "colours.txt",
            "\u{feff}# colours\nred\n\n  green  \n{dark|light} blue\n",
        );
        write("cars/old.txt", "a __colours__ car\n");
        write("loop.txt", "again __loop__\n");
        write("bomb.txt", "__half____half__\n");
        write("half.txt", "{__bomb__|__bomb__}\n");
        write("empty.txt", "# nothing\n\n");
        folder
    }

    #[test]
    fn a_seed_always_makes_the_same_choice() {
        // recipes hold such choices: these may never change
        let all: Vec<String> = (0..8).map(|seed| made("{a|b|c|d}", seed)).collect();
        assert_eq!(all.concat(), "addadbda");
        assert_eq!(
            made("{a|b} {a|b} {a|b} {a|b}", 7),
            made("{a|b} {a|b} {a|b} {a|b}", 7)
        );
    }

    #[test]
    fn weights_are_frequencies() {
        let count = (0..2000)
            .filter(|seed| made("{3::a|b}", *seed) == "a")
            .count();
        assert!((1400..1600).contains(&count), "{count} of 2000");
        assert!((0..100).all(|seed| made("{0::a|b}", seed) == "b"));
        assert!((0..100).any(|seed| made("{0::a|0::b}", seed) == "a"));
        let thirds = (0..3000)
            .filter(|seed| made("{a|b|c}", *seed) == "b")
            .count();
        assert!((900..1100).contains(&thirds), "{thirds} of 3000");
    }

    #[test]
    fn several_are_different_ones() {
        for seed in 0..50 {
            let text = made("{2$$a|b|c}", seed);
            let (first, second) = text.split_once(", ").unwrap();
            assert!(
                first.len() == 1 && second.len() == 1 && first != second,
                "{text}"
            );
            assert!(matches!(
                made("{1-2$$ and $$a|b}", seed).as_str(),
                "a" | "b" | "a and b" | "b and a"
            ));
            assert_eq!(made("{9$$+$$a}", seed), "a");
            assert_eq!(made("{0$$a|b}", seed), "");
        }
    }

    #[test]
    fn choices_nest() {
        for seed in 0..50 {
            assert!(matches!(
                made("{a {b|c}|d}", seed).as_str(),
                "a b" | "a c" | "d"
            ));
        }
    }

    #[test]
    fn other_text_stays() {
        for text in [
            "a cat, (best)1.3 [x|y] a_b __ ____ ___a \\( \\| a|b 2::c $$",
            "}{ { a | b",
            "}",
            "",
            "_a_ __ a __b",
            "C:\\new",
        ] {
            assert_eq!(made(text, 1), text);
            assert!(!has_wildcards(text), "{text}");
        }
        assert_eq!(made("\\{a\\|b\\} \\__x__ {a\\|b}", 1), "{a\\|b} __x__ a|b");
        assert_eq!(made("{a}", 1), "a");
    }

    #[test]
    fn escaped_text_comes_back() {
        let pieces = [
            "{", "}", "|", "\\", "__", "_", "a", " ", "$$", "::", "{a|b}", "__x__", "é",
        ];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let text: String = (0..8)
                .map(|_| {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    pieces[(state >> 33) as usize % pieces.len()]
                })
                .collect();
            assert_eq!(made(&escape(&text), 3), text);
        }
    }

    #[test]
    fn files_give_lines() {
        let folder = folder();
        let make = |text: &str, seed| expand(text, Some(folder.path()), seed);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            seen.insert(make("__cars/old__", seed).unwrap());
        }
        let wanted = ["dark blue", "green", "light blue", "red"].map(|c| format!("a {c} car"));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let folder = folder();
        let here = folder.path().display().to_string();
        std::fs::write(folder.path().join("cars/x.txt"), "x").unwrap();
        let inner = folder.path().join("cars");
        for (text, words) in [
            ("__nothing__", "nothing.txt"),
            ("__nothing__", here.as_str()),
            ("__../colours__", "leads out"),
            ("__/etc/passwd__", "leads out"),
            ("__a/../../colours__", "leads out"),
            ("__empty__", "no options"),
            ("__loop__", "name itself"),
            ("__bomb__", "than"),
        ] {
            let base = if text.contains("..") {
                &inner
            } else {
                folder.path()
            };
            let error = expand(text, Some(base), 1).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(
            expand("__x__", None, 1)
                .unwrap_err()
                .to_string()
                .contains("no folder")
        );
        let deep = "{".repeat(100_000) + &"}".repeat(100_000);
        assert!(expand(&deep, None, 1).is_err());
        let open = "{".repeat(100_000);
        assert_eq!(made(&open, 1), open);
        let many = "{a|b}".repeat(20_000);
        assert!(expand(&many, None, 1).is_err());
        let wide = format!("{{9999$${}}}", "|".repeat(1_000_000));
        let error = expand(&wide, None, 1).unwrap_err().to_string();
        assert!(error.contains("options"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_do_not_lead_out() {
        let folder = folder();
        let inner = folder.path().join("cars");
        std::os::unix::fs::symlink("../colours.txt", inner.join("link.txt")).unwrap();
        assert!(expand("__link__", Some(&inner), 1).is_err());
    }
}
