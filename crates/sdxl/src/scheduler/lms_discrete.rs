//! The linear multistep method of Adams and Bashforth in the noise level (`sample_lms` of
//! k-diffusion), as `LMSDiscreteScheduler` of diffusers has it.

use super::exploding;
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::schedule::SigmaTable;

pub(super) const INFO: Info = Info {
    class: "LMSDiscreteScheduler",
    names: &["lms"],
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
    build,
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    // An argument of the reference's `step`.
    option("order", "4"),
];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let rule = Lms {
        prediction: prediction(config, &[EPSILON, V, SAMPLE])?,
        order: config.count_in("order", 1, 4)?,
    };
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::curve(config)?;
    let levels = exploding::levels(config, plan, &table, curve, (None, None))?;
    let sigmas = exploding::with_final(&levels.sigmas, 0.0);
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
        exploding::schedule(spacing, timesteps, sigmas),
        Box::new(rule),
    ))
}

struct Lms {
    prediction: Prediction,
    order: usize,
}

impl Rule for Lms {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, at.sigma())
    }

    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let Step {
            at, sample, state, ..
        } = step;
        let denoised = self
            .prediction
            .denoise(step.model_output, sample, at.sigma());
        let derivative = exploding::derivative(sample, &denoised, at.sigma());
        state.remember(derivative, self.order);
        // Counted from the start of the schedule: where a cut plan begins later, the reference
        // takes the coefficients of derivatives that it does not have.
        let order = self.order.min(at.index + 1);
        let weights = (0..order).map(|j| coefficient(at, order, j) as f32);
        let terms: Vec<_> = weights.zip(state.history.iter().rev()).collect();
        let change = Latents::lincomb(&terms);
        Ok(Latents::zip_with([sample, &change], |[x, d]| x + d))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}

/// The weight of the derivative `j` evaluations ago: the integral, over the step, of the Lagrange
/// polynomial that is 1 at its level and 0 at the other `order - 1` levels.
fn coefficient(at: At<'_>, order: usize, j: usize) -> f64 {
    let level = |back: usize| f64::from(at.sigma_past(back));
    let polynomial = |x: f64| -> f64 {
        let others = (0..order).filter(|&k| k != j);
        others
            .map(|k| (x - level(k)) / (level(j) - level(k)))
            .product()
    };
    // Gauss's rule with two points is exact up to the third degree.
    let (start, end) = (level(0), f64::from(at.sigma_next()));
    let (middle, half) = ((start + end) / 2.0, (end - start) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
