//! Pseudo numerical methods (Liu et al., "Pseudo Numerical Methods for Diffusion Models on
//! Manifolds", 2022), as `PNDMScheduler` of diffusers has it: a linear multistep method that starts
//! with Runge-Kutta steps, or, with `skip_prk_steps`, with a step taken twice.

use super::alphas::{Alphas, whole_timesteps};
use super::ddim::LEADING;
use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;

pub(super) static INFO: Info = Info {
    class: "PNDMScheduler",
    names: &["pndm", "plms"],
    a1111: Some("PLMS"),
    order: 4,
    evaluations_per_step: 1,
    randomness: Randomness::Deterministic,
    when: "the default of Stable Diffusion 1; one evaluation more than steps",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[training::NOISE, LEADING, OPTIONS],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("skip_prk_steps", "false"),
    option("set_alpha_to_one", "false"),
];

/// Steps that begin with Runge-Kutta.
const PRK_STEPS: usize = 3;
/// The order of the multistep method.
const ORDER: usize = 4;

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let alphas = Alphas::with_last(config, ZeroSnr::No)?;
    let steps = inference.len();
    let stride = alphas.trained() / steps as i64;
    let spaced = whole_timesteps(config, steps)?;
    let (timesteps, prk) = if config.flag("skip_prk_steps")? {
        // The second timestep twice: from there the first step is taken again.
        let (first, rest) = spaced.split_at(1);
        let again = rest.first();
        (
            first.iter().chain(again).chain(rest).copied().collect(),
            Vec::new(),
        )
    } else {
        if spaced.len() <= PRK_STEPS {
            return Err(config.unsupported(format!(
                "Runge-Kutta steps need at least {} steps; ask for more or set skip_prk_steps",
                PRK_STEPS + 1
            )));
        }
        let half = (stride / 2) as f64;
        // Each step is evaluated at its start, twice in its middle, and at its end.
        let prk: Vec<f64> = (0..PRK_STEPS)
            .flat_map(|i| {
                [
                    spaced[i],
                    spaced[i + 1] + half,
                    spaced[i + 1] + half,
                    spaced[i + 1],
                ]
            })
            .collect();
        (
            prk.iter().chain(&spaced[PRK_STEPS..]).copied().collect(),
            prk,
        )
    };
    let schedule = alphas.schedule(config, prediction, timesteps)?;
    let prk = prk.into_iter().map(|t| t as i64).collect();
    Ok((
        schedule,
        Box::new(Pndm {
            prediction,
            alphas,
            stride,
            prk,
        }),
    ))
}

struct Pndm {
    prediction: Prediction,
    alphas: Alphas,
    /// Training timesteps per step.
    stride: i64,
    /// The timesteps of the Runge-Kutta evaluations.
    prk: Vec<i64>,
}

impl UpdateRule for Pndm {
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        if step.state.index < self.prk.len() {
            self.runge_kutta(step)
        } else {
            self.multistep(step)
        }
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}

impl Pndm {
    /// One of the four evaluations of a Runge-Kutta step.
    fn runge_kutta(&self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            model_output,
            sample,
            state,
            ..
        } = step;
        let stage = state.index % 4;
        let from = self.prk[state.index - stage];
        let to = position.timestep() as i64 - if stage % 2 == 0 { self.stride / 2 } else { 0 };
        let weight = if stage == 0 || stage == 3 {
            1.0 / 6.0
        } else {
            1.0 / 3.0
        };
        let part = model_output.map(|x| weight * x);
        let sum = if stage == 0 {
            part
        } else {
            Latents::zip_with([&state.take_partial()?, &part], |[a, b]| a + b)
        };
        if stage == 0 {
            state.remember(model_output.clone(), ORDER);
            state.anchor = Some(sample.clone());
        }
        if stage == 3 {
            let anchor = state.take_anchor()?;
            return Ok(self.transfer(&anchor, from, to, &sum));
        }
        state.partial = Some(sum);
        Ok(self.transfer(state.anchor()?, from, to, model_output))
    }

    /// A step of the multistep method, of as high an order as there are outputs.
    fn multistep(&self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            model_output,
            sample,
            state,
            ..
        } = step;
        let t = position.timestep() as i64;
        if state.index == 1 {
            // The first step once more, with the mean of the outputs at both its ends.
            let first = state.past(0)?;
            let mean = Latents::zip_with([model_output, first], |[a, b]| (a + b) / 2.0);
            let anchor = state.take_anchor()?;
            return Ok(self.transfer(&anchor, t + self.stride, t, &mean));
        }
        state.remember(model_output.clone(), ORDER);
        if state.index == 0 {
            state.anchor = Some(sample.clone());
        }
        let output = match state.history.as_slice() {
            [e] => e.clone(),
            [e1, e0] => Latents::zip_with([e0, e1], |[a, b]| (3.0 * a - b) / 2.0),
            [e2, e1, e0] => Latents::zip_with([e0, e1, e2], |[a, b, c]| {
                (23.0 * a - 16.0 * b + 5.0 * c) / 12.0
            }),
            [.., e3, e2, e1, e0] => Latents::zip_with([e0, e1, e2, e3], |[a, b, c, d]| {
                (1.0 / 24.0) * (55.0 * a - 59.0 * b + 37.0 * c - 9.0 * d)
            }),
            [] => unreachable!("an output was just remembered"),
        };
        Ok(self.transfer(sample, t, t - self.stride, &output))
    }

    /// The sample of one timestep moved to another (equation 11).
    fn transfer(&self, sample: &Latents, from: i64, to: i64, output: &Latents) -> Latents {
        let (a, a_to) = (self.alphas.at(from), self.alphas.at(to));
        let (b, b_to) = (1.0 - a, 1.0 - a_to);
        let mix = self.alphas.mix(from);
        let epsilon = self.prediction.noise(output, sample, mix.alpha, mix.sigma);
        let of_sample = (a_to / a).sqrt();
        let divisor = a * b_to.sqrt() + (a * b * a_to).sqrt();
        let difference = a_to - a;
        Latents::zip_with([sample, &epsilon], |[x, e]| {
            of_sample * x - difference * e / divisor
        })
    }
}
