//! The singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022), as `DPMSolverSinglestepScheduler`
//! of diffusers has it: a step of order k is k evaluations, each of which goes on from the start of
//! the step.

use super::clamp::{Clamp, THRESHOLDING};
use super::dpm_solver::{self, Algorithm, SolverType, SolverUpdate};
use super::dpmsolver_multistep::{check_noise_algorithm, convert};
use super::info::{Info, OptionInfo, Randomness, option};
use super::multistep::{self, Level, Space};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{SigmaTable, Spacing, spaced_without_last};

pub(super) static INFO: Info = Info {
    class: "DPMSolverSinglestepScheduler",
    names: &["dpm++_2s", "dpm_single"],
    a1111: None,
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("algorithm_type sde-dpmsolver++"),
    when: "like dpm++_2m but without memory of earlier steps; mostly for comparison",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::CURVES,
        multistep::FLOW_OPTIONS,
        multistep::DYNAMIC,
        multistep::VARIANCE,
        multistep::CLIPPED,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("lower_order_final", "false"),
    option("solver_order", "2"),
    option("algorithm_type", r#""dpmsolver++""#),
    option("solver_type", r#""midpoint""#),
    option("final_sigmas_type", r#""zero""#),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    let known = [
        dpm_solver::DPM_PP,
        dpm_solver::SDE_DPM_PP,
        dpm_solver::DPM,
        dpm_solver::DEIS,
        dpm_solver::SA,
    ];
    let algorithm = config.choice("algorithm_type", &known)?;
    let order = config.count_in("solver_order", 1, 3)?;
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let last = training::final_sigma(config, table.min())?;
    if !algorithm.is_clean() {
        check_noise_algorithm(config, algorithm, prediction, order, last)?;
    }
    let clipped = multistep::clipped(config, &alphas)?;
    let spaced = |steps| {
        let trained = alphas.len();
        Ok(spaced_without_last(
            Spacing::Linspace,
            trained,
            trained - clipped,
            steps,
            0,
        ))
    };
    let levels = multistep::levels(config, inference, &table, false, spaced)?;
    let steps = levels.timesteps.len();
    // The reference lowers the order at the end wherever full steps do not work.
    let lower = config.flag("lower_order_final")? || last == 0.0 || steps % order != 0;
    let rule = DpmSolverSinglestep {
        prediction,
        algorithm,
        orders: orders(order, steps, lower, last == 0.0),
        order,
        space: Space::new(config)?,
        solver_type: dpm_solver::solver_type(config)?,
        clamp: Clamp::dynamic(config)?,
    };
    Ok((multistep::schedule(levels, last), Box::new(rule)))
}

/// The place of every evaluation in its step, from 1. With `lower` the last steps are of lower order
/// where full ones do not fit, with `first_order_last` the last step is one evaluation.
fn orders(order: usize, evaluations: usize, lower: bool, first_order_last: bool) -> Vec<usize> {
    let cycle = (1..=order).cycle();
    let mut orders: Vec<usize> = cycle.take(evaluations).collect();
    // All steps would be of full order: the last evaluation becomes a step of its own.
    if first_order_last || lower && order > 1 && evaluations.is_multiple_of(order) {
        orders[evaluations - 1] = 1;
    }
    orders
}

struct DpmSolverSinglestep {
    prediction: Prediction,
    algorithm: Algorithm,
    orders: Vec<usize>,
    order: usize,
    space: Space,
    solver_type: SolverType,
    clamp: Clamp,
}

impl UpdateRule for DpmSolverSinglestep {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let position = step.position;
        let converted = convert(
            self.algorithm,
            self.prediction,
            self.space,
            self.clamp,
            &step,
        );
        step.state.remember(converted, self.order);
        let noise = if self.algorithm.is_stochastic() {
            Some(step.draw()?)
        } else {
            None
        };
        // A run that leaves out the first evaluations may begin in the middle of a step.
        let order = self.orders[position.index].min(step.state.history.len());
        if order == 1 {
            step.state.anchor = Some(step.sample.clone());
        }
        let anchor = step.state.take_anchor()?;
        let next = self.update(position, order, &anchor, &step, noise.as_ref())?;
        step.state.anchor = Some(anchor);
        Ok(next)
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.space.add_noise(position, original, noise)
    }
}

impl DpmSolverSinglestep {
    /// The sample after the evaluations of the step so far, from its start at `anchor`.
    fn update(
        &self,
        position: Position<'_>,
        order: usize,
        anchor: &Latents,
        step: &Step<'_>,
        noise: Option<&Latents>,
    ) -> Result<Latents, SchedulerError> {
        let level = |back: usize| self.space.level(position.sigma_past(back));
        let (start, to) = (level(order - 1), self.space.level(position.sigma_next()));
        let update = SolverUpdate::new(self.algorithm, start, to);
        let output = step.state.past(order - 1)?;
        let h = to.lambda - start.lambda;
        let ratio = |level: Level| (level.lambda - start.lambda) / h;
        // The derivative by lambda since the start, times the length of the step.
        let slope = |back: usize| -> Result<Latents, SchedulerError> {
            let factor = 1.0 / ratio(level(back));
            let later = step.state.past(back)?;
            Ok(Latents::zip_with([later, output], |[a, b]| {
                factor * (a - b)
            }))
        };
        Ok(match order {
            1 => update.first(anchor, output, noise),
            2 => update.second(self.solver_type, anchor, [output, &slope(0)?], noise),
            _ => {
                let (near, far) = (slope(1)?, slope(0)?);
                if self.solver_type == SolverType::Midpoint {
                    // It uses one derivative only, the one over the whole step.
                    return Ok(update.second(SolverType::Heun, anchor, [output, &far], noise));
                }
                let (r0, r1) = (ratio(level(0)), ratio(level(1)));
                let first =
                    Latents::zip_with([&near, &far], |[a, b]| (r0 * a - r1 * b) / (r0 - r1));
                let second = Latents::zip_with([&near, &far], |[a, b]| 2.0 * (b - a) / (r0 - r1));
                update.third(anchor, [output, &first, &second], noise)
            }
        })
    }
}
