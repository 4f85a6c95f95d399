//! Euler's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
//! Models", 2022, algorithm 2 without the second-order correction), as `EulerDiscreteScheduler` of
//! diffusers has it.

use std::ops::RangeInclusive;

use super::exploding::{self, Levels};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, Schedule, SchedulerConfig, SchedulerError, Step, Steps};
use crate::latents::Latents;
use crate::schedule::{SigmaTable, linspace_f32};

pub(super) const INFO: Info = Info {
    class: "EulerDiscreteScheduler",
    names: &["euler"],
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
    build,
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

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let known = [EPSILON, V, SAMPLE, ("original_sample", Prediction::Sample)];
    let prediction = prediction(config, &known)?;
    let rule = EulerDiscrete {
        prediction,
        churn: Churn::new(config)?,
    };
    Ok((schedule(config, plan, prediction)?, Box::new(rule)))
}

fn schedule(
    config: &SchedulerConfig,
    plan: &Plan,
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
    if continuous && matches!(plan.steps, Steps::Timesteps(_)) {
        return Err(config.unsupported("custom timesteps exclude timestep_type continuous"));
    }

    let (mut timesteps, sigmas) = if let Steps::Sigmas(sigmas) = &plan.steps {
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
        let curve = training::curve(config)?;
        let range = training::sigma_range(config)?;
        let Levels {
            timesteps,
            mut sigmas,
        } = exploding::levels(config, plan, &table, curve, range)?;
        if log_linear && curve.is_none() {
            // One level more than there are timesteps: the reference does not line them up.
            let (low, high) = table.log_range();
            let steps = plan.count();
            let logs = linspace_f32(high, low, steps + 1);
            sigmas = logs.into_iter().map(|l| libm::exp(l.into())).collect();
        }
        (timesteps, exploding::with_final(&sigmas, last))
    };
    if continuous {
        let levels = &sigmas[..sigmas.len() - 1];
        timesteps = levels.iter().map(|&s| 0.25 * libm::log(s.into())).collect();
    }
    // The reference holds them in f32.
    let timesteps = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    Ok(exploding::schedule(spacing, timesteps, sigmas))
}

/// Noise added before every step (Karras et al. 2022, algorithm 2).
pub(super) struct Churn {
    churn: f64,
    range: RangeInclusive<f64>,
    noise: f32,
}

impl Churn {
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        Ok(Self {
            churn: config.number_in("s_churn", 0.0, f64::INFINITY)?,
            range: config.extended_number("s_tmin")?..=config.extended_number("s_tmax")?,
            noise: config.number("s_noise")? as f32,
        })
    }

    /// The sample of a step with noise added, and its noise level.
    pub(super) fn apply(&self, step: &mut Step<'_>) -> Result<(Latents, f32), SchedulerError> {
        let sigma = step.at.sigma();
        if self.churn == 0.0 || !self.range.contains(&sigma.into()) {
            return Ok((step.sample.clone(), sigma));
        }
        let levels = step.at.schedule.sigmas.len() - 1;
        let gamma = (self.churn / levels as f64).min(2f64.sqrt() - 1.0);
        let raised = sigma * (gamma + 1.0) as f32;
        let added = (raised * raised - sigma * sigma).sqrt();
        let noise = step.draw()?;
        let churned = Latents::zip_with([step.sample, &noise], |[x, n]| x + n * self.noise * added);
        Ok((churned, raised))
    }
}

struct EulerDiscrete {
    prediction: Prediction,
    churn: Churn,
}

impl Rule for EulerDiscrete {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, at.sigma())
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let (sample, raised) = self.churn.apply(&mut step)?;
        // The reference raises the level for noise predictions only.
        let level = if self.prediction == Prediction::V {
            step.at.sigma()
        } else {
            raised
        };
        let denoised = self.prediction.denoise(step.model_output, &sample, level);
        let derivative = exploding::derivative(&sample, &denoised, raised);
        Ok(exploding::along(
            &sample,
            &derivative,
            step.at.sigma_next() - raised,
        ))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
    }
}
