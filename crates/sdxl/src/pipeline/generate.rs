//! The whole run, top to bottom: prompts, noise, denoising loop, decoding.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use super::conditioning::{self, PromptPair};
use super::guidance::{compose, guide};
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
use crate::text::embeds_file::Embeds;
use crate::weights::folder::Checkpoint;

/// Makes the pictures of a resolved request (see [`super::resolve`]), of `embeds` instead of its
/// prompts where they are given.
pub fn run(
    pipeline: &Pipeline,
    request: &Request,
    embeds: Option<&Embeds>,
    start: Option<Latents>,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Output> {
    let images = request.images();
    let shape = latents_shape(&pipeline.checkpoint, request);
    if let Some(start) = &start {
        check_start(&pipeline.checkpoint, request, start)?;
    }

    // Prompts to conditioning; it may differ from step to step.
    proceed(observe(Event::Encoding))?;
    let mut scheduler = build_scheduler(&pipeline.checkpoint, request)?;
    let total = scheduler.timesteps().len();
    let mut warn = |text: String| {
        // Warnings cannot stop a run; the next event can.
        let _ = observe(Event::Warning(&text));
    };
    let zeros = pipeline.checkpoint.force_zeros_for_empty_prompt;
    let prompts = conditioning::encode(&pipeline.text, request, embeds, zeros, total, &mut warn)?;

    // Noise.
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
    while let Some(timestep) = scheduler.timestep() {
        let began = Instant::now();
        let input = scheduler.scale_model_input(&latents);
        let prediction = rows.predict(pipeline, &input, timestep, scheduler.index());
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
        let parts = prompts.iter().map(PromptPair::parts).max().unwrap_or(1);
        Rows {
            request,
            prompts,
            group: (fit.clamp(1, 8) as usize / parts).max(1),
            ids,
            negative_ids,
        }
    }

    /// The guided prediction for all images, `input` `[N, H, W, C]`.
    fn predict(
        &self,
        pipeline: &Pipeline,
        input: &Latents,
        timestep: f64,
        evaluation: usize,
    ) -> Latents {
        let [images, height, width, _] = input.shape();
        let channels = pipeline.checkpoint.unet.out_channels;
        let mut prediction = Vec::with_capacity(images * height * width * channels);
        let width = pipeline.checkpoint.unet.cross_attention_dim;
        let tokens = |image: usize| self.prompt(image).tokens(width);
        let mut first = 0;
        while first < images {
            // Texts of different lengths cannot go together.
            let together = (first..images.min(first + self.group))
                .take_while(|image| tokens(*image) == tokens(first));
            let group = first..first + together.count();
            first = group.end;
            prediction.extend(self.predict_group(pipeline, input, timestep, evaluation, group));
        }
        Latents::new([images, height, width, channels], prediction)
    }

    /// The prompt that an image is of.
    fn prompt(&self, image: usize) -> &PromptPair {
        &self.prompts[image / self.request.num_images]
    }

    /// Images of the range `group`, cond and uncond in one batch.
    fn predict_group(
        &self,
        pipeline: &Pipeline,
        input: &Latents,
        timestep: f64,
        evaluation: usize,
        group: Range<usize>,
    ) -> Vec<f32> {
        let [images, height, width, channels] = input.shape();
        let guided = self.request.guided();
        let sides: &[bool] = if guided { &[false, true] } else { &[true] };
        let (mut values, mut text, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        let size = height * width * channels;
        for (side, &positive) in sides.iter().enumerate() {
            for image in group.clone() {
                let pair = self.prompt(image);
                let texts: Vec<&Conditioning> = if positive {
                    let parts = pair.positive(evaluation).iter();
                    parts.map(|(_, part)| part.as_ref()).collect()
                } else {
                    vec![pair.negative(evaluation)]
                };
                // In the reference's batch the texts come as n n p p but the size ids as
                // n p n p, so with several images half of them are swapped. It shows
                // only where negative sizes are given; matched, since numbers are.
                let row = side * images + image;
                let negative = guided && row.is_multiple_of(2);
                for part in texts {
                    values.extend_from_slice(&input.data()[image * size..(image + 1) * size]);
                    text.push(part);
                    ids.extend(if negative {
                        self.negative_ids
                    } else {
                        self.ids
                    });
                }
            }
        }
        let batch = text.len();
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
            let size = out.len() / batch;
            let mut cond = out.split_off(group.len() * size);
            for (image, u) in group.zip(out.chunks_exact_mut(size)) {
                let parts = self.prompt(image).positive(evaluation);
                let rest = cond.split_off(parts.len() * size);
                let weights = parts.iter().map(|(weight, _)| *weight);
                let c = compose(u, std::mem::replace(&mut cond, rest), weights);
                guide(
                    u,
                    &c,
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
    for values in decoded.iter().map(Tensor::to_f32_vec) {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::Machine(format!(
                "the VAE's numbers left the range of {}, which would be a black picture; try \
                 --precision f32",
                pipeline.precision
            )));
        }
        bytes.extend(values.chunks_exact(pixels).map(crate::image::to_u8));
    }
    Ok(bytes)
}
