//! The whole run, top to bottom: prompts, noise, denoising loop, decoding.

use std::ops::ControlFlow;
use std::time::Instant;

use super::guidance::guide;
use super::{Event, Output, Pipeline, build_scheduler};
use crate::error::{Error, Result};
use crate::image::Picture;
use crate::latents::Latents;
use crate::memory;
use crate::model::unet::UNetConditioning;
use crate::noise::NoiseSource;
use crate::request::{Request, Size, Tiling};
use crate::tensor::Tensor;
use crate::text::Conditioning;
use crate::watermark;
use crate::weights::folder::Checkpoint;

/// Makes the pictures of a resolved request (see [`super::resolve`]).
pub fn run(
    pipeline: &Pipeline,
    request: &Request,
    start: Option<Latents>,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Output> {
    let images = request.images();
    let shape = latents_shape(&pipeline.checkpoint, request);
    if let Some(start) = &start {
        check_start(&pipeline.checkpoint, request, start)?;
    }

    // Prompts to conditioning.
    proceed(observe(Event::Encoding))?;
    let prompts = encode(pipeline, request, observe)?;

    // Schedule and noise.
    let mut scheduler = build_scheduler(&pipeline.checkpoint, request)?;
    let mut noise = NoiseSource::new(request.rng, &request.seed)
        .map_err(|e| Error::request(format!("seed: {e}")))?;
    let drawn = match start {
        Some(latents) => latents,
        None => noise
            .draw(shape)
            .map_err(|e| Error::request(format!("seed: {e}")))?,
    };
    let mut latents = drawn.map(|x| x * scheduler.init_noise_sigma());

    // The denoising loop.
    let rows = Rows::new(pipeline, request, &prompts);
    let total = scheduler.timesteps().len();
    while let Some(timestep) = scheduler.timestep() {
        let began = Instant::now();
        let input = scheduler.scale_model_input(&latents);
        let prediction = rows.predict(pipeline, &input, timestep);
        latents = scheduler.step(&prediction, &latents, &mut noise)?;
        if latents.data().iter().any(|v| !v.is_finite()) {
            return Err(Error::Machine(format!(
                "the numbers left the range of {} at step {}; try --precision f32",
                pipeline.precision,
                scheduler.index()
            )));
        }
        proceed(observe(Event::Step {
            index: scheduler.index(),
            total,
            seconds: began.elapsed().as_secs_f64(),
        }))?;
    }

    // Latents to pictures.
    let size = request.picture_size();
    let mut pictures = Vec::with_capacity(images);
    let group = if request.vae_slicing { 1 } else { images };
    for first in (0..images).step_by(group) {
        proceed(observe(Event::Decoding {
            index: first + 1,
            total: images,
        }))?;
        for (offset, rgb) in decode(pipeline, request, &latents, first, group)?
            .into_iter()
            .enumerate()
        {
            let image = first + offset;
            pictures.push(Picture {
                width: size.width,
                height: size.height,
                rgb,
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

/// Images, height, width and channels of a resolved request's latents.
fn latents_shape(checkpoint: &Checkpoint, request: &Request) -> [usize; 4] {
    let Size { width, height } = request.picture_size();
    let channels = checkpoint.vae.latent_channels;
    [request.images(), height / 8, width / 8, channels]
}

/// Refuses latents that a resolved request cannot start from.
///
/// # Errors
/// [`Error::Request`] with both shapes, in torch's axis order.
pub fn check_start(checkpoint: &Checkpoint, request: &Request, start: &Latents) -> Result<()> {
    let shape = latents_shape(checkpoint, request);
    if start.shape() == shape {
        return Ok(());
    }
    let ([n, h, w, c], [images, height, width, channels]) = (start.shape(), shape);
    Err(Error::request(format!(
        "latents: [{n}, {c}, {h}, {w}] given, but {images} pictures of {} start from [{images}, \
         {channels}, {height}, {width}]",
        request.picture_size()
    )))
}

fn proceed(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// A prompt's positive and negative conditioning.
struct PromptPair {
    positive: Conditioning,
    negative: Conditioning,
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

/// What every image of the run is conditioned on.
struct Rows<'a> {
    request: &'a Request,
    prompts: &'a [PromptPair],
    /// Images evaluated together.
    group: usize,
    ids: [f32; 6],
    negative_ids: [f32; 6],
}

impl<'a> Rows<'a> {
    fn new(pipeline: &Pipeline, request: &'a Request, prompts: &'a [PromptPair]) -> Self {
        let picture = request.picture_size();
        let ids = size_ids(
            request.original_size.unwrap_or(picture),
            request.crops_coords_top_left,
            request.target_size.unwrap_or(picture),
        );
        // The reference looks at the negative sizes only if both are there.
        let negative_ids = match (request.negative_original_size, request.negative_target_size) {
            (Some(original), Some(target)) => {
                size_ids(original, request.negative_crops_coords_top_left, target)
            }
            _ => ids,
        };
        let pixels = (picture.width * picture.height) as u64;
        let one = memory::of_unet_image(
            &pipeline.checkpoint.unet,
            pipeline.precision,
            pixels,
            request.guided(),
        );
        // Half of what is free, so that an estimate that is off does no harm. Beyond
        // eight images a larger batch no longer makes the kernels faster.
        let fit = memory::available().map_or(1, |free| free / 2 / one.max(1));
        Rows {
            request,
            prompts,
            group: fit.clamp(1, 8) as usize,
            ids,
            negative_ids,
        }
    }

    /// The guided prediction for all images, `input` `[N, H, W, C]`.
    fn predict(&self, pipeline: &Pipeline, input: &Latents, timestep: f64) -> Latents {
        let [images, height, width, _] = input.shape();
        let channels = pipeline.checkpoint.unet.out_channels;
        let mut prediction = Vec::with_capacity(images * height * width * channels);
        for first in (0..images).step_by(self.group) {
            let count = self.group.min(images - first);
            prediction.extend(self.predict_group(pipeline, input, timestep, first, count));
        }
        Latents::new([images, height, width, channels], prediction)
    }

    /// Images `first..first + count`, cond and uncond in one batch.
    fn predict_group(
        &self,
        pipeline: &Pipeline,
        input: &Latents,
        timestep: f64,
        first: usize,
        count: usize,
    ) -> Vec<f32> {
        let [images, height, width, channels] = input.shape();
        let guided = self.request.guided();
        let sides: &[bool] = if guided { &[false, true] } else { &[true] };
        let (mut values, mut text, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        let size = height * width * channels;
        for (side, &positive) in sides.iter().enumerate() {
            for image in first..first + count {
                values.extend_from_slice(&input.data()[image * size..(image + 1) * size]);
                let pair = &self.prompts[image / self.request.num_images];
                text.push(if positive {
                    &pair.positive
                } else {
                    &pair.negative
                });
                // In the reference's batch the texts come as n n p p but the size ids as
                // n p n p, so with several images half of them are swapped. It shows
                // only where negative sizes are given; matched, since numbers are.
                let row = side * images + image;
                let negative = guided && row.is_multiple_of(2);
                ids.extend(if negative {
                    self.negative_ids
                } else {
                    self.ids
                });
            }
        }
        let batch = sides.len() * count;
        let (context, pooled) =
            Conditioning::stack(&text, pipeline.checkpoint.unet.cross_attention_dim);
        let conditioning = UNetConditioning {
            context,
            pooled,
            time_ids: Tensor::from_f32(vec![batch, 6], ids),
        };
        let x = Tensor::from_f32(vec![batch, height, width, channels], values);
        let mut out = pipeline
            .unet
            .forward(&x, timestep, &conditioning)
            .to_f32_vec();
        if guided {
            let cond = out.split_off(out.len() / 2);
            let size = out.len() / count;
            for (u, c) in out.chunks_exact_mut(size).zip(cond.chunks_exact(size)) {
                guide(
                    u,
                    c,
                    self.request.guidance_scale,
                    self.request.guidance_rescale,
                );
            }
        }
        out
    }
}

/// Original height and width, crop top and left, target height and width.
fn size_ids(original: Size, crop: [usize; 2], target: Size) -> [f32; 6] {
    [
        original.height,
        original.width,
        crop[0],
        crop[1],
        target.height,
        target.width,
    ]
    .map(|v| v as f32)
}

/// The RGB bytes of up to `count` images from `first`.
fn decode(
    pipeline: &Pipeline,
    request: &Request,
    latents: &Latents,
    first: usize,
    count: usize,
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
    let tile = pipeline.vae.tile_size();
    let large = height > tile || width > tile;
    let needed = memory::of_decode(config, (64 * height * width * count) as u64);
    let tiled = large
        && match request.vae_tiling {
            Tiling::On => true,
            Tiling::Off => false,
            Tiling::Auto => memory::available().is_some_and(|free| needed > free / 4 * 3),
        };
    let decoded: Vec<Tensor> = if tiled {
        (0..count)
            .map(|i| pipeline.vae.decode_tiled(&x.narrow_batch(i, 1)))
            .collect()
    } else {
        vec![pipeline.vae.decode(&x)]
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
            if request.watermark {
                watermark::embed(picture, 8 * width, 8 * height);
            }
            bytes.push(crate::image::to_u8(picture));
        }
    }
    Ok(bytes)
}
