//! DDIM (Song, Meng & Ermon, "Denoising Diffusion Implicit Models", 2020, equations 12 and 16), as
//! `DDIMScheduler` of diffusers has it.

use super::alphas::{Alphas, whole_timesteps};
use super::clamp::{Clamp, THRESHOLDING};
use super::info::{BY_ETA, Info, OptionInfo, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, noise_beside, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;

pub(super) static INFO: Info = Info {
    class: "DDIMScheduler",
    names: &["ddim"],
    a1111: Some("DDIM"),
    order: 1,
    evaluations_per_step: 1,
    randomness: BY_ETA,
    when: "the classic deterministic method; with trailing spacing for few-step distilled models",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::NOISE,
        LEADING,
        training::ZERO_SNR,
        THRESHOLDING,
        OPTIONS,
    ],
};

/// The options for where the steps are, with the defaults of the older classes.
pub(super) const LEADING: &[OptionInfo] = &[
    option("timestep_spacing", r#""leading""#),
    option("steps_offset", "0"),
];

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("clip_sample", "true"),
    option("clip_sample_range", "1.0"),
    option("set_alpha_to_one", "true"),
    // An argument of the reference's `step`.
    option("use_clipped_model_output", "false"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let alphas = Alphas::with_last(config, ZeroSnr::Exact)?;
    let steps = inference.len();
    let schedule = alphas.schedule(config, prediction, whole_timesteps(config, steps)?)?;
    let rule = Ddim {
        prediction,
        clamp: Clamp::either(config)?,
        stride: alphas.trained() / steps as i64,
        alphas,
        eta: inference.eta as f32,
        clipped: config.flag("use_clipped_model_output")?,
    };
    Ok((schedule, Box::new(rule)))
}

struct Ddim {
    prediction: Prediction,
    clamp: Clamp,
    alphas: Alphas,
    /// Training timesteps per step.
    stride: i64,
    eta: f32,
    clipped: bool,
}

impl UpdateRule for Ddim {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let t = step.position.timestep() as i64;
        let (a, a_next) = (self.alphas.at(t), self.alphas.at(t - self.stride));
        let mix = self.alphas.mix(t);
        let (output, sample) = (step.model_output, step.sample);
        let clean = self.prediction.clean(output, sample, mix.alpha, mix.sigma);
        let clean = self.clamp.apply(clean);
        let epsilon = if self.clipped {
            noise_beside(&clean, sample, mix.alpha, mix.sigma)
        } else {
            self.prediction.noise(output, sample, mix.alpha, mix.sigma)
        };
        let variance = (1.0 - a_next) / (1.0 - a) * (1.0 - a / a_next);
        let deviation = self.eta * variance.sqrt();
        let (alpha, sigma) = (a_next.sqrt(), (1.0 - a_next - deviation * deviation).sqrt());
        let next = Latents::zip_with([&clean, &epsilon], |[x0, e]| alpha * x0 + sigma * e);
        if self.eta == 0.0 {
            return Ok(next);
        }
        let noise = step.draw()?;
        Ok(Latents::zip_with([&next, &noise], |[x, n]| {
            x + deviation * n
        }))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}
