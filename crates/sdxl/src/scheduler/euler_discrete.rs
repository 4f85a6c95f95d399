//! Euler's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
//! Models", 2022, algorithm 2 without the second-order correction), as `EulerDiscreteScheduler` of
//! diffusers has it.

use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{Plan, Rule, Schedule, SchedulerConfig, SchedulerError, Step, Steps};
use crate::latents::Latents;
use crate::schedule::{SigmaTable, linspace_f32};

pub(super) const INFO: Info = Info {
    class: "EulerDiscreteScheduler",
    names: &["euler"],
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Optional("s_churn"),
    when: "the default of SDXL checkpoints: robust, good from 20 to 30 steps",
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

/// Noise added in every step, as arguments of the reference's `step`.
pub(super) const CHURN: &[OptionInfo] = &[
    option("s_churn", "0.0"),
    option("s_tmin", "0.0"),
    option("s_tmax", r#""inf""#),
    option("s_noise", "1.0"),
];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(
        config,
        &[EPSILON, V, SAMPLE, ("original_sample", Prediction::Sample)],
    )?;
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
    let offset = training::steps_offset(config)?;
    let trained = config.trained()?;
    let curve = training::curve(config)?;
    let log_linear = config.choice(
        "interpolation_type",
        &[("linear", false), ("log_linear", true)],
    )?;
    let continuous = config.choice(
        "timestep_type",
        &[("discrete", false), ("continuous", true)],
    )?;
    let continuous = continuous && prediction == Prediction::V;
    let range = (
        config.optional_number("sigma_min")?,
        config.optional_number("sigma_max")?,
    );
    for (option, end) in [("sigma_min", range.0), ("sigma_max", range.1)] {
        if end.is_some_and(|s| s <= 0.0) {
            return Err(config.bad(option, "a number above 0"));
        }
    }
    let last = config.choice(
        "final_sigmas_type",
        &[("zero", 0.0), ("sigma_min", table.min())],
    )?;

    let (mut timesteps, sigmas) = if let Steps::Sigmas(sigmas) = &plan.steps {
        let levels = &sigmas[..sigmas.len() - 1];
        let sigmas: Vec<f32> = sigmas.iter().map(|&s| s as f32).collect();
        (
            levels
                .iter()
                .map(|&s| table.timestep_of(f64::from(s as f32)))
                .collect(),
            sigmas,
        )
    } else {
        let timesteps = match &plan.steps {
            Steps::Count(steps) => crate::schedule::spaced(spacing, trained, *steps, offset),
            Steps::Timesteps(_) if curve.is_some() => {
                return Err(config.unsupported(
                    "custom timesteps exclude sigma curves (use_karras_sigmas, ...)",
                ));
            }
            Steps::Timesteps(_) if continuous => {
                return Err(config.unsupported("custom timesteps exclude timestep_type continuous"));
            }
            Steps::Timesteps(timesteps) | Steps::Sigmas(timesteps) => timesteps.clone(),
        };
        let steps = if let Steps::Count(steps) = plan.steps {
            steps
        } else {
            timesteps.len()
        };
        let (timesteps, mut sigmas) = if log_linear && curve.is_none() {
            // One level more than there are timesteps: the reference does not line them up.
            let (low, high) = table.log_range();
            let levels = linspace_f32(high, low, steps + 1);
            (
                timesteps,
                levels
                    .into_iter()
                    .map(|l| libm::exp(l.into()) as f32 as f64)
                    .collect(),
            )
        } else {
            training::spaced_sigmas(curve, range, &table, timesteps, steps)
        };
        sigmas.push(last.into());
        (
            timesteps,
            sigmas.into_iter().map(|s| s as f32).collect::<Vec<f32>>(),
        )
    };
    if continuous {
        timesteps = sigmas[..sigmas.len() - 1]
            .iter()
            .map(|&s| 0.25 * libm::log(s.into()))
            .collect();
    }
    // The reference holds these timesteps in f32.
    let timesteps = timesteps.into_iter().map(|t| f64::from(t as f32)).collect();
    let init_noise_sigma = training::init_noise_sigma(spacing, &sigmas);
    Ok(Schedule {
        timesteps,
        sigmas,
        init_noise_sigma,
    })
}

/// Noise added before every step (Karras et al. 2022, algorithm 2).
pub(super) struct Churn {
    churn: f64,
    range: std::ops::RangeInclusive<f64>,
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
        let sigma = step.sigma();
        let steps = step.schedule.sigmas.len() - 1;
        if self.churn == 0.0 || !self.range.contains(&sigma.into()) {
            return Ok((step.sample.clone(), sigma));
        }
        let gamma = (self.churn / steps as f64).min(2f64.sqrt() - 1.0);
        let raised = sigma * (gamma + 1.0) as f32;
        let added = (raised * raised - sigma * sigma).sqrt();
        let noise = step.draw()?;
        let sample = Latents::zip_with([step.sample, &noise], |[x, n]| x + n * self.noise * added);
        Ok((sample, raised))
    }
}

struct EulerDiscrete {
    prediction: Prediction,
    churn: Churn,
}

impl Rule for EulerDiscrete {
    fn scale_model_input(&self, schedule: &Schedule, index: usize, sample: &Latents) -> Latents {
        scale(sample, schedule.sigmas[index])
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let sigma = step.sigma();
        let (sample, raised) = self.churn.apply(&mut step)?;
        // The reference raises the level for noise predictions only.
        let level = if self.prediction == Prediction::Epsilon {
            raised
        } else {
            sigma
        };
        let denoised = self.prediction.denoise(step.model_output, &sample, level);
        Ok(euler_step(&sample, &denoised, raised, step.sigma_next()))
    }

    fn add_noise(
        &self,
        schedule: &Schedule,
        index: usize,
        original: &Latents,
        noise: &Latents,
    ) -> Latents {
        add_noise(original, noise, schedule.sigmas[index])
    }
}

/// A sample of unit variance from one of variance `1 + sigma^2`.
pub(super) fn scale(sample: &Latents, sigma: f32) -> Latents {
    let deviation = (sigma * sigma + 1.0).sqrt();
    sample.map(|x| x / deviation)
}

/// The sample moved from the noise level `from` to the level `to`, along the line to the clean
/// image.
pub(super) fn euler_step(sample: &Latents, denoised: &Latents, from: f32, to: f32) -> Latents {
    let dt = to - from;
    Latents::zip_with([sample, denoised], |[x, x0]| x + (x - x0) / from * dt)
}

/// A clean image with noise of deviation `sigma`.
pub(super) fn add_noise(original: &Latents, noise: &Latents, sigma: f32) -> Latents {
    Latents::zip_with([original, noise], |[x, n]| x + n * sigma)
}
