//! JSON as Python's `json` module writes it, and as editors save it.
//!
//! Python writes numbers that are infinite or undefined as bare words, which no standard has
//! (diffusers saves `"lambda_min_clipped": -Infinity`). Editors on Windows begin a file with a byte
//! order mark or write UTF-16.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// The words that Python writes and JSON does not have.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads JSON; a bare `-Infinity`, `Infinity` or `NaN` becomes a string of the same letters.
///
/// # Errors
/// Text that is no JSON even so, or is no `T`.
pub(crate) fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&standard(text))
}

/// Decodes a file's text: UTF-8, or UTF-16 that begins with a byte order mark. `None` for bytes that
/// are neither.
pub(crate) fn decode(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let wide = |unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16(&units).ok().map(Cow::Owned)
    };
    match bytes {
        [0xff, 0xfe, ..] => wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => wide(u16::from_be_bytes),
        _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    }
}

/// The text as standard JSON.
fn standard(text: &str) -> Cow<'_, str> {
    let text = text.trim_start_matches('\u{feff}');
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = WORDS
            .into_iter()
            .find(|word| !quoted && rest.starts_with(word));
        if let Some(word) = word {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn words_of_python_become_strings_outside_of_strings() {
        let read: Value = from_str(
            "\u{feff}{\"a\": -Infinity, \"b\": [NaN, Infinity], \"c\": \"a \\\" NaN\", \"NaN\": 1}",
        )
        .unwrap();
        let wanted = json!({"a": "-Infinity", "b": ["NaN", "Infinity"], "c": "a \" NaN", "NaN": 1});
        assert_eq!(read, wanted);
        assert!(from_str::<Value>("{\"a\": nan}").is_err());
    }

    #[test]
    fn text_of_windows_editors_is_decoded() {
        let text = "{\"ä\": 1}";
        let little: Vec<u8> = (std::iter::once(0xfeff).chain(text.encode_utf16()))
            .flat_map(u16::to_le_bytes)
            .collect();
        let big: Vec<u8> = little.chunks(2).flat_map(|c| [c[1], c[0]]).collect();
        for bytes in [text.as_bytes(), &little, &big] {
            let read: Value = from_str(&decode(bytes).unwrap()).unwrap();
            assert_eq!(read, json!({"ä": 1}));
        }
        assert!(decode(&[0x80, 0x02]).is_none());
    }
}
