//! Models trained in the formulation of Karras et al. 2022 (EDM), with continuous noise levels: the
//! preconditioning of table 1 and the levels of equation 5.

use super::math::{exp, ln};
use super::prediction::Prediction;
use super::registry::OptionInfo;
use super::training::{final_sigma, option};
use super::{Schedule, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::schedule::{karras, linspace_f32};

pub(super) const OPTIONS: &[OptionInfo] = &[
    option("sigma_min", "0.002"),
    option("sigma_max", "80.0"),
    option("sigma_data", "0.5"),
    option("sigma_schedule", r#""karras""#),
    option("num_train_timesteps", "1000"),
    option("prediction_type", r#""epsilon""#),
    option("rho", "7.0"),
    option("final_sigmas_type", r#""zero""#),
];

/// The scaling of the model's input and output.
pub(super) struct Preconditioning {
    data: f32,
    prediction: Prediction,
}

impl Preconditioning {
    pub(super) fn new(
        config: &SchedulerConfig,
        prediction: Prediction,
    ) -> Result<Self, SchedulerError> {
        let data = config.number_in("sigma_data", 1e-6, f64::INFINITY)? as f32;
        Ok(Self { data, prediction })
    }

    /// A sample of unit variance.
    pub(super) fn scale(&self, sample: &Latents, sigma: f32) -> Latents {
        let factor = 1.0 / (sigma * sigma + self.data * self.data).sqrt();
        sample.map(|x| x * factor)
    }

    /// The clean image in a sample.
    pub(super) fn denoise(&self, output: &Latents, sample: &Latents, sigma: f32) -> Latents {
        let variance = sigma * sigma + self.data * self.data;
        let skip = self.data * self.data / variance;
        let size = sigma * self.data / variance.sqrt();
        let factor = if self.prediction == Prediction::V {
            -size
        } else {
            size
        };
        Latents::zip_with([sample, output], |[x, out]| skip * x + factor * out)
    }
}

/// The schedule of so many levels, on the curve of Karras at the places `ramp`. Where the final
/// level is not zero, `lowest` gives it, from the levels and the option `sigma_min`.
pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    ramp: &[f64],
    lowest: impl Fn(&[f32], f64) -> f32,
) -> Result<Schedule, SchedulerError> {
    let min = config.number_in("sigma_min", 1e-9, 1e9)?;
    let max = config.number_in("sigma_max", 1e-9, 1e9)?;
    if min >= max {
        return Err(config.bad("sigma_min", format!("below sigma_max, {max}")));
    }
    let rho = config.number_in("rho", 0.1, 100.0)?;
    let is_karras = config.choice(
        "sigma_schedule",
        &[("karras", true), ("exponential", false)],
    )?;
    let mut sigmas: Vec<f32> = if is_karras {
        karras(min, max, rho, ramp)
            .into_iter()
            .map(|s| s as f32)
            .collect()
    } else {
        let logs = linspace_f32(libm::log(min), libm::log(max), steps);
        logs.into_iter().rev().map(exp).collect()
    };
    let timesteps = sigmas.iter().map(|&s| f64::from(0.25 * ln(s))).collect();
    sigmas.push(final_sigma(config, lowest(&sigmas, min))?);
    let init_noise_sigma = (max * max + 1.0).sqrt() as f32;
    Ok(Schedule {
        timesteps,
        sigmas,
        init_noise_sigma,
    })
}
