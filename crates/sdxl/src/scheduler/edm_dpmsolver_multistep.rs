//! The multistep DPM-Solver++ for EDM models, as `EDMDPMSolverMultistepScheduler` of diffusers has
//! it.

use super::clamp::{Clamp, THRESHOLDING};
use super::dpm_solver::{self, Multistep};
use super::edm::{self, Preconditioning};
use super::info::{Info, OptionInfo, Randomness, option};
use super::multistep::{Orders, Space};
use super::prediction::{EPSILON, V, prediction};
use super::schedule::Position;
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::linspace_f32;

pub(super) static INFO: Info = Info {
    class: "EDMDPMSolverMultistepScheduler",
    names: &["edm_dpm++_2m", "edm_dpmsolver"],
    a1111: None,
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("algorithm_type sde-dpmsolver++"),
    when: "for models trained in the EDM formulation only (Playground 2.5), fewer steps than edm_euler",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[edm::OPTIONS, THRESHOLDING, OPTIONS],
};

const OPTIONS: &[OptionInfo] = &[
    option("solver_order", "2"),
    option("algorithm_type", r#""dpmsolver++""#),
    option("solver_type", r#""midpoint""#),
    option("lower_order_final", "true"),
    option("euler_at_final", "false"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let steps = inference.len();
    let ramp: Vec<f64> = linspace_f32(0.0, 1.0, steps)
        .into_iter()
        .map(f64::from)
        .collect();
    let schedule = edm::schedule(config, steps, &ramp, |_, min| min as f32)?;
    let known = [
        dpm_solver::DPM_PP,
        dpm_solver::SDE_DPM_PP,
        dpm_solver::DEIS,
        dpm_solver::SA,
    ];
    let algorithm = config.choice("algorithm_type", &known)?;
    let order = config.count_in("solver_order", 1, 3)?;
    if algorithm.is_stochastic() && order == 3 {
        return Err(config.unsupported("sde-dpmsolver++ has orders 1 and 2 here; set solver_order"));
    }
    let last = schedule.sigmas[steps];
    let rule = EdmDpmSolverMultistep {
        model: Preconditioning::new(config, prediction)?,
        clamp: Clamp::dynamic(config)?,
        method: Multistep {
            algorithm,
            solver_type: dpm_solver::solver_type(config)?,
            space: Space::VarianceExploding,
        },
        orders: Orders {
            order,
            lower_order_final: config.flag("lower_order_final")?,
            euler_at_final: last == 0.0 || config.flag("euler_at_final")?,
        },
    };
    Ok((schedule, Box::new(rule)))
}

struct EdmDpmSolverMultistep {
    model: Preconditioning,
    clamp: Clamp,
    method: Multistep,
    orders: Orders,
}

impl UpdateRule for EdmDpmSolverMultistep {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        self.model.scale(sample, position.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let position = step.position;
        let clean = self
            .model
            .denoise(step.model_output, step.sample, position.sigma());
        step.state
            .remember(self.clamp.apply(clean), self.orders.order);
        let noise = if self.method.algorithm.is_stochastic() {
            Some(step.draw()?)
        } else {
            None
        };
        let outputs = step
            .state
            .newest(self.orders.at(position, step.state.index))?;
        Ok(self
            .method
            .update(position, &outputs, step.sample, noise.as_ref()))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
