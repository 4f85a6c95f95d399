//! Models trained in the formulation of Karras et al. 2022 (EDM), with continuous noise levels: the
//! preconditioning of table 1 and the levels of equation 5.

use super::info::{OptionInfo, option};
use super::math::{exp, ln};
use super::prediction::Prediction;
use super::schedule::Schedule;
use super::training::final_sigma;
use super::{SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise_schedule::{karras, linspace_f32};

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
    sigma_data: f32,
    prediction: Prediction,
}

impl Preconditioning {
    pub(super) fn new(
        config: &SchedulerConfig,
        prediction: Prediction,
    ) -> Result<Self, SchedulerError> {
        let sigma_data = config.number_in("sigma_data", 1e-6, f64::INFINITY)? as f32;
        Ok(Self {
            sigma_data,
            prediction,
        })
    }

    /// Scales a sample to unit variance, for the UNet.
    pub(super) fn scale(&self, sample: &Latents, sigma: f32) -> Latents {
        let c_in = 1.0 / (sigma * sigma + self.sigma_data * self.sigma_data).sqrt();
        sample.map(|x| x * c_in)
    }

    /// The clean image in a sample, by the UNet's output.
    pub(super) fn denoise(&self, output: &Latents, sample: &Latents, sigma: f32) -> Latents {
        let variance = sigma * sigma + self.sigma_data * self.sigma_data;
        let c_skip = self.sigma_data * self.sigma_data / variance;
        let c_out = sigma * self.sigma_data / variance.sqrt();
        let c_out = if self.prediction == Prediction::V {
            -c_out
        } else {
            c_out
        };
        Latents::zip_with([sample, output], |[x, out]| c_skip * x + c_out * out)
    }
}

/// The schedule of `steps` levels, on the curve of Karras at the places `ramp`. Where the level of
/// the result is not zero, `lowest` gives it, from the levels and the option `sigma_min`.
pub(super) fn schedule(
    config: &SchedulerConfig,
    steps: usize,
    ramp: &[f64],
    lowest: impl Fn(&[f32], f64) -> f32,
) -> Result<Schedule, SchedulerError> {
    let min = config.number_in("sigma_min", 1e-9, 1e9)?;
    let max = config.number_in("sigma_max", 1e-9, 1e9)?;
    if min >= max {
        return Err(config.bad_option("sigma_min", format!("below sigma_max, {max}")));
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
