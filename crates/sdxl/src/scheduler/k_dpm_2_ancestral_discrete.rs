//! DPM-Solver-2 with ancestral noise (`sample_dpm_2_ancestral` of k-diffusion), as
//! `KDPM2AncestralDiscreteScheduler` of diffusers has it.

use super::info::{Info, Randomness};
use super::k_dpm_2_discrete::{self, OPTIONS, geometric_mean};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::schedule::{Position, with_final};
use super::training;
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;

pub(super) static INFO: Info = Info {
    class: "KDPM2AncestralDiscreteScheduler",
    names: &["dpm2_a", "dpm_2_a", "kdpm_2_a", "dpm_2_ancestral"],
    a1111: Some("DPM2 a"),
    order: 2,
    evaluations_per_step: 2,
    randomness: Randomness::Stochastic,
    when: "varied pictures like euler_a, with two evaluations a step",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::LATENT_NOISE,
        training::SPACING,
        training::CURVES,
        OPTIONS,
    ],
};

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let (table, levels) = k_dpm_2_discrete::levels(config, inference)?;
    let sigmas = with_final(&levels.sigmas, 0.0);
    let splits: Vec<_> = sigmas
        .windows(2)
        .map(|w| variance_exploding::ancestral_step(w[0], w[1]))
        .collect();
    // The middle between the start of each step and its `sigma_down`.
    let middles = sigmas
        .iter()
        .zip(&splits)
        .map(|(&sigma, &(sigma_down, _))| geometric_mean(sigma, sigma_down));
    let sigma_mid: Vec<f32> = middles.collect();
    let schedule =
        k_dpm_2_discrete::schedule(config, &table, &levels.timesteps, &sigmas, &sigma_mid)?;
    Ok((
        schedule,
        Box::new(Kdpm2Ancestral {
            prediction,
            sigma_mid,
            splits,
        }),
    ))
}

struct Kdpm2Ancestral {
    prediction: Prediction,
    /// The noise level in the middle of each step.
    sigma_mid: Vec<f32>,
    /// `sigma_down` and `sigma_up` of each step: the level that it goes down to, and the deviation of
    /// the noise added there.
    splits: Vec<(f32, f32)>,
}

impl Kdpm2Ancestral {
    /// The noise level of an evaluation's sample.
    fn sigma(&self, position: Position<'_>) -> f32 {
        if position.is_second() {
            self.sigma_mid[position.index / 2]
        } else {
            position.sigma()
        }
    }
}

impl UpdateRule for Kdpm2Ancestral {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, self.sigma(position))
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let position = step.position;
        let sigma = self.sigma(position);
        let denoised = self
            .prediction
            .denoise(step.model_output, step.sample, sigma);
        let d = variance_exploding::derivative(step.sample, &denoised, sigma);
        if !position.is_second() {
            let dt = self.sigma_mid[position.index / 2] - sigma;
            step.state.anchor = Some(step.sample.clone());
            return Ok(variance_exploding::euler_step(step.sample, &d, dt));
        }
        let (sigma_down, sigma_up) = self.splits[position.index / 2];
        let anchor = step.state.take_anchor()?;
        let dt = sigma_down - position.sigma_past(1);
        let next = variance_exploding::euler_step(&anchor, &d, dt);
        let noise = step.draw()?;
        Ok(variance_exploding::add_noise(&next, &noise, sigma_up))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
