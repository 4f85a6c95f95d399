//! Sampling from a latent consistency model (Luo et al., "Latent Consistency Models", 2023), as
//! `LCMScheduler` of diffusers has it.

use super::alphas::Alphas;
use super::clamp::{Clamp, THRESHOLDING};
use super::ddim::LEADING;
use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;

pub(super) static INFO: Info = Info {
    class: "LCMScheduler",
    names: &["lcm"],
    a1111: Some("LCM"),
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Stochastic,
    when: "for LCM models and LoRAs only: 2 to 8 steps, guidance 1 to 2",
    custom_timesteps: true,
    custom_sigmas: false,
    options: &[
        SCALED_NOISE,
        LEADING,
        training::ZERO_SNR,
        THRESHOLDING,
        OPTIONS,
    ],
};

/// The options of the noise schedule with the defaults of consistency models.
pub(super) const SCALED_NOISE: &[OptionInfo] = &[
    option("num_train_timesteps", "1000"),
    option("beta_start", "0.00085"),
    option("beta_end", "0.012"),
    option("beta_schedule", r#""scaled_linear""#),
    option("trained_betas", "null"),
];

/// The options of consistency models.
pub(super) const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("clip_sample", "false"),
    option("clip_sample_range", "1.0"),
    option("set_alpha_to_one", "true"),
    option("original_inference_steps", "50"),
    option("timestep_scaling", "10.0"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let alphas = Alphas::with_last(config, ZeroSnr::Exact)?;
    let schedule = alphas.schedule(config, prediction, timesteps(config, inference)?)?;
    let rule = Lcm {
        prediction,
        clamp: Clamp::either(config)?,
        alphas,
        scaling: config.number("timestep_scaling")? as f32,
    };
    Ok((schedule, Box::new(rule)))
}

/// The timesteps that a consistency model was distilled for are `original_inference_steps` of those
/// of training, down from the highest; a run takes its own from these.
pub(super) fn timesteps(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
) -> Result<Vec<f64>, SchedulerError> {
    let steps = match &inference.steps {
        Steps::Count(steps) => *steps,
        Steps::Timesteps(timesteps) | Steps::Sigmas(timesteps) => return Ok(timesteps.clone()),
    };
    let trained = config.trained()?;
    let original = config.count_in("original_inference_steps", 1, trained as u64)?;
    if steps > original {
        return Err(config.unsupported(format!(
            "{steps} steps are more than the {original} of the distillation \
             (original_inference_steps); ask for fewer"
        )));
    }
    let stride = trained / original;
    let spacing = original as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| ((original - (i as f64 * spacing) as usize) * stride - 1) as f64)
        .collect())
}

struct Lcm {
    prediction: Prediction,
    clamp: Clamp,
    alphas: Alphas,
    scaling: f32,
}

impl UpdateRule for Lcm {
    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        // The deviation of the data, in the boundary condition at timestep 0.
        const SIGMA_DATA: f32 = 0.5;
        let t = step.position.timestep() as i64;
        let mix = self.alphas.mix(t);
        let clean = self
            .prediction
            .clean(step.model_output, step.sample, mix.alpha, mix.sigma);
        let clean = self.clamp.apply(clean);
        let scaled = t as f32 * self.scaling;
        let variance = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (c_skip, c_out) = (SIGMA_DATA * SIGMA_DATA / variance, scaled / variance.sqrt());
        let denoised = Latents::zip_with([&clean, step.sample], |[x0, x]| c_out * x0 + c_skip * x);
        let Some(next) = step.position.timestep_next() else {
            return Ok(denoised);
        };
        let noise = step.draw()?;
        Ok(self.alphas.mix(next as i64).combine(&denoised, &noise))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas.add_noise(position.timestep(), original, noise)
    }
}
