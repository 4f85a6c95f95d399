//! Heun's method (Karras et al. 2022, algorithm 2 without noise), as `HeunDiscreteScheduler` of
//! diffusers has it: two evaluations a step, the second at the end of an Euler step.

use super::clamp::Clamp;
use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::{Position, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{BetaSchedule, SigmaTable};

pub(super) static INFO: Info = Info {
    class: "HeunDiscreteScheduler",
    names: &["heun"],
    a1111: Some("Heun"),
    order: 2,
    evaluations_per_step: 2,
    randomness: Randomness::Deterministic,
    when: "as accurate as Euler with far fewer steps, each of which costs two evaluations",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        training::LATENT_NOISE,
        training::SPACING,
        training::CURVES,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("clip_sample", "false"),
    option("clip_sample_range", "1.0"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let rule = Heun {
        prediction,
        clamp: Clamp::fixed(config)?,
    };
    let mut schedules = training::BETA_SCHEDULES.to_vec();
    schedules.push(("exp", BetaSchedule::Exp));
    let table = SigmaTable::new(&training::alphas_cumprod(config, &schedules, ZeroSnr::No)?);
    let curve = training::sigma_curve(config)?;
    let levels = variance_exploding::levels(config, inference, &table, curve, (None, None))?;
    let sigmas = with_final(&variance_exploding::twice(&levels.sigmas), 0.0);
    let timesteps = variance_exploding::twice(&levels.timesteps);
    let timesteps = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    let spacing = training::spacing(config)?;
    Ok((
        variance_exploding::schedule(spacing, timesteps, sigmas),
        Box::new(rule),
    ))
}

struct Heun {
    prediction: Prediction,
    clamp: Clamp,
}

impl UpdateRule for Heun {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, position.sigma())
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            sample,
            state,
            ..
        } = step;
        let sigma = position.sigma();
        let denoised = self.prediction.denoise(step.model_output, sample, sigma);
        let denoised = self.clamp.apply(denoised);
        let d = variance_exploding::derivative(sample, &denoised, sigma);
        if !position.is_second() {
            let dt = position.sigma_next() - sigma;
            let next = variance_exploding::euler_step(sample, &d, dt);
            state.anchor = Some(sample.clone());
            state.history = vec![d];
            return Ok(next);
        }
        // From the start of the step once more, along the mean of both derivatives.
        let anchor = state.take_anchor()?;
        let d_mean = Latents::zip_with([state.past(0)?, &d], |[a, b]| (a + b) / 2.0);
        state.history.clear();
        let dt = sigma - position.sigma_past(1);
        Ok(variance_exploding::euler_step(&anchor, &d_mean, dt))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
