//! Between latents and pictures: scaling, and tiles where memory is short.

use super::model::Model;
use crate::cancel::OrCancelled;
use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::model::config::VAE_FACTOR;
use crate::profile::scope;
use crate::request::Size;
use crate::tensor::{Tensor, release_buffers};
use crate::watermark;

/// Height and width of the latents of pictures of `size`.
pub(crate) fn latent_grid(size: Size) -> [usize; 2] {
    [size.height / VAE_FACTOR, size.width / VAE_FACTOR]
}

/// The RGB bytes of up to `count` images from `first`, with the invisible watermark where
/// `watermark` says so. `tile`: by tiles of so many latents a side.
///
/// # Errors
/// [`Error::Machine`] for numbers that leave the range of the precision; [`Error::Cancelled`].
pub(super) fn decode(
    model: &Model,
    latents: &Latents,
    first: usize,
    count: usize,
    watermark: bool,
    tile: Option<usize>,
) -> Result<Vec<Vec<u8>>> {
    let config = &model.checkpoint.vae;
    let vae = model.networks.vae.get()?;
    let [images, height, width, channels] = latents.shape();
    let count = count.min(images - first);
    let size = height * width * channels;
    let unscaled = latents.data()[first * size..(first + count) * size]
        .iter()
        .enumerate()
        .map(|(i, v)| config.unscaled(*v, i % channels))
        .collect();
    let x = Tensor::from_f32(vec![count, height, width, channels], unscaled);
    let decoded: Vec<Tensor> = match tile {
        Some(tile) => (0..count)
            .map(|i| x.narrow_batch(i, 1))
            .map(|x| scope("vae.decoder", || vae.decode_tiled(&x, tile))?)
            .collect::<OrCancelled<_>>()?,
        None => vec![scope("vae.decoder", || vae.decode(&x))??],
    };
    // What the decoder worked in is more than what follows takes.
    release_buffers();
    let pixels = VAE_FACTOR * height * VAE_FACTOR * width * 3;
    let mut bytes = Vec::with_capacity(count);
    for mut values in decoded.iter().map(Tensor::to_f32_vec) {
        if values.iter().any(|v| !v.is_finite()) {
            let message = format!(
                "the VAE's numbers left the range of {}, which would be a black picture",
                model.precision
            );
            return Err(Error::machine(message).with_hint("try `precision f32`"));
        }
        for picture in values.chunks_exact_mut(pixels) {
            // Before rounding, as the reference does it.
            if watermark {
                watermark::embed(picture, VAE_FACTOR * width, VAE_FACTOR * height);
            }
            bytes.push(crate::image::to_u8(picture));
        }
    }
    Ok(bytes)
}

/// The distribution of latents that the VAE gives for pictures: latents of standard normal noise
/// `z` are `(mean + deviation · z)`, in the UNet's scale.
pub(super) struct Posterior {
    mean: Latents,
    deviation: Latents,
}

impl Posterior {
    /// Encodes pictures of `height` x `width` latents, each `[8·height, 8·width, 3]` in -1 to 1;
    /// those larger than `tile`, tile by tile.
    ///
    /// # Errors
    /// [`Error::Machine`] for numbers that leave the range of the precision; [`Error::Cancelled`].
    pub(super) fn of(
        model: &Model,
        tile: Option<usize>,
        pictures: &[Vec<f32>],
        [height, width]: [usize; 2],
    ) -> Result<Self> {
        let vae = model.networks.vae.get()?;
        let channels = vae.config().latent_channels;
        let tile = VaeBatching::of(tile, true, [height, width], 1).tile;
        let (mut mean, mut deviation) = (Vec::new(), Vec::new());
        // One by one: slices of a batch have the same numbers and need less memory.
        for picture in pictures {
            let shape = vec![1, VAE_FACTOR * height, VAE_FACTOR * width, 3];
            let x = Tensor::from_f32(shape, picture.clone());
            let moments = scope("vae.encoder", || match tile {
                Some(tile) => vae.encode_tiled(&x, tile),
                None => vae.encode(&x),
            })??;
            for moments in moments.to_f32_vec().chunks_exact(2 * channels) {
                if moments.iter().any(|v| !v.is_finite()) {
                    let message = format!(
                        "the VAE's numbers left the range of {} on the input picture",
                        model.precision
                    );
                    return Err(Error::machine(message).with_hint("try `precision f32`"));
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
    pub(super) fn shape(&self) -> [usize; 4] {
        self.mean.shape()
    }

    /// Latents for the UNet from standard normal `noise`, as many as there are of it; pictures
    /// repeat where they are fewer.
    pub(super) fn sample(&self, model: &Model, noise: &Latents) -> Latents {
        let config = &model.checkpoint.vae;
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

/// The VAE's division of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VaeBatching {
    /// Images a call.
    pub group: usize,
    /// The side of a tile in latents; `None`: whole images.
    pub tile: Option<usize>,
}

/// Pixels of pictures that go through the VAE together: one of 512x512, or several smaller ones.
/// Only small ones gain by it, and one that is finished can be written.
const TOGETHER: usize = 512 * 512;

impl VaeBatching {
    /// For `count` pictures of `height` times `width` latents: by tiles of side `tile` where they
    /// are larger, one by one if `sliced`, which changes no number.
    pub(super) fn of(
        tile: Option<usize>,
        sliced: bool,
        [height, width]: [usize; 2],
        count: usize,
    ) -> VaeBatching {
        let pixels = VAE_FACTOR * height * VAE_FACTOR * width;
        let together = (TOGETHER / pixels.max(1)).min(count).max(1);
        VaeBatching {
            group: if sliced { 1 } else { together },
            tile: tile.filter(|tile| height > *tile || width > *tile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_go_together_and_large_ones_by_tiles() {
        let passes = |tile, sliced, grid| {
            let passes = VaeBatching::of(tile, sliced, grid, 5);
            (passes.group, passes.tile)
        };
        assert_eq!(passes(None, false, [32, 32]), (4, None));
        assert_eq!(passes(None, true, [32, 32]), (1, None));
        assert_eq!(passes(None, false, [128, 64]), (1, None));
        assert_eq!(passes(Some(64), false, [16, 16]), (5, None));
        assert_eq!(passes(Some(64), false, [64, 64]), (1, None));
        assert_eq!(passes(Some(64), false, [16, 72]), (3, Some(64)));
    }
}
