//! The residual block of the UNet and the VAE, and the layers that change size.

use crate::error::Result;
use crate::ops::{self, Activation, Conv2d, ConvExtras, Linear, Norm};
use crate::tensor::{DType, Tensor};
use crate::weights::Loader;

/// A residual block: norm, SiLU, convolution, twice, plus the input (`ResnetBlock2D`). In the UNet the
/// timestep's embedding is added between the two.
pub struct ResnetBlock2D {
    norm1: Norm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: Norm,
    conv2: Conv2d,
    /// A 1x1 convolution, where the number of channels changes.
    conv_shortcut: Option<Linear>,
}

/// The sizes a [`ResnetBlock2D`] is built from.
#[derive(Clone, Copy)]
pub struct ResnetSizes {
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Length of the timestep's embedding, where there is one.
    pub time: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl ResnetBlock2D {
    /// Reads the block at `from`.
    pub fn load(from: &Loader<'_>, s: ResnetSizes) -> Result<Self> {
        // All later blocks add to the sum that this block ends with: what is rounded here stays.
        let from = &from.keep_bf16();
        // Winograd convolutions are faster and round more. In the UNet that is small beside the rest;
        // in a VAE in `bf16`, which is nothing but such blocks, it would show.
        let conv = |name: &str, c_in: usize| match s.time {
            Some(_) => from.conv_winograd(name, c_in, s.c_out),
            None => from.conv3x3(name, c_in, s.c_out),
        };
        Ok(ResnetBlock2D {
            norm1: from.norm("norm1", s.c_in, s.groups, s.eps)?,
            conv1: conv("conv1", s.c_in)?,
            time_emb_proj: s
                .time
                .map(|k| from.linear("time_emb_proj", k, s.c_out))
                .transpose()?,
            norm2: from.norm("norm2", s.c_out, s.groups, s.eps)?,
            conv2: conv("conv2", s.c_out)?,
            conv_shortcut: (s.c_in != s.c_out)
                .then(|| from.linear("conv_shortcut", s.c_in, s.c_out))
                .transpose()?,
        })
    }

    /// `x` `[B, H, W, c_in]`, `emb` `[B, time]` after its SiLU; gives `[B, H, W, c_out]`.
    ///
    /// Drops `x` as soon as it can: at a picture's size each map takes up to a gigabyte.
    pub fn forward(&self, x: Tensor, emb: Option<&Tensor>) -> Tensor {
        let time = match (&self.time_emb_proj, emb) {
            (Some(proj), Some(emb)) => {
                Some(ops::linear(emb, proj, Activation::None, None).to_dtype(DType::F32))
            }
            _ => None,
        };
        let hidden = ops::norm_conv2d(
            x.clone(),
            &self.norm1,
            &self.conv1,
            ConvExtras {
                sample_bias: time.as_ref(),
                ..ConvExtras::default()
            },
        );
        let shortcut = match &self.conv_shortcut {
            Some(conv) => ops::linear_reusing_input(x, conv),
            None => x,
        };
        ops::norm_conv2d(
            hidden,
            &self.norm2,
            &self.conv2,
            ConvExtras {
                residual: Some(&shortcut),
                ..ConvExtras::default()
            },
        )
    }
}

/// Halves height and width with a strided convolution (`Downsample2D`).
pub struct Downsample2D {
    conv: Conv2d,
}

impl Downsample2D {
    /// `padding`: top, left, bottom, right. The UNet pads all round, the VAE's encoder
    /// only at the bottom and on the right.
    pub fn load(from: &Loader<'_>, channels: usize, padding: [usize; 4]) -> Result<Self> {
        Ok(Downsample2D {
            conv: from.conv2d("conv", channels, channels, 3, 2, padding)?,
        })
    }

    /// `[B, H, W, C]` to about `[B, H/2, W/2, C]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::conv2d(x, &self.conv, ConvExtras::default())
    }
}

/// Repeats pixels, then convolves (`Upsample2D`).
pub struct Upsample2D {
    conv: Conv2d,
    /// The convolution packed for doubled pixels, where that takes less work.
    doubled: Option<Conv2d>,
}

impl Upsample2D {
    /// Reads `conv` at `from`.
    pub fn load(from: &Loader<'_>, channels: usize) -> Result<Self> {
        Ok(Upsample2D {
            conv: from.conv3x3("conv", channels, channels)?,
            doubled: from.conv_doubled("conv", channels, channels)?,
        })
    }

    /// `[B, H, W, C]` to `[B, height, width, C]`, twice the size (or one less).
    pub fn forward(&self, x: &Tensor, height: usize, width: usize) -> Tensor {
        let doubles = [height, width] == [2 * x.dim(1), 2 * x.dim(2)];
        let conv = self.doubled.as_ref().filter(|_| doubles);
        ops::conv2d(
            x,
            conv.unwrap_or(&self.conv),
            ConvExtras {
                upsample_to: Some((height, width)),
                ..ConvExtras::default()
            },
        )
    }
}
