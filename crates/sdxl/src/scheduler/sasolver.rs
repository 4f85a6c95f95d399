//! SA-Solver (Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion
//! Models", 2023), as `SASolverScheduler` of diffusers has it: stochastic Adams-Bashforth predictor
//! and Adams-Moulton corrector. Noise is added between timesteps 200 and 800 (`tau` is 1 there and
//! 0 elsewhere), the reference's default; it takes another function only from Python.

use super::alphas::Alphas;
use super::clamp::{Clamp, THRESHOLDING};
use super::deis_multistep::last_sigma;
use super::dpm_solver::{self, Algorithm};
use super::dpmsolver_multistep::convert;
use super::info::{Info, OptionInfo, Randomness, option};
use super::math::exp;
use super::multistep::{self, Space};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::SigmaTable;

pub(super) static INFO: Info = Info {
    class: "SASolverScheduler",
    names: &["sa_solver", "sasolver"],
    a1111: None,
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Stochastic,
    when: "stochastic and accurate: 20 steps and more; stops at the lowest noise level of training",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        multistep::FLOW_OPTIONS,
        multistep::VARIANCE,
        multistep::SOLVER,
        multistep::CLIPPED,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("predictor_order", "2"),
    option("corrector_order", "2"),
    option("algorithm_type", r#""data_prediction""#),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    let known = [
        ("data_prediction", Algorithm::Clean),
        ("noise_prediction", Algorithm::Noise),
        // The algorithm used here for one that only another class has.
        dpm_solver::DPM_PP,
        ("sde-dpmsolver++", Algorithm::Clean),
        dpm_solver::DPM,
        ("sde-dpmsolver", Algorithm::Noise),
        dpm_solver::DEIS,
    ];
    let algorithm = config.choice("algorithm_type", &known)?;
    if algorithm == Algorithm::Noise && prediction == Prediction::Flow {
        return Err(config.unsupported("flow_prediction needs algorithm_type data_prediction"));
    }
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let clipped = multistep::clipped(config, &alphas)?;
    let spaced = |steps| multistep::spaced(config, clipped, steps);
    let levels = multistep::levels(config, inference, &table, false, spaced)?;
    let rule = SaSolver {
        prediction,
        algorithm,
        space: Space::new(config)?,
        clamp: Clamp::dynamic(config)?,
        predictor_order: config.count_in("predictor_order", 1, 4)?,
        corrector_order: config.count_in("corrector_order", 1, 4)?,
        lower_order_final: config.flag("lower_order_final")?,
        alphas: Alphas::to_one(config, training::BETA_SCHEDULES, ZeroSnr::No)?,
    };
    let last = last_sigma(config, &levels, &table)?;
    Ok((multistep::schedule(levels, last), Box::new(rule)))
}

struct SaSolver {
    prediction: Prediction,
    algorithm: Algorithm,
    space: Space,
    clamp: Clamp,
    predictor_order: usize,
    corrector_order: usize,
    lower_order_final: bool,
    alphas: Alphas,
}

impl UpdateRule for SaSolver {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (position, index) = (step.position, step.state.index);
        let converted = convert(
            self.algorithm,
            self.prediction,
            self.space,
            self.clamp,
            &step,
        );
        let sample = if index == 0 {
            step.sample.clone()
        } else {
            let (anchor, noise) = (step.state.take_anchor()?, step.state.take_partial()?);
            let before = position.previous();
            let mut order = self.corrector_order.min(index + 1);
            if self.lower_order_final {
                order = order.min(before.remaining() + 1);
            }
            let mut outputs = vec![&converted];
            outputs.extend(step.state.newest(order - 1)?);
            self.update(before, position, true, &outputs, &anchor, &noise)
        };
        step.state.remember(
            converted,
            self.predictor_order.max(self.corrector_order - 1),
        );
        let noise = step.draw()?;
        let mut order = self.predictor_order.min(index + 1);
        if self.lower_order_final {
            order = order.min(position.remaining());
        }
        let outputs = step.state.newest(order)?;
        let next = self.update(position, position, false, &outputs, &sample, &noise);
        step.state.anchor = Some(sample);
        step.state.partial = Some(noise);
        Ok(next)
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        // By the timestep and not by its noise level: the two do not belong together on a curve.
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}

impl SaSolver {
    /// The step from the evaluation at `position` to the next one, by `outputs`, newest first, of
    /// which the first is that of the evaluation at `newest`: in the predictor the same, in the
    /// corrector the end of the step.
    fn update(
        &self,
        position: Position<'_>,
        newest: Position<'_>,
        is_corrector: bool,
        outputs: &[&Latents],
        sample: &Latents,
        noise: &Latents,
    ) -> Latents {
        let (from, to) = (
            self.space.level(position.sigma()),
            self.space.level(position.sigma_next()),
        );
        let h = to.lambda - from.lambda;
        let lambdas: Vec<f32> = (0..outputs.len())
            .map(|back| self.space.level(newest.sigma_past(back)).lambda)
            .collect();
        let t = position.timestep();
        let tau: f32 = if (200.0..=800.0).contains(&t) {
            1.0
        } else {
            0.0
        };
        // The noise makes the drift larger by this factor.
        let gain = 1.0 + tau * tau;
        let clean = self.algorithm == Algorithm::Clean;
        let integral = |power| {
            if clean {
                integral_clean(power, gain * from.lambda, gain * to.lambda, gain)
            } else {
                integral_noise(power, from.lambda, to.lambda)
            }
        };
        let mut weights = lagrange_weights(&lambdas, integral);
        if clean && outputs.len() == 2 {
            // A correction that makes the step exact for one more order of h (appendix of the
            // paper).
            let rest = h * gain - 1.0 + exp(gain * -h);
            let correction = if is_corrector {
                exp(gain * to.lambda) * (h / 2.0 - rest / (gain * gain * h))
            } else {
                exp(gain * to.lambda) * (h * h / 2.0 - rest / (gain * gain))
                    / (from.lambda - lambdas[1])
            };
            weights[0] += correction;
            weights[1] -= correction;
        }
        let (of_sample, of_outputs, of_noise) = if clean {
            (
                exp(-tau * tau * h) * (to.sigma / from.sigma),
                gain * to.sigma * exp(-tau * tau * to.lambda),
                to.sigma * (1.0 - exp(-2.0 * tau * tau * h)).sqrt(),
            )
        } else {
            (
                to.alpha / from.alpha,
                -gain * to.alpha,
                tau * to.sigma * (exp(2.0 * h) - 1.0).sqrt(),
            )
        };
        let terms: Vec<_> = weights
            .iter()
            .map(|w| of_outputs * w)
            .zip(outputs.iter().copied())
            .collect();
        let change = Latents::lincomb(&terms);
        Latents::zip_with([sample, &change, noise], |[x, d, n]| {
            of_sample * x + d + of_noise * n
        })
    }
}

/// The integral of each Lagrange polynomial through `lambdas`, by the integrals of powers.
fn lagrange_weights(lambdas: &[f32], integral: impl Fn(usize) -> f32) -> Vec<f32> {
    let order = lambdas.len();
    let integrals: Vec<f32> = (0..order).map(integral).collect();
    (0..order)
        .map(|j| {
            let others: Vec<f32> = (0..order).filter(|&k| k != j).map(|k| lambdas[k]).collect();
            let divisor: f32 = others.iter().map(|l| lambdas[j] - l).product();
            // Highest power first.
            let coefficients: &[f32] = match *others.as_slice() {
                [] => &[1.0],
                [a] => &[1.0, -a],
                [a, b] => &[1.0, -a - b, a * b],
                [a, b, c] => &[1.0, -a - b - c, a * b + a * c + b * c, -a * b * c],
                _ => unreachable!("orders are 4 at most"),
            };
            let powers = coefficients.iter().zip(integrals.iter().rev());
            powers.map(|(c, integral)| c / divisor * integral).sum()
        })
        .collect()
}

/// The integral of `lambda^power exp(gain lambda)`, for ends multiplied with the gain.
fn integral_clean(power: usize, start: f32, end: f32, gain: f32) -> f32 {
    let decay = exp(-(end - start));
    let at = |x: f32| match power {
        0 => 1.0,
        1 => x - 1.0,
        2 => x * x - 2.0 * x + 2.0,
        _ => x * x * x - 3.0 * (x * x) + 6.0 * x - 6.0,
    };
    exp(end) * (at(end) - at(start) * decay) / gain.powi(power as i32 + 1)
}

/// The integral of `lambda^power exp(-lambda)`.
fn integral_noise(power: usize, start: f32, end: f32) -> f32 {
    let growth = exp(end - start);
    let at = |x: f32| match power {
        0 => 1.0,
        1 => x + 1.0,
        2 => x * x + 2.0 * x + 2.0,
        _ => x * x * x + 3.0 * (x * x) + 6.0 * x + 6.0,
    };
    exp(-end) * (at(start) * growth - at(end))
}
