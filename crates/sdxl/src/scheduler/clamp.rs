//! Limits on predicted clean images.

use super::info::{OptionInfo, option};
use super::{SchedulerConfig, SchedulerError};
use crate::latents::Latents;

/// The options of dynamic thresholding.
pub(super) const THRESHOLDING: &[OptionInfo] = &[
    option("thresholding", "false"),
    option("dynamic_thresholding_ratio", "0.995"),
    option("sample_max_value", "1.0"),
];

/// The limit on the values of a predicted clean image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Clamp {
    /// No limit.
    Off,
    /// Values are clipped to plus and minus this.
    Fixed(f32),
    /// Dynamic thresholding (Saharia et al., "Photorealistic Text-to-Image Diffusion Models",
    /// 2022): the image is clipped to its own quantile `ratio` of magnitudes, between 1 and `max`,
    /// and divided by it.
    Dynamic { ratio: f32, max: f32 },
}

impl Clamp {
    /// Reads `thresholding`.
    pub(super) fn dynamic(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        if !config.flag("thresholding")? {
            return Ok(Self::Off);
        }
        Ok(Self::Dynamic {
            ratio: config.number_in("dynamic_thresholding_ratio", 0.0, 1.0)? as f32,
            max: config.number_in("sample_max_value", 0.0, f64::INFINITY)? as f32,
        })
    }

    /// Reads `clip_sample`.
    pub(super) fn fixed(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        if !config.flag("clip_sample")? {
            return Ok(Self::Off);
        }
        Ok(Self::Fixed(
            config.number_in("clip_sample_range", 0.0, f64::INFINITY)? as f32,
        ))
    }

    /// Reads `thresholding`, and where that is off `clip_sample`.
    pub(super) fn either(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        match Self::dynamic(config)? {
            Self::Off => Self::fixed(config),
            dynamic => Ok(dynamic),
        }
    }

    /// The limited image.
    pub(super) fn apply(self, mut x0: Latents) -> Latents {
        match self {
            Self::Off => x0,
            Self::Fixed(limit) => x0.map(|x| x.clamp(-limit, limit)),
            Self::Dynamic { ratio, max } => {
                for image in x0.images_mut() {
                    let limit = quantile(image, ratio).max(1.0).min(max);
                    for x in image {
                        *x = x.max(-limit).min(limit) / limit;
                    }
                }
                x0
            }
        }
    }
}

/// The quantile of the magnitudes, interpolated as `torch.quantile` does.
fn quantile(values: &[f32], ratio: f32) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f32;
    let (low, weight) = (rank.floor(), rank - rank.floor());
    let (a, b) = (sorted[low as usize], sorted[rank.ceil() as usize]);
    if weight < 0.5 {
        a + weight * (b - a)
    } else {
        b - (b - a) * (1.0 - weight)
    }
}
