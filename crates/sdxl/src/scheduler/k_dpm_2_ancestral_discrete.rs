//! DPM-Solver-2 with ancestral noise (`sample_dpm_2_ancestral` of k-diffusion), as
//! `KDPM2AncestralDiscreteScheduler` of diffusers has it.

use super::exploding;
use super::k_dpm_2_discrete::{self, OPTIONS, geometric_mean};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::registry::{Built, Info, Randomness};
use super::training;
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;

pub(super) const INFO: Info = Info {
    class: "KDPM2AncestralDiscreteScheduler",
    names: &["dpm2_a", "dpm_2_a", "kdpm_2_a", "dpm_2_ancestral"],
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
    build,
};

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let (table, levels) = k_dpm_2_discrete::levels(config, plan)?;
    let sigmas = exploding::with_final(&levels.sigmas, 0.0);
    let splits: Vec<_> = sigmas
        .windows(2)
        .map(|w| exploding::ancestral(w[0], w[1]))
        .collect();
    // Half way to the level below the next one, from which noise leads back up.
    let middles = sigmas
        .iter()
        .zip(&splits)
        .map(|(&s, &(down, _))| geometric_mean(s, down));
    let middle: Vec<f32> = middles.collect();
    let schedule = k_dpm_2_discrete::schedule(config, &table, &levels.timesteps, &sigmas, &middle)?;
    Ok((
        schedule,
        Box::new(Kdpm2Ancestral {
            prediction,
            middle,
            splits,
        }),
    ))
}

struct Kdpm2Ancestral {
    prediction: Prediction,
    /// The level in the middle of each step.
    middle: Vec<f32>,
    /// The level that each step goes down to, and the deviation of the noise added there.
    splits: Vec<(f32, f32)>,
}

impl Kdpm2Ancestral {
    /// The level of an evaluation's sample.
    fn level(&self, at: At<'_>) -> f32 {
        if at.is_second() {
            self.middle[at.index / 2]
        } else {
            at.sigma()
        }
    }
}

impl Rule for Kdpm2Ancestral {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, self.level(at))
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let at = step.at;
        let level = self.level(at);
        let denoised = self
            .prediction
            .denoise(step.model_output, step.sample, level);
        let derivative = exploding::derivative(step.sample, &denoised, level);
        if !at.is_second() {
            let to = self.middle[at.index / 2];
            step.state.anchor = Some(step.sample.clone());
            return Ok(exploding::along(step.sample, &derivative, to - level));
        }
        let (down, up) = self.splits[at.index / 2];
        let anchor = step.state.take_anchor()?;
        let next = exploding::along(&anchor, &derivative, down - at.sigma_past(1));
        let noise = step.draw()?;
        Ok(exploding::along(&next, &noise, up))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
