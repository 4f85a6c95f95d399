//! The multistep exponential integrator DEIS in log-rho form (Zhang & Chen, "Fast Sampling of
//! Diffusion Models with Exponential Integrator", 2022), as `DEISMultistepScheduler` of diffusers
//! has it.

use super::clamp::{Clamp, THRESHOLDING};
use super::dpm_solver::{Algorithm, SolverUpdate};
use super::info::{Info, OptionInfo, Randomness, option};
use super::multistep::{self, Orders, Space, level_curve};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, noise_beside, prediction};
use super::schedule::{Levels, Position};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{SigmaTable, numpy_log as ln};

pub(super) static INFO: Info = Info {
    class: "DEISMultistepScheduler",
    names: &["deis"],
    a1111: None,
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Deterministic,
    when: "much like dpm++_2m; stops at the lowest noise level of training instead of zero",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        multistep::FLOW_OPTIONS,
        multistep::DYNAMIC,
        multistep::SOLVER,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("solver_order", "2"),
    option("algorithm_type", r#""deis""#),
    option("solver_type", r#""logrho""#),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    // `algorithm_type` and `solver_type` have one value here; those of other classes are taken for it.
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let spaced = |steps| multistep::spaced(config, 0, steps);
    let levels = multistep::levels(config, inference, &table, false, spaced)?;
    let rule = Deis {
        prediction,
        orders: Orders {
            order: config.count_in("solver_order", 1, 3)?,
            lower_order_final: config.flag("lower_order_final")?,
            euler_at_final: false,
        },
        space: Space::new(config)?,
        clamp: Clamp::dynamic(config)?,
    };
    let last = last_sigma(config, &levels, &table)?;
    Ok((multistep::schedule(levels, last), Box::new(rule)))
}

/// The level of the result: the lowest of training; on a curve its last level once more, so that the
/// last step has no length.
pub(super) fn last_sigma(
    config: &SchedulerConfig,
    levels: &Levels,
    table: &SigmaTable,
) -> Result<f32, SchedulerError> {
    let last = *levels.sigmas.last().expect("a run has a step") as f32;
    Ok(if level_curve(config)?.is_some() {
        last
    } else {
        table.min()
    })
}

struct Deis {
    prediction: Prediction,
    orders: Orders,
    space: Space,
    clamp: Clamp,
}

impl UpdateRule for Deis {
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            sample,
            state,
            ..
        } = step;
        let here = self.space.level(position.sigma());
        let clean = self
            .space
            .clean(self.prediction, step.model_output, sample, position.sigma());
        let clean = self.clamp.apply(clean);
        let sigma = if self.prediction == Prediction::Flow {
            position.sigma()
        } else {
            here.sigma
        };
        let epsilon = noise_beside(&clean, sample, here.alpha, sigma);
        state.remember(epsilon, self.orders.order);

        let order = self.orders.at(position, state.index);
        let to = self.space.level(position.sigma_next());
        if order == 1 {
            let update = SolverUpdate::new(Algorithm::Noise, here, to);
            return Ok(update.first(sample, state.past(0)?, None));
        }
        let rho = |sigma: f32| {
            let level = self.space.level(sigma);
            level.sigma / level.alpha
        };
        let rho_to = rho(position.sigma_next());
        let rhos: Vec<f32> = (0..order).map(|i| rho(position.sigma_past(i))).collect();
        let (alpha, alpha_to) = (here.alpha, to.alpha);
        if order == 2 {
            let [c0, c1] = [[0, 1], [1, 0]].map(|[b, c]| {
                integral2(rho_to, rhos[b], rhos[c]) - integral2(rhos[0], rhos[b], rhos[c])
            });
            return Ok(Latents::zip_with(
                [sample, state.past(0)?, state.past(1)?],
                |[x, m0, m1]| alpha_to * (x / alpha + c0 * m0 + c1 * m1),
            ));
        }
        let [c0, c1, c2] = [[0, 1, 2], [1, 2, 0], [2, 0, 1]].map(|[b, c, d]| {
            let (b, c, d) = (rhos[b], rhos[c], rhos[d]);
            integral3(rho_to, b, c, d) - integral3(rhos[0], b, c, d)
        });
        let outputs = [sample, state.past(0)?, state.past(1)?, state.past(2)?];
        Ok(Latents::zip_with(outputs, |[x, m0, m1, m2]| {
            alpha_to * (x / alpha + c0 * m0 + c1 * m1 + c2 * m2)
        }))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.space.add_noise(position, original, noise)
    }
}

/// The integral up to `t` of the linear polynomial in the logarithm that is 1 at `b` and 0 at `c`.
fn integral2(t: f32, b: f32, c: f32) -> f32 {
    t * (-ln(c) + ln(t) - 1.0) / (ln(b) - ln(c))
}

/// The same for the quadratic polynomial that is 1 at `b` and 0 at `c` and `d`.
///
/// In `f32`, as in the reference, differences of these keep few digits where levels lie close: from
/// about 50 steps on the third order is less accurate than the second.
fn integral3(t: f32, b: f32, c: f32, d: f32) -> f32 {
    let (lt, lb, lc, ld) = (ln(t), ln(b), ln(c), ln(d));
    let numerator = t * (lc * (ld - lt + 1.0) - ld * lt + ld + lt * lt - 2.0 * lt + 2.0);
    numerator / ((lb - lc) * (lb - ld))
}
