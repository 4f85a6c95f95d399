//! Between latents and pictures: scaling, and tiles where memory is short.

use super::Pipeline;
use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::memory;
use crate::model::vae::Vae;
use crate::profile::scope;
use crate::request::{Request, Tiling};
use crate::tensor::Tensor;
use crate::watermark;

/// The RGB bytes of up to `count` images from `first`, with the invisible watermark where
/// `watermark` says so. `tile`: by tiles of so many latents a side.
///
/// # Errors
/// [`Error::Machine`] for numbers that leave the range of the precision.
pub fn decode(
    pipeline: &Pipeline,
    latents: &Latents,
    first: usize,
    count: usize,
    watermark: bool,
    tile: Option<usize>,
) -> Result<Vec<Vec<u8>>> {
    let config = &pipeline.checkpoint.vae;
    let vae = pipeline.vae.get()?;
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
    let decoded: Vec<Tensor> = match tile {
        Some(tile) => (0..count)
            .map(|i| x.narrow_batch(i, 1))
            .map(|x| scope("vae.decoder", || vae.decode_tiled(&x, tile)))
            .collect(),
        None => vec![scope("vae.decoder", || vae.decode(&x))],
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
        let vae = pipeline.vae.get()?;
        let channels = vae.config().latent_channels;
        let tile = Passes::choose(&vae, request, [height, width], 1).tile;
        let (mut mean, mut deviation) = (Vec::new(), Vec::new());
        // One by one: slices of a batch have the same numbers and need less memory.
        for picture in pictures {
            let x = Tensor::from_f32(vec![1, 8 * height, 8 * width, 3], picture.clone());
            let moments = scope("vae.encoder", || match tile {
                Some(tile) => vae.encode_tiled(&x, tile),
                None => vae.encode(&x),
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
        let config = &pipeline.checkpoint.vae;
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

/// How pictures go through the VAE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// How many at once.
    pub group: usize,
    /// The side of a tile in latents, where they go tile by tile.
    pub tile: Option<usize>,
    /// Whether that was decided here, for want of memory.
    pub short: bool,
}

/// Pixels of pictures that go through the VAE together: one of 512x512, or several smaller ones.
const TOGETHER: usize = 512 * 512;

impl Passes {
    /// For `count` pictures of `height` times `width` latents, with the memory that is free now.
    pub fn choose(
        vae: &Vae,
        request: &Request,
        [height, width]: [usize; 2],
        count: usize,
    ) -> Passes {
        let asked = request.vae_tile_size.map(|pixels| pixels as usize / 8);
        let tile = asked.unwrap_or_else(|| vae.tile_size());
        let tile = (height > tile || width > tile).then_some(tile);
        let pixels = 64 * height * width;
        let one = memory::of_decode(vae.config(), pixels as u64);
        // Only small ones gain by going together, and one that is finished can be written.
        let count = count.min(TOGETHER / pixels).max(1);
        Passes::of(request, tile, count, one, memory::available())
    }

    /// `tile`: what a tile would be, where that is less than all. `one`: bytes that one picture
    /// takes as a whole.
    ///
    /// Where memory is short, first one by one, which changes no number, then by tiles. A
    /// quarter of what is free is left to the rest of the machine.
    fn of(
        request: &Request,
        tile: Option<usize>,
        count: usize,
        one: u64,
        free: Option<u64>,
    ) -> Passes {
        let fits = |pictures: usize| free.is_none_or(|free| one * pictures as u64 <= free / 4 * 3);
        let short = tile.is_some() && request.vae_tiling == Tiling::Auto && !fits(1);
        // Nobody asks for a size of tiles without wanting them.
        let asked = match request.vae_tiling {
            Tiling::On => true,
            Tiling::Auto => request.vae_tile_size.is_some(),
            Tiling::Off => false,
        };
        Passes {
            group: match request.vae_slicing || !fits(count) {
                true => 1,
                false => count,
            },
            tile: tile.filter(|_| short || asked),
            short: short && !asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_takes_pictures_one_by_one_and_then_by_tiles() {
        let passes = |tiling, large: bool, free| {
            let request = Request {
                vae_tiling: tiling,
                vae_slicing: false,
                ..Default::default()
            };
            let tile = large.then_some(64);
            let passes = Passes::of(&request, tile, 4, 300, free);
            assert!(passes.tile.is_none_or(|side| side == 64));
            (passes.group, passes.tile.is_some(), passes.short)
        };
        use Tiling::{Auto, Off, On};
        assert_eq!(passes(Auto, true, None), (4, false, false));
        assert_eq!(passes(Auto, true, Some(1600)), (4, false, false));
        assert_eq!(passes(Auto, true, Some(1500)), (1, false, false));
        assert_eq!(passes(Auto, true, Some(400)), (1, false, false));
        assert_eq!(passes(Auto, true, Some(396)), (1, true, true));
        // There is nothing smaller than a tile.
        assert_eq!(passes(Auto, false, Some(396)), (1, false, false));
        assert_eq!(passes(Off, true, Some(396)), (1, false, false));
        assert_eq!(passes(On, true, Some(1600)), (4, true, false));
        assert_eq!(passes(On, false, Some(1600)), (4, false, false));
    }
}
