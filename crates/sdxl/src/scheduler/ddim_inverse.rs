//! DDIM run backwards, from an image to the noise that DDIM would make it from (Mokady et al.,
//! "Null-text Inversion", 2022), as `DDIMInverseScheduler` of diffusers has it.

use super::alphas::Alphas;
use super::clamp::Clamp;
use super::ddim::LEADING;
use super::info::{Info, OptionInfo, Randomness, option};
use super::prediction::{EPSILON, Prediction, SAMPLE, V, prediction};
use super::schedule::Position;
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{Spacing, sigma_of_alpha, spaced};

pub(super) static INFO: Info = Info {
    class: "DDIMInverseScheduler",
    names: &["ddim_inverse"],
    a1111: None,
    order: 1,
    evaluations_per_step: 1,
    randomness: Randomness::Deterministic,
    when: "only to find the noise behind an image; it does not make pictures",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[training::NOISE, LEADING, training::ZERO_SNR, OPTIONS],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("clip_sample", "true"),
    option("clip_sample_range", "1.0"),
    option("set_alpha_to_one", "true"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V, SAMPLE])?;
    let alphas = Alphas::with_last(config, ZeroSnr::Exact)?;
    let steps = inference.len();
    let spacing = config.choice(
        "timestep_spacing",
        &[
            ("leading", Spacing::Leading),
            ("trailing", Spacing::Trailing),
        ],
    )?;
    let mut timesteps = spaced(
        spacing,
        config.trained()?,
        steps,
        training::steps_offset(config)?,
    );
    timesteps.reverse();
    let mut schedule = alphas.schedule(config, prediction, timesteps)?;
    let rule = DdimInverse {
        prediction,
        clamp: Clamp::fixed(config)?,
        stride: alphas.trained() / steps as i64,
        alphas,
    };
    // A sample has the noise of one step below the timestep that the UNet is given.
    let from = schedule
        .timesteps
        .iter()
        .map(|&t| rule.alphas.at(rule.start_of(t as i64)));
    let to = schedule.timesteps.last().map(|&t| rule.alphas.at(t as i64));
    schedule.sigmas = from.chain(to).map(sigma_of_alpha).collect();
    Ok((schedule, Box::new(rule)))
}

struct DdimInverse {
    prediction: Prediction,
    clamp: Clamp,
    alphas: Alphas,
    /// Training timesteps per step.
    stride: i64,
}

impl DdimInverse {
    /// The timestep of the noise in a sample that a step moves to the timestep `to`.
    fn start_of(&self, to: i64) -> i64 {
        (to - self.stride).min(self.alphas.trained() - 1)
    }
}

impl UpdateRule for DdimInverse {
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError> {
        let to = step.position.timestep() as i64;
        let mix = self.alphas.mix(self.start_of(to));
        let (output, sample) = (step.model_output, step.sample);
        let clean = self.prediction.clean(output, sample, mix.alpha, mix.sigma);
        let clean = self.clamp.apply(clean);
        let epsilon = self.prediction.noise(output, sample, mix.alpha, mix.sigma);
        Ok(self.alphas.mix(to).combine(&clean, &epsilon))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        self.alphas
            .mix(self.start_of(position.timestep() as i64))
            .combine(original, noise)
    }
}
