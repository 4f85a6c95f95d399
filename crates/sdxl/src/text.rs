//! Prompts to conditioning: both text encoders, side by side.

pub mod clip;
pub mod tokenizer;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::weights::folder::{Checkpoint, Part};
use crate::weights::{Loader, Precision};
use clip::ClipTextModel;
use tokenizer::Tokenizer;

/// A text encoder with the tokenizer that goes with it.
struct Encoder {
    tokenizer: Tokenizer,
    model: ClipTextModel,
}

impl Encoder {
    fn load(checkpoint: &Checkpoint, part: Part, precision: Precision) -> Result<Self> {
        let folder = checkpoint.tokenizer_folder(part);
        let tokenizer = Tokenizer::open(&folder)?;
        let config = match (part, &checkpoint.text_encoder) {
            (Part::TextEncoder, Some(config)) => config,
            _ => &checkpoint.text_encoder_2,
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
        let tensors = checkpoint.tensors(part)?;
        let root = Loader::new(&tensors, precision);
        let model = ClipTextModel::load(config, &root, part == Part::TextEncoder2)?;
        Ok(Encoder { tokenizer, model })
    }

    /// Hidden states `[1, tokens, hidden]` and, where there is a projection, the pooled
    /// vector `[1, dim]`; `f32` both. Says what of the text did not fit.
    fn encode(&self, text: &str, skip: usize, warn: &mut dyn FnMut(String)) -> Result<Encoded> {
        let tokens = self.tokenizer.encode(text)?;
        if !tokens.cut.is_empty() {
            warn(format!(
                "the prompt is longer than the text encoder's {} tokens; this was cut off: {}",
                self.tokenizer.max_length(),
                tokens.cut
            ));
        }
        let output = self.model.forward(&[tokens.ids], skip);
        Ok(Encoded {
            hidden: output.hidden.to_f32_vec(),
            pooled: output.pooled.map(|p| p.to_f32_vec()).unwrap_or_default(),
        })
    }
}

struct Encoded {
    hidden: Vec<f32>,
    pooled: Vec<f32>,
}

/// One prompt as the UNet gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// Text states, `[tokens, channels]`, the first encoder's channels first.
    pub context: Vec<f32>,
    /// Pooled text, `[projection_dim]`.
    pub pooled: Vec<f32>,
}

impl Conditioning {
    /// What an absent negative prompt is: zeros, in the shape of another conditioning.
    pub fn zeros_like(other: &Conditioning) -> Conditioning {
        Conditioning {
            context: vec![0.0; other.context.len()],
            pooled: vec![0.0; other.pooled.len()],
        }
    }

    /// The rows' text states `[B, tokens, channels]` and pooled vectors `[B, dim]`.
    pub fn stack(rows: &[&Conditioning], channels: usize) -> (Tensor, Tensor) {
        let tokens = rows[0].context.len() / channels;
        let context = rows.iter().flat_map(|r| r.context.clone()).collect();
        let pooled = rows.iter().flat_map(|r| r.pooled.clone()).collect();
        (
            Tensor::from_f32(vec![rows.len(), tokens, channels], context),
            Tensor::from_f32(vec![rows.len(), rows[0].pooled.len()], pooled),
        )
    }
}

/// The text encoders of a checkpoint: two for a base model, the second for a refiner.
pub struct TextEncoders {
    first: Option<Encoder>,
    second: Arc<Encoder>,
}

impl TextEncoders {
    /// Reads tokenizers and weights.
    pub fn load(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let second = Encoder::load(checkpoint, Part::TextEncoder2, precision)?;
        let first = checkpoint
            .has(Part::TextEncoder)
            .then(|| Encoder::load(checkpoint, Part::TextEncoder, precision))
            .transpose()?;
        if let Some(first) = &first
            && first.tokenizer.max_length() != second.tokenizer.max_length()
        {
            return Err(Error::file(
                checkpoint.tokenizer_folder(Part::TextEncoder),
                "the two tokenizers have different model_max_length; they belong to different models",
            ));
        }
        Ok(TextEncoders {
            first,
            second: Arc::new(second),
        })
    }

    /// The second encoder alone, as a refiner has it, in memory once for both.
    pub fn second_alone(&self) -> Self {
        TextEncoders {
            first: None,
            second: Arc::clone(&self.second),
        }
    }

    /// Whether both have one second encoder in memory.
    #[cfg(test)]
    pub(crate) fn share_second(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.second, &other.second)
    }

    /// Encodes a prompt: the last hidden layer but one of each encoder (`clip_skip` k:
    /// k layers earlier, less than the encoders have), side by side, and the pooled
    /// vector of the second.
    /// `text_2` is what the second encoder reads, unless it is the only one, which, as in the
    /// reference, reads `text`.
    pub fn encode(
        &self,
        text: &str,
        text_2: &str,
        clip_skip: Option<usize>,
        warn: &mut dyn FnMut(String),
    ) -> Result<Conditioning> {
        let skip = 1 + clip_skip.unwrap_or(0);
        let Some(encoder) = &self.first else {
            let only = self.second.encode(text, skip, warn)?;
            return Ok(Conditioning {
                context: only.hidden,
                pooled: only.pooled,
            });
        };
        let second = self.second.encode(text_2, skip, warn)?;
        // The same text is cut at the same place by both: one warning is enough.
        let silent: &mut dyn FnMut(String) = &mut |_| {};
        let warn = if text == text_2 { silent } else { warn };
        let first = encoder.encode(text, skip, warn)?;
        let (width, width_2) = (
            encoder.model.config().hidden_size,
            self.second.model.config().hidden_size,
        );
        let mut context = Vec::with_capacity(first.hidden.len() + second.hidden.len());
        for (a, b) in first
            .hidden
            .chunks_exact(width)
            .zip(second.hidden.chunks_exact(width_2))
        {
            context.extend_from_slice(a);
            context.extend_from_slice(b);
        }
        Ok(Conditioning {
            context,
            pooled: second.pooled,
        })
    }
}
