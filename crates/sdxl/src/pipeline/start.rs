//! Where a stage starts: noise, a picture, or what the stage before left.
//!
//! The order of the draws is the reference's: the VAE's noise for the picture, the noise of the
//! run, for inpainting the VAE's noise for the picture without its masked part, then whatever
//! the scheduler draws.

use super::Pipeline;
use super::canvas::Canvas;
use super::inpaint::Inpainting;
use super::plan::Plan;
use super::stages::{Begin, Stage};
use super::vae::{Passes, Posterior, decode};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::image::resize::lanczos;
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::noise::{NoiseError, NoiseSource};
use crate::request::{Request, Size, UpscaleMethod};

/// What stages work on.
pub struct Work {
    /// All images, `[N, H, W, C]`.
    pub latents: Latents,
    /// The mask, where there is one.
    pub inpainting: Option<Inpainting>,
}

fn seed_error(error: NoiseError) -> Error {
    Error::request("seed", error.to_string())
}

/// The run's source of noise.
///
/// # Errors
/// [`Error::Request`] for seeds that cannot be used.
pub fn noise_source(request: &Request) -> Result<NoiseSource> {
    NoiseSource::new(request.rng, &request.seed).map_err(seed_error)
}

/// Images, height, width and channels of the latents of pictures of `size`.
fn shape_of(pipeline: &Pipeline, request: &Request, size: Size) -> [usize; 4] {
    let channels = pipeline.checkpoint.vae.latent_channels;
    [request.images(), size.height / 8, size.width / 8, channels]
}

/// The start of the first stage.
///
/// # Errors
/// [`Error::Request`] for seeds or a mask that cannot be used; [`Error::Machine`] from the VAE.
pub fn first(
    pipeline: &Pipeline,
    plan: &Plan,
    request: &Request,
    inputs: &Inputs,
    canvas: Option<&Canvas>,
    stage: &Stage,
    noise: &mut NoiseSource,
) -> Result<Work> {
    let shape = shape_of(pipeline, request, stage.size);
    let scheduler = &stage.scheduler;
    if let Some((canvas, hole)) = canvas.and_then(|c| Some((c, c.hole.as_ref()?))) {
        return masked(pipeline, plan, request, canvas, hole, stage, noise);
    }
    let mut draw = |shape| noise.draw(shape).map_err(seed_error);
    let latents = match (stage.begin, canvas, &inputs.latents) {
        (Begin::Noise, _, given) => {
            let latents = match given {
                Some(given) => given.clone(),
                None => draw(shape)?,
            };
            latents.map(|x| x * scheduler.init_noise_sigma())
        }
        (begin, canvas, given) => {
            let clean = match (canvas, given) {
                (Some(canvas), _) => {
                    let pictures = std::slice::from_ref(&canvas.picture);
                    let posterior = Posterior::of(pipeline, plan.tile, pictures, grid(stage.size))?;
                    encode(pipeline, &posterior, noise, shape)?
                }
                (None, Some(given)) => given.clone(),
                // Stages that start so have one of them.
                (None, None) => Latents::zeros(shape),
            };
            if begin == Begin::GoOn {
                clean
            } else {
                let drawn = noise.draw(shape).map_err(seed_error)?;
                scheduler.add_noise(&clean, &drawn)
            }
        }
    };
    Ok(Work {
        latents,
        inpainting: None,
    })
}

/// Height and width of the latents of pictures of `size`.
fn grid(size: Size) -> [usize; 2] {
    [size.height / 8, size.width / 8]
}

/// Latents of one picture for all images of `shape`: with one generator a single draw, with
/// one for each image a draw from each.
fn encode(
    pipeline: &Pipeline,
    posterior: &Posterior,
    noise: &mut NoiseSource,
    shape: [usize; 4],
) -> Result<Latents> {
    let one = posterior.shape();
    let drawn = if noise.generators().len() == 1 {
        noise.draw(one)
    } else {
        noise.draw(shape)
    };
    let sample = posterior.sample(pipeline, &drawn.map_err(seed_error)?);
    Ok(repeated(sample, shape[0]))
}

/// `images` images, of which there are fewer in `latents`.
fn repeated(latents: Latents, images: usize) -> Latents {
    let copies = images / latents.batch();
    Latents::concat(&vec![latents; copies])
}

/// The start of inpainting.
fn masked(
    pipeline: &Pipeline,
    plan: &Plan,
    request: &Request,
    canvas: &Canvas,
    hole: &[bool],
    stage: &Stage,
    noise: &mut NoiseSource,
) -> Result<Work> {
    let shape = shape_of(pipeline, request, stage.size);
    let one = [1, shape[1], shape[2], shape[3]];
    let scheduler = &stage.scheduler;
    // A picture is encoded once, with the first generator, however many there are.
    let encode_one = |picture: &Vec<f32>, noise: &mut NoiseSource| -> Result<Latents> {
        let pictures = std::slice::from_ref(picture);
        let posterior = Posterior::of(pipeline, plan.tile, pictures, grid(stage.size))?;
        Ok(posterior.sample(pipeline, &noise.draw_from_first(one)))
    };
    let sees_mask = pipeline.checkpoint.unet.in_channels != shape[3];
    let from_noise = request.strength == Some(1.0) && stage.begin == Begin::Picture;
    let known = if sees_mask && from_noise {
        None
    } else {
        Some(repeated(encode_one(&canvas.picture, noise)?, shape[0]))
    };
    let drawn = noise.draw(shape).map_err(seed_error)?;
    let latents = match &known {
        Some(known) if stage.begin == Begin::GoOn => known.clone(),
        Some(known) if !from_noise => scheduler.add_noise(known, &drawn),
        _ => drawn.map(|x| x * scheduler.init_noise_sigma()),
    };
    let covered: Vec<f32> = (canvas.picture.iter().enumerate())
        .map(|(i, v)| if hole[i / 3] { 0.0 } else { *v })
        .collect();
    // Drawn and encoded by the reference in any case; without a UNet that sees it, only the
    // draw matters.
    let masked = if sees_mask {
        Some(encode_one(&covered, noise)?)
    } else {
        noise.draw_from_first(one);
        None
    };
    let inpainting = Inpainting::new(hole, known, drawn, masked)?;
    Ok(Work {
        latents,
        inpainting: Some(inpainting),
    })
}

/// The start of a stage after the first, from what the stage before left.
///
/// Of the two models `last` is that of the stage before.
pub fn next(
    [pipeline, last]: [&Pipeline; 2],
    plan: &Plan,
    request: &Request,
    stage: &Stage,
    work: Work,
    noise: &mut NoiseSource,
) -> Result<Work> {
    let scheduler = &stage.scheduler;
    if stage.begin == Begin::HandOver {
        return Ok(hold(pipeline, stage, work));
    }
    let finished = if stage.begin == Begin::Enlarged {
        enlarge(
            [pipeline, last],
            plan,
            request,
            stage.size,
            work.latents,
            noise,
        )?
    } else {
        work.latents
    };
    let drawn = noise.draw(finished.shape()).map_err(seed_error)?;
    let latents = scheduler.add_noise(&finished, &drawn);
    let inpainting = work.inpainting.map(|i| i.with_noise(drawn));
    Ok(hold(
        pipeline,
        stage,
        Work {
            latents,
            inpainting,
        },
    ))
}

/// Outside the mask, the picture with the noise that this stage starts at.
fn hold(pipeline: &Pipeline, stage: &Stage, mut work: Work) -> Work {
    if let Some(inpainting) = &work.inpainting {
        let channels = pipeline.checkpoint.unet.in_channels;
        inpainting.hold(&mut work.latents, &stage.scheduler, channels);
    }
    work
}

/// Finished latents for pictures of `size`.
fn enlarge(
    [pipeline, last]: [&Pipeline; 2],
    plan: &Plan,
    request: &Request,
    size: Size,
    latents: Latents,
    noise: &mut NoiseSource,
) -> Result<Latents> {
    let [images, height, width, _] = latents.shape();
    if request.upscale_method == UpscaleMethod::Latent {
        return Ok(bilinear(&latents, grid(size)));
    }
    let mut pictures = Vec::with_capacity(images);
    let tile = Passes::of(plan.tile, true, [height, width], 1).tile;
    for i in 0..images {
        for rgb in decode(last, &latents, i, 1, false, tile)? {
            let picture = Pixels::new(8 * width, 8 * height, 3, rgb);
            pictures.push(lanczos(&picture, size.width, size.height).to_signed());
        }
    }
    let posterior = Posterior::of(pipeline, plan.tile, &pictures, grid(size))?;
    let drawn = noise.draw(posterior.shape()).map_err(seed_error)?;
    Ok(posterior.sample(pipeline, &drawn))
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
