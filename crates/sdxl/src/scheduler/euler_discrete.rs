//! Euler's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
//! Models", 2022, algorithm 2 without the second-order correction), as `EulerDiscreteScheduler` of
//! diffusers has it.

use std::ops::RangeInclusive;

use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::{Levels, Position, Schedule, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::noise_schedule::{SigmaTable, linspace_f32};

pub(super) static INFO: Info = Info {
    class: "EulerDiscreteScheduler",
    names: &["euler"],
    a1111: Some("Euler"),
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("s_churn above 0"),
    when: "the default of SDXL checkpoints: robust, 20 to 30 steps",
    custom_timesteps: true,
    custom_sigmas: true,
    options: &[
        training::NOISE,
        training::SPACING,
        training::CURVES,
        training::ZERO_SNR,
        OPTIONS,
        CHURN,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("interpolation_type", r#""linear""#),
    option("sigma_min", "null"),
    option("sigma_max", "null"),
    option("timestep_type", r#""discrete""#),
    option("final_sigmas_type", r#""zero""#),
];

/// Noise added in every step: arguments of the reference's `step`.
pub(super) const CHURN: &[OptionInfo] = &[
    option("s_churn", "0.0"),
    option("s_tmin", "0.0"),
    option("s_tmax", r#""inf""#),
    option("s_noise", "1.0"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let known = [EPSILON, V, SAMPLE, ("original_sample", Prediction::Sample)];
    let prediction = prediction(config, &known)?;
    let rule = EulerDiscrete {
        prediction,
        churn: Churn::new(config)?,
    };
    Ok((schedule(config, inference, prediction)?, Box::new(rule)))
}

fn schedule(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
    prediction: Prediction,
) -> Result<Schedule, SchedulerError> {
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::NearlyZero)?;
    let table = SigmaTable::new(&alphas);
    let spacing = training::spacing(config)?;
    let log_linear = config.choice(
        "interpolation_type",
        &[("linear", false), ("log_linear", true)],
    )?;
    let last = training::final_sigma(config, table.min())?;
    let continuous = config.choice(
        "timestep_type",
        &[("discrete", false), ("continuous", true)],
    )? && prediction == Prediction::V;
    if continuous && matches!(inference.steps, Steps::Timesteps(_)) {
        return Err(config.unsupported("custom timesteps exclude timestep_type continuous"));
    }

    let (mut timesteps, sigmas) = if let Steps::Sigmas(sigmas) = &inference.steps {
        let sigmas: Vec<f32> = sigmas.iter().map(|&s| s as f32).collect();
        let levels = &sigmas[..sigmas.len() - 1];
        (
            levels
                .iter()
                .map(|&s| table.timestep_of(s.into()))
                .collect(),
            sigmas,
        )
    } else {
        let curve = training::sigma_curve(config)?;
        let range = training::sigma_range(config)?;
        let Levels {
            timesteps,
            mut sigmas,
        } = variance_exploding::levels(config, inference, &table, curve, range)?;
        if log_linear && curve.is_none() {
            // The levels run over one step more than the timesteps, as in the reference.
            let (low, high) = table.log_range();
            let steps = inference.len();
            let logs = linspace_f32(high, low, steps + 1);
            sigmas = logs.into_iter().map(|l| libm::exp(l.into())).collect();
        }
        (timesteps, with_final(&sigmas, last))
    };
    if continuous {
        let levels = &sigmas[..sigmas.len() - 1];
        timesteps = levels.iter().map(|&s| 0.25 * libm::log(s.into())).collect();
    }
    // The reference holds them in f32.
    let timesteps = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    Ok(variance_exploding::schedule(spacing, timesteps, sigmas))
}

/// Noise added before every step (Karras et al. 2022, algorithm 2).
pub(super) struct Churn {
    s_churn: f64,
    /// The noise levels at which noise is added, `s_tmin` to `s_tmax`.
    range: RangeInclusive<f64>,
    s_noise: f32,
}

impl Churn {
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        Ok(Self {
            s_churn: config.number_in("s_churn", 0.0, f64::INFINITY)?,
            range: config.extended_number("s_tmin")?..=config.extended_number("s_tmax")?,
            s_noise: config.number("s_noise")? as f32,
        })
    }

    /// Adds noise to the sample of a step, and gives it with its noise level then.
    pub(super) fn apply(&self, step: &mut Step<'_>) -> Result<(Latents, f32), SchedulerError> {
        let sigma = step.position.sigma();
        if self.s_churn == 0.0 || !self.range.contains(&sigma.into()) {
            return Ok((step.sample.clone(), sigma));
        }
        let levels = step.position.schedule.sigmas.len() - 1;
        let gamma = (self.s_churn / levels as f64).min(2f64.sqrt() - 1.0);
        let sigma_hat = sigma * (gamma + 1.0) as f32;
        let added = (sigma_hat * sigma_hat - sigma * sigma).sqrt();
        let noise = step.draw()?;
        let noised =
            Latents::zip_with([step.sample, &noise], |[x, n]| x + n * self.s_noise * added);
        Ok((noised, sigma_hat))
    }
}

struct EulerDiscrete {
    prediction: Prediction,
    churn: Churn,
}

impl UpdateRule for EulerDiscrete {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, position.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (sample, sigma_hat) = self.churn.apply(&mut step)?;
        // The reference does not use the raised level for predictions of the velocity.
        let sigma = if self.prediction == Prediction::V {
            step.position.sigma()
        } else {
            sigma_hat
        };
        let denoised = self.prediction.denoise(step.model_output, &sample, sigma);
        let d = variance_exploding::derivative(&sample, &denoised, sigma_hat);
        let dt = step.position.sigma_next() - sigma_hat;
        Ok(variance_exploding::euler_step(&sample, &d, dt))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }
}
