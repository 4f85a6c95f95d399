//! The CLIP text encoders (Radford et al. 2021): `CLIPTextModel` and
//! `CLIPTextModelWithProjection`.

use crate::cancel::{self, OrCancelled};
use crate::error::Result;
use crate::model::config::ClipConfig;
use crate::ops::{self, Activation, Linear, Norm};
use crate::profile::scope;
use crate::tensor::{DType, Tensor};
use crate::weights::{Embedding, Loader};

struct EncoderLayer {
    layer_norm1: Norm,
    qkv: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// A text encoder with its weights.
pub struct ClipTextModel {
    config: ClipConfig,
    dtype: DType,
    activation: Activation,
    token_embedding: Embedding,
    inversions: Inverted,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: Norm,
    text_projection: Option<Linear>,
}

/// Vectors of textual inversions.
#[derive(Default)]
struct Inverted {
    /// The id of the first.
    first: usize,
    /// `[tokens, hidden_size]`
    rows: Vec<f32>,
}

/// The output of a text encoder, as far as SDXL uses it.
pub struct ClipOutput {
    /// The asked hidden layer, not normalised: `[B, tokens, hidden_size]`.
    pub hidden: Tensor,
    /// The projected state at the end of the text `[B, projection_dim]`, where the
    /// encoder has a projection.
    pub pooled: Option<Tensor>,
}

impl ClipTextModel {
    /// Reads the encoder, with or without the `text_model.` prefix that newer
    /// versions of transformers leave out.
    pub fn load(config: &ClipConfig, root: &Loader<'_>, with_projection: bool) -> Result<Self> {
        let from = if root.has("embeddings.token_embedding.weight") {
            root.clone()
        } else {
            root.at("text_model")
        };
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let at = from.at("encoder.layers").at(i);
                let attention = at.at("self_attn");
                Ok(EncoderLayer {
                    layer_norm1: at.norm("layer_norm1", width, 1, eps)?,
                    qkv: attention.linear_stacked(&["q_proj", "k_proj", "v_proj"], width, width)?,
                    out_proj: attention.linear("out_proj", width, width)?,
                    layer_norm2: at.norm("layer_norm2", width, 1, eps)?,
                    fc1: at.linear("mlp.fc1", width, config.intermediate_size)?,
                    fc2: at.linear("mlp.fc2", config.intermediate_size, width)?,
                })
            })
            .collect::<Result<_>>()?;
        let embeddings = from.at("embeddings");
        Ok(ClipTextModel {
            config: config.clone(),
            dtype: root.precision().activations(),
            activation: if config.hidden_act == "gelu" {
                Activation::Gelu
            } else {
                Activation::QuickGelu
            },
            token_embedding: embeddings.embedding("token_embedding", config.vocab_size, width)?,
            inversions: Inverted::default(),
            position_embedding: embeddings.embedding(
                "position_embedding",
                config.max_position_embeddings,
                width,
            )?,
            layers,
            final_layer_norm: from.norm("final_layer_norm", width, 1, eps)?,
            text_projection: with_projection
                .then(|| root.linear("text_projection", width, config.projection_dim))
                .transpose()?,
        })
    }

    /// The encoder with vectors of textual inversions, `[tokens, hidden_size]`, for the ids from
    /// `first` on.
    pub fn with_inversions(mut self, first: usize, rows: Vec<f32>) -> Self {
        self.inversions = Inverted { first, rows };
        self
    }

    /// Appends the vector of a token.
    fn append_token(&self, id: usize, values: &mut Vec<f32>) {
        let Inverted { first, rows } = &self.inversions;
        let width = self.config.hidden_size;
        let inverted = (id.checked_sub(*first)).and_then(|i| rows.get(i * width..(i + 1) * width));
        match inverted {
            Some(row) => values.extend_from_slice(row),
            None => self.token_embedding.append_row(id, values),
        }
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Encodes sequences of one length (at most `max_position_embeddings`; ids below
    /// `vocab_size`, and those of textual inversions). The hidden states are those after `skip` fewer layers than there
    /// are: 1 is SDXL's "penultimate", `clip_skip` k adds k.
    ///
    /// # Errors
    /// [`crate::Cancelled`] where the token that is installed for this thread was cancelled.
    pub fn forward(&self, ids: &[Vec<u32>], skip: usize) -> OrCancelled<ClipOutput> {
        self.forward_masked(ids, None, skip)
    }

    /// [`Self::forward`] with tokens hidden from attention: those that are false in
    /// `seen`, one entry a token, the sequences one after the other.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_masked(
        &self,
        ids: &[Vec<u32>],
        seen: Option<&[bool]>,
        skip: usize,
    ) -> OrCancelled<ClipOutput> {
        self.run(ids, seen, skip, &|sequence| self.end_of_text(sequence))
    }

    /// [`Self::forward`] of one sequence, with the pooled vector of the first token that is `eos`; where
    /// there is none that of the first of all, as in the reference.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_to(&self, ids: Vec<u32>, skip: usize, eos: u32) -> OrCancelled<ClipOutput> {
        let end = |ids: &[u32]| ids.iter().position(|id| *id == eos).unwrap_or(0);
        self.run(&[ids], None, skip, &end)
    }

    fn run(
        &self,
        ids: &[Vec<u32>],
        seen: Option<&[bool]>,
        skip: usize,
        end: &dyn Fn(&[u32]) -> usize,
    ) -> OrCancelled<ClipOutput> {
        let (batch, tokens) = (ids.len(), ids[0].len());
        let width = self.config.hidden_size;
        let mut values = Vec::with_capacity(batch * tokens * width);
        let mut positions = Vec::with_capacity(batch * tokens * width);
        for sequence in ids {
            for (position, &id) in sequence.iter().enumerate() {
                self.append_token(id as usize, &mut values);
                self.position_embedding.append_row(position, &mut positions);
            }
        }
        for (value, position) in values.iter_mut().zip(&positions) {
            *value += position;
        }
        let mut x = Tensor::from_f32(vec![batch, tokens, width], values).to_dtype(self.dtype);
        let take = self.layers.len().saturating_sub(skip);
        let mut hidden = x.clone();
        // Without a projection nothing behind the layer that is taken matters.
        let run = if self.text_projection.is_some() {
            self.layers.len()
        } else {
            take
        };
        for (i, layer) in self.layers[..run].iter().enumerate() {
            x = scope(format_args!("layers.{i}"), || self.layer(layer, &x, seen))?;
            if i + 1 == take {
                hidden = x.clone();
            }
        }
        let pooled = self.text_projection.as_ref().map(|projection| {
            let rows: Vec<Tensor> = ids
                .iter()
                .enumerate()
                .map(|(b, sequence)| {
                    x.narrow_batch(b, 1)
                        .reshape(vec![tokens, width])
                        .narrow_batch(end(sequence), 1)
                })
                .collect();
            let ends = Tensor::cat_batch(&rows.iter().collect::<Vec<_>>());
            let normed = ops::layer_norm(&ends, &self.final_layer_norm);
            ops::linear(&normed, projection, Activation::None, None)
        });
        // The last operators may have been cut short.
        cancel::check()?;
        Ok(ClipOutput { hidden, pooled })
    }

    fn layer(&self, layer: &EncoderLayer, x: &Tensor, seen: Option<&[bool]>) -> Tensor {
        let none = Activation::None;
        let normed = ops::layer_norm(x, &layer.layer_norm1);
        let qkv = ops::linear(&normed, &layer.qkv, none, None);
        let heads = self.config.num_attention_heads;
        let gathered = match seen {
            Some(seen) => ops::masked_self_attention(&qkv, heads, seen),
            None => ops::self_attention(&qkv, heads, true),
        };
        let x = ops::linear(&gathered, &layer.out_proj, none, Some(x));
        let normed = ops::layer_norm(&x, &layer.layer_norm2);
        let hidden = ops::linear(&normed, &layer.fc1, self.activation, None);
        ops::linear(&hidden, &layer.fc2, none, Some(&x))
    }

    /// Finds the position at which the reference takes the pooled vector. Published SDXL files say
    /// `eos_token_id` 2, an old mistake; transformers still supports it by taking the largest id:
    /// the end of the text, or a textual inversion before it.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let found = if self.config.eos_token_id == 2 {
            let largest = ids.iter().max();
            ids.iter().position(|id| Some(id) == largest)
        } else {
            ids.iter().position(|id| *id == self.config.eos_token_id)
        };
        // The reference's argmax of nothing.
        found.unwrap_or(0)
    }
}
