//! DPM-Solver-2 in the form of Karras et al. 2022 (algorithm 2 with the second evaluation in the
//! middle, `sample_dpm_2` of k-diffusion), as `KDPM2DiscreteScheduler` of diffusers has it.

use super::exploding::{self, Levels};
use super::math::{exp, ln};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, Schedule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::{SigmaCurve, SigmaTable};

pub(super) const INFO: Info = Info {
    class: "KDPM2DiscreteScheduler",
    names: &["dpm2", "dpm_2", "kdpm_2"],
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
    build,
};

pub(super) const OPTIONS: &[OptionInfo] = &[option("prediction_type", r#""epsilon""#)];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let (table, levels) = levels(config, plan)?;
    let sigmas = exploding::with_final(&levels.sigmas, 0.0);
    // The level in the middle of each step; of the last step, which goes to zero, there is none.
    let middle: Vec<f32> = sigmas
        .windows(2)
        .map(|w| geometric_mean(w[1], w[0]))
        .collect();
    let schedule = schedule(config, &table, &levels.timesteps, &sigmas, &middle)?;
    Ok((schedule, Box::new(Kdpm2 { prediction, middle })))
}

/// The levels of the steps. On the Karras curve the reference rounds their timesteps, but not those
/// of the middles.
pub(super) fn levels(
    config: &SchedulerConfig,
    plan: &Plan,
) -> Result<(SigmaTable, Levels), SchedulerError> {
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::curve(config)?;
    let mut levels = exploding::levels(config, plan, &table, curve, (None, None))?;
    if curve == Some(SigmaCurve::Karras) {
        levels
            .timesteps
            .iter_mut()
            .for_each(|t| *t = t.round_ties_even());
    }
    Ok((table, levels))
}

/// A step's own timestep and that of its middle in turn.
pub(super) fn schedule(
    config: &SchedulerConfig,
    table: &SigmaTable,
    timesteps: &[f64],
    sigmas: &[f32],
    middle: &[f32],
) -> Result<Schedule, SchedulerError> {
    let middles = middle.iter().map(|&s| f64::from(table.timestep_of_f32(s)));
    let pairs = timesteps
        .iter()
        .zip(middles)
        .flat_map(|(&t, middle)| [t, middle]);
    let timesteps = pairs.take(2 * timesteps.len() - 1).collect();
    Ok(exploding::schedule(
        training::spacing(config)?,
        timesteps,
        exploding::twice(sigmas),
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
    /// One for each step.
    middle: Vec<f32>,
}

impl Kdpm2 {
    /// The level of an evaluation's sample.
    fn level(&self, at: At<'_>) -> f32 {
        if at.is_second() {
            self.middle[at.index / 2]
        } else {
            at.sigma()
        }
    }
}

impl Rule for Kdpm2 {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, self.level(at))
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            at, sample, state, ..
        } = step;
        let level = self.level(at);
        let denoised = self.prediction.denoise(step.model_output, sample, level);
        let derivative = exploding::derivative(sample, &denoised, level);
        if !at.is_second() {
            let to = self.middle[at.index / 2];
            state.anchor = Some(sample.clone());
            return Ok(exploding::along(sample, &derivative, to - level));
        }
        let dt = at.sigma() - at.sigma_past(1);
        Ok(exploding::along(&state.take_anchor()?, &derivative, dt))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
