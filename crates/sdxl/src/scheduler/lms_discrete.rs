//! The linear multistep method of Adams and Bashforth in the noise level (`sample_lms` of
//! k-diffusion), as `LMSDiscreteScheduler` of diffusers has it.

use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::{Position, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::SigmaTable;

pub(super) static INFO: Info = Info {
    class: "LMSDiscreteScheduler",
    names: &["lms"],
    a1111: Some("LMS"),
    order: 4,
    evaluations_per_step: 1,
    randomness: Randomness::Deterministic,
    when: "an older multistep method; dpm++_2m is usually better",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    // An argument of the reference's `step`.
    option("order", "4"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let rule = Lms {
        prediction: prediction(config, &[EPSILON, V, SAMPLE])?,
        order: config.count_in("order", 1, 4)?,
    };
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::sigma_curve(config)?;
    let levels = variance_exploding::levels(config, inference, &table, curve, (None, None))?;
    let sigmas = with_final(&levels.sigmas, 0.0);
    if sigmas.windows(2).any(|pair| pair[0] <= pair[1]) {
        return Err(config.unsupported(
            "two steps have the same noise level, between which nothing can be interpolated; lower \
             steps_offset or the number of steps",
        ));
    }
    let timesteps = levels
        .timesteps
        .into_iter()
        .map(|t| f64::from(t as f32))
        .collect();
    let spacing = training::spacing(config)?;
    Ok((
        variance_exploding::schedule(spacing, timesteps, sigmas),
        Box::new(rule),
    ))
}

struct Lms {
    prediction: Prediction,
    order: usize,
}

impl UpdateRule for Lms {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, position.sigma())
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            position,
            sample,
            state,
            ..
        } = step;
        let denoised = self
            .prediction
            .denoise(step.model_output, sample, position.sigma());
        let d = variance_exploding::derivative(sample, &denoised, position.sigma());
        state.remember(d, self.order);
        // The order goes by the place in the schedule: in a run that leaves out the first steps, the
        // reference uses the coefficients of a higher order without its derivatives.
        let order = self.order.min(position.index + 1);
        let weights = (0..order).map(|j| coefficient(position, order, j) as f32);
        let terms: Vec<_> = weights.zip(state.history.iter().rev()).collect();
        let change = Latents::lincomb(&terms);
        Ok(Latents::zip_with([sample, &change], |[x, d]| x + d))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}

/// The weight of the derivative `j` evaluations ago: the integral, over the step, of the Lagrange
/// polynomial that is 1 at its level and 0 at the other `order - 1` levels.
fn coefficient(position: Position<'_>, order: usize, j: usize) -> f64 {
    let level = |back: usize| f64::from(position.sigma_past(back));
    let polynomial = |x: f64| -> f64 {
        let others = (0..order).filter(|&k| k != j);
        others
            .map(|k| (x - level(k)) / (level(j) - level(k)))
            .product()
    };
    // Gauss's rule with two points is exact up to the third degree, the highest there is here.
    let (start, end) = (level(0), f64::from(position.sigma_next()));
    let (middle, half) = ((start + end) / 2.0, (end - start) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
