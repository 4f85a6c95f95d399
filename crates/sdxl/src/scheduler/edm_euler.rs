//! Euler's method for EDM models (Karras et al. 2022), as `EDMEulerScheduler` of diffusers has it.

use super::edm::{self, Preconditioning};
use super::euler_discrete::{CHURN, Churn};
use super::info::{Info, Randomness};
use super::prediction::{EPSILON, V, prediction};
use super::schedule::Position;
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::linspace;

pub(super) static INFO: Info = Info {
    class: "EDMEulerScheduler",
    names: &["edm_euler"],
    a1111: None,
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("s_churn above 0"),
    when: "for models trained in the EDM formulation only (Playground 2.5)",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[edm::OPTIONS, CHURN],
};

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let steps = inference.len();
    let lowest = |sigmas: &[f32], _| sigmas[sigmas.len() - 1];
    let schedule = edm::schedule(config, steps, &linspace(0.0, 1.0, steps), lowest)?;
    let model = Preconditioning::new(config, prediction)?;
    Ok((
        schedule,
        Box::new(EdmEuler {
            model,
            churn: Churn::new(config)?,
        }),
    ))
}

struct EdmEuler {
    model: Preconditioning,
    churn: Churn,
}

impl UpdateRule for EdmEuler {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        self.model.scale(sample, position.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (sample, sigma_hat) = self.churn.apply(&mut step)?;
        let denoised = self.model.denoise(step.model_output, &sample, sigma_hat);
        let d = variance_exploding::derivative(&sample, &denoised, sigma_hat);
        let dt = step.position.sigma_next() - sigma_hat;
        Ok(variance_exploding::euler_step(&sample, &d, dt))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
