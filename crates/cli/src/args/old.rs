//! Spellings of before, which scripts may have, and of other programs.

use std::ffi::OsString;

/// Switches that took a word, `--vae-slicing off`, before all had a negative.
const SWITCHES: [&str; 2] = ["vae-slicing", "truncate-long-prompts"];

/// The words of a command line, switches with a word turned into the flag or its negative.
pub(crate) fn in_new_spelling(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut new: Vec<OsString> = Vec::new();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            new.push(word);
            new.extend(words);
            break;
        }
        let text = word.to_string_lossy();
        let named = text.strip_prefix("--").unwrap_or_default();
        let (name, value) = match named.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (named.to_string(), None),
        };
        // A prompt needs no flag, and many are used to one; `plot` has it.
        let makes_pictures = new
            .get(1)
            .is_some_and(|word| word == "generate" || word == "plan");
        if name == "prompt" && makes_pictures {
            new.extend(value.map(Into::into).or_else(|| words.next()));
            continue;
        }
        if !SWITCHES.contains(&name.as_str()) {
            new.push(word);
            continue;
        }
        let next = || words.peek().map(|next| next.to_string_lossy().into_owned());
        let inside = value.is_some();
        let is_on = value.or_else(next).and_then(|word| is_on(&word));
        match is_on {
            Some(true) => new.push(format!("--{name}").into()),
            Some(false) => new.push(format!("--no-{name}").into()),
            None => new.push(word),
        }
        if is_on.is_some() && !inside {
            words.next();
        }
    }
    new
}

fn is_on(word: &str) -> Option<bool> {
    match word {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_with_a_word_become_flags() {
        for (old, new) in [
            ("--vae-slicing off x", "--no-vae-slicing x"),
            ("x --vae-slicing on", "x --vae-slicing"),
            (
                "--truncate-long-prompts=false x",
                "--no-truncate-long-prompts x",
            ),
            ("--truncate-long-prompts true", "--truncate-long-prompts"),
            ("--vae-slicing a", "--vae-slicing a"),
            ("--vae-slicing", "--vae-slicing"),
            ("--vae-tiling off", "--vae-tiling off"),
            ("a -- --vae-slicing off", "a -- --vae-slicing off"),
            ("sdxl generate --prompt cat", "sdxl generate cat"),
            ("sdxl plan --prompt=cat --prompt dog", "sdxl plan cat dog"),
            ("sdxl plot --prompt cat", "sdxl plot --prompt cat"),
            (
                "sdxl generate -- --prompt cat",
                "sdxl generate -- --prompt cat",
            ),
        ] {
            let words = old.split(' ').map(OsString::from);
            let got = in_new_spelling(words);
            let wanted: Vec<OsString> = new.split(' ').map(OsString::from).collect();
            assert_eq!(got, wanted, "{old}");
        }
    }
}
