//! Euler's method with ancestral noise: each step goes further down than its level and adds noise
//! back (Song et al. 2020), as `EulerAncestralDiscreteScheduler` of diffusers has it.

use super::exploding;
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::SigmaTable;

pub(super) const INFO: Info = Info {
    class: "EulerAncestralDiscreteScheduler",
    names: &["euler_a", "euler_ancestral"],
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
    build,
};

const OPTIONS: &[OptionInfo] = &[option("prediction_type", r#""epsilon""#)];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let rule = EulerAncestral {
        prediction: prediction(config, &[EPSILON, V])?,
    };
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::NearlyZero)?;
    let table = SigmaTable::new(&alphas);
    let levels = exploding::levels(config, plan, &table, None, (None, None))?;
    let sigmas = exploding::with_final(&levels.sigmas, 0.0);
    let spacing = training::spacing(config)?;
    Ok((
        exploding::schedule(spacing, levels.timesteps, sigmas),
        Box::new(rule),
    ))
}

struct EulerAncestral {
    prediction: Prediction,
}

impl Rule for EulerAncestral {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, at.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let sigma = step.at.sigma();
        let (down, up) = exploding::ancestral(sigma, step.at.sigma_next());
        let denoised = self
            .prediction
            .denoise(step.model_output, step.sample, sigma);
        let derivative = exploding::derivative(step.sample, &denoised, sigma);
        let next = exploding::along(step.sample, &derivative, down - sigma);
        // Drawn in the last step too, where nothing of it is added.
        let noise = step.draw()?;
        Ok(exploding::along(&next, &noise, up))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
