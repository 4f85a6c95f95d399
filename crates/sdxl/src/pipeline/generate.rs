//! The whole run, top to bottom: prompts, stages of denoising, decoding.

use std::ops::ControlFlow;

use super::canvas::Canvas;
use super::conditioning::encode;
use super::denoise::denoise;
use super::predict::Rows;
use super::stages::{Begin, Course, Network, stages};
use super::vae::decode;
use super::{Event, Output, Pipeline, proceed, start};
use crate::error::Result;
use crate::image::{Picture, Pixels};
use crate::inputs::Inputs;
use crate::profile;
use crate::request::Request;

/// Makes the pictures of a resolved request (see [`super::resolve`]).
pub fn run(
    pipeline: &Pipeline,
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
    let mut said: Vec<String> = Vec::new();
    // Stages of denoising: one for a plain run, more with a refiner or a second pass.
    let mut noise = start::noise_source(request)?;
    let mut work = None;
    let mut last = pipeline;
    for (stage, course) in stages.iter_mut().zip(courses) {
        let model = match (stage.network, refiner) {
            (Network::Refiner, Some(refiner)) => refiner.get()?,
            _ => pipeline,
        };
        // Prompts to conditioning, which may differ from step to step; what another stage has
        // encoded is remembered.
        let mut warn = |text: String| {
            if !said.contains(&text) {
                // Warnings cannot stop a run; the next event can.
                let _ = observe(Event::Warning(&text));
                said.push(text);
            }
        };
        let prompts = profile::scope("text_encoders", || {
            let embeds = inputs.embeds.as_ref();
            encode(model, request, embeds, course.steps, &mut warn)
        })?;
        let mut begun = match work.take() {
            None => start::first(model, request, inputs, canvas.as_ref(), stage, &mut noise)?,
            Some(work) => start::next(model, last, request, stage, work, &mut noise)?,
        };
        let from_noise = stage.begin == Begin::Noise;
        let rows = Rows::new(model, request, &prompts, stage.size, from_noise);
        denoise(model, &rows, stage, &mut begun, &mut noise, course, observe)?;
        work = Some(begun);
        last = model;
    }
    // A run has at least one stage.
    let Some(work) = work else {
        return Err(crate::Error::request("steps: none"));
    };
    let latents = work.latents;

    // Latents to pictures.
    let images = latents.batch();
    let mut pictures = Vec::with_capacity(images);
    let group = if request.vae_slicing { 1 } else { images };
    for first in (0..images).step_by(group) {
        proceed(observe(Event::Decoding {
            index: first + 1,
            total: images,
        }))?;
        for (offset, rgb) in decode(last, request, &latents, first, group, request.watermark)?
            .into_iter()
            .enumerate()
        {
            let image = first + offset;
            let made = Pixels::new(8 * latents.width(), 8 * latents.height(), 3, rgb);
            let made = match &canvas {
                Some(canvas) => canvas.finish(made),
                None => made,
            };
            pictures.push(Picture {
                pixels: made,
                // One generator for all, or one a picture.
                seed: request.seed[image.min(request.seed.len() - 1)],
                prompt_index: image / request.num_images,
            });
        }
    }
    Ok(Output {
        images: pictures,
        latents,
    })
}
