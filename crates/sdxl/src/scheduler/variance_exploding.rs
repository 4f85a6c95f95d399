//! Samples of the form `x0 + sigma * noise` (variance exploding), as Karras et al. 2022 and k-diffusion
//! hold them: the Euler family.

use super::schedule::{Levels, Schedule};
use super::training;
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::noise_schedule::{self, SigmaCurve, SigmaTable, Spacing};

/// Places the steps of a run. On a sigma curve, levels lie between those of the first and the last
/// spaced timestep (or `range`: lowest, highest), and timesteps are fractional.
pub(super) fn levels(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
    table: &SigmaTable,
    curve: Option<SigmaCurve>,
    range: (Option<f64>, Option<f64>),
) -> Result<Levels, SchedulerError> {
    let (timesteps, steps) = match &inference.steps {
        Steps::Count(steps) => {
            let (spacing, offset) = (training::spacing(config)?, training::steps_offset(config)?);
            (
                noise_schedule::spaced(spacing, config.trained()?, *steps, offset),
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
    let sigmas = noise_schedule::sigma_curve(curve, min, max, steps);
    Ok(Levels {
        timesteps: sigmas.iter().map(|&s| table.timestep_of(s)).collect(),
        sigmas,
    })
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

/// The schedule of these classes. Runs start from noise of the highest level; with leading spacing,
/// which stops below the highest level of training, from `sqrt(sigma^2 + 1)`, the deviation of image
/// and noise together.
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

/// Scales a sample of variance `1 + sigma^2` to unit variance, for the UNet.
pub(super) fn scale(sample: &Latents, sigma: f32) -> Latents {
    let deviation = (sigma * sigma + 1.0).sqrt();
    sample.map(|x| x / deviation)
}

/// The derivative `d` of a sample by its noise level (`to_d` of k-diffusion).
pub(super) fn derivative(sample: &Latents, denoised: &Latents, sigma: f32) -> Latents {
    Latents::zip_with([sample, denoised], |[x, x0]| (x - x0) / sigma)
}

/// Moves a sample along the derivative `d`, by `dt` of noise level: an Euler step.
pub(super) fn euler_step(sample: &Latents, d: &Latents, dt: f32) -> Latents {
    Latents::zip_with([sample, d], |[x, d]| x + d * dt)
}

/// A clean image with noise of deviation `sigma`.
pub(super) fn add_noise(original: &Latents, noise: &Latents, sigma: f32) -> Latents {
    Latents::zip_with([original, noise], |[x, n]| x + n * sigma)
}

/// Splits an ancestral step between two noise levels: `sigma_down`, the level to go down to, and
/// `sigma_up`, the deviation of the noise to add there (Song et al. 2020; `get_ancestral_step` of
/// k-diffusion).
pub(super) fn ancestral_step(from: f32, to: f32) -> (f32, f32) {
    let sigma_up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    let square = to * to - sigma_up * sigma_up;
    // After a step from far above, the difference vanishes in f32, and the reference gets NaN or zero.
    // In exact arithmetic its root is this quotient.
    let sigma_down = if square > 0.0 || to == 0.0 {
        square.sqrt()
    } else {
        to * to / from
    };
    (sigma_down, sigma_up)
}
