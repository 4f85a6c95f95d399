//! Prompt text to token ids: CLIP's byte-level BPE from `vocab.json` and `merges.txt`.
//!
//! Behaves as transformers' fast `CLIPTokenizer`: NFC, white space folded, lower case,
//! no HTML or "ftfy" clean-up. The two tokenizers of a checkpoint have the same
//! vocabulary and pad differently.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::weights::folder::read_json;

/// How text is cut into words before merging: CLIP's own pattern.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer with its special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
}

/// A prompt as the text encoder gets it.
pub struct Tokens {
    /// Start, text, end, padding: `max_length` ids.
    pub ids: Vec<u32>,
    /// The text that did not fit, decoded; empty where all fitted.
    pub cut: String,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, by name.
    pub fn open(folder: &Path) -> Result<Self> {
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        for path in [&vocab, &merges] {
            if !path.is_file() {
                return Err(Error::file(
                    path,
                    "this file of the tokenizer is missing; download it, or the checkpoint, again",
                ));
            }
        }
        let config: Map<String, Value> = match folder.join("tokenizer_config.json") {
            path if path.is_file() => read_json(&path)?,
            _ => Map::new(),
        };
        let special_map: Map<String, Value> = match folder.join("special_tokens_map.json") {
            path if path.is_file() => read_json(&path)?,
            _ => Map::new(),
        };
        let special = |key: &str, default: &str| -> AddedToken {
            let named = config.get(key).or_else(|| special_map.get(key));
            let (text, normalized) = match named {
                Some(Value::Object(token)) => (
                    token.get("content").and_then(Value::as_str),
                    token.get("normalized").and_then(Value::as_bool),
                ),
                Some(value) => (value.as_str(), None),
                None => (None, None),
            };
            AddedToken::from(text.unwrap_or(default), true).normalized(normalized.unwrap_or(false))
        };
        let bos = special("bos_token", "<|startoftext|>");
        let eos = special("eos_token", "<|endoftext|>");
        let unk = special("unk_token", "<|endoftext|>");
        let pad = special("pad_token", "<|endoftext|>");

        let bad = |e: tokenizers::Error| Error::file(&merges, format!("cannot be used: {e}"));
        let model = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
            .unk_token(unk.content.clone())
            .end_of_word_suffix("</w>".to_string())
            .build()
            .map_err(bad)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let spaces = Replace::new(
            tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()),
            " ",
        )
        .map_err(bad)?;
        inner.with_normalizer(Some(Sequence::new(vec![
            NormalizerWrapper::NFC(NFC),
            NormalizerWrapper::Replace(spaces),
            NormalizerWrapper::Lowercase(Lowercase),
        ])));
        let words = Split::new(
            SplitPattern::Regex(WORDS.into()),
            SplitDelimiterBehavior::Removed,
            true,
        )
        .map_err(bad)?;
        inner.with_pre_tokenizer(Some(PreSequence::new(vec![
            PreTokenizerWrapper::Split(words),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        // Where two roles share a text, the last one decides whether it is looked for
        // in the text as typed or as normalised (lower-cased): the reference's order.
        let mut added: Vec<AddedToken> = Vec::new();
        for token in [&bos, &eos, &unk, &pad] {
            added.retain(|t| t.content != token.content);
            added.push(token.clone());
        }
        inner.add_special_tokens(&added);
        let id = |token: &AddedToken| {
            let token = &token.content;
            inner.token_to_id(token).ok_or_else(|| {
                Error::file(
                    &vocab,
                    format!("it lacks the special token `{token}`; it is not a CLIP vocabulary"),
                )
            })
        };
        let max_length = config
            .get("model_max_length")
            .and_then(Value::as_u64)
            .map_or(77, |n| n as usize);
        Ok(Tokenizer {
            bos: id(&bos)?,
            eos: id(&eos)?,
            pad: id(&pad)?,
            inner,
            max_length,
        })
    }

    /// Number of ids a sequence has, start and end included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Ids of known tokens, added ones included; all ids are smaller.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of `text` alone, without start, end or padding.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::request(format!("prompt: it cannot be tokenized: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `text` as one sequence of [`Self::max_length`] ids; what does not fit is cut off
    /// before the end token, as diffusers does.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let ids = self.ids(text)?;
        let room = self.max_length.saturating_sub(2);
        let kept = ids.len().min(room);
        let cut = if ids.len() > room {
            self.inner
                .decode(&ids[room..], false)
                .unwrap_or_default()
                .replace("</w>", " ")
                .trim()
                .to_string()
        } else {
            String::new()
        };
        let mut sequence = vec![self.bos];
        sequence.extend_from_slice(&ids[..kept]);
        sequence.push(self.eos);
        sequence.resize(self.max_length.max(2), self.pad);
        Ok(Tokens { ids: sequence, cut })
    }
}
