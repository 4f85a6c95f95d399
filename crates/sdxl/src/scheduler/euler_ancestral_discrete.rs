//! Euler's method with ancestral noise: each step goes further down than its level and adds noise
//! back (Song et al. 2020), as `EulerAncestralDiscreteScheduler` of diffusers has it.

use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::schedule::{Position, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::SigmaTable;

pub(super) static INFO: Info = Info {
    class: "EulerAncestralDiscreteScheduler",
    names: &["euler_a", "euler_ancestral"],
    a1111: Some("Euler a"),
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Stochastic,
    when: "soft, varied pictures that keep changing with more steps; with trailing spacing for SDXL Turbo",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::SPACING,
        training::ZERO_SNR,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[option("prediction_type", r#""epsilon""#)];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let rule = EulerAncestral {
        prediction: prediction(config, &[EPSILON, V])?,
    };
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::NearlyZero)?;
    let table = SigmaTable::new(&alphas);
    let levels = variance_exploding::levels(config, inference, &table, None, (None, None))?;
    let sigmas = with_final(&levels.sigmas, 0.0);
    let spacing = training::spacing(config)?;
    Ok((
        variance_exploding::schedule(spacing, levels.timesteps, sigmas),
        Box::new(rule),
    ))
}

struct EulerAncestral {
    prediction: Prediction,
}

impl UpdateRule for EulerAncestral {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, position.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let sigma = step.position.sigma();
        let (sigma_down, sigma_up) =
            variance_exploding::ancestral_step(sigma, step.position.sigma_next());
        let denoised = self
            .prediction
            .denoise(step.model_output, step.sample, sigma);
        let d = variance_exploding::derivative(step.sample, &denoised, sigma);
        let dt = sigma_down - sigma;
        let next = variance_exploding::euler_step(step.sample, &d, dt);
        // The last step draws too, though its sigma_up is 0: later draws must be the reference's.
        let noise = step.draw()?;
        Ok(variance_exploding::add_noise(&next, &noise, sigma_up))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
