//! Small pictures of unfinished latents, by a linear projection of their channels.
//!
//! A VAE's latents look like the picture they stand for: red, green and blue of an 8x8 patch are
//! nearly a weighted sum of the channels. For SDXL's VAE the weights are known (ComfyUI's
//! `latent_formats.SDXL`); for others they are fitted to what the VAE decodes.

use std::sync::{Arc, OnceLock};

use super::lazy::Lazy;
use crate::error::Result;
use crate::image::Pixels;
use crate::latents::Latents;
use crate::model::config::{VAE_FACTOR, VaeConfig};
use crate::model::vae::Vae;
use crate::noise::{Generator, Rng};
use crate::tensor::Tensor;

/// A linear projection of latents, in the UNet's scale, to red, green and blue in -1 to 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Projection {
    /// The share of each channel in red, green and blue.
    factors: Vec<[f32; 3]>,
    /// Red, green and blue of latents that are zero.
    bias: [f32; 3],
}

/// SDXL's VAE.
const SDXL: ([[f32; 3]; 4], [f32; 3]) = (
    [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ],
    [0.1084, -0.0175, -0.0011],
);

/// Height and width of the latents that a projection is fitted to, and number of them.
const SAMPLE: (usize, usize) = (8, 16);

impl Projection {
    /// The known projection of SDXL's VAE, if `config` is that of one.
    pub(super) fn of_sdxl(config: &VaeConfig) -> Option<Projection> {
        let is_sdxl = config.scaling_factor == 0.13025
            && config.latent_channels == 4
            && config.latents_mean.is_none()
            && config.block_out_channels == [128, 256, 512, 512];
        is_sdxl.then(|| Projection {
            factors: SDXL.0.to_vec(),
            bias: SDXL.1,
        })
    }

    /// The projection that comes nearest to what `vae` decodes, by least squares over small random
    /// latents.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub(super) fn fit(vae: &Vae) -> Result<Projection> {
        let config = vae.config();
        let channels = config.latent_channels;
        let (side, count) = SAMPLE;
        let mut generator = Generator::new(Rng::TorchCpu, 0);
        // Rows of an equation each: the channels and 1, then red, green and blue.
        let mut rows: Vec<(Vec<f64>, [f64; 3])> = Vec::new();
        for _ in 0..count {
            let noise = generator.randn_latents([1, side, side, channels]);
            // Latents of pictures are smooth: each sample is one colour, with some noise on it.
            let base = generator.randn(channels);
            let latents: Vec<f32> = (noise.data().iter().enumerate())
                .map(|(i, v)| base[i % channels] + 0.3 * v)
                .collect();
            let raw: Vec<f32> = (latents.iter().enumerate())
                .map(|(i, v)| config.unscaled(*v, i % channels))
                .collect();
            let decoded = vae.decode(&Tensor::from_f32(vec![1, side, side, channels], raw))?;
            let decoded = decoded.to_f32_vec();
            for y in 0..side {
                for x in 0..side {
                    let at = (y * side + x) * channels;
                    let mut row: Vec<f64> = (latents[at..at + channels].iter())
                        .map(|v| f64::from(*v))
                        .collect();
                    row.push(1.0);
                    rows.push((
                        row,
                        patch_mean(&decoded, VAE_FACTOR * side, VAE_FACTOR * x, VAE_FACTOR * y),
                    ));
                }
            }
        }
        let solved = least_squares(&rows, channels + 1);
        let rgb = |row: &[f64; 3]| row.map(|v| v as f32);
        Ok(Projection {
            factors: solved[..channels].iter().map(rgb).collect(),
            bias: rgb(&solved[channels]),
        })
    }

    /// The picture of latents `[1, H, W, C]`, `H` x `W` pixels.
    pub(super) fn picture(&self, image: &[f32], [height, width]: [usize; 2]) -> Pixels {
        let mut rgb = Vec::with_capacity(height * width * 3);
        for pixel in image.chunks_exact(self.factors.len()) {
            for colour in 0..3 {
                let sum: f32 = (pixel.iter().zip(&self.factors))
                    .map(|(value, factors)| value * factors[colour])
                    .sum();
                let value = (sum + self.bias[colour] + 1.0) * 127.5;
                rgb.push(value.round().clamp(0.0, 255.0) as u8);
            }
        }
        Pixels::new(width, height, 3, rgb)
    }
}

/// The mean of red, green and blue over the 8x8 pixels from (`x`, `y`).
fn patch_mean(decoded: &[f32], width: usize, x: usize, y: usize) -> [f64; 3] {
    let pixels = (VAE_FACTOR * VAE_FACTOR) as f64;
    let mut sum = [0.0; 3];
    for row in y..y + VAE_FACTOR {
        for column in x..x + VAE_FACTOR {
            for (colour, sum) in sum.iter_mut().enumerate() {
                *sum += f64::from(decoded[(row * width + column) * 3 + colour]) / pixels;
            }
        }
    }
    sum
}

/// The solution of overdetermined equations for `unknowns`, by their normal equations and Gaussian
/// elimination with pivots.
fn least_squares(rows: &[(Vec<f64>, [f64; 3])], unknowns: usize) -> Vec<[f64; 3]> {
    let mut matrix = vec![vec![0.0; unknowns + 3]; unknowns];
    for (row, right) in rows {
        for i in 0..unknowns {
            for j in 0..unknowns {
                matrix[i][j] += row[i] * row[j];
            }
            for (colour, value) in right.iter().enumerate() {
                matrix[i][unknowns + colour] += row[i] * value;
            }
        }
    }
    for i in 0..unknowns {
        let pivot =
            (i..unknowns).max_by(|a, b| matrix[*a][i].abs().total_cmp(&matrix[*b][i].abs()));
        matrix.swap(i, pivot.unwrap_or(i));
        let own = matrix[i].clone();
        for (k, row) in matrix.iter_mut().enumerate() {
            if k != i && own[i] != 0.0 {
                let factor = row[i] / own[i];
                for (value, own) in row.iter_mut().zip(&own) {
                    *value -= factor * own;
                }
            }
        }
    }
    let solve = |i: usize| {
        let row = &matrix[i];
        let divide = |v: f64| if row[i] == 0.0 { 0.0 } else { v / row[i] };
        [0, 1, 2].map(|colour| divide(row[unknowns + colour]))
    };
    (0..unknowns).map(solve).collect()
}

/// The projection of a checkpoint's VAE, found when it is first needed.
pub(super) struct Projector {
    vae: Arc<Lazy<Vae>>,
    found: OnceLock<Projection>,
}

impl Projector {
    /// The projector of a VAE.
    pub(super) fn new(config: &VaeConfig, vae: Arc<Lazy<Vae>>) -> Projector {
        let found = OnceLock::new();
        if let Some(known) = Projection::of_sdxl(config) {
            found.get_or_init(|| known);
        }
        Projector { vae, found }
    }

    fn projection(&self) -> Result<&Projection> {
        if self.found.get().is_none() {
            let was_loaded = self.vae.is_loaded();
            let fitted = Projection::fit(&*self.vae.get()?)?;
            if !was_loaded {
                self.vae.unload();
            }
            return Ok(self.found.get_or_init(|| fitted));
        }
        Ok(self.found.get().expect("it was found before"))
    }
}

/// A preview of unfinished latents: small pictures of what they are becoming.
pub(super) struct Preview {
    projector: Arc<Projector>,
    latents: Latents,
}

impl Preview {
    /// The preview of latents `[N, H, W, C]` in the UNet's scale.
    pub(super) fn new(projector: &Arc<Projector>, latents: Latents) -> Preview {
        Preview {
            projector: Arc::clone(projector),
            latents,
        }
    }

    /// A small picture an image.
    pub(super) fn pictures(&self) -> Result<Vec<Pixels>> {
        let projection = self.projector.projection()?;
        let size = [self.latents.height(), self.latents.width()];
        let picture = |image| projection.picture(image, size);
        Ok(self.latents.images().map(picture).collect())
    }
}

/// A guess at the clean latents, from a UNet's `input` and its `output` for it: the sample is `(x0 +
/// sigma · noise) / sqrt(1 + sigma²)`, as it is for every scheduler once it has scaled the input.
pub(super) fn clean_latents(
    input: &Latents,
    output: &Latents,
    sigma: f32,
    predicts: &str,
) -> Latents {
    let scale = (1.0 + sigma * sigma).sqrt();
    match predicts {
        "sample" => output.clone(),
        "v_prediction" => Latents::zip_with([input, output], |[x, v]| (x - sigma * v) / scale),
        _ => Latents::zip_with([input, output], |[x, noise]| scale * x - sigma * noise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_is_found_again() {
        let map = |x: [f64; 2]| [2.0 * x[0] - x[1] + 0.5, x[1], -x[0] + 0.25];
        let rows: Vec<_> = [[0.0, 1.0], [1.0, 0.0], [2.0, -1.5], [0.3, 0.7]]
            .map(|x| (vec![x[0], x[1], 1.0], map(x)))
            .to_vec();
        let solved = least_squares(&rows, 3);
        let expected = [[2.0, 0.0, -1.0], [-1.0, 1.0, 0.0], [0.5, 0.0, 0.25]];
        for (row, expected) in solved.iter().zip(expected) {
            for (value, expected) in row.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-12, "{solved:?}");
            }
        }
    }

    #[test]
    fn clean_latents_follow_from_noise_and_from_velocity() {
        let latents = |data: Vec<f32>| Latents::new([1, 1, 2, 1], data);
        let (x0, noise, sigma) = ([0.5f32, -1.0], [0.25f32, 2.0], 3.0f32);
        let scale = (1.0 + sigma * sigma).sqrt();
        let mix = |a: f32, b: f32| latents((0..2).map(|i| a * x0[i] + b * noise[i]).collect());
        let input = mix(1.0 / scale, sigma / scale);
        let velocity = mix(-sigma / scale, 1.0 / scale);
        for (output, predicts) in [
            (mix(0.0, 1.0), "epsilon"),
            (velocity, "v_prediction"),
            (mix(1.0, 0.0), "sample"),
        ] {
            let clean = clean_latents(&input, &output, sigma, predicts);
            for (value, expected) in clean.data().iter().zip(x0) {
                assert!((value - expected).abs() < 1e-5, "{predicts}: {clean:?}");
            }
        }
    }
}
