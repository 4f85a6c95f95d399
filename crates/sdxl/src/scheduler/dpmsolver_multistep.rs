//! The multistep DPM-Solver and DPM-Solver++ (Lu et al. 2022), as `DPMSolverMultistepScheduler` of
//! diffusers has it.

use super::clamp::{Clamp, THRESHOLDING};
use super::dpm_solver::{self, Algorithm, Multistep};
use super::info::{Info, OptionInfo, Randomness, option};
use super::multistep::{self, Orders, Space};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, noise_beside, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::SigmaTable;

pub(super) static INFO: Info = Info {
    class: "DPMSolverMultistepScheduler",
    names: &["dpm++_2m", "dpm_multi"],
    a1111: Some("DPM++ 2M"),
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("algorithm_type sde-dpmsolver++"),
    when: "a good picture in the fewest evaluations: 15 to 25 steps, best with karras sigmas",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        multistep::FLOW_OPTIONS,
        multistep::DYNAMIC,
        multistep::VARIANCE,
        training::ZERO_SNR,
        multistep::SOLVER,
        multistep::CLIPPED,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("solver_order", "2"),
    option("algorithm_type", r#""dpmsolver++""#),
    option("solver_type", r#""midpoint""#),
    option("euler_at_final", "false"),
    option("use_lu_lambdas", "false"),
    option("final_sigmas_type", r#""zero""#),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    let known = [
        dpm_solver::DPM_PP,
        dpm_solver::SDE_DPM_PP,
        dpm_solver::DPM,
        dpm_solver::SDE_DPM,
        dpm_solver::DEIS,
        dpm_solver::SA,
    ];
    let algorithm = config.choice("algorithm_type", &known)?;
    let order = config.count_in("solver_order", 1, 3)?;
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::NearlyZero)?;
    let table = SigmaTable::new(&alphas);
    let last = training::final_sigma(config, table.min())?;
    if !algorithm.is_clean() {
        check_noise_algorithm(config, algorithm, prediction, order, last)?;
    }
    let clipped = multistep::clipped(config, &alphas)?;
    let spaced = |steps| multistep::spaced(config, clipped, steps);
    let levels = multistep::levels(config, inference, &table, true, spaced)?;
    let rule = DpmSolverMultistep {
        prediction,
        clamp: Clamp::dynamic(config)?,
        method: Multistep {
            algorithm,
            solver_type: dpm_solver::solver_type(config)?,
            space: Space::new(config)?,
        },
        orders: Orders {
            order,
            lower_order_final: config.flag("lower_order_final")?,
            euler_at_final: last == 0.0 || config.flag("euler_at_final")?,
        },
    };
    Ok((multistep::schedule(levels, last), Box::new(rule)))
}

/// Refuses options with which the algorithms that integrate the noise cannot work.
pub(super) fn check_noise_algorithm(
    config: &SchedulerConfig,
    algorithm: Algorithm,
    prediction: Prediction,
    order: usize,
    last: f32,
) -> Result<(), SchedulerError> {
    if last == 0.0 {
        return Err(config.unsupported(
            "dpmsolver and sde-dpmsolver cannot end at a noise level of zero; \
             set final_sigmas_type to sigma_min, or algorithm_type to dpmsolver++",
        ));
    }
    if prediction == Prediction::Flow {
        return Err(config.unsupported("flow_prediction needs algorithm_type dpmsolver++"));
    }
    if algorithm == Algorithm::SdeNoise && order == 3 {
        return Err(config.unsupported("sde-dpmsolver has orders 1 and 2; set solver_order to 2"));
    }
    Ok(())
}

struct DpmSolverMultistep {
    prediction: Prediction,
    clamp: Clamp,
    method: Multistep,
    orders: Orders,
}

impl UpdateRule for DpmSolverMultistep {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Multistep {
            algorithm, space, ..
        } = self.method;
        let converted = convert(algorithm, self.prediction, space, self.clamp, &step);
        step.state.remember(converted, self.orders.order);
        let noise = if algorithm.is_stochastic() {
            Some(step.draw()?)
        } else {
            None
        };
        let outputs = step
            .state
            .newest(self.orders.at(step.position, step.state.index))?;
        Ok(self
            .method
            .update(step.position, &outputs, step.sample, noise.as_ref()))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.method.space.add_noise(position, original, noise)
    }
}

/// Converts a model's output to the quantity that an algorithm integrates: the clean image or the
/// noise.
pub(super) fn convert(
    algorithm: Algorithm,
    prediction: Prediction,
    space: Space,
    clamp: Clamp,
    step: &Step<'_>,
) -> Latents {
    let Step {
        position,
        model_output: output,
        sample,
        ..
    } = *step;
    let sigma = position.sigma();
    if algorithm.is_clean() {
        return clamp.apply(space.clean(prediction, output, sample, sigma));
    }
    let level = space.level(sigma);
    let epsilon = prediction.noise(output, sample, level.alpha, level.sigma);
    if clamp == Clamp::Off {
        return epsilon;
    }
    let clean = Prediction::Epsilon.clean(&epsilon, sample, level.alpha, level.sigma);
    noise_beside(&clamp.apply(clean), sample, level.alpha, level.sigma)
}
