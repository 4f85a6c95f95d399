//! The denoising network (`UNet2DConditionModel`), for every configuration of the
//! SDXL family: base, refiner, SSD-1B, Vega.

use std::path::Path;
use std::sync::Arc;

use super::attention::{TextKeys, Texts, Transformer2D};
use super::config::{Middle, UNetConfig};
use super::embeddings::{TimestepEmbedding, sinusoidal};
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetSizes, Upsample2D};
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

/// A level on the way down.
struct DownBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2D>,
    downsampler: Option<Downsample2D>,
}

/// The middle: the first resnet, then pairs of attention and resnet.
struct MidBlock {
    first: ResnetBlock2D,
    rest: Vec<(Option<Transformer2D>, ResnetBlock2D)>,
}

/// A level on the way up; each resnet also sees what was put aside on the way down.
struct UpBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2D>,
    upsampler: Option<Upsample2D>,
}

/// The denoising network with its weights.
pub struct UNet {
    config: UNetConfig,
    dtype: DType,
    time_embedding: TimestepEmbedding,
    add_embedding: TimestepEmbedding,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: Norm,
    conv_out: Conv2d,
}

impl UNet {
    /// Reads the network; `config_path` is named in errors about its configuration.
    pub fn load(config: &UNetConfig, config_path: &Path, from: &Loader<'_>) -> Result<Self> {
        let levels = config.levels(config_path)?;
        let first = levels[0].channels;
        let time = 4 * first;
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let sizes = |c_in, c_out| ResnetSizes {
            c_in,
            c_out,
            time: Some(time),
            groups,
            eps,
        };
        let transformer = |from: &Loader<'_>, level: &super::config::Level, depth| {
            Transformer2D::load(
                from,
                level.channels,
                level.heads,
                depth,
                config.cross_attention_dim,
                groups,
            )
        };

        let mut down_blocks = Vec::new();
        let mut c_in = first;
        // Channels of everything put aside, in order.
        let mut aside = vec![first];
        for (i, level) in levels.iter().enumerate() {
            let here = from.at("down_blocks").at(i);
            let mut block = DownBlock {
                resnets: Vec::new(),
                attentions: Vec::new(),
                downsampler: None,
            };
            for j in 0..level.layers {
                block.resnets.push(ResnetBlock2D::load(
                    &here.at("resnets").at(j),
                    sizes(c_in, level.channels),
                )?);
                if let Some(&depth) = level.down_transformers.get(j) {
                    block
                        .attentions
                        .push(transformer(&here.at("attentions").at(j), level, depth)?);
                }
                c_in = level.channels;
                aside.push(c_in);
            }
            if i + 1 < levels.len() {
                block.downsampler = Some(Downsample2D::load(
                    &here.at("downsamplers.0"),
                    level.channels,
                    [config.downsample_padding; 4],
                )?);
                aside.push(c_in);
            }
            down_blocks.push(block);
        }

        let here = from.at("mid_block");
        let resnet = |i: usize| ResnetBlock2D::load(&here.at("resnets").at(i), sizes(c_in, c_in));
        let deepest = &levels[levels.len() - 1];
        let mid_block = match config.middle(config_path)? {
            Middle::Absent => None,
            Middle::Resnet => Some(MidBlock {
                first: resnet(0)?,
                rest: Vec::new(),
            }),
            Middle::CrossAttention(depth) => Some(MidBlock {
                first: resnet(0)?,
                rest: vec![(
                    Some(transformer(&here.at("attentions.0"), deepest, depth)?),
                    resnet(1)?,
                )],
            }),
        };

        let mut up_blocks = Vec::new();
        for (i, level) in levels.iter().rev().enumerate() {
            let here = from.at("up_blocks").at(i);
            let mut block = UpBlock {
                resnets: Vec::new(),
                attentions: Vec::new(),
                upsampler: None,
            };
            for j in 0..=level.layers {
                // One skip for each resnet: the lists have equal lengths by construction.
                let skip = aside.pop().unwrap_or(first);
                block.resnets.push(ResnetBlock2D::load(
                    &here.at("resnets").at(j),
                    sizes(c_in + skip, level.channels),
                )?);
                if let Some(&depth) = level.up_transformers.get(j) {
                    block
                        .attentions
                        .push(transformer(&here.at("attentions").at(j), level, depth)?);
                }
                c_in = level.channels;
            }
            if i + 1 < levels.len() {
                block.upsampler = Some(Upsample2D::load(&here.at("upsamplers.0"), level.channels)?);
            }
            up_blocks.push(block);
        }

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
            down_blocks,
            mid_block,
            up_blocks,
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
        let down = self.down_blocks.iter().flat_map(|b| &b.attentions);
        let middle = self.mid_block.iter().flat_map(|b| &b.rest);
        let up = self.up_blocks.iter().flat_map(|b| &b.attentions);
        let all = down
            .chain(middle.filter_map(|(attention, _)| attention.as_ref()))
            .chain(up);
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
        // Every resnet starts its use of the embedding with a SiLU.
        let emb = ops::silu(&emb);
        let context = Texts::new(texts);

        let mut x = ops::conv2d(
            &x.to_dtype(self.dtype),
            &self.conv_in,
            ConvExtras::default(),
        );
        observe("conv_in", &x);
        let mut aside = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            for (j, resnet) in block.resnets.iter().enumerate() {
                x = scope(format_args!("down_blocks.{i}.resnets.{j}"), || {
                    resnet.forward(x, Some(&emb))
                })?;
                if let Some(attention) = block.attentions.get(j) {
                    x = scope(format_args!("down_blocks.{i}.attentions.{j}"), || {
                        attention.forward(&x, &context)
                    })??;
                }
                aside.push(x.clone());
            }
            if let Some(downsampler) = &block.downsampler {
                x = scope(format_args!("down_blocks.{i}.downsamplers.0"), || {
                    downsampler.forward(&x)
                })?;
                aside.push(x.clone());
            }
            observe(&format!("down_blocks.{i}"), &x);
        }

        if let Some(mid) = &self.mid_block {
            x = scope("mid_block.resnets.0", || mid.first.forward(x, Some(&emb)))?;
            for (j, (attention, resnet)) in mid.rest.iter().enumerate() {
                if let Some(attention) = attention {
                    x = scope(format_args!("mid_block.attentions.{j}"), || {
                        attention.forward(&x, &context)
                    })??;
                }
                x = scope(format_args!("mid_block.resnets.{}", j + 1), || {
                    resnet.forward(x, Some(&emb))
                })?;
            }
            observe("mid_block", &x);
        }

        for (i, block) in self.up_blocks.iter().enumerate() {
            for (j, resnet) in block.resnets.iter().enumerate() {
                if let Some(skip) = aside.pop() {
                    x = ops::cat_channels(&x, &skip);
                }
                x = scope(format_args!("up_blocks.{i}.resnets.{j}"), || {
                    resnet.forward(x, Some(&emb))
                })?;
                if let Some(attention) = block.attentions.get(j) {
                    x = scope(format_args!("up_blocks.{i}.attentions.{j}"), || {
                        attention.forward(&x, &context)
                    })??;
                }
            }
            if let (Some(upsampler), Some(next)) = (&block.upsampler, aside.last()) {
                // The size put aside on the way down, not twice the size here: they
                // differ where a side was odd.
                x = scope(format_args!("up_blocks.{i}.upsamplers.0"), || {
                    upsampler.forward(&x, next.dim(1), next.dim(2))
                })?;
            }
            observe(&format!("up_blocks.{i}"), &x);
        }

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
