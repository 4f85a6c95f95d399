//! Ancestral sampling (Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
//! equations 6 and 7), as `DDPMScheduler` of diffusers has it.

use super::alphas::{Alphas, whole_timesteps};
use super::clamp::{Clamp, THRESHOLDING};
use super::ddim::LEADING;
use super::info::{Info, OptionInfo, Randomness, option};
use super::math::{exp, ln};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::noise_schedule::BetaSchedule;

pub(super) static INFO: Info = Info {
    class: "DDPMScheduler",
    names: &["ddpm"],
    a1111: None,
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Stochastic,
    when: "the original method: many steps; much like euler_a",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        LEADING,
        training::ZERO_SNR,
        THRESHOLDING,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("variance_type", r#""fixed_small""#),
    option("clip_sample", "true"),
    option("clip_sample_range", "1.0"),
];

/// The variance of the noise that a step adds.
#[derive(Clone, Copy, PartialEq)]
enum Variance {
    /// The posterior variance: that of the next sample if the clean image is known.
    Small,
    /// The same by way of its logarithm, and used as a deviation: the reference does not take the
    /// root again.
    SmallLog,
    /// The variance of the noise that training adds between the step's two timesteps.
    Large,
}

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let mut schedules = training::BETA_SCHEDULES.to_vec();
    schedules.extend([
        ("laplace", BetaSchedule::Laplace),
        ("sigmoid", BetaSchedule::Sigmoid),
    ]);
    let alphas = Alphas::to_one(config, &schedules, ZeroSnr::Exact)?;
    let timesteps = match &inference.steps {
        Steps::Count(steps) => whole_timesteps(config, *steps)?,
        Steps::Timesteps(timesteps) | Steps::Sigmas(timesteps) => timesteps.clone(),
    };
    let schedule = alphas.schedule(config, prediction, timesteps)?;
    let variance = config.choice(
        "variance_type",
        &[
            ("fixed_small", Variance::Small),
            ("fixed_small_log", Variance::SmallLog),
            ("fixed_large", Variance::Large),
        ],
    )?;
    let rule = Ddpm {
        prediction,
        clamp: Clamp::either(config)?,
        alphas,
        variance,
    };
    Ok((schedule, Box::new(rule)))
}

struct Ddpm {
    prediction: Prediction,
    clamp: Clamp,
    alphas: Alphas,
    variance: Variance,
}

impl Ddpm {
    /// The deviation of the noise that a step from one cumulative alpha to another adds.
    fn deviation(&self, a: f32, a_next: f32) -> f32 {
        let beta = 1.0 - a / a_next;
        let small = ((1.0 - a_next) / (1.0 - a) * beta).max(1e-20);
        match self.variance {
            Variance::Small => small.sqrt(),
            Variance::SmallLog => exp(0.5 * ln(small)),
            Variance::Large => beta.sqrt(),
        }
    }
}

impl UpdateRule for Ddpm {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let t = step.position.timestep() as i64;
        let next = step.position.timestep_next();
        // The last step goes to the finished image.
        let t_next = next.map_or(-1, |t| t as i64);
        let (a, a_next) = (self.alphas.at(t), self.alphas.at(t_next));
        let mix = self.alphas.mix(t);
        let clean = self
            .prediction
            .clean(step.model_output, step.sample, mix.alpha, mix.sigma);
        let clean = self.clamp.apply(clean);
        let alpha = a / a_next;
        let of_clean = a_next.sqrt() * (1.0 - alpha) / (1.0 - a);
        let of_sample = alpha.sqrt() * (1.0 - a_next) / (1.0 - a);
        let mean = Latents::zip_with([&clean, step.sample], |[x0, x]| {
            of_clean * x0 + of_sample * x
        });
        if t == 0 {
            return Ok(mean);
        }
        let deviation = self.deviation(a, a_next);
        let noise = step.draw()?;
        Ok(Latents::zip_with([&mean, &noise], |[x, n]| {
            x + deviation * n
        }))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}
