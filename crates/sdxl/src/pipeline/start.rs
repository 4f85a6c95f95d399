//! The latents a stage starts from: noise, a picture, or what the stage before left.
//!
//! The order of the draws is the reference's: the VAE's noise for the picture, the noise of the
//! run, for inpainting the VAE's noise for the picture without its masked part, then whatever
//! the scheduler draws.

use serde::{Deserialize, Serialize};

use super::canvas::Canvas;
use super::inpaint::Inpainting;
use super::job::Job;
use super::model::Model;
use super::stages::{Stage, StartFrom};
use super::vae::{Posterior, VaeBatching, decode, latent_grid};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::image::resize::lanczos;
use crate::latents::Latents;
use crate::model::config::VAE_FACTOR;
use crate::noise::{NoiseError, NoiseSource};
use crate::request::{Request, UpscaleMethod};
use crate::scheduler::Scheduler;

/// The latents that stages work on.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct WorkingLatents {
    /// All images of the group, `[N, H, W, C]`.
    pub latents: Latents,
    /// The mask, where there is one.
    pub inpainting: Option<Inpainting>,
}

/// The input picture as the VAE sees it, encoded once for all groups of pictures.
#[derive(Default)]
pub(super) struct EncodedInput {
    whole: Option<Posterior>,
    without_masked_part: Option<Posterior>,
}

/// A stage at its start: what the latents it begins with are made from.
pub(super) struct Starting<'a> {
    /// The run.
    pub job: &'a Job,
    /// The stage.
    pub stage: &'a Stage,
    /// The stage's checkpoint.
    pub model: &'a Model,
    /// The stage's scheduler.
    pub scheduler: &'a Scheduler,
    /// Images of the group.
    pub images: usize,
}

fn seed_error(error: NoiseError) -> Error {
    Error::request("seed", error.to_string())
}

/// The noise of a run.
///
/// # Errors
/// [`Error::Request`] for seeds that cannot be used.
pub(super) fn noise_source(request: &Request) -> Result<NoiseSource> {
    NoiseSource::new(request.rng, &request.seed).map_err(seed_error)
}

/// As many images as asked for, of which there are fewer in `latents`.
fn repeated(latents: Latents, images: usize) -> Latents {
    let copies = images / latents.batch();
    Latents::concat(&vec![latents; copies])
}

impl Starting<'_> {
    /// Images, height, width and channels of the latents.
    fn shape(&self) -> [usize; 4] {
        let [height, width] = latent_grid(self.stage.size);
        [self.images, height, width, self.model.latent_channels()]
    }

    /// The start of the first stage.
    ///
    /// # Errors
    /// [`Error::Machine`] from the VAE.
    pub(super) fn first(
        &self,
        encoded: &mut EncodedInput,
        noise: &mut NoiseSource,
    ) -> Result<WorkingLatents> {
        let shape = self.shape();
        let (canvas, given) = (self.job.canvas.as_ref(), &self.job.inputs.latents);
        if let (Some(canvas), Some(mask)) = (canvas, &self.job.mask) {
            return self.masked(canvas, mask, encoded, noise);
        }
        let part = noise.part(self.images);
        let given = given.as_ref().map(|given| part.of_batch(given.clone()));
        let mut draw = |shape| noise.draw(shape).map_err(seed_error);
        let latents = if self.stage.start_from == StartFrom::Noise {
            let latents = match given {
                Some(given) => given,
                None => draw(shape)?,
            };
            latents.map(|x| x * self.scheduler.init_noise_sigma())
        } else {
            let clean = match canvas {
                Some(canvas) => self.encode(canvas, encoded, noise)?,
                None => given.expect("stages that start so have a picture or latents"),
            };
            if self.stage.start_from == StartFrom::NoisyLatents {
                clean
            } else {
                let drawn = noise.draw(shape).map_err(seed_error)?;
                self.scheduler.add_noise(&clean, &drawn)
            }
        };
        Ok(WorkingLatents {
            latents,
            inpainting: None,
        })
    }

    /// The VAE's distribution for pictures of the stage's size.
    fn posterior(&self, pictures: &[Vec<f32>]) -> Result<Posterior> {
        let (plan, size) = (&self.job.plan, self.stage.size);
        Posterior::of(self.model, plan.tile, pictures, latent_grid(size))
    }

    /// The VAE's distribution for one picture, unless it is known.
    fn known<'a>(
        &self,
        known: &'a mut Option<Posterior>,
        picture: impl FnOnce() -> Vec<f32>,
    ) -> Result<&'a Posterior> {
        if known.is_none() {
            *known = Some(self.posterior(&[picture()])?);
        }
        Ok(known.as_ref().expect("it was set above"))
    }

    /// Latents of the input picture for all images: with one generator a single draw, with one for
    /// each image a draw from each.
    fn encode(
        &self,
        canvas: &Canvas,
        encoded: &mut EncodedInput,
        noise: &mut NoiseSource,
    ) -> Result<Latents> {
        let posterior = self.known(&mut encoded.whole, || canvas.picture.clone())?;
        let drawn = match noise.generators() {
            [_] => noise.draw_from_first(posterior.shape()),
            _ => noise.draw(self.shape()).map_err(seed_error)?,
        };
        Ok(repeated(posterior.sample(self.model, &drawn), self.images))
    }

    /// The start of inpainting.
    fn masked(
        &self,
        canvas: &Canvas,
        mask: &Latents,
        encoded: &mut EncodedInput,
        noise: &mut NoiseSource,
    ) -> Result<WorkingLatents> {
        let shape = self.shape();
        let one = [1, shape[1], shape[2], shape[3]];
        // A picture is encoded once, with the first generator, however many there are.
        let sample = |posterior: &Posterior, noise: &mut NoiseSource| {
            posterior.sample(self.model, &noise.draw_from_first(one))
        };
        let sees_mask = self.model.unet_channels() != shape[3];
        let start_from = self.stage.start_from;
        let from_noise = self.job.request.strength == Some(1.0) && start_from == StartFrom::Image;
        let known = if sees_mask && from_noise {
            None
        } else {
            let whole = self.known(&mut encoded.whole, || canvas.picture.clone())?;
            Some(repeated(sample(whole, noise), shape[0]))
        };
        let drawn = noise.draw(shape).map_err(seed_error)?;
        let latents = match &known {
            Some(known) if start_from == StartFrom::NoisyLatents => known.clone(),
            Some(known) if !from_noise => self.scheduler.add_noise(known, &drawn),
            _ => drawn.map(|x| x * self.scheduler.init_noise_sigma()),
        };
        // Drawn and encoded by the reference in any case; without a UNet that sees it, only the
        // draw matters.
        let masked = if sees_mask {
            let covered = &mut encoded.without_masked_part;
            let covered = self.known(covered, || canvas.without_masked_part())?;
            Some(sample(covered, noise))
        } else {
            noise.draw_from_first(one);
            None
        };
        let inpainting = Inpainting::new(mask.clone(), known, drawn, masked);
        Ok(WorkingLatents {
            latents,
            inpainting: Some(inpainting),
        })
    }

    /// The start of a stage after the first, from what the stage before left, whose model is
    /// `previous`.
    ///
    /// # Errors
    /// [`Error::Machine`] from the VAE.
    pub(super) fn next(
        &self,
        previous: &Model,
        work: WorkingLatents,
        noise: &mut NoiseSource,
    ) -> Result<WorkingLatents> {
        if self.stage.start_from == StartFrom::PreviousNoisy {
            return Ok(self.blend_known(work));
        }
        let finished = match self.stage.start_from {
            StartFrom::PreviousUpscaled => self.upscale(previous, work.latents, noise)?,
            _ => work.latents,
        };
        let drawn = noise.draw(finished.shape()).map_err(seed_error)?;
        let latents = self.scheduler.add_noise(&finished, &drawn);
        let inpainting = work.inpainting.map(|i| i.with_noise(drawn));
        Ok(self.blend_known(WorkingLatents {
            latents,
            inpainting,
        }))
    }

    /// Outside the mask, the picture with the noise that this stage starts at.
    fn blend_known(&self, mut work: WorkingLatents) -> WorkingLatents {
        if let Some(inpainting) = &work.inpainting {
            let channels = self.model.unet_channels();
            inpainting.blend_known(&mut work.latents, self.scheduler, channels);
        }
        work
    }

    /// Finished latents, enlarged to the stage's size.
    fn upscale(
        &self,
        previous: &Model,
        latents: Latents,
        noise: &mut NoiseSource,
    ) -> Result<Latents> {
        let [images, height, width, _] = latents.shape();
        let size = self.stage.size;
        if self.job.request.upscale_method == UpscaleMethod::Latent {
            return Ok(bilinear(&latents, latent_grid(size)));
        }
        let mut pictures = Vec::with_capacity(images);
        let tile = VaeBatching::of(self.job.plan.tile, true, [height, width], 1).tile;
        for i in 0..images {
            for rgb in decode(previous, &latents, i, 1, false, tile)? {
                let picture = Pixels::new(VAE_FACTOR * width, VAE_FACTOR * height, 3, rgb);
                pictures.push(lanczos(&picture, size.width, size.height).to_signed());
            }
        }
        let posterior = self.posterior(&pictures)?;
        let drawn = noise.draw(posterior.shape()).map_err(seed_error)?;
        Ok(posterior.sample(self.model, &drawn))
    }
}

/// Linear interpolation between pixel centres, the border repeated.
fn bilinear(latents: &Latents, [new_height, new_width]: [usize; 2]) -> Latents {
    let [images, height, width, channels] = latents.shape();
    // The two neighbours of each new pixel and the share of the second.
    let places = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let scale = from as f32 / to as f32;
        let place = |i: usize| {
            let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
            let first = (at as usize).min(from - 1);
            (first, (first + 1).min(from - 1), at - first as f32)
        };
        (0..to).map(place).collect()
    };
    let (rows, columns) = (places(height, new_height), places(width, new_width));
    let mut data = Vec::with_capacity(images * new_height * new_width * channels);
    for image in latents.images() {
        for &(top, bottom, down) in &rows {
            for &(left, right, across) in &columns {
                for c in 0..channels {
                    let at = |y: usize, x: usize| image[(y * width + x) * channels + c];
                    let above = (1.0 - across) * at(top, left) + across * at(top, right);
                    let below = (1.0 - across) * at(bottom, left) + across * at(bottom, right);
                    data.push((1.0 - down) * above + down * below);
                }
            }
        }
    }
    Latents::new([images, new_height, new_width, channels], data)
}
