//! Trajectory consistency distillation (Zheng et al., "Trajectory Consistency Distillation", 2024,
//! strategic stochastic sampling), as `TCDScheduler` of diffusers has it.

use super::alphas::Alphas;
use super::clamp::THRESHOLDING;
use super::ddim::LEADING;
use super::info::{BY_ETA, Info};
use super::lcm::{self, OPTIONS, SCALED_NOISE};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;

pub(super) static INFO: Info = Info {
    class: "TCDScheduler",
    names: &["tcd"],
    a1111: None,
    order: 1,
    evaluations_per_step: 1,
    randomness: BY_ETA,
    when: "for TCD and Hyper-SD models and LoRAs only: 1 to 8 steps, eta about 0.3",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        SCALED_NOISE,
        LEADING,
        training::ZERO_SNR,
        THRESHOLDING,
        OPTIONS,
    ],
};

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let alphas = Alphas::with_last(config, ZeroSnr::Exact)?;
    let schedule = alphas.schedule(config, prediction, lcm::timesteps(config, inference)?)?;
    Ok((
        schedule,
        Box::new(Tcd {
            prediction,
            alphas,
            eta: inference.eta,
        }),
    ))
}

struct Tcd {
    prediction: Prediction,
    alphas: Alphas,
    eta: f64,
}

impl UpdateRule for Tcd {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let following = step.position.timestep_next();
        // The last step goes to timestep 0.
        let next = following.unwrap_or(0.0);
        // The step goes below the next timestep, the further the larger eta is, and noise leads back
        // up to it.
        let below = ((1.0 - self.eta) as f32 * next as f32).floor() as i64;
        let mix = self.alphas.mix(step.position.timestep() as i64);
        let (output, sample) = (step.model_output, step.sample);
        let clean = self.prediction.clean(output, sample, mix.alpha, mix.sigma);
        let epsilon = self.prediction.noise(output, sample, mix.alpha, mix.sigma);
        let noised = self.alphas.mix(below).combine(&clean, &epsilon);
        if self.eta == 0.0 || following.is_none() {
            return Ok(noised);
        }
        let ratio = self.alphas.at(next as i64) / self.alphas.at(below);
        let noise = step.draw()?;
        let (alpha, sigma) = (ratio.sqrt(), (1.0 - ratio).sqrt());
        Ok(Latents::zip_with([&noised, &noise], |[x, n]| {
            alpha * x + sigma * n
        }))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}
