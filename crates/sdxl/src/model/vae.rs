//! The autoencoder between pictures and latents (`AutoencoderKL`).

mod tiling;

pub use tiling::tiles_of;

use super::config::VaeConfig;
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetSizes, Upsample2D};
use crate::cancel::{self, OrCancelled};
use crate::error::Result;
use crate::ops::{self, Activation, Conv2d, ConvExtras, Linear, Norm};
use crate::profile::scope;
use crate::tensor::{DType, Tensor};
use crate::weights::Loader;

/// Epsilon of every norm, fixed in the reference.
const EPS: f32 = 1e-6;

/// Attention over all pixels of the smallest feature map, with a single head.
struct VaeAttention {
    group_norm: Norm,
    qkv: Linear,
    to_out: Linear,
}

impl VaeAttention {
    fn load(from: &Loader<'_>, channels: usize, groups: usize) -> Result<Self> {
        // Files from before 2023 use the names of the original implementation.
        let (names, out) = if from.has("query.weight") {
            (["query", "key", "value"], "proj_attn")
        } else {
            (["to_q", "to_k", "to_v"], "to_out.0")
        };
        Ok(VaeAttention {
            group_norm: from.norm("group_norm", channels, groups, EPS)?,
            qkv: from.linear_stacked(&names, channels, channels)?,
            to_out: from.linear(out, channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let tokens = x.reshape(vec![x.dim(0), x.dim(1) * x.dim(2), x.channels()]);
        let normed = ops::group_norm(&tokens, &self.group_norm, false);
        let qkv = ops::linear(&normed, &self.qkv, Activation::None, None);
        let seen = ops::self_attention(&qkv, 1, false);
        ops::linear(&seen, &self.to_out, Activation::None, Some(&tokens))
            .reshape(x.shape().to_vec())
    }
}

/// Resnet, attention, resnet at the smallest size.
struct MidBlock {
    first: ResnetBlock2D,
    attention: Option<VaeAttention>,
    second: ResnetBlock2D,
}

impl MidBlock {
    fn load(from: &Loader<'_>, channels: usize, config: &VaeConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        Ok(MidBlock {
            first: resnet(&from.at("resnets.0"), channels, channels, groups)?,
            attention: config
                .mid_block_add_attention
                .then(|| VaeAttention::load(&from.at("attentions.0"), channels, groups))
                .transpose()?,
            second: resnet(&from.at("resnets.1"), channels, channels, groups)?,
        })
    }

    fn forward(&self, x: Tensor) -> OrCancelled<Tensor> {
        let mut x = scope("resnets.0", || self.first.forward(x, None))?;
        if let Some(attention) = &self.attention {
            x = scope("attentions.0", || attention.forward(&x))?;
        }
        scope("resnets.1", || self.second.forward(x, None))
    }
}

fn resnet(from: &Loader<'_>, c_in: usize, c_out: usize, groups: usize) -> Result<ResnetBlock2D> {
    ResnetBlock2D::load(
        from,
        ResnetSizes {
            c_in,
            c_out,
            time: None,
            groups,
            eps: EPS,
        },
    )
}

/// Reads `layers` resnets from `c_in` to `c_out` channels.
fn resnets(
    from: &Loader<'_>,
    layers: usize,
    c_in: usize,
    c_out: usize,
    groups: usize,
) -> Result<Vec<ResnetBlock2D>> {
    (0..layers)
        .map(|j| {
            let c_in = if j == 0 { c_in } else { c_out };
            resnet(&from.at("resnets").at(j), c_in, c_out, groups)
        })
        .collect()
}

/// The decoder: latents to pictures.
struct Decoder {
    post_quant_conv: Option<Linear>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock2D>, Option<Upsample2D>)>,
    conv_norm_out: Norm,
    conv_out: Conv2d,
}

/// The encoder: pictures to latents.
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock2D>, Option<Downsample2D>)>,
    mid_block: MidBlock,
    conv_norm_out: Norm,
    conv_out: Conv2d,
    quant_conv: Option<Linear>,
}

/// The autoencoder with its weights.
pub struct Vae {
    config: VaeConfig,
    dtype: DType,
    decoder: Decoder,
    encoder: Encoder,
}

impl Vae {
    /// Reads both halves.
    pub fn load(config: &VaeConfig, from: &Loader<'_>) -> Result<Self> {
        let groups = config.norm_num_groups;
        let latents = config.latent_channels;
        let channels = &config.block_out_channels;
        let (widest, deepest) = (channels[0], channels[channels.len() - 1]);

        let at = from.at("decoder");
        let mut up_blocks = Vec::new();
        let mut c_in = deepest;
        for (i, &c_out) in channels.iter().rev().enumerate() {
            let block = at.at("up_blocks").at(i);
            let layers = resnets(&block, config.layers_per_block + 1, c_in, c_out, groups)?;
            let upsampler = (i + 1 < channels.len())
                .then(|| Upsample2D::load(&block.at("upsamplers.0"), c_out))
                .transpose()?;
            up_blocks.push((layers, upsampler));
            c_in = c_out;
        }
        let decoder = Decoder {
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| from.linear("post_quant_conv", latents, latents))
                .transpose()?,
            conv_in: at.conv3x3("conv_in", latents, deepest)?,
            mid_block: MidBlock::load(&at.at("mid_block"), deepest, config)?,
            up_blocks,
            conv_norm_out: at.norm("conv_norm_out", widest, groups, EPS)?,
            conv_out: at.conv3x3("conv_out", widest, 3)?,
        };

        let at = from.at("encoder");
        let mut down_blocks = Vec::new();
        let mut c_in = widest;
        for (i, &c_out) in channels.iter().enumerate() {
            let block = at.at("down_blocks").at(i);
            let layers = resnets(&block, config.layers_per_block, c_in, c_out, groups)?;
            let downsampler = (i + 1 < channels.len())
                .then(|| Downsample2D::load(&block.at("downsamplers.0"), c_out, [0, 0, 1, 1]))
                .transpose()?;
            down_blocks.push((layers, downsampler));
            c_in = c_out;
        }
        let encoder = Encoder {
            conv_in: at.conv3x3("conv_in", 3, widest)?,
            down_blocks,
            mid_block: MidBlock::load(&at.at("mid_block"), deepest, config)?,
            conv_norm_out: at.norm("conv_norm_out", deepest, groups, EPS)?,
            conv_out: at.conv3x3("conv_out", deepest, 2 * latents)?,
            quant_conv: config
                .use_quant_conv
                .then(|| from.linear("quant_conv", 2 * latents, 2 * latents))
                .transpose()?,
        };
        Ok(Vae {
            config: config.clone(),
            dtype: from.precision().activations(),
            decoder,
            encoder,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Pictures `[B, 8H, 8W, 3]` in about -1 to 1, as `f32`, from latents
    /// `[B, H, W, C]` in the VAE's own scale.
    ///
    /// # Errors
    /// [`crate::Cancelled`] where the token that is installed for this thread was cancelled.
    pub fn decode(&self, latents: &Tensor) -> OrCancelled<Tensor> {
        let d = &self.decoder;
        let mut x = latents.to_dtype(self.dtype);
        if let Some(conv) = &d.post_quant_conv {
            x = ops::linear(&x, conv, Activation::None, None);
        }
        x = ops::conv2d(&x, &d.conv_in, ConvExtras::default());
        x = scope("mid_block", || d.mid_block.forward(x))??;
        for (i, (layers, upsampler)) in d.up_blocks.iter().enumerate() {
            for (j, layer) in layers.iter().enumerate() {
                x = scope(format_args!("up_blocks.{i}.resnets.{j}"), || {
                    layer.forward(x, None)
                })?;
            }
            if let Some(upsampler) = upsampler {
                x = scope(format_args!("up_blocks.{i}.upsamplers.0"), || {
                    upsampler.forward(&x, 2 * x.dim(1), 2 * x.dim(2))
                })?;
            }
        }
        x = ops::group_norm(&x, &d.conv_norm_out, true);
        x = ops::conv2d(&x, &d.conv_out, ConvExtras::default());
        whole(x.to_dtype(DType::F32))
    }

    /// Mean and log-variance `[B, H, W, 2·C]` (means first), as `f32`, of the latents of
    /// pictures `[B, 8H, 8W, 3]` in -1 to 1.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn encode(&self, pictures: &Tensor) -> OrCancelled<Tensor> {
        let e = &self.encoder;
        let mut x = ops::conv2d(
            &pictures.to_dtype(self.dtype),
            &e.conv_in,
            ConvExtras::default(),
        );
        for (i, (layers, downsampler)) in e.down_blocks.iter().enumerate() {
            for (j, layer) in layers.iter().enumerate() {
                x = scope(format_args!("down_blocks.{i}.resnets.{j}"), || {
                    layer.forward(x, None)
                })?;
            }
            if let Some(downsampler) = downsampler {
                x = scope(format_args!("down_blocks.{i}.downsamplers.0"), || {
                    downsampler.forward(&x)
                })?;
            }
        }
        x = scope("mid_block", || e.mid_block.forward(x))??;
        x = ops::group_norm(&x, &e.conv_norm_out, true);
        x = ops::conv2d(&x, &e.conv_out, ConvExtras::default());
        if let Some(conv) = &e.quant_conv {
            x = ops::linear(&x, conv, Activation::None, None);
        }
        whole(x.to_dtype(DType::F32))
    }
}

/// Gives a result, unless the run was cancelled: then its last operators may have been cut short.
fn whole(result: Tensor) -> OrCancelled<Tensor> {
    cancel::check()?;
    Ok(result)
}
