//! Heun's method (Karras et al. 2022, algorithm 2 without noise), as `HeunDiscreteScheduler` of
//! diffusers has it: two evaluations a step, the second at the end of an Euler step.

use super::clamp::Clamp;
use super::exploding;
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::{BetaSchedule, SigmaTable};

pub(super) const INFO: Info = Info {
    class: "HeunDiscreteScheduler",
    names: &["heun"],
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
    build,
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("clip_sample", "false"),
    option("clip_sample_range", "1.0"),
];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let rule = Heun {
        prediction,
        clamp: Clamp::fixed(config)?,
    };
    let mut schedules = training::BETA_SCHEDULES.to_vec();
    schedules.push(("exp", BetaSchedule::Exp));
    let table = SigmaTable::new(&training::alphas_cumprod(config, &schedules, ZeroSnr::No)?);
    let curve = training::curve(config)?;
    let levels = exploding::levels(config, plan, &table, curve, (None, None))?;
    let sigmas = exploding::with_final(&exploding::twice(&levels.sigmas), 0.0);
    let timesteps = exploding::twice(&levels.timesteps);
    let timesteps = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    let spacing = training::spacing(config)?;
    Ok((
        exploding::schedule(spacing, timesteps, sigmas),
        Box::new(rule),
    ))
}

struct Heun {
    prediction: Prediction,
    clamp: Clamp,
}

impl Rule for Heun {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, at.sigma())
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            at, sample, state, ..
        } = step;
        let sigma = at.sigma();
        let denoised = self.prediction.denoise(step.model_output, sample, sigma);
        let denoised = self.clamp.apply(denoised);
        let derivative = exploding::derivative(sample, &denoised, sigma);
        if !at.is_second() {
            let next = exploding::along(sample, &derivative, at.sigma_next() - sigma);
            state.anchor = Some(sample.clone());
            state.history = vec![derivative];
            return Ok(next);
        }
        // From the start of the step once more, along the mean of both derivatives.
        let anchor = state.take_anchor()?;
        let first = state.past(0)?;
        let mean = Latents::zip_with([first, &derivative], |[a, b]| (a + b) / 2.0);
        state.history.clear();
        Ok(exploding::along(&anchor, &mean, sigma - at.sigma_past(1)))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
