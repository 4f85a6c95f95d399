//! UniPC (Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", 2023), as
//! `UniPCMultistepScheduler` of diffusers has it: a multistep predictor, and a corrector that uses
//! the output at the predicted sample once more, at no cost.

use super::clamp::{Clamp, THRESHOLDING};
use super::info::{Info, OptionInfo, Randomness, option};
use super::math::exp_m1;
use super::multistep::{self, Level, Space};
use super::prediction::{EPSILON, FLOW, Prediction, SAMPLE, V, prediction};
use super::schedule::{Levels, Position, Schedule};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::noise_schedule::{self, SigmaCurve, SigmaTable, linspace};

pub(super) static INFO: Info = Info {
    class: "UniPCMultistepScheduler",
    names: &["unipc", "uni_pc"],
    a1111: Some("UniPC"),
    order: 2,
    evaluations_per_step: 1,
    randomness: Randomness::Deterministic,
    when: "very few steps, 8 to 15",
    custom_timesteps: false,
    custom_sigmas: true,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        multistep::FLOW_OPTIONS,
        multistep::DYNAMIC,
        training::ZERO_SNR,
        multistep::SOLVER,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("solver_order", "2"),
    option("solver_type", r#""bh2""#),
    option("predict_x0", "true"),
    option("disable_corrector", "[]"),
    option("final_sigmas_type", r#""zero""#),
    option("sigma_min", "null"),
    option("sigma_max", "null"),
    option("shift_terminal", "null"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    multistep::refuse_other_families(config)?;
    let prediction = prediction(config, &[EPSILON, V, SAMPLE, FLOW])?;
    // The solver types of other classes mean the default.
    let bh1 = config.choice(
        "solver_type",
        &[
            ("bh2", false),
            ("bh1", true),
            ("midpoint", false),
            ("heun", false),
            ("logrho", false),
        ],
    )?;
    let rule = UniPc {
        prediction,
        clamp: Clamp::dynamic(config)?,
        space: Space::new(config)?,
        order: config.count_in("solver_order", 1, 4)?,
        lower_order_final: config.flag("lower_order_final")?,
        clean: config.flag("predict_x0")?,
        bh1,
        uncorrected: config.numbers("disable_corrector")?.unwrap_or_default(),
    };
    let schedule = schedule(config, inference)?;
    if schedule.sigmas.last() == Some(&0.0) {
        // The last step in lambda is infinitely long: only the first-order update of the clean image
        // has a limit there.
        let reason = if !rule.clean {
            "predict_x0 false"
        } else if bh1 {
            "solver_type bh1"
        } else if !rule.lower_order_final && rule.order > 1 {
            "lower_order_final false"
        } else {
            ""
        };
        if !reason.is_empty() {
            let reason = format!("{reason} needs final_sigmas_type sigma_min");
            return Err(config.unsupported(reason));
        }
    }
    if !rule.clean && prediction == Prediction::Flow {
        return Err(config.unsupported("flow_prediction needs predict_x0"));
    }
    Ok((schedule, Box::new(rule)))
}

fn schedule(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
) -> Result<Schedule, SchedulerError> {
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::NearlyZero)?;
    let table = SigmaTable::new(&alphas);
    let flow = config.flag("use_flow_sigmas")?;
    if matches!(inference.steps, Steps::Sigmas(_)) && !flow {
        return Err(config.unsupported("custom sigmas need use_flow_sigmas"));
    }
    if config.optional_number("shift_terminal")?.is_some() && !flow {
        return Err(config.unsupported("shift_terminal needs use_flow_sigmas"));
    }
    let levels = if flow {
        flow_levels(config, inference, &table)?
    } else {
        multistep::levels(config, inference, &table, false, |steps| {
            multistep::spaced(config, 0, steps)
        })?
    };
    let lowest = match (flow, training::sigma_curve(config)?) {
        (false, None) => table.min(),
        _ => *levels.sigmas.last().expect("a run has a step") as f32,
    };
    let last = training::final_sigma(config, lowest)?;
    Ok(multistep::schedule(levels, last))
}

/// The levels of a flow model: the share of noise in a sample.
fn flow_levels(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
    table: &SigmaTable,
) -> Result<Levels, SchedulerError> {
    let trained = config.trained()? as f64;
    let sigmas = match (&inference.steps, training::sigma_curve(config)?) {
        (Steps::Count(steps), Some(curve)) => {
            let range = training::sigma_range(config)?;
            let min = range.0.unwrap_or_else(|| table.min().into());
            let max = range.1.unwrap_or_else(|| table.max().into());
            if curve != SigmaCurve::Karras {
                return Err(config.unsupported(
                    "of the sigma curves only use_karras_sigmas goes with use_flow_sigmas",
                ));
            }
            let sigmas = noise_schedule::sigma_curve(curve, min, max, *steps);
            sigmas.into_iter().map(|s| s / (s + 1.0)).collect()
        }
        (Steps::Count(steps), None) => {
            let mut shares = linspace(1.0, 1.0 / trained, steps + 1);
            shares.truncate(*steps);
            shifted(config, shares)?
        }
        (Steps::Timesteps(_) | Steps::Sigmas(_), Some(_)) => {
            return Err(config.unsupported("custom sigmas exclude sigma curves; switch them off"));
        }
        (Steps::Timesteps(sigmas) | Steps::Sigmas(sigmas), None) => {
            shifted(config, sigmas.clone())?
        }
    };
    let timesteps = sigmas.iter().map(|s| (s * trained).trunc()).collect();
    Ok(Levels { timesteps, sigmas })
}

/// Flow levels with the shift towards noise that the configuration asks for.
fn shifted(config: &SchedulerConfig, sigmas: Vec<f64>) -> Result<Vec<f64>, SchedulerError> {
    let shift = config.number_in("flow_shift", 1e-6, f64::INFINITY)?;
    let shifted = sigmas
        .into_iter()
        .map(|s| shift * s / (1.0 + (shift - 1.0) * s));
    let mut sigmas: Vec<f64> = shifted.collect();
    if let Some(terminal) = config
        .optional_number("shift_terminal")?
        .filter(|&t| t != 0.0)
    {
        if !(terminal > 0.0 && terminal < 1.0) {
            return Err(config.bad_option("shift_terminal", "between 0 and 1"));
        }
        let scale = (1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal);
        sigmas
            .iter_mut()
            .for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
    }
    // A sample whose share of noise is one would hold nothing of the image.
    if (sigmas[0] - 1.0).abs() < 1e-6 {
        sigmas[0] -= 1e-6;
    }
    Ok(sigmas)
}

struct UniPc {
    prediction: Prediction,
    clamp: Clamp,
    space: Space,
    order: usize,
    lower_order_final: bool,
    /// Whether the clean image is integrated rather than the noise.
    clean: bool,
    bh1: bool,
    /// Evaluations after which the corrector is left out.
    uncorrected: Vec<f64>,
}

impl UpdateRule for UniPc {
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            model_output,
            sample,
            state,
            ..
        } = step;
        let converted = self.convert(position, model_output, sample);
        let is_corrected =
            state.index > 0 && !(self.uncorrected).contains(&((position.index - 1) as f64));
        let corrected = if is_corrected {
            let order = self.order_at(position.previous(), state.index - 1);
            let outputs = state.newest(order)?;
            Some(self.update(position, 1, &outputs, Some(&converted), state.anchor()?))
        } else {
            None
        };
        let sample = corrected.as_ref().unwrap_or(sample);
        state.remember(converted, self.order);
        let outputs = state.newest(self.order_at(position, state.index))?;
        let next = self.update(position, 0, &outputs, None, sample);
        state.anchor = Some(sample.clone());
        Ok(next)
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.space.add_noise(position, original, noise)
    }
}

impl UniPc {
    /// The order of the predictor at an evaluation, the `index`th of its run.
    fn order_at(&self, position: Position<'_>, index: usize) -> usize {
        let left = position.remaining();
        let order = if self.lower_order_final {
            self.order.min(left)
        } else {
            self.order
        };
        order.min(index + 1)
    }

    /// Converts a model's output to the quantity that is integrated: the clean image or the noise.
    fn convert(&self, position: Position<'_>, output: &Latents, sample: &Latents) -> Latents {
        if self.clean {
            let clean = self
                .space
                .clean(self.prediction, output, sample, position.sigma());
            return self.clamp.apply(clean);
        }
        let level = self.space.level(position.sigma());
        self.prediction
            .noise(output, sample, level.alpha, level.sigma)
    }

    /// The update from the level `back` evaluations ago to the one after it, from the `outputs` up
    /// to there, newest first. With the output at its `end` it is the corrector.
    fn update(
        &self,
        position: Position<'_>,
        back: usize,
        outputs: &[&Latents],
        end: Option<&Latents>,
        sample: &Latents,
    ) -> Latents {
        let level = |back: usize| self.space.level(position.sigma_past(back));
        let from = level(back);
        let to = if back == 0 {
            self.space.level(position.sigma_next())
        } else {
            level(back - 1)
        };
        let h = to.lambda - from.lambda;
        // A step without length would divide by zero.
        let order = if h == 0.0 { 1 } else { outputs.len() };

        // The places of the other outputs, in lengths of the step, and their slopes to the newest.
        let place = |i: usize| (level(back + i).lambda - from.lambda) / h;
        let mut places: Vec<f32> = (1..order).map(place).collect();
        let newest = outputs[0];
        let mut slopes: Vec<Latents> = (1..order)
            .map(|i| {
                let place = places[i - 1];
                Latents::zip_with([outputs[i], newest], |[m, m0]| (m - m0) / place)
            })
            .collect();
        if let Some(end) = end.filter(|_| h != 0.0) {
            slopes.push(Latents::zip_with([end, newest], |[m, m0]| m - m0));
        }
        places.push(1.0);

        let hh = if self.clean { -h } else { h };
        let phi = exp_m1(hh);
        let b_h = if self.bh1 { hh } else { phi };
        let weights = weights(&places, slopes.len(), hh, phi, b_h);
        let base = self.base(from, to, phi, newest, sample);
        let scale = if self.clean { to.alpha } else { to.sigma } * b_h;
        let terms: Vec<_> = weights.into_iter().zip(&slopes).collect();
        if terms.is_empty() {
            return base;
        }
        let change = Latents::lincomb(&terms);
        Latents::zip_with([&base, &change], |[x, d]| x - scale * d)
    }

    /// The first-order update.
    fn base(
        &self,
        from: Level,
        to: Level,
        phi: f32,
        output: &Latents,
        sample: &Latents,
    ) -> Latents {
        let (of_sample, of_output) = if self.clean {
            (to.sigma / from.sigma, to.alpha * phi)
        } else {
            (to.alpha / from.alpha, to.sigma * phi)
        };
        Latents::zip_with([sample, output], |[x, m]| of_sample * x - of_output * m)
    }
}

/// The weights of `count` slopes at `places` (equations 6 and 9): those that integrate the first
/// powers of lambda exactly.
fn weights(places: &[f32], count: usize, hh: f32, phi: f32, b_h: f32) -> Vec<f32> {
    if count == 1 {
        // The reference does not solve for a single weight.
        return vec![0.5];
    }
    let mut phi_k = phi / hh - 1.0;
    let mut factorial = 1.0;
    let mut right = Vec::with_capacity(count);
    for i in 1..=count {
        right.push(f64::from(phi_k * factorial / b_h));
        factorial *= (i + 1) as f32;
        phi_k = phi_k / hh - 1.0 / factorial;
    }
    let row = |power: i32| {
        places[..count]
            .iter()
            .map(|&r| f64::from(r).powi(power))
            .collect()
    };
    let matrix: Vec<Vec<f64>> = (0..count as i32).map(row).collect();
    solve(matrix, right).into_iter().map(|w| w as f32).collect()
}

/// The solution of a small system of linear equations, by elimination with pivots.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for column in 0..n {
        let size = |row: &usize| matrix[*row][column].abs();
        let pivot = (column..n)
            .max_by(|a, b| size(a).total_cmp(&size(b)))
            .expect("the column itself is one of them");
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..n {
            let factor = matrix[row][column] / matrix[column][column];
            let (above, below) = matrix.split_at_mut(row);
            for (a, b) in below[0].iter_mut().zip(&above[column]) {
                *a -= factor * b;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| matrix[row][k] * right[k]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}
