//! Samples of the form `x0 + sigma * noise`, as Karras et al. 2022 and k-diffusion hold them: the
//! Euler family.

use super::training;
use super::{Plan, Schedule, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::schedule::{self, SigmaCurve, SigmaTable, Spacing};

/// The evaluations of one-evaluation steps, highest first, without the final sigma.
pub(super) struct Levels {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f64>,
}

/// Places the steps of a plan. On a sigma curve, levels lie between those of the first and the last
/// spaced timestep (or `range`: lowest, highest), and timesteps are fractional.
pub(super) fn levels(
    config: &SchedulerConfig,
    plan: &Plan,
    table: &SigmaTable,
    curve: Option<SigmaCurve>,
    range: (Option<f64>, Option<f64>),
) -> Result<Levels, SchedulerError> {
    let (timesteps, steps) = match &plan.steps {
        Steps::Count(steps) => {
            let (spacing, offset) = (training::spacing(config)?, training::steps_offset(config)?);
            (
                schedule::spaced(spacing, config.trained()?, *steps, offset),
                *steps,
            )
        }
        Steps::Timesteps(timesteps) | Steps::Sigmas(timesteps) => {
            if curve.is_some() {
                return Err(config.unsupported(
                    "custom timesteps exclude sigma curves; switch use_karras_sigmas, \
                     use_exponential_sigmas and use_beta_sigmas off",
                ));
            }
            (timesteps.clone(), timesteps.len())
        }
    };
    // Timesteps are held in f32.
    let timesteps: Vec<f64> = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    let sigmas: Vec<f64> = timesteps.iter().map(|&t| table.sigma_at(t)).collect();
    let Some(curve) = curve else {
        return Ok(Levels { timesteps, sigmas });
    };
    let min = range.0.unwrap_or(sigmas[sigmas.len() - 1]);
    let max = range.1.unwrap_or(sigmas[0]);
    let sigmas = schedule::sigma_curve(curve, min, max, steps);
    Ok(Levels {
        timesteps: sigmas.iter().map(|&s| table.timestep_of(s)).collect(),
        sigmas,
    })
}

/// The levels in `f32` with the final one.
pub(super) fn with_final(sigmas: &[f64], last: f32) -> Vec<f32> {
    sigmas.iter().map(|&s| s as f32).chain([last]).collect()
}

/// All values twice but the first, for steps of two evaluations.
pub(super) fn twice<T: Copy>(values: &[T]) -> Vec<T> {
    let (first, rest) = values.split_at(1.min(values.len()));
    first
        .iter()
        .copied()
        .chain(rest.iter().flat_map(|&v| [v, v]))
        .collect()
}

/// The schedule, with the start that these schedulers have: leading timesteps do not reach the
/// highest noise level, so that the variance of the latents themselves is added.
pub(super) fn schedule(spacing: Spacing, timesteps: Vec<f64>, sigmas: Vec<f32>) -> Schedule {
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    let leading = spacing == Spacing::Leading;
    let init_noise_sigma = if leading {
        (max * max + 1.0).sqrt()
    } else {
        max
    };
    Schedule {
        timesteps,
        sigmas,
        init_noise_sigma,
    }
}

/// A sample of unit variance from one of variance `1 + sigma^2`.
pub(super) fn scale(sample: &Latents, sigma: f32) -> Latents {
    let deviation = (sigma * sigma + 1.0).sqrt();
    sample.map(|x| x / deviation)
}

/// The direction in which a sample changes with its noise level.
pub(super) fn derivative(sample: &Latents, denoised: &Latents, sigma: f32) -> Latents {
    Latents::zip_with([sample, denoised], |[x, x0]| (x - x0) / sigma)
}

/// The sample moved along a derivative, by `dt` of noise level.
pub(super) fn along(sample: &Latents, derivative: &Latents, dt: f32) -> Latents {
    Latents::zip_with([sample, derivative], |[x, d]| x + d * dt)
}

/// A clean image with noise of deviation `sigma`.
pub(super) fn add_noise(original: &Latents, noise: &Latents, sigma: f32) -> Latents {
    Latents::zip_with([original, noise], |[x, n]| x + n * sigma)
}

/// An ancestral step between two noise levels, split: the level to go down to, and the deviation of
/// the noise to add there (Song et al. 2020; `get_ancestral_step` of k-diffusion).
pub(super) fn ancestral(from: f32, to: f32) -> (f32, f32) {
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    let square = to * to - up * up;
    // Of a step from far above nothing may be left in f32, where the reference gets NaN or zero.
    let down = if square > 0.0 || to == 0.0 {
        square.sqrt()
    } else {
        to * to / from
    };
    (down, up)
}
