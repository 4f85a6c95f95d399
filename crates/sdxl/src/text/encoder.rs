//! A text encoder with the tokenizer that goes with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::clip::ClipTextModel;
use super::tokenizer::Tokenizer;
use crate::cancel::OrCancelled;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::profile::scope;
use crate::weights::Loader;
use crate::weights::{Part, TextCheckpoint};

/// Sequences that go through the network together: more would not make it faster.
const BATCH: usize = 8;

/// A sequence to encode.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sequence {
    /// Token ids, as many as the encoder takes.
    pub ids: Vec<u32>,
    /// Which tokens the others, and they themselves, attend to; all if nothing is said.
    pub seen: Option<Vec<bool>>,
}

/// A text encoder with its tokenizer.
pub(super) struct Encoder {
    /// The name of the encoder's folder, for profiles.
    name: &'static str,
    tokenizer: Tokenizer,
    model: ClipTextModel,
    /// States of the empty text, by the number of layers skipped.
    empty: Mutex<Vec<(usize, Arc<Vec<f32>>)>>,
    runs: AtomicUsize,
}

impl Encoder {
    /// Reads tokenizer and weights.
    ///
    /// # Errors
    /// A missing or wrong file, and a tokenizer that does not go with the encoder.
    pub(super) fn load(
        parts: &TextCheckpoint,
        part: Part,
        precision: Precision,
        streamed: bool,
    ) -> Result<Self> {
        let folder = parts.files().tokenizer_folder(part);
        let folder = folder.unwrap_or_else(|| parts.files().root().to_path_buf());
        let tokenizer = Tokenizer::of(parts.files(), part)?;
        let config = match (part, &parts.text_encoder) {
            (Part::TextEncoder, Some(config)) => config,
            _ => &parts.text_encoder_2,
        };
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::file(
                &folder,
                format!(
                    "it has {} tokens, but the text encoder knows {}; they belong to different \
                     models",
                    tokenizer.vocab_size(),
                    config.vocab_size
                ),
            ));
        }
        if tokenizer.max_length() > config.max_position_embeddings {
            return Err(Error::file(
                &folder,
                format!(
                    "model_max_length is {}, but the text encoder takes {} tokens",
                    tokenizer.max_length(),
                    config.max_position_embeddings
                ),
            ));
        }
        let tensors = parts.tensors(part)?;
        let root = Loader::new(&tensors, precision.of_part(part, false)).streamed(streamed);
        let model = ClipTextModel::load(config, &root, part == Part::TextEncoder2)?;
        let words = parts.files().inversions().words().iter();
        let rows: Vec<f32> = words.flat_map(|word| word.rows(part)).copied().collect();
        let model = model.with_inversions(tokenizer.vocab_size(), rows);
        Ok(Encoder {
            name: part.folder(),
            tokenizer,
            model,
            empty: Mutex::default(),
            runs: AtomicUsize::new(0),
        })
    }

    /// The tokenizer.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Channels of a token's state.
    pub(super) fn width(&self) -> usize {
        self.model.config().hidden_size
    }

    /// Sequences that the network has read since it was loaded.
    pub(super) fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    /// The states of each sequence, `[tokens, width]`, after `skip` layers fewer than there are.
    ///
    /// # Errors
    /// [`crate::Cancelled`] where the token that is installed for this thread was cancelled; the same for
    /// the functions below.
    pub(super) fn states(&self, sequences: &[Sequence], skip: usize) -> OrCancelled<Vec<Vec<f32>>> {
        self.runs.fetch_add(sequences.len(), Ordering::Relaxed);
        let mut states = Vec::with_capacity(sequences.len());
        for batch in sequences.chunks(BATCH) {
            let ids: Vec<Vec<u32>> = batch.iter().map(|s| s.ids.clone()).collect();
            let seen = (batch.iter().any(|s| s.seen.is_some())).then(|| -> Vec<bool> {
                (batch.iter())
                    .flat_map(|s| s.seen.clone().unwrap_or_else(|| vec![true; s.ids.len()]))
                    .collect()
            });
            let output = scope(self.name, || {
                self.model.forward_masked(&ids, seen.as_deref(), skip)
            })??;
            let values = output.hidden.to_f32_vec();
            let one = values.len() / batch.len();
            states.extend(values.chunks_exact(one).map(<[f32]>::to_vec));
        }
        Ok(states)
    }

    /// The states of the empty text: what weights count from, and what fills shorter prompts up.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub(super) fn empty(&self, skip: usize) -> OrCancelled<Arc<Vec<f32>>> {
        // A panic while it was locked cannot leave half an entry.
        let mut known = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, states)) = known.iter().find(|(s, _)| *s == skip) {
            return Ok(Arc::clone(states));
        }
        let sequence = Sequence {
            ids: self.tokenizer.sequence(&[]),
            seen: None,
        };
        let states = Arc::new(self.states(&[sequence], skip)?.concat());
        known.push((skip, Arc::clone(&states)));
        Ok(states)
    }

    /// The pooled vector of a sequence, `[projection_dim]`; empty for an encoder without a
    /// projection.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub(super) fn pooled(&self, ids: Vec<u32>) -> OrCancelled<Vec<f32>> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let pooled = scope(self.name, || self.model.forward(&[ids], 1))??.pooled;
        Ok(pooled.map(|p| p.to_f32_vec()).unwrap_or_default())
    }

    /// The pooled vector at the end of the text, also where there are textual inversions: for them
    /// the reference takes it at the last of their tokens.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub(super) fn pooled_at_end(&self, ids: Vec<u32>) -> OrCancelled<Vec<f32>> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let end = self.tokenizer.eos();
        let pooled = scope(self.name, || self.model.forward_to(ids, 1, end))??.pooled;
        Ok(pooled.map(|p| p.to_f32_vec()).unwrap_or_default())
    }

    /// States and pooled vector of one sequence at once.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub(super) fn states_and_pooled(
        &self,
        ids: Vec<u32>,
        skip: usize,
    ) -> OrCancelled<(Vec<f32>, Vec<f32>)> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let output = scope(self.name, || self.model.forward(&[ids], skip))??;
        let pooled = output.pooled.map(|p| p.to_f32_vec()).unwrap_or_default();
        Ok((output.hidden.to_f32_vec(), pooled))
    }
}
