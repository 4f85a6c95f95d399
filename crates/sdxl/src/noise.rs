//! The only source of randomness: PyTorch's generators, so that a seed gives the reference's noise.
//!
//! [`Generator`] reproduces `torch.Generator("cpu")` (MT19937) and `torch.Generator("cuda")`
//! (Philox4x32-10) of PyTorch 2. The integer streams are exact. The normal transform is computed in
//! `f64` with a portable `libm` and rounded to `f32`, so it is the same on every machine of ours;
//! PyTorch itself uses approximations that depend on the processor, and values agree with it to
//! 2e-6.
//!
//! Sources: the streams and layouts of `at::CPUGeneratorImpl`, `normal_fill` and
//! `at::cuda::philox`; for MT19937 Matsumoto & Nishimura 1998, for Philox Salmon et al., "Parallel
//! random numbers: as easy as 1, 2, 3", 2011.

mod brownian;
mod generator;
mod mt19937;
mod philox;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::latents::Latents;
pub use brownian::BrownianTree;
pub use generator::{Generator, NoiseError, Rng};

/// Fills `out` with `make` of numbers of mean 0 and variance 1 whose distribution is near the normal
/// one (each is the sum of four random bytes): quick, for billions of made-up weights, and no
/// generator of PyTorch's. The numbers do not depend on the number of threads.
pub(crate) fn roughly_normal<T: Send>(seed: u64, out: &mut [T], make: impl Fn(f32) -> T + Sync) {
    // Four times the variance of a byte, (256 * 256 - 1) / 12.
    let scale = (21_845f32).sqrt().recip();
    const BLOCKS: usize = 4096;
    out.par_chunks_mut(4 * BLOCKS)
        .enumerate()
        .for_each(|(chunk, out)| {
            for (block, out) in out.chunks_mut(4).enumerate() {
                let words = philox::bytes(seed, (chunk * BLOCKS + block) as u64);
                for (value, word) in out.iter_mut().zip(words) {
                    let sum: u32 = word.to_le_bytes().into_iter().map(u32::from).sum();
                    *value = make((sum as f32 - 510.0) * scale);
                }
            }
        });
}

/// The noise of a batch of images: one generator for all of them, or one for each.
///
/// If only some of the images are worked on at a time ([`Self::for_images`]), the whole batch is
/// drawn all the same and the rest left out, so that every image has the noise that it has when the
/// batch is worked on at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Generators")]
pub struct NoiseSource {
    generators: Vec<Generator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<BatchSlice>,
}

/// Some neighbouring images of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSlice {
    /// The first of them, from 0.
    pub first: usize,
    /// Number of them.
    pub count: usize,
    /// Images of the whole batch.
    pub of: usize,
}

impl BatchSlice {
    /// These images of latents of the whole batch.
    pub fn of_batch(&self, whole: Latents) -> Latents {
        if self.count == whole.batch() {
            return whole;
        }
        let [_, height, width, channels] = whole.shape();
        let image = whole.image_len();
        let values = &whole.data()[self.first * image..(self.first + self.count) * image];
        Latents::new([self.count, height, width, channels], values.to_vec())
    }
}

/// The stored form of a [`NoiseSource`]: read back through a check, because there must be a
/// generator and the images must be some of the batch.
#[derive(Deserialize)]
struct Generators {
    generators: Vec<Generator>,
    #[serde(default)]
    part: Option<BatchSlice>,
}

impl TryFrom<Generators> for NoiseSource {
    type Error = NoiseError;

    fn try_from(Generators { generators, part }: Generators) -> Result<Self, NoiseError> {
        if generators.is_empty() {
            return Err(NoiseError::NoSeed);
        }
        if let Some(BatchSlice { first, count, of }) = part
            && (count == 0 || first.checked_add(count).is_none_or(|end| end > of))
        {
            return Err(NoiseError::SeedCount {
                seeds: generators.len(),
                images: of,
            });
        }
        Ok(Self { generators, part })
    }
}

impl NoiseSource {
    /// One seed: every draw is one tensor for the whole batch. A list of seeds: one per image, so
    /// that an image does not depend on the others of its batch.
    pub fn new(rng: Rng, seeds: &[u64]) -> Result<Self, NoiseError> {
        if seeds.is_empty() {
            return Err(NoiseError::NoSeed);
        }
        Ok(Self {
            generators: seeds
                .iter()
                .map(|&seed| Generator::new(rng, seed))
                .collect(),
            part: None,
        })
    }

    /// This source for some images of its batch, as it is now: see [`NoiseSource`].
    pub fn for_images(self, part: BatchSlice) -> Self {
        let part = Some(part).filter(|part| part.count < part.of);
        Self { part, ..self }
    }

    /// The images that a batch of `images` has in the whole batch: all of it, unless
    /// [`Self::for_images`] said otherwise.
    pub fn part(&self, images: usize) -> BatchSlice {
        self.part.unwrap_or(BatchSlice {
            first: 0,
            count: images,
            of: images,
        })
    }

    /// Which of PyTorch's generators these are.
    pub fn rng(&self) -> Rng {
        self.generators[0].rng()
    }

    /// The generators, one or one per image.
    pub fn generators(&self) -> &[Generator] {
        &self.generators
    }

    /// The next standard normal latents, of shape `[batch, height, width, channels]`, as
    /// `randn_tensor` of diffusers draws them.
    pub fn draw(&mut self, shape: [usize; 4]) -> Result<Latents, NoiseError> {
        let [batch, height, width, channels] = shape;
        let part = self.part(batch);
        let whole = match self.generators.as_mut_slice() {
            [one] => one.randn_latents([part.of, height, width, channels]),
            many if many.len() == part.of => {
                let images: Vec<_> = many
                    .iter_mut()
                    .map(|g| g.randn_latents([1, height, width, channels]))
                    .collect();
                Latents::concat(&images)
            }
            many => {
                return Err(NoiseError::SeedCount {
                    seeds: many.len(),
                    images: part.of,
                });
            }
        };
        Ok(part.of_batch(whole))
    }

    /// The next standard normal latents of the first generator alone, as diffusers' inpainting
    /// draws for the one picture that all images of a batch start from.
    pub fn draw_from_first(&mut self, shape: [usize; 4]) -> Latents {
        self.generators[0].randn_latents(shape)
    }

    /// One [`Generator::draw_seed`] per generator.
    pub fn draw_seeds(&mut self) -> Vec<u64> {
        self.generators
            .iter_mut()
            .map(Generator::draw_seed)
            .collect()
    }
}
