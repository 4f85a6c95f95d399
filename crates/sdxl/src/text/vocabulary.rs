//! CLIP's vocabulary, for checkpoints that come without one: 49408 tokens and 48894
//! merges (OpenAI, MIT licence), the same for all of SDXL's text encoders.

use std::io::Read;

use serde_json::{Map, Value, json};

/// `merges.txt` of the published folders, byte for byte.
const MERGES: &[u8] = include_bytes!("clip_merges.txt.gz");

/// `merges.txt` of the published folders.
pub(crate) fn merges_txt() -> String {
    let mut text = String::new();
    // What this program carries can be unpacked; a test does.
    let _ = flate2::read::GzDecoder::new(MERGES).read_to_string(&mut text);
    text
}

/// The merges, in order.
pub(crate) fn merges(merges_txt: &str) -> Vec<(String, String)> {
    merges_txt
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
        .map(|(a, b)| (a.to_string(), b.to_string()))
        .collect()
}

/// The tokens in the order of their ids: single bytes, bytes that end a word, merges,
/// start and end of text.
pub(crate) fn tokens(merges: &[(String, String)]) -> Vec<String> {
    let bytes = byte_symbols();
    let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
    tokens.extend(bytes.iter().map(|symbol| format!("{symbol}</w>")));
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    tokens
}

/// The printable stand-ins for bytes, in the vocabulary's order: bytes that print stand for
/// themselves and come first, the others become the code points from 256 on.
fn byte_symbols() -> Vec<char> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut symbols: Vec<char> = (0..=255).filter(prints).map(char::from).collect();
    let hidden = 256 - symbols.len() as u32;
    symbols.extend((256..256 + hidden).filter_map(char::from_u32));
    symbols
}

/// The `tokenizer_config.json` of the first encoder's tokenizer or the second's, in its
/// published wording. They differ in the token that fills sequences up.
pub(crate) fn tokenizer_config(first: bool) -> Map<String, Value> {
    let special = |content: &str| {
        json!({
            "__type": "AddedToken",
            "content": content,
            "lstrip": false,
            "normalized": true,
            "rstrip": false,
            "single_word": false,
        })
    };
    let config = json!({
        "add_prefix_space": false,
        "bos_token": special("<|startoftext|>"),
        "clean_up_tokenization_spaces": true,
        "do_lower_case": true,
        "eos_token": special("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": if first { "<|endoftext|>" } else { "!" },
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special("<|endoftext|>"),
    });
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_vocabulary() {
        let golden =
            |name: &str| std::fs::read_to_string(sdxl_testing::golden("vocab").join(name)).unwrap();
        let text = merges_txt();
        assert!(text == golden("merges.txt"));
        let tokens = tokens(&merges(&text));
        let published: std::collections::HashMap<String, usize> =
            serde_json::from_str(&golden("vocab.json")).unwrap();
        assert_eq!(tokens.len(), published.len());
        for (id, token) in tokens.iter().enumerate() {
            assert_eq!(published.get(token), Some(&id), "{token}");
        }
    }
}
