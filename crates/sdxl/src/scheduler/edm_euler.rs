//! Euler's method for EDM models (Karras et al. 2022), as `EDMEulerScheduler` of diffusers has it.

use super::edm::{self, Preconditioning};
use super::euler_discrete::{CHURN, Churn};
use super::exploding;
use super::prediction::{EPSILON, V, prediction};
use super::registry::{Built, Info, Randomness};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::linspace;

pub(super) const INFO: Info = Info {
    class: "EDMEulerScheduler",
    names: &["edm_euler"],
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("s_churn above 0"),
    when: "for models trained in the EDM formulation only (Playground 2.5)",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[edm::OPTIONS, CHURN],
    build,
};

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let steps = plan.count();
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

impl Rule for EdmEuler {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        self.model.scale(sample, at.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (sample, sigma) = self.churn.apply(&mut step)?;
        let denoised = self.model.denoise(step.model_output, &sample, sigma);
        let derivative = exploding::derivative(&sample, &denoised, sigma);
        Ok(exploding::along(
            &sample,
            &derivative,
            step.at.sigma_next() - sigma,
        ))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
