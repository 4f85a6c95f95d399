//! Between latents and pictures: scaling, and tiles where memory is short.

use super::Pipeline;
use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::memory;
use crate::profile::scope;
use crate::request::{Request, Tiling};
use crate::tensor::Tensor;
use crate::watermark;

/// The RGB bytes of up to `count` images from `first`, with the invisible watermark where
/// `watermark` says so.
///
/// # Errors
/// [`Error::Machine`] for numbers that leave the range of the precision.
pub fn decode(
    pipeline: &Pipeline,
    request: &Request,
    latents: &Latents,
    first: usize,
    count: usize,
    watermark: bool,
) -> Result<Vec<Vec<u8>>> {
    let config = pipeline.vae.config();
    let [images, height, width, channels] = latents.shape();
    let count = count.min(images - first);
    let size = height * width * channels;
    let unscaled = latents.data()[first * size..(first + count) * size]
        .iter()
        .enumerate()
        .map(|(i, v)| match (&config.latents_mean, &config.latents_std) {
            (Some(mean), Some(std)) => {
                v * std[i % channels] / config.scaling_factor + mean[i % channels]
            }
            _ => v / config.scaling_factor,
        })
        .collect();
    let x = Tensor::from_f32(vec![count, height, width, channels], unscaled);
    let decoded: Vec<Tensor> = if tiled(pipeline, request, [height, width], count) {
        (0..count)
            .map(|i| {
                scope("vae.decoder", || {
                    pipeline.vae.decode_tiled(&x.narrow_batch(i, 1))
                })
            })
            .collect()
    } else {
        vec![scope("vae.decoder", || pipeline.vae.decode(&x))]
    };
    let pixels = 64 * height * width * 3;
    let mut bytes = Vec::with_capacity(count);
    for mut values in decoded.iter().map(Tensor::to_f32_vec) {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::Machine(format!(
                "the VAE's numbers left the range of {}, which would be a black picture; try \
                 --precision f32",
                pipeline.precision
            )));
        }
        for picture in values.chunks_exact_mut(pixels) {
            // Before rounding, as the reference does it.
            if watermark {
                watermark::embed(picture, 8 * width, 8 * height);
            }
            bytes.push(crate::image::to_u8(picture));
        }
    }
    Ok(bytes)
}

/// What the VAE says of pictures: latents of standard normal noise `z` are
/// `(mean + deviation · z)`, in the UNet's scale.
pub struct Posterior {
    mean: Latents,
    deviation: Latents,
}

impl Posterior {
    /// Encodes pictures of `height` x `width` latents, each `[8·height, 8·width, 3]` in -1 to 1.
    ///
    /// # Errors
    /// [`Error::Machine`] for numbers that leave the range of the precision.
    pub fn of(
        pipeline: &Pipeline,
        request: &Request,
        pictures: &[Vec<f32>],
        [height, width]: [usize; 2],
    ) -> Result<Self> {
        let channels = pipeline.vae.config().latent_channels;
        let tiled = tiled(pipeline, request, [height, width], 1);
        let (mut mean, mut deviation) = (Vec::new(), Vec::new());
        // One by one: slices of a batch have the same numbers and need less memory.
        for picture in pictures {
            let x = Tensor::from_f32(vec![1, 8 * height, 8 * width, 3], picture.clone());
            let moments = scope("vae.encoder", || match tiled {
                true => pipeline.vae.encode_tiled(&x),
                false => pipeline.vae.encode(&x),
            });
            for moments in moments.to_f32_vec().chunks_exact(2 * channels) {
                if moments.iter().any(|v| !v.is_finite()) {
                    return Err(Error::Machine(format!(
                        "the VAE's numbers left the range of {} on the input picture; try \
                         --precision f32",
                        pipeline.precision
                    )));
                }
                mean.extend_from_slice(&moments[..channels]);
                let spread = |log: &f32| (0.5 * log.clamp(-30.0, 20.0)).exp();
                deviation.extend(moments[channels..].iter().map(spread));
            }
        }
        let shape = [pictures.len(), height, width, channels];
        Ok(Posterior {
            mean: Latents::new(shape, mean),
            deviation: Latents::new(shape, deviation),
        })
    }

    /// The shape of the pictures' latents.
    pub fn shape(&self) -> [usize; 4] {
        self.mean.shape()
    }

    /// Latents for the UNet from standard normal `noise`, as many as there are of it; pictures
    /// repeat where they are fewer.
    pub fn sample(&self, pipeline: &Pipeline, noise: &Latents) -> Latents {
        let config = pipeline.vae.config();
        let (own, channels) = (self.mean.data().len(), self.mean.channels());
        let mut out = noise.clone();
        for (i, value) in out.data_mut().iter_mut().enumerate() {
            let at = i % own;
            let raw = self.mean.data()[at] + self.deviation.data()[at] * *value;
            *value = match (&config.latents_mean, &config.latents_std) {
                (Some(mean), Some(std)) => {
                    (raw - mean[i % channels]) * config.scaling_factor / std[i % channels]
                }
                _ => config.scaling_factor * raw,
            };
        }
        out
    }
}

/// Whether `count` pictures of so many latents go through the VAE tile by tile.
fn tiled(
    pipeline: &Pipeline,
    request: &Request,
    [height, width]: [usize; 2],
    count: usize,
) -> bool {
    let tile = pipeline.vae.tile_size();
    let large = height > tile || width > tile;
    let pixels = (64 * height * width * count) as u64;
    let needed = memory::of_decode(pipeline.vae.config(), pixels);
    large
        && match request.vae_tiling {
            Tiling::On => true,
            Tiling::Off => false,
            Tiling::Auto => memory::available().is_some_and(|free| needed > free / 4 * 3),
        }
}
