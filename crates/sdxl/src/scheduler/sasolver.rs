//! SA-Solver (Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion
//! Models", 2023), as `SASolverScheduler` of diffusers has it: stochastic Adams-Bashforth predictor
//! and Adams-Moulton corrector. Noise is added between timesteps 200 and 800 (`tau` is 1 there and
//! 0 elsewhere), the reference's default; it takes another function only from Python.

use super::alphas::Alphas;
use super::clamp::{Clamp, THRESHOLDING};
use super::deis_multistep::last_sigma;
use super::dpm_solver::{self, Algorithm};
use super::dpmsolver_multistep::convert;
use super::math::exp;
use super::multistep::{self, Space};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::SigmaTable;

pub(super) const INFO: Info = Info {
    class: "SASolverScheduler",
    names: &["sa_solver", "sasolver"],
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
    build,
};

const OPTIONS: &[OptionInfo] = &[
    option("predictor_order", "2"),
    option("corrector_order", "2"),
    option("algorithm_type", r#""data_prediction""#),
];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    let known = [
        ("data_prediction", Algorithm::Clean),
        ("noise_prediction", Algorithm::Noise),
        // What the configurations of other classes mean here.
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
    let levels = multistep::levels(config, plan, &table, false, spaced)?;
    let rule = SaSolver {
        prediction,
        algorithm,
        space: Space::new(config)?,
        clamp: Clamp::dynamic(config)?,
        predictor: config.count_in("predictor_order", 1, 4)?,
        corrector: config.count_in("corrector_order", 1, 4)?,
        lower_order_final: config.flag("lower_order_final")?,
        alphas: Alphas::to_one(config, training::BETA_SCHEDULES, ZeroSnr::No)?,
    };
    let last = last_sigma(config, &levels, &table)?;
    Ok((multistep::with_final(levels, last), Box::new(rule)))
}

struct SaSolver {
    prediction: Prediction,
    algorithm: Algorithm,
    space: Space,
    clamp: Clamp,
    /// Orders.
    predictor: usize,
    corrector: usize,
    lower_order_final: bool,
    alphas: Alphas,
}

impl Rule for SaSolver {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (at, index) = (step.at, step.state.index);
        let converted = convert(
            self.algorithm,
            self.prediction,
            self.space,
            self.clamp,
            &step,
        );
        let corrected = match (step.state.anchor.take(), step.state.partial.take()) {
            (Some(anchor), Some(noise)) => {
                let before = At {
                    index: at.index - 1,
                    ..at
                };
                let mut order = self.corrector.min(index + 1);
                if self.lower_order_final {
                    order = order.min(before.evaluations() - before.index + 1);
                }
                let mut outputs = vec![&converted];
                outputs.extend(step.state.newest(order - 1)?);
                Some(self.update(before, at, true, &outputs, &anchor, &noise))
            }
            _ => None,
        };
        let sample = corrected.unwrap_or_else(|| step.sample.clone());
        step.state
            .remember(converted, self.predictor.max(self.corrector - 1));
        let noise = step.draw()?;
        let mut order = self.predictor.min(index + 1);
        if self.lower_order_final {
            order = order.min(at.evaluations() - at.index);
        }
        let outputs = step.state.newest(order)?;
        let next = self.update(at, at, false, &outputs, &sample, &noise);
        step.state.anchor = Some(sample);
        step.state.partial = Some(noise);
        Ok(next)
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        // By the timestep and not by its level, which differ on a curve.
        self.alphas.add_noise(at.timestep(), original, noise)
    }
}

impl SaSolver {
    /// A step from the evaluation `at` to the next, from `outputs` of which the newest, the first,
    /// is that of the evaluation `newest`. In the corrector that is the end of the step.
    fn update(
        &self,
        at: At<'_>,
        newest: At<'_>,
        corrects: bool,
        outputs: &[&Latents],
        sample: &Latents,
        noise: &Latents,
    ) -> Latents {
        let (from, to) = (
            self.space.level(at.sigma()),
            self.space.level(at.sigma_next()),
        );
        let h = to.lambda - from.lambda;
        let lambdas: Vec<f32> = (0..outputs.len())
            .map(|back| self.space.level(newest.sigma_past(back)).lambda)
            .collect();
        let t = at.timestep();
        let tau: f32 = if (200.0..=800.0).contains(&t) {
            1.0
        } else {
            0.0
        };
        // What noise adds to the drift.
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
            let correction = if corrects {
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
                _ => &[],
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
