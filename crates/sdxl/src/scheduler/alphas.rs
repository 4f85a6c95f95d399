//! Samples of the form `sqrt(a) * x0 + sqrt(1 - a) * noise`, with the cumulative alpha `a` of a
//! timestep (variance preserving), as DDPM and DDIM hold them.

use super::prediction::Prediction;
use super::schedule::Schedule;
use super::training::{self, ZeroSnr};
use super::{SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{BetaSchedule, Spacing, sigma_of_alpha, spaced};

/// The cumulative alphas of the training timesteps, and that of a finished image.
pub(super) struct Alphas {
    table: Vec<f32>,
    /// The cumulative alpha of the finished image (`final_alpha_cumprod` of diffusers).
    last: f32,
}

/// A cumulative alpha as the two factors of a sample.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    /// The factor of the clean image.
    pub(super) alpha: f32,
    /// The factor of the noise.
    pub(super) sigma: f32,
}

impl Mix {
    pub(super) fn new(alpha_cumprod: f32) -> Self {
        Self {
            alpha: alpha_cumprod.sqrt(),
            sigma: (1.0 - alpha_cumprod).sqrt(),
        }
    }

    /// The sample of a clean image and noise.
    pub(super) fn combine(self, original: &Latents, noise: &Latents) -> Latents {
        let Self { alpha, sigma } = self;
        Latents::zip_with([original, noise], |[x, n]| alpha * x + sigma * n)
    }
}

impl Alphas {
    /// The table of a class whose finished image has the alpha of the lowest timestep unless
    /// `set_alpha_to_one` is on.
    pub(super) fn with_last(
        config: &SchedulerConfig,
        zero_snr: ZeroSnr,
    ) -> Result<Self, SchedulerError> {
        let table = training::alphas_cumprod(config, training::BETA_SCHEDULES, zero_snr)?;
        let last = if config.flag("set_alpha_to_one")? {
            1.0
        } else {
            table[0]
        };
        Ok(Self { table, last })
    }

    /// The table of a class whose finished image is clean.
    pub(super) fn to_one(
        config: &SchedulerConfig,
        schedules: &[(&'static str, BetaSchedule)],
        zero_snr: ZeroSnr,
    ) -> Result<Self, SchedulerError> {
        Ok(Self {
            table: training::alphas_cumprod(config, schedules, zero_snr)?,
            last: 1.0,
        })
    }

    /// Number of training timesteps.
    pub(super) fn trained(&self) -> i64 {
        self.table.len() as i64
    }

    /// The cumulative alpha of a timestep; below zero is the finished image.
    pub(super) fn at(&self, timestep: i64) -> f32 {
        match usize::try_from(timestep) {
            Ok(t) => self.table[t.min(self.table.len() - 1)],
            Err(_) => self.last,
        }
    }

    /// The factors of a timestep's sample.
    pub(super) fn mix(&self, timestep: i64) -> Mix {
        Mix::new(self.at(timestep))
    }

    /// A clean image with the noise of a timestep.
    pub(super) fn add_noise(&self, timestep: f64, original: &Latents, noise: &Latents) -> Latents {
        self.mix(timestep as i64).combine(original, noise)
    }

    /// The schedule of whole timesteps, after a check that the table has an answer for them.
    pub(super) fn schedule(
        &self,
        config: &SchedulerConfig,
        prediction: Prediction,
        timesteps: Vec<f64>,
    ) -> Result<Schedule, SchedulerError> {
        let trained = self.table.len();
        if timesteps.iter().any(|&t| t >= trained as f64) {
            return Err(config.unsupported(format!(
                "steps_offset moves the first timestep beyond the {trained} of training; \
                 lower steps_offset or the number of steps"
            )));
        }
        let pure_noise = timesteps.iter().any(|&t| self.at(t as i64) == 0.0);
        if pure_noise && prediction == Prediction::Epsilon {
            return Err(config.unsupported(
                "with rescale_betas_zero_snr the first timestep is pure noise, from which a \
                 predicted epsilon gives no image; set prediction_type to v_prediction or \
                 timestep_spacing to leading",
            ));
        }
        let levels = timesteps.iter().map(|&t| sigma_of_alpha(self.at(t as i64)));
        let sigmas = levels.chain([sigma_of_alpha(self.last)]).collect();
        Ok(Schedule {
            timesteps,
            sigmas,
            init_noise_sigma: 1.0,
        })
    }
}

/// Whole timesteps, highest first, for schedulers that look alphas up.
pub(super) fn whole_timesteps(
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<f64>, SchedulerError> {
    let spacing = training::spacing(config)?;
    let timesteps = spaced(
        spacing,
        config.trained()?,
        steps,
        training::steps_offset(config)?,
    );
    Ok(match spacing {
        Spacing::Linspace => timesteps.into_iter().map(f64::round_ties_even).collect(),
        Spacing::Leading | Spacing::Trailing => timesteps,
    })
}
