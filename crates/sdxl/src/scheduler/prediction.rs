//! The prediction types of models, and the computation of clean image and noise from a prediction.

use super::{SchedulerConfig, SchedulerError};
use crate::latents::Latents;

/// The prediction type: the quantity that the model was trained to predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity `alpha * noise - sigma * x0` (Salimans & Ho 2022).
    V,
    /// The clean image.
    Sample,
    /// The direction of a rectified flow, `noise - x0`.
    Flow,
}

pub(super) const EPSILON: (&str, Prediction) = ("epsilon", Prediction::Epsilon);
pub(super) const V: (&str, Prediction) = ("v_prediction", Prediction::V);
pub(super) const SAMPLE: (&str, Prediction) = ("sample", Prediction::Sample);
pub(super) const FLOW: (&str, Prediction) = ("flow_prediction", Prediction::Flow);

/// The `prediction_type` of a configuration, one of `known`.
pub(super) fn prediction(
    config: &SchedulerConfig,
    known: &[(&'static str, Prediction)],
) -> Result<Prediction, SchedulerError> {
    config.choice("prediction_type", known)
}

impl Prediction {
    /// The clean image in a sample `x0 + sigma * noise`, for an `output` that answered the sample
    /// scaled by `1 / sqrt(sigma^2 + 1)`.
    pub(super) fn denoise(self, output: &Latents, sample: &Latents, sigma: f32) -> Latents {
        match self {
            Self::Epsilon | Self::Flow => {
                Latents::zip_with([output, sample], |[out, x]| x - sigma * out)
            }
            Self::V => {
                let variance = sigma * sigma + 1.0;
                let factor = -sigma / variance.sqrt();
                Latents::zip_with([output, sample], |[out, x]| out * factor + x / variance)
            }
            Self::Sample => output.clone(),
        }
    }

    /// The clean image in a sample `alpha * x0 + sigma * noise`.
    pub(super) fn clean(
        self,
        output: &Latents,
        sample: &Latents,
        alpha: f32,
        sigma: f32,
    ) -> Latents {
        match self {
            Self::Epsilon => {
                Latents::zip_with([output, sample], |[out, x]| (x - sigma * out) / alpha)
            }
            Self::V => Latents::zip_with([output, sample], |[out, x]| alpha * x - sigma * out),
            Self::Sample => output.clone(),
            Self::Flow => Latents::zip_with([output, sample], |[out, x]| x - sigma * out),
        }
    }

    /// The noise in a sample `alpha * x0 + sigma * noise`.
    pub(super) fn noise(
        self,
        output: &Latents,
        sample: &Latents,
        alpha: f32,
        sigma: f32,
    ) -> Latents {
        match self {
            Self::Epsilon => output.clone(),
            Self::V => Latents::zip_with([output, sample], |[out, x]| alpha * out + sigma * x),
            Self::Sample => noise_beside(output, sample, alpha, sigma),
            Self::Flow => Latents::zip_with([output, sample], |[out, x]| x + alpha * out),
        }
    }
}

/// The noise in a sample `alpha * x0 + sigma * noise` whose clean image is known.
pub(super) fn noise_beside(x0: &Latents, sample: &Latents, alpha: f32, sigma: f32) -> Latents {
    Latents::zip_with([x0, sample], |[x0, x]| (x - alpha * x0) / sigma)
}
