//! The whole run, top to bottom: prompts, stages of denoising, decoding.

use std::ops::ControlFlow;

use super::canvas::Canvas;
use super::denoise::denoise;
use super::predict::{PromptPair, Rows};
use super::stages::{Begin, Course, Network, stages};
use super::vae::decode;
use super::{Event, Output, Pipeline, proceed, start};
use crate::error::Result;
use crate::image::{Picture, Pixels};
use crate::inputs::Inputs;
use crate::request::Request;
use crate::text::Conditioning;

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

    // Prompts to conditioning.
    proceed(observe(Event::Encoding))?;
    let prompts = encode(pipeline, request, observe)?;

    // Stages of denoising: one for a plain run, more with a refiner or a second pass.
    let mut noise = start::noise_source(request)?;
    let mut work = None;
    let mut last = pipeline;
    for (stage, course) in stages.iter_mut().zip(courses) {
        let refiner_prompts;
        let (model, prompts) = match (stage.network, refiner) {
            (Network::Refiner, Some(refiner)) => {
                let model = refiner.get()?;
                // What does not fit was said when the base's prompts were encoded.
                let mut silent = |_: Event<'_>| ControlFlow::Continue(());
                refiner_prompts = encode(model, request, &mut silent)?;
                (model, &refiner_prompts)
            }
            _ => (pipeline, &prompts),
        };
        let mut begun = match work.take() {
            None => start::first(model, request, inputs, canvas.as_ref(), stage, &mut noise)?,
            Some(work) => start::next(model, last, request, stage, work, &mut noise)?,
        };
        let from_noise = stage.begin == Begin::Noise;
        let rows = Rows::new(model, request, prompts, stage.size, from_noise);
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
                width: made.width,
                height: made.height,
                rgb: made.data,
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

/// Encodes every prompt of the request, in order.
fn encode(
    pipeline: &Pipeline,
    request: &Request,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<PromptPair>> {
    let mut warn = |text: String| {
        // Warnings cannot stop a run; the next event can.
        let _ = observe(Event::Warning(&text));
    };
    let zeros =
        request.negative_prompt.is_empty() && pipeline.checkpoint.force_zeros_for_empty_prompt;
    let mut pairs: Vec<PromptPair> = Vec::new();
    for (i, prompt) in request.prompt.iter().enumerate() {
        let prompt_2 = pick(&request.prompt_2, i).filter(|p| !p.is_empty());
        let positive = pipeline.text.encode(
            prompt,
            prompt_2.unwrap_or(prompt),
            request.clip_skip,
            &mut warn,
        )?;
        let negative = if !request.guided() || zeros {
            Conditioning::zeros_like(&positive)
        } else {
            let text = pick(&request.negative_prompt, i).unwrap_or("");
            let text_2 = pick(&request.negative_prompt_2, i)
                .filter(|p| !p.is_empty())
                .unwrap_or(text);
            // clip_skip is for the positive prompt only, as in the reference.
            pipeline.text.encode(text, text_2, None, &mut warn)?
        };
        pairs.push(PromptPair { positive, negative });
    }
    Ok(pairs)
}

/// The text for prompt `index`: a list holds none, one for all, or one each.
fn pick(list: &[String], index: usize) -> Option<&str> {
    match list {
        [] => None,
        [one] => Some(one),
        many => many.get(index).map(String::as_str),
    }
}
