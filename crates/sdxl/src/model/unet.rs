//! The denoising network (`UNet2DConditionModel`), for every configuration of the
//! SDXL family: base, refiner, SSD-1B, Vega.

mod blocks;

use std::path::Path;
use std::sync::Arc;

use blocks::{BlockInputs, BlockSizes, DownPath, MidBlock, UpPath};

use super::attention::{TextKeys, TextStates};
use super::config::UNetConfig;
use super::embeddings::{TimestepEmbedding, sinusoidal};
use crate::cancel::{self, OrCancelled};
use crate::error::Result;
use crate::ops::{self, Conv2d, ConvExtras, Norm};
use crate::profile::scope;
use crate::tensor::{DType, Tensor};
use crate::weights::Loader;

/// The conditioning of the UNet: its inputs besides the noisy latents and the timestep, one row per
/// image.
pub struct UNetConditioning {
    /// Text states `[B, tokens, cross_attention_dim]`.
    pub context: Tensor,
    /// Pooled text `[B, projection_dim]`.
    pub pooled: Tensor,
    /// Size ids `[B, 6]` (`[B, 5]` for a refiner), as plain numbers.
    pub time_ids: Tensor,
}

/// The denoising network with its weights.
pub struct UNet {
    config: UNetConfig,
    dtype: DType,
    time_embedding: TimestepEmbedding,
    add_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    down: DownPath,
    middle: Option<MidBlock>,
    up: UpPath,
    conv_norm_out: Norm,
    conv_out: Conv2d,
}

impl UNet {
    /// Reads the network; `config_path` is named in errors about its configuration.
    pub fn load(config: &UNetConfig, config_path: &Path, from: &Loader<'_>) -> Result<Self> {
        let levels = config.levels(config_path)?;
        let sizes = BlockSizes::new(config);
        let (first, time) = (sizes.first(), sizes.time());
        let deepest = &levels[levels.len() - 1];
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let down = DownPath::load(from, &levels, sizes)?;
        let middle = MidBlock::load(from, config.middle(config_path)?, deepest, sizes)?;
        let up = UpPath::load(from, &levels, sizes)?;
        Ok(UNet {
            config: config.clone(),
            dtype: from.precision().activations(),
            time_embedding: TimestepEmbedding::load(&from.at("time_embedding"), first, time)?,
            add_embedding: TimestepEmbedding::load(
                &from.at("add_embedding"),
                config.projection_class_embeddings_input_dim,
                time,
            )?,
            conv_in: from.conv3x3("conv_in", config.in_channels, first)?,
            down,
            middle,
            up,
            conv_norm_out: from.norm("conv_norm_out", first, groups, eps)?,
            conv_out: from.conv3x3("conv_out", first, config.out_channels)?,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The network's prediction for noisy latents `x` `[B, H, W, C]` (scaled by the
    /// scheduler) at `timestep`, which may be fractional. `[B, H, W, C]` in `f32`.
    ///
    /// # Errors
    /// [`crate::Cancelled`] where the token that is installed for this thread was cancelled; the same for
    /// the functions below.
    pub fn forward(
        &self,
        x: &Tensor,
        timestep: f64,
        conditioning: &UNetConditioning,
    ) -> OrCancelled<Tensor> {
        self.forward_observed(x, timestep, conditioning, &mut |_, _| {})
    }

    /// Computes the cross-attention keys and values of text states `[tokens, cross_attention_dim]`
    /// in all blocks, for [`Self::forward_with`].
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub fn text_keys(&self, context: &Tensor) -> OrCancelled<TextKeys> {
        let middle = self.middle.iter().flat_map(MidBlock::attentions);
        let all = (self.down.attentions())
            .chain(middle)
            .chain(self.up.attentions());
        TextKeys::new(all, &context.to_dtype(self.dtype))
    }

    /// [`Self::forward`] with a timestep for each row of `x`, and with texts that
    /// [`Self::text_keys`] was given before, a row an image; `pooled` and `time_ids` as in
    /// [`UNetConditioning`]. A row's numbers depend on no other row.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    ///
    /// # Panics
    /// If there are not as many timesteps as rows.
    pub fn forward_with(
        &self,
        x: &Tensor,
        timesteps: &[f64],
        texts: &[Arc<TextKeys>],
        pooled: &Tensor,
        time_ids: &Tensor,
    ) -> OrCancelled<Tensor> {
        assert_eq!(timesteps.len(), x.dim(0), "timesteps, one for each row");
        let emb = scope("embeddings", || self.embed(timesteps, pooled, time_ids))?;
        self.run(x, emb, texts, &mut |_, _| {})
    }

    /// [`Self::forward`], showing each block's output to `observe` by its name in the
    /// checkpoint. Tests compare these with the reference's.
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub fn forward_observed(
        &self,
        x: &Tensor,
        timestep: f64,
        conditioning: &UNetConditioning,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> OrCancelled<Tensor> {
        let UNetConditioning {
            context,
            pooled,
            time_ids,
        } = conditioning;
        let tokens = context.shape()[1..].to_vec();
        let texts: Vec<Arc<TextKeys>> = (0..x.dim(0))
            .map(|row| context.narrow_batch(row, 1).reshape(tokens.clone()))
            .map(|text| Ok(Arc::new(self.text_keys(&text)?)))
            .collect::<OrCancelled<_>>()?;
        let timesteps = vec![timestep; x.dim(0)];
        let emb = scope("embeddings", || self.embed(&timesteps, pooled, time_ids))?;
        self.run(x, emb, &texts, observe)
    }

    fn run(
        &self,
        x: &Tensor,
        emb: Tensor,
        texts: &[Arc<TextKeys>],
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> OrCancelled<Tensor> {
        observe("emb", &emb);
        let inputs = BlockInputs {
            // Every resnet starts its use of the embedding with a SiLU.
            emb: ops::silu(&emb),
            texts: TextStates::new(texts),
        };
        let x = ops::conv2d(
            &x.to_dtype(self.dtype),
            &self.conv_in,
            ConvExtras::default(),
        );
        observe("conv_in", &x);
        let (x, skips) = self.down.run(x, &inputs, observe)?;
        let x = match &self.middle {
            Some(middle) => middle.run(x, &inputs, observe)?,
            None => x,
        };
        let x = self.up.run(x, skips, &inputs, observe)?;
        let x = ops::group_norm(&x, &self.conv_norm_out, true);
        let out = ops::conv2d(&x, &self.conv_out, ConvExtras::default()).to_dtype(DType::F32);
        // The last operators may have been cut short.
        cancel::check()?;
        Ok(out)
    }

    /// Timesteps, one a row, pooled text and size ids as one vector an image, `[B, 4·C]`.
    fn embed(&self, timesteps: &[f64], pooled: &Tensor, time_ids: &Tensor) -> Tensor {
        let batch = timesteps.len();
        let c = &self.config;
        let first = c.block_out_channels[0];
        let mut time = Vec::with_capacity(batch * first);
        for timestep in timesteps {
            sinusoidal(
                *timestep as f32,
                first,
                c.flip_sin_to_cos,
                c.freq_shift,
                &mut time,
            );
        }
        let time = Tensor::from_f32(vec![batch, first], time).to_dtype(self.dtype);
        let time = self.time_embedding.forward(&time);

        let (width, count) = (pooled.channels(), time_ids.channels());
        let (pooled, ids) = (pooled.to_f32_vec(), time_ids.to_f32_vec());
        let mut added = Vec::new();
        for b in 0..batch {
            added.extend_from_slice(&pooled[b * width..(b + 1) * width]);
            for &id in &ids[b * count..(b + 1) * count] {
                let dim = c.addition_time_embed_dim;
                sinusoidal(id, dim, c.flip_sin_to_cos, c.freq_shift, &mut added);
            }
        }
        let added = Tensor::from_f32(vec![batch, c.projection_class_embeddings_input_dim], added)
            .to_dtype(self.dtype);
        ops::add(&time, &self.add_embedding.forward(&added))
    }
}
