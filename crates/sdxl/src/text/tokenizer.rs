//! Prompt text to token ids: CLIP's byte-level BPE.
//!
//! Behaves as transformers' fast `CLIPTokenizer`: NFC, white space folded, lower case,
//! no HTML or "ftfy" clean-up. The two tokenizers of a checkpoint have the same
//! vocabulary and pad differently.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::tokenizer_files::TokenizerFiles;
use super::vocabulary;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::weights::CheckpointFiles;
use crate::weights::Inversion;
use crate::weights::Part;

/// The pattern that cuts text into words before merging: CLIP's own.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer with its special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
    /// Textual inversions of several vectors: what the first one's token stands for.
    expansions: HashMap<u32, Vec<u32>>,
    /// Tokens of the checkpoint's own; those of added files come behind them.
    own: usize,
    /// The first id of a textual inversion.
    first_inversion: usize,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, by name.
    pub fn open(folder: &Path) -> Result<Self> {
        let TokenizerFiles {
            vocab,
            merges,
            config,
            special_map,
        } = TokenizerFiles::read(folder)?;
        let vocab: Vocab = vocab.into_iter().collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges);
        Self::build(model, &config, &special_map, folder, true)
    }

    /// The tokenizer that goes with a text encoder: the folder's, or CLIP's where the checkpoint
    /// is a file that has none; with the words of textual inversions.
    ///
    /// # Errors
    /// As [`Self::open`], and a textual inversion's word that is a token already.
    pub fn of(files: &CheckpointFiles, part: Part) -> Result<Self> {
        let mut tokenizer = match files.tokenizer_folder(part) {
            Some(folder) => Self::open(&folder)?,
            None => Self::of_clip(part == Part::TextEncoder, files.root())?,
        };
        for word in files.inversions().words() {
            tokenizer.add(word)?;
        }
        Ok(tokenizer)
    }

    /// The tokenizer that the published folders hold, from this program: the first encoder's
    /// or the second's. `file` is named in errors.
    ///
    /// # Errors
    /// None that a checkpoint could cause.
    pub fn of_clip(first: bool, file: &Path) -> Result<Self> {
        let merges = vocabulary::merges(&vocabulary::merges_txt());
        let tokens = vocabulary::tokens(&merges);
        let vocab: Vocab = tokens.into_iter().zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges);
        let config = vocabulary::tokenizer_config(first);
        Self::build(model, &config, &Map::new(), file, false)
    }

    /// `folder` is named in errors; `extended`: it may hold textual inversions.
    fn build(
        model: BpeBuilder,
        config: &Map<String, Value>,
        special_map: &Map<String, Value>,
        folder: &Path,
        extended: bool,
    ) -> Result<Self> {
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

        let bad = |e: tokenizers::Error| {
            Error::file(
                folder.join("merges.txt"),
                format!("cannot be used, with vocab.json: {e}"),
            )
        };
        let model = model
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
        inner.with_decoder(Some(ByteLevel::default()));
        // Where two roles share a text, the last one decides whether it is looked for
        // in the text as typed or as normalised (lower-cased): the reference's order.
        let mut added: Vec<AddedToken> = Vec::new();
        for token in [&bos, &eos, &unk, &pad] {
            added.retain(|t| t.content != token.content);
            added.push(token.clone());
        }
        inner.add_special_tokens(&added);
        let first_inversion = inner.get_vocab_size(true);
        let expansions = if extended {
            add_inversions(&mut inner, folder, config)?
        } else {
            HashMap::new()
        };
        let id = |token: &AddedToken| {
            let token = &token.content;
            inner.token_to_id(token).ok_or_else(|| {
                Error::file(
                    folder.join("vocab.json"),
                    format!("it lacks the special token `{token}`; it is not a CLIP vocabulary"),
                )
            })
        };
        let max_length = config
            .get("model_max_length")
            .and_then(Value::as_u64)
            .map_or(77, |n| n as usize);
        if max_length < 3 {
            return Err(Error::file(
                folder.join("tokenizer_config.json"),
                format!("model_max_length is {max_length}, which leaves no room for text"),
            ));
        }
        Ok(Tokenizer {
            bos: id(&bos)?,
            eos: id(&eos)?,
            pad: id(&pad)?,
            own: inner.get_vocab_size(true),
            inner,
            max_length,
            expansions,
            first_inversion,
        })
    }

    /// Adds the tokens of a textual inversion, in the order of its vectors. As in diffusers
    /// they are found wherever they stand in a text, inside of words too, in capitals or not.
    fn add(&mut self, word: &Inversion) -> Result<()> {
        let mut ids = Vec::with_capacity(word.vectors);
        for name in word.names() {
            if self.inner.token_to_id(&name).is_some() {
                return Err(Error::file(
                    &word.file,
                    format!(
                        "`{name}` is in the tokenizer's vocabulary already; name another token, as \
                         in {}:<{}>",
                        word.file.display(),
                        word.token
                    ),
                ));
            }
            self.inner
                .add_tokens(&[AddedToken::from(name.as_str(), false)]);
            ids.extend(self.inner.token_to_id(&name));
        }
        if let [first, _, ..] = ids[..] {
            self.expansions.insert(first, ids);
        }
        Ok(())
    }

    /// Number of ids a sequence has, start and end included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Number of tokens that the checkpoint's own text encoder must know; their ids are smaller,
    /// those of added textual inversions follow.
    pub fn vocab_size(&self) -> usize {
        self.own
    }

    /// Whether a word ends with this token: the last of its letters, or a textual inversion.
    pub fn ends_word(&self, id: u32) -> bool {
        id as usize >= self.first_inversion || self.token(id).is_none_or(|t| t.ends_with("</w>"))
    }

    /// The id that starts every sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id that ends the text of every sequence.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id that fills a sequence up; the two encoders of a checkpoint differ in it.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The token with this id, as the vocabulary spells it (`</w>` ends a word).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// `ids` as text, for people to read.
    pub fn decode(&self, ids: &[u32]) -> String {
        let text = self.inner.decode(ids, false).unwrap_or_default();
        text.replace("</w>", " ").trim().to_string()
    }

    /// The ids of `text` alone, without start, end or padding. A textual inversion of
    /// several vectors gives all of its ids.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::request("prompt", format!("it cannot be tokenized: {e}")))?;
        let ids = encoding.get_ids();
        if self.expansions.is_empty() {
            return Ok(ids.to_vec());
        }
        let expand = |id: &u32| match self.expansions.get(id) {
            Some(all) => all.clone(),
            None => vec![*id],
        };
        Ok(ids.iter().flat_map(expand).collect())
    }

    /// Ids of text that a sequence has room for, between start and end.
    pub fn room(&self) -> usize {
        self.max_length.saturating_sub(2)
    }

    /// One sequence of [`Self::max_length`] ids: start, `ids` as far as there is room for them,
    /// end, padding.
    pub fn sequence(&self, ids: &[u32]) -> Vec<u32> {
        let kept = &ids[..ids.len().min(self.room())];
        let mut sequence = Vec::with_capacity(self.max_length);
        sequence.push(self.bos);
        sequence.extend_from_slice(kept);
        sequence.push(self.eos);
        sequence.resize(self.max_length, self.pad);
        sequence
    }
}

/// Adds the tokens that a folder's `added_tokens.json` and `tokenizer_config.json` name
/// beyond the vocabulary: textual inversions. Gives those of several vectors: the id of
/// `name` with all ids of `name`, `name_1`, `name_2` and so on, which is how diffusers
/// names them.
///
/// # Errors
/// Ids that do not follow the vocabulary's: the text encoder's rows would be mistaken.
fn add_inversions(
    inner: &mut tokenizers::Tokenizer,
    folder: &Path,
    config: &Map<String, Value>,
) -> Result<HashMap<u32, Vec<u32>>> {
    let mut named: Vec<(u64, AddedToken)> = Vec::new();
    let mut wrong = None;
    let path = folder.join("added_tokens.json");
    if path.is_file() {
        let listed: Map<String, Value> = read_json(&path)?;
        for (content, id) in &listed {
            match id.as_u64() {
                Some(id) => named.push((id, AddedToken::from(content.as_str(), false))),
                None => wrong = Some(path.clone()),
            }
        }
    }
    let decoder = config
        .get("added_tokens_decoder")
        .and_then(Value::as_object);
    for (id, token) in decoder.into_iter().flatten() {
        let content = token.get("content").and_then(Value::as_str);
        let (Ok(id), Some(content)) = (id.parse(), content) else {
            wrong = Some(folder.join("tokenizer_config.json"));
            continue;
        };
        let flag = |key: &str, default: bool| -> bool {
            token.get(key).and_then(Value::as_bool).unwrap_or(default)
        };
        let token = AddedToken::from(content, flag("special", false))
            .normalized(flag("normalized", true))
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false));
        named.retain(|(other, _)| *other != id);
        named.push((id, token));
    }
    if let Some(path) = wrong {
        return Err(Error::file(path, "its added tokens have no usable ids"));
    }
    named.sort_by_key(|(id, _)| *id);
    let mut added = Vec::new();
    for (id, token) in named {
        let content = token.content.clone();
        // The special tokens of the vocabulary are listed among the added ones too.
        if inner.token_to_id(&content).map(u64::from) == Some(id) {
            continue;
        }
        let next = inner.get_vocab_size(true) as u64;
        inner.add_tokens(&[token]);
        let given = inner.token_to_id(&content).map(u64::from);
        if given != Some(id) {
            return Err(Error::file(
                folder,
                format!(
                    "the added token `{content}` has the id {id}, but {next} is the next free one; \
                     its files do not belong together"
                ),
            ));
        }
        added.push(content);
    }
    let mut expansions = HashMap::new();
    for name in &added {
        let parts = (1..).map_while(|i| inner.token_to_id(&format!("{name}_{i}")));
        let ids: Vec<u32> = inner.token_to_id(name).into_iter().chain(parts).collect();
        if let [first, _, ..] = ids[..] {
            expansions.insert(first, ids);
        }
    }
    Ok(expansions)
}
