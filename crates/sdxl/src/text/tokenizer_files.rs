//! The files of a tokenizer: `vocab.json` with `merges.txt`, or the `tokenizer.json` in which
//! transformers 5 writes both.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::vocabulary;
use crate::error::{Error, Result};
use crate::files::{read_json, read_text};

/// The contents of a tokenizer's folder.
pub(crate) struct TokenizerFiles {
    /// Ids of the tokens.
    pub(super) vocab: HashMap<String, u32>,
    /// Pairs of tokens that become one, the most urgent first.
    pub(crate) merges: Vec<(String, String)>,
    /// `tokenizer_config.json`: special tokens, and tokens added to the vocabulary.
    pub(super) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(super) special_map: Map<String, Value>,
}

/// The parts of `tokenizer.json` that say what `vocab.json`, `merges.txt` and
/// `special_tokens_map.json` say. The steps that it lists are the same for all CLIP tokenizers.
#[derive(Deserialize)]
struct TokenizerJson {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<Map<String, Value>>,
    #[serde(default)]
    padding: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge, as a pair or, as before tokenizers 0.20, with a blank between its halves.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// The keys of special tokens.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

impl TokenizerFiles {
    /// Reads the files in `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, by name.
    pub(crate) fn read(folder: &Path) -> Result<TokenizerFiles> {
        let optional = |name: &str| match folder.join(name) {
            path if path.is_file() => read_json(&path),
            _ => Ok(Map::new()),
        };
        let mut config = optional("tokenizer_config.json")?;
        let special_map = optional("special_tokens_map.json")?;
        let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let both = folder.join("tokenizer.json");
        let (vocab, merges) = if both.is_file() && !(vocab_path.is_file() && merges_path.is_file())
        {
            let all: TokenizerJson = read_json(&both)?;
            all.complete(&mut config);
            let merges = all.model.merges.into_iter().map(|merge| match merge {
                Merge::Pair(a, b) => Ok((a, b)),
                Merge::Line(line) => (line.split_once(' '))
                    .map(|(a, b)| (a.to_string(), b.to_string()))
                    .ok_or_else(|| Error::file(&both, format!("its merge `{line}` is no pair"))),
            });
            (all.model.vocab, merges.collect::<Result<_>>()?)
        } else {
            for path in [&vocab_path, &merges_path] {
                if !path.is_file() {
                    return Err(Error::file(
                        path,
                        "this file of the tokenizer is missing; download it, or the checkpoint, again",
                    ));
                }
            }
            let merges = vocabulary::merges(&read_text(&merges_path)?);
            (read_json(&vocab_path)?, merges)
        };
        Ok(TokenizerFiles {
            vocab,
            merges,
            config,
            special_map,
        })
    }
}

impl TokenizerJson {
    /// Adds to `config`, the contents of `tokenizer_config.json`, what this file says and that does not.
    fn complete(&self, config: &mut Map<String, Value>) {
        if let Some(pad) = self.padding.as_ref().and_then(|p| p.get("pad_token")) {
            config.entry("pad_token").or_insert_with(|| pad.clone());
        }
        let content = |token: &Map<String, Value>| -> Option<String> {
            token
                .get("content")
                .and_then(Value::as_str)
                .map(str::to_string)
        };
        // A name alone does not say how the token is looked for in a text.
        for key in SPECIAL {
            let name = config.get(key).and_then(Value::as_str);
            let named = self
                .added_tokens
                .iter()
                .find(|token| content(token).as_deref() == name);
            if let Some(token) = named.filter(|_| name.is_some()) {
                config.insert(key.to_string(), Value::Object(token.clone()));
            }
        }
        if !config.contains_key("added_tokens_decoder") {
            let decoder = (self.added_tokens.iter())
                .filter_map(|token| Some((token.get("id")?.to_string(), json!(token))))
                .collect();
            config.insert("added_tokens_decoder".into(), Value::Object(decoder));
        }
    }
}
