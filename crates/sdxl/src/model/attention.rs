//! The spatial transformer of the UNet: image tokens look at one another and at the text.

use std::cell::Cell;
use std::sync::Arc;

use crate::cancel::{self, OrCancelled};
use crate::error::Result;
use crate::ops::{self, Activation, Geglu, Linear, Norm};
use crate::profile::scope;
use crate::tensor::Tensor;
use crate::weights::Loader;

/// The keys and values of a text in every block of a network, `[tokens, 2·C]`, in the order the
/// blocks run. They depend on the text alone: a run needs them once, not at every step.
pub struct TextKeys {
    blocks: Vec<Tensor>,
}

impl TextKeys {
    /// Computes the cross-attention keys and values of text states `[tokens, context]` in all
    /// blocks of `transformers`, which are given in the order they run.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub fn new<'a>(
        transformers: impl Iterator<Item = &'a Transformer2D>,
        context: &Tensor,
    ) -> OrCancelled<TextKeys> {
        let blocks = transformers.flat_map(|t| &t.transformer_blocks);
        let keys = blocks.map(|block| {
            let keys = ops::linear(context, &block.attn2_kv, Activation::None, None);
            // Keys are used in all steps of a run: a product that was cut short must not stay.
            cancel::check().map(|()| keys)
        });
        Ok(TextKeys {
            blocks: keys.collect::<OrCancelled<_>>()?,
        })
    }

    /// Bytes of the keys and values.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(Tensor::bytes).sum()
    }
}

/// The texts of a batch, a row an image, while a network goes through its blocks.
pub struct TextStates<'a> {
    rows: &'a [Arc<TextKeys>],
    next: Cell<usize>,
}

impl<'a> TextStates<'a> {
    /// The texts before the first block.
    pub fn new(rows: &'a [Arc<TextKeys>]) -> TextStates<'a> {
        TextStates {
            rows,
            next: Cell::new(0),
        }
    }

    /// Keys and values for the next block.
    fn next(&self) -> Vec<&'a Tensor> {
        let block = self.next.replace(self.next.get() + 1);
        self.rows.iter().map(|row| &row.blocks[block]).collect()
    }
}

/// Self-attention, attention to the text, feed-forward; each with its norm before and
/// its input added after (`BasicTransformerBlock`).
struct BasicTransformerBlock {
    heads: usize,
    norm1: Norm,
    attn1_qkv: Linear,
    attn1_to_out: Linear,
    norm2: Norm,
    attn2_to_q: Linear,
    attn2_kv: Linear,
    attn2_to_out: Linear,
    norm3: Norm,
    ff_in: Geglu,
    ff_out: Linear,
}

impl BasicTransformerBlock {
    fn load(from: &Loader<'_>, channels: usize, heads: usize, context: usize) -> Result<Self> {
        let norm = |name: &str| from.norm(name, channels, 1, 1e-5);
        let (attn1, attn2) = (from.at("attn1"), from.at("attn2"));
        Ok(BasicTransformerBlock {
            heads,
            norm1: norm("norm1")?,
            attn1_qkv: attn1.linear_stacked(&["to_q", "to_k", "to_v"], channels, channels)?,
            attn1_to_out: attn1.linear("to_out.0", channels, channels)?,
            norm2: norm("norm2")?,
            attn2_to_q: attn2.linear("to_q", channels, channels)?,
            attn2_kv: attn2.linear_stacked(&["to_k", "to_v"], context, channels)?,
            attn2_to_out: attn2.linear("to_out.0", channels, channels)?,
            norm3: norm("norm3")?,
            ff_in: from.geglu("ff.net.0.proj", channels, 4 * channels)?,
            ff_out: from.linear("ff.net.2", 4 * channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, texts: &TextStates<'_>) -> OrCancelled<Tensor> {
        let x = scope("attn1", || self.attend_to_image(x))?;
        let x = scope("attn2", || self.attend_to_text(&x, texts))?;
        scope("ff", || {
            let hidden = ops::geglu(&ops::layer_norm(&x, &self.norm3), &self.ff_in);
            ops::linear(&hidden, &self.ff_out, Activation::None, Some(&x))
        })
    }

    fn attend_to_image(&self, x: &Tensor) -> Tensor {
        let none = Activation::None;
        let qkv = ops::linear(
            &ops::layer_norm(x, &self.norm1),
            &self.attn1_qkv,
            none,
            None,
        );
        let seen = ops::self_attention(&qkv, self.heads, false);
        drop(qkv);
        ops::linear(&seen, &self.attn1_to_out, none, Some(x))
    }

    fn attend_to_text(&self, x: &Tensor, texts: &TextStates<'_>) -> Tensor {
        let none = Activation::None;
        let q = ops::linear(
            &ops::layer_norm(x, &self.norm2),
            &self.attn2_to_q,
            none,
            None,
        );
        let seen = ops::cross_attention(&q, &texts.next(), self.heads);
        ops::linear(&seen, &self.attn2_to_out, none, Some(x))
    }
}

/// A stack of transformer blocks over the pixels of a feature map
/// (`Transformer2DModel`).
pub struct Transformer2D {
    norm: Norm,
    proj_in: Linear,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Linear,
}

impl Transformer2D {
    /// Reads `depth` blocks; `context` is the number of channels of the text states.
    pub fn load(
        from: &Loader<'_>,
        channels: usize,
        heads: usize,
        depth: usize,
        context: usize,
        groups: usize,
    ) -> Result<Self> {
        let blocks = from.at("transformer_blocks");
        Ok(Transformer2D {
            // 1e-6 is fixed in the reference, whatever the UNet's own epsilon.
            norm: from.norm("norm", channels, groups, 1e-6)?,
            proj_in: from.linear("proj_in", channels, channels)?,
            transformer_blocks: (0..depth)
                .map(|i| BasicTransformerBlock::load(&blocks.at(i), channels, heads, context))
                .collect::<Result<_>>()?,
            proj_out: from.linear("proj_out", channels, channels)?,
        })
    }

    /// `x` `[B, H, W, C]` and the texts of its images; gives `[B, H, W, C]`.
    ///
    /// # Errors
    /// [`crate::Cancelled`]. Without it the result may still be incomplete, until its caller has asked.
    pub fn forward(&self, x: &Tensor, texts: &TextStates<'_>) -> OrCancelled<Tensor> {
        let tokens = vec![x.dim(0), x.dim(1) * x.dim(2), x.channels()];
        let normed = ops::group_norm(x, &self.norm, false).reshape(tokens);
        let mut hidden = ops::linear(&normed, &self.proj_in, Activation::None, None);
        drop(normed);
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            hidden = scope(format_args!("transformer_blocks.{i}"), || {
                block.forward(&hidden, texts)
            })??;
        }
        let x_tokens = x.reshape(hidden.shape().to_vec());
        let out = ops::linear(&hidden, &self.proj_out, Activation::None, Some(&x_tokens));
        Ok(out.reshape(x.shape().to_vec()))
    }
}
