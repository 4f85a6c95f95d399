//! The whole run, top to bottom: prompts, stages of denoising, decoding.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::canvas::Canvas;
use super::conditioning::{self, PromptPair, warnings};
use super::denoise::denoise;
use super::plan::Plan;
use super::predict::Rows;
use super::stages::{Begin, Course, Network, stages};
use super::vae::{Passes, decode};
use super::{Event, Output, Pipeline, proceed, start};
use crate::error::Result;
use crate::image::{Picture, Pixels};
use crate::inputs::Inputs;
use crate::profile;
use crate::request::{Request, UpscaleMethod};
use crate::tensor::release_buffers;
use crate::warning::{Warning, WarningKind};

/// Sees what happens in a run.
type Observe<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// Makes the pictures of a resolved request (see [`super::resolve`]) as planned.
pub fn run(
    pipeline: &Pipeline,
    plan: &Plan,
    request: &Request,
    inputs: &Inputs,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Output> {
    let refiner = pipeline.refiner.as_ref();
    let mut stages = stages(
        &pipeline.checkpoint,
        refiner.map(|r| r.checkpoint()),
        request,
        inputs,
    )?;
    let courses = Course::of(&stages);
    let canvas = Canvas::new(request, inputs)?;

    proceed(observe(Event::Encoding))?;
    let mut warned = match inputs.embeds {
        None => warnings(&pipeline.checkpoint, request)?,
        Some(_) => Vec::new(),
    };
    for warning in &warned {
        let _ = observe(Event::Warning(warning));
    }
    let models: Vec<&Pipeline> = (stages.iter())
        .map(|stage| match (stage.network, refiner) {
            (Network::Refiner, Some(refiner)) => refiner.pipeline(),
            _ => pipeline,
        })
        .collect();
    // Prompts to conditioning, which may differ from step to step; what another stage has
    // encoded is remembered.
    let mut encode = |model: &Pipeline, course: &Course, observe: &mut Observe| {
        let mut warn = |warning: Warning| {
            if !warned.contains(&warning) {
                // Warnings cannot stop a run; the next event can.
                let _ = observe(Event::Warning(&warning));
                warned.push(warning);
            }
        };
        profile::scope("text_encoders", || {
            let embeds = inputs.embeds.as_ref();
            conditioning::encode(model, request, embeds, course.steps, &mut warn)
        })
    };
    // Where memory is to be spared, the text encoders go before the UNet comes.
    let mut encoded: VecDeque<Vec<PromptPair>> = VecDeque::new();
    if !pipeline.residence.stays() {
        for (model, course) in models.iter().zip(&courses) {
            encoded.push_back(encode(model, course, observe)?);
        }
        models.iter().for_each(|model| model.text.let_go());
        release_buffers();
    }

    let lanczos = request.upscale_method == UpscaleMethod::Lanczos;
    let enlarges: Vec<bool> = (stages.iter())
        .map(|stage| stage.begin == Begin::Enlarged && lanczos)
        .collect();

    // Stages of denoising: one for a plain run, more with a refiner or a second pass.
    let mut noise = start::noise_source(request)?;
    let mut work = None;
    let mut last = pipeline;
    for (i, (stage, course)) in stages.iter_mut().zip(courses).enumerate() {
        let model = models[i];
        let prompts = match encoded.pop_front() {
            Some(prompts) => prompts,
            None => encode(model, &course, observe)?,
        };
        let mut begun = match work.take() {
            None => {
                let canvas = canvas.as_ref();
                start::first(model, plan, request, inputs, canvas, stage, &mut noise)?
            }
            Some(work) => start::next([model, last], plan, request, stage, work, &mut noise)?,
        };
        let from_noise = stage.begin == Begin::Noise;
        // It may have been of use for the start.
        models.iter().for_each(|model| model.vae.let_go());
        if !model.unet.is_here() {
            proceed(observe(Event::Loading))?;
        }
        let unet = model.unet.get()?;
        let (size, at_once) = (stage.size, plan.rows[i]);
        let rows = Rows::new(model, &unet, request, &prompts, size, from_noise, at_once);
        denoise(model, &rows, stage, &mut begun, &mut noise, course, observe)?;
        work = Some(begun);
        last = model;
        drop(rows);
        drop(unet);
        // It goes where another follows, and where the VAE works before it goes on.
        let next = models.get(i + 1);
        let goes_on = next.is_some_and(|next| std::ptr::eq(*next, model));
        if !goes_on || enlarges[i + 1] {
            model.unet.let_go();
        }
        release_buffers();
    }
    // A run has at least one stage.
    let Some(work) = work else {
        return Err(crate::Error::request("steps", "none"));
    };
    let latents = work.latents;

    // Latents to pictures.
    let images = latents.batch();
    let mut pictures = Vec::with_capacity(images);
    let grid = [latents.height(), latents.width()];
    let passes = Passes::of(plan.tile, plan.sliced, grid, images);
    if plan.short && passes.tile.is_some() {
        let message = "memory is short, so the VAE works tile by tile, which shows a little in the \
                       picture";
        let warning = Warning::new(WarningKind::Tiled, "vae_tiling", message);
        let _ = observe(Event::Warning(
            &warning.with_hint("`vae_tiling off` forbids it"),
        ));
    }
    for first in (0..images).step_by(passes.group) {
        proceed(observe(Event::Decoding {
            index: first + 1,
            total: images,
        }))?;
        let (group, mark) = (passes.group, request.watermark);
        let decoded = decode(last, &latents, first, group, mark, passes.tile)?;
        for (offset, rgb) in decoded.into_iter().enumerate() {
            let image = first + offset;
            let made = Pixels::new(8 * latents.width(), 8 * latents.height(), 3, rgb);
            let made = match &canvas {
                Some(canvas) => canvas.finish(made),
                None => made,
            };
            let picture = Picture {
                pixels: made,
                // One generator for all, or one a picture.
                seed: request.seed[image.min(request.seed.len() - 1)],
                prompt_index: image / request.num_images,
            };
            proceed(observe(Event::Picture {
                index: image + 1,
                total: images,
                picture: &picture,
                vae_tiled: passes.tile.is_some(),
            }))?;
            pictures.push(picture);
        }
    }
    last.vae.let_go();
    release_buffers();
    Ok(Output {
        images: pictures,
        latents,
        vae_tiled: passes.tile.is_some(),
    })
}
