//! DPM-Solver-2 in the form of Karras et al. 2022 (algorithm 2 with the second evaluation in the
//! middle, `sample_dpm_2` of k-diffusion), as `KDPM2DiscreteScheduler` of diffusers has it.

use super::info::{Info, OptionInfo, Randomness, option};
use super::math::{exp, ln};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::schedule::{Levels, Position, Schedule, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{SigmaCurve, SigmaTable};

pub(super) static INFO: Info = Info {
    class: "KDPM2DiscreteScheduler",
    names: &["dpm2", "dpm_2", "kdpm_2"],
    a1111: Some("DPM2"),
    order: 2,
    evaluations_per_step: 2,
    randomness: Randomness::Deterministic,
    when: "like Heun, with the second evaluation in the middle of the step",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::LATENT_NOISE,
        training::SPACING,
        training::CURVES,
        OPTIONS,
    ],
};

pub(super) const OPTIONS: &[OptionInfo] = &[option("prediction_type", r#""epsilon""#)];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let (table, levels) = levels(config, inference)?;
    let sigmas = with_final(&levels.sigmas, 0.0);
    // The level in the middle of each step; of the last step, which goes to zero, there is none.
    let sigma_mid: Vec<f32> = sigmas
        .windows(2)
        .map(|w| geometric_mean(w[1], w[0]))
        .collect();
    let schedule = schedule(config, &table, &levels.timesteps, &sigmas, &sigma_mid)?;
    Ok((
        schedule,
        Box::new(Kdpm2 {
            prediction,
            sigma_mid,
        }),
    ))
}

/// The levels of the steps. On the Karras curve the reference rounds their timesteps, but not those
/// of the middles.
pub(super) fn levels(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
) -> Result<(SigmaTable, Levels), SchedulerError> {
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::sigma_curve(config)?;
    let mut levels = variance_exploding::levels(config, inference, &table, curve, (None, None))?;
    if curve == Some(SigmaCurve::Karras) {
        levels
            .timesteps
            .iter_mut()
            .for_each(|t| *t = t.round_ties_even());
    }
    Ok((table, levels))
}

/// The schedule with two evaluations a step: at its own timestep and at that of its middle.
pub(super) fn schedule(
    config: &SchedulerConfig,
    table: &SigmaTable,
    timesteps: &[f64],
    sigmas: &[f32],
    sigma_mid: &[f32],
) -> Result<Schedule, SchedulerError> {
    let middles = sigma_mid
        .iter()
        .map(|&s| f64::from(table.timestep_of_f32(s)));
    let pairs = timesteps
        .iter()
        .zip(middles)
        .flat_map(|(&t, middle)| [t, middle]);
    let timesteps = pairs.take(2 * timesteps.len() - 1).collect();
    Ok(variance_exploding::schedule(
        training::spacing(config)?,
        timesteps,
        variance_exploding::twice(sigmas),
    ))
}

/// The mean of two levels in the logarithm, zero if one is.
pub(super) fn geometric_mean(a: f32, b: f32) -> f32 {
    if a == 0.0 || b == 0.0 {
        return 0.0;
    }
    let (a, b) = (ln(a), ln(b));
    exp(b - (b - a) * 0.5)
}

struct Kdpm2 {
    prediction: Prediction,
    /// The noise level in the middle of each step.
    sigma_mid: Vec<f32>,
}

impl Kdpm2 {
    /// The noise level of an evaluation's sample.
    fn sigma(&self, position: Position<'_>) -> f32 {
        if position.is_second() {
            self.sigma_mid[position.index / 2]
        } else {
            position.sigma()
        }
    }
}

impl UpdateRule for Kdpm2 {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, self.sigma(position))
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            sample,
            state,
            ..
        } = step;
        let sigma = self.sigma(position);
        let denoised = self.prediction.denoise(step.model_output, sample, sigma);
        let d = variance_exploding::derivative(sample, &denoised, sigma);
        if !position.is_second() {
            let dt = self.sigma_mid[position.index / 2] - sigma;
            state.anchor = Some(sample.clone());
            return Ok(variance_exploding::euler_step(sample, &d, dt));
        }
        let dt = position.sigma() - position.sigma_past(1);
        Ok(variance_exploding::euler_step(
            &state.take_anchor()?,
            &d,
            dt,
        ))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
