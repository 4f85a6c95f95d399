//! From a request to a run: everything decided that was left open, and everything refused that cannot
//! be done, before any weights are read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::canvas::Canvas;
use super::check::{check_out_channels, check_refiner};
use super::conditioning::Prompts;
use super::effect::Circumstances;
use super::inpaint::latent_mask;
use super::job::Job;
use super::offload::Offload;
use super::plan::{Plan, PlanInputs};
use super::stages::{StageProgress, stages};
use super::vae::latent_grid;
use super::{Pipeline, Refiner, Run, canvas, conditioning, effect, start};
use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::memory::Budget;
use crate::model::config::VAE_FACTOR;
use crate::named::Named;
use crate::request::{Request, aspect};
use crate::warning::Warning;
use crate::weights::{Checkpoint, CheckpointKind, Part};

/// Strengths of diffusers' pipelines where none is asked for: image to image, inpainting.
const STRENGTH: f64 = 0.3;
const MASKED_STRENGTH: f64 = 0.9999;
/// The fraction at which a refiner takes over where nothing is asked for: diffusers' documentation.
const FRACTION: f64 = 0.8;

/// The part of a plan that a run has to the end, wherever it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrangement {
    /// The side of the VAE's tiles in latents.
    pub tile: Option<usize>,
    /// Whether tiles were decided for want of memory.
    pub short: bool,
    /// Pictures of a group.
    pub group: usize,
}

impl Pipeline {
    /// Decides everything about a run of `request` from `inputs` ([`Inputs::read`] reads the files that
    /// a request names), and refuses what cannot be done. No weights are read.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, also for a picture that does not fit in memory;
    /// [`Error::Scheduler`] for its options; [`Error::File`] for a checkpoint that is of the
    /// wrong kind for the request; [`Error::Machine`] where there is too little memory.
    pub fn prepare(&self, request: &Request, inputs: Inputs) -> Result<Run> {
        let job = self.decide(request, inputs, None)?;
        Run::new(job, Arc::clone(&self.projector))
    }

    /// Decides a run. One that is resumed has the arrangement that it had.
    pub(super) fn decide(
        &self,
        asked: &Request,
        inputs: Inputs,
        resumed: Option<Arrangement>,
    ) -> Result<Job> {
        let checkpoint = &self.checkpoint;
        let refiner = self.refiner.as_ref().map(Refiner::checkpoint);
        let request = resolve(checkpoint, refiner, asked, &inputs)?;
        let prompts = Prompts::parse(&request)?;
        let canvas = Canvas::new(&request, &inputs)?;
        let mask = (canvas
            .as_ref()
            .and_then(|canvas| canvas.mask_pixels.as_ref()))
        .map(|mask| latent_mask(mask, request.picture_size()))
        .transpose()?;
        let stages = stages(checkpoint, refiner, &request, &inputs)?;
        for stage in &stages {
            stage.scheduler()?.check_images(request.images())?;
        }
        start::noise_source(&request)?;
        let progress = StageProgress::of(&stages);
        let offloads: &[Offload] = match &self.offload {
            Some(asked) => std::slice::from_ref(asked),
            None => Offload::ALL,
        };
        let mut warnings: Vec<Warning> = Vec::new();
        let mut warn = |warning: Warning| {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        };
        self.precision.warning().into_iter().for_each(&mut warn);
        let adapters = checkpoint.files().adapters();
        adapters.warnings().iter().cloned().for_each(&mut warn);
        let native = checkpoint.unet.native_pixels();
        aspect::warning(request.picture_size(), native)
            .into_iter()
            .for_each(&mut warn);
        if inputs.embeds.is_none() {
            let of_prompts = conditioning::warnings(checkpoint, &request, &prompts);
            of_prompts.into_iter().for_each(&mut warn);
        }
        let run = Circumstances {
            checkpoint,
            refiner,
            request: &request,
            inputs: &inputs,
            prompts: &prompts,
            stages: &stages,
            steps: (progress.iter().map(|p| p.steps_total)).max().unwrap_or(0),
        };
        effect::warnings(asked, &run)
            .into_iter()
            .for_each(&mut warn);
        let plan_inputs = PlanInputs {
            checkpoint,
            refiner,
            precision: self.precision,
            request: &request,
            inputs: &inputs,
            prompts: &prompts,
            stages: &stages,
            progress: &progress,
            offloads,
            budget: self.budget.unwrap_or_else(Budget::free),
        };
        let mut plan = Plan::new(&plan_inputs, &mut warn)?;
        if let Some(Arrangement { tile, short, group }) = resumed {
            // Tiles decide numbers, and groups the order of the pictures.
            (plan.tile, plan.short, plan.group) = (tile, short, group);
        }
        plan.warnings(&request, offloads.len() > 1)
            .into_iter()
            .for_each(&mut warn);
        Ok(Job {
            base: self.model(plan.offload),
            refiner: self
                .refiner
                .as_ref()
                .map(|refiner| refiner.pipeline().model(plan.offload)),
            request: Arc::new(request),
            inputs,
            canvas,
            mask,
            prompts,
            stages,
            progress,
            plan,
            warnings,
        })
    }
}

/// The request with everything decided that was left open (size, seed, strength), after checking that
/// these checkpoints can do it.
fn resolve(
    checkpoint: &Checkpoint,
    refiner: Option<&Checkpoint>,
    request: &Request,
    inputs: &Inputs,
) -> Result<Request> {
    request.check()?;
    if let Some(refiner) = refiner {
        check_refiner(checkpoint, refiner)?;
    }
    let mut request = request.clone();
    if let Some(embeds) = &inputs.embeds {
        if request.prompt.is_empty() {
            request.prompt = vec![String::new(); embeds.positive.len()];
        }
        conditioning::check_embeds(checkpoint, refiner.is_some(), &request, embeds)?;
    }
    decide_size(checkpoint, &mut request, inputs);
    // Once more with what was decided: the checkpoint's size may be no multiple of 8.
    request.check()?;
    if request.seed.is_empty() {
        request.seed.push(fresh_seed());
    }
    let picture = inputs.init_image.is_some();
    if picture && (refiner.is_some() || request.denoising_start.is_none()) {
        let masked = inputs.mask.is_some() || !request.extend.is_zero();
        let usual = if masked { MASKED_STRENGTH } else { STRENGTH };
        request.strength.get_or_insert(usual);
    }
    if refiner.is_some()
        && request.refiner_strength.is_none()
        && request.denoising_start.is_none()
        && request.denoising_end.is_none()
    {
        request.denoising_fraction.get_or_insert(FRACTION);
    }
    check_kind(checkpoint, &request, inputs)?;
    canvas::check(&request, inputs)?;
    if let Some(latents) = &inputs.latents {
        check_latents(checkpoint, &request, latents)?;
    }
    check_clip_skip(checkpoint, &request)?;
    Ok(request)
}

/// The size asked for, the input picture's or the checkpoint's.
fn decide_size(checkpoint: &Checkpoint, request: &mut Request, inputs: &Inputs) {
    if let Some(aspect) = request.aspect.take() {
        let size = aspect.size(checkpoint.unet.native_pixels());
        request.width = Some(size.width);
        request.height = Some(size.height);
    }
    let (width, height) = match canvas::natural_size(request, inputs) {
        Some(size) => (size.width, size.height),
        None => {
            let (height, width) = checkpoint.unet.default_latent_size();
            (VAE_FACTOR * width, VAE_FACTOR * height)
        }
    };
    request.width.get_or_insert(width);
    request.height.get_or_insert(height);
}

/// Refiners finish, inpainting models need a mask, the others do either.
fn check_kind(checkpoint: &Checkpoint, request: &Request, inputs: &Inputs) -> Result<()> {
    let begun = inputs.init_image.is_some()
        || inputs.latents.is_some()
            && (request.strength.is_some() || request.denoising_start.is_some());
    if checkpoint.family() == CheckpointKind::Refiner && !begun {
        return Err(Error::file(
            checkpoint.root(),
            "this is a refiner, which finishes a picture and cannot start one from a prompt",
        )
        .with_hint(
            "give a base checkpoint as the model and this one with `refiner`, or a picture with \
             `init_image`",
        ));
    }
    let (channels, latents) = (checkpoint.unet.in_channels, checkpoint.vae.latent_channels);
    check_out_channels(checkpoint)?;
    let masked = inputs.mask.is_some() || !request.extend.is_zero();
    if channels == latents || channels == 2 * latents + 1 && inputs.init_image.is_some() && masked {
        return Ok(());
    }
    let wrong = |message: String| Error::file(checkpoint.config_path(Part::UNet), message);
    Err(if channels == 2 * latents + 1 {
        wrong(format!(
            "in_channels is {channels}, not the {latents} of the latents: an inpainting model, \
             which cannot make a picture from a prompt alone"
        ))
        .with_hint("give `init_image` and `mask`")
    } else {
        wrong(format!(
            "in_channels is {channels}; this program knows {latents} (the latents) and {} (with a \
             mask and a masked picture)",
            2 * latents + 1
        ))
    })
}

/// Refuses latents of another shape than the run's, naming both in torch's axis order.
fn check_latents(checkpoint: &Checkpoint, request: &Request, latents: &Latents) -> Result<()> {
    let size = request.picture_size();
    let channels = checkpoint.vae.latent_channels;
    let images = request.images();
    let [height, width] = latent_grid(size);
    let shape = [images, height, width, channels];
    if latents.shape() == shape {
        return Ok(());
    }
    let ([n, h, w, c], [images, height, width, channels]) = (latents.shape(), shape);
    Err(Error::request(
        "latents",
        format!(
            "[{n}, {c}, {h}, {w}] given, but {images} pictures of {size} start from [{images}, \
             {channels}, {height}, {width}]"
        ),
    ))
}

fn check_clip_skip(checkpoint: &Checkpoint, request: &Request) -> Result<()> {
    let encoders = [
        checkpoint.text_encoder.as_ref(),
        Some(&checkpoint.text_encoder_2),
    ];
    for config in encoders.into_iter().flatten() {
        let (skip, layers) = (request.clip_skip.unwrap_or(0), config.num_hidden_layers);
        if skip >= layers {
            let message = format!("{skip} given, but a text encoder has {layers} layers");
            return Err(
                Error::request("clip_skip", message).with_hint(format!("use up to {}", layers - 1))
            );
        }
    }
    Ok(())
}

/// Draws a seed from the clock, below 2^32 so that other tools can use it too.
pub fn fresh_seed() -> u64 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    // Multiplying by an odd constant spreads the fast-changing low bits over the word.
    nanos.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}
