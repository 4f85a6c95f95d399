//! Embeddings of numbers as vectors: sinusoidal ones of timesteps and sizes, and the small
//! networks on top of them.

use crate::error::Result;
use crate::ops::{self, Activation, Linear};
use crate::tensor::Tensor;
use crate::weights::Loader;

/// Sinusoidal embedding (Vaswani et al. 2017, in the form of DDPM): each value
/// becomes `dim` numbers, appended to `out`; frequency `i` of `dim / 2` is
/// `10000^(-i / (dim/2 - freq_shift))`.
///
/// With `flip_sin_to_cos` the cosines come first, as in all SDXL checkpoints. The
/// exponent and the angle are rounded to `f32` where torch rounds them: at timestep
/// 999 the angle's rounding is visible in the result.
pub fn sinusoidal(
    value: f32,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
    out: &mut Vec<f32>,
) {
    let half = dim / 2;
    let angle = |i: usize| -> f32 {
        let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f32 - freq_shift);
        value * f64::from(exponent).exp() as f32
    };
    let sines = |out: &mut Vec<f32>| {
        out.extend((0..half).map(|i| f64::from(angle(i)).sin() as f32));
    };
    if !flip_sin_to_cos {
        sines(out);
    }
    out.extend((0..half).map(|i| f64::from(angle(i)).cos() as f32));
    if flip_sin_to_cos {
        sines(out);
    }
    if dim % 2 == 1 {
        out.push(0.0);
    }
}

/// Two fully connected layers with a SiLU between (`TimestepEmbedding`).
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads `linear_1` (`k` to `n`) and `linear_2` (`n` to `n`).
    pub fn load(from: &Loader<'_>, k: usize, n: usize) -> Result<Self> {
        // With a row an image low precision gains no time here, and every block uses the result.
        let from = &from.keep_bf16();
        Ok(TimestepEmbedding {
            linear_1: from.linear("linear_1", k, n)?,
            linear_2: from.linear("linear_2", n, n)?,
        })
    }

    /// `[B, k]` to `[B, n]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = ops::linear(x, &self.linear_1, Activation::Silu, None);
        ops::linear(&hidden, &self.linear_2, Activation::None, None)
    }
}
