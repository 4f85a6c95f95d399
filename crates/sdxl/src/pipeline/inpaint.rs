//! Inpainting: what the mask adds to the loop.

use serde::{Deserialize, Serialize};

use super::vae::latent_grid;
use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::model::config::VAE_FACTOR;
use crate::request::Size;
use crate::scheduler::Scheduler;

/// The masked part of a picture, on the grid of the latents. It serialises but for the mask, which
/// follows from the request.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Inpainting {
    /// 1 where something new is made, else 0; `[1, H, W, 1]`.
    #[serde(skip)]
    mask: Option<Latents>,
    /// The picture's latents, `[N, H, W, C]`, to which the rest is held. A UNet with channels for
    /// the mask holds to it by itself.
    known: Option<Latents>,
    /// The noise of this stage, `[N, H, W, C]`.
    noise: Latents,
    /// The latents of the picture without its masked part, `[1, H, W, C]`, for a UNet that sees
    /// them.
    masked: Option<Latents>,
}

/// The mask on the grid of the latents of `width` x `height` pixels, `[1, H, W, 1]`; `pixels` has one
/// value a pixel. A latent is masked where the first of its pixels is, as in the reference.
///
/// # Errors
/// [`Error::Request`] where no latent is masked.
pub(super) fn latent_mask(pixels: &[bool], size: Size) -> Result<Latents> {
    let [height, width] = latent_grid(size);
    let values: Vec<f32> = (0..height * width)
        .map(|i| pixels[(i / width * VAE_FACTOR) * size.width + i % width * VAE_FACTOR])
        .map(|masked| f32::from(u8::from(masked)))
        .collect();
    if values.iter().all(|v| *v == 0.0) {
        return Err(Error::request(
            "mask",
            "what is white (after blurring) is too thin to be seen on the latents' grid of 8 \
             pixels",
        )
        .with_hint("paint more, or use `mask_crop_padding` to work on it enlarged"));
    }
    Ok(Latents::new([1, height, width, 1], values))
}

impl Inpainting {
    /// Inpainting where `mask` ([`latent_mask`]) is 1.
    pub(super) fn new(
        mask: Latents,
        known: Option<Latents>,
        noise: Latents,
        masked: Option<Latents>,
    ) -> Self {
        Inpainting {
            mask: Some(mask),
            known,
            noise,
            masked,
        }
    }

    /// The same with its mask, which is not stored.
    pub(super) fn with_mask(self, mask: Latents) -> Self {
        let mask = Some(mask);
        Inpainting { mask, ..self }
    }

    /// Whether a stored one goes with latents of `shape` `[N, H, W, C]`, and with a UNet that has
    /// channels for the mask or has not.
    pub(super) fn fits(&self, shape: [usize; 4], sees_mask: bool) -> bool {
        let one = [1, shape[1], shape[2], shape[3]];
        self.noise.shape() == shape
            && self.masked.is_some() == sees_mask
            && (self.known.is_some() || sees_mask)
            && (self.known.as_ref()).is_none_or(|known| known.shape() == shape)
            && (self.masked.as_ref()).is_none_or(|masked| masked.shape() == one)
    }

    fn mask(&self) -> &[f32] {
        let mask = self.mask.as_ref();
        mask.expect("a stored inpainting gets its mask when a run is resumed")
            .data()
    }

    /// The same for a stage that starts with noise of its own.
    pub(super) fn with_noise(self, noise: Latents) -> Self {
        Inpainting { noise, ..self }
    }

    /// Puts the picture back outside the mask, with as much noise as the next evaluation expects, for
    /// a UNet of `channels`.
    pub(super) fn blend_known(
        &self,
        latents: &mut Latents,
        scheduler: &Scheduler,
        channels: usize,
    ) {
        let [_, _, _, own] = latents.shape();
        let (Some(known), true) = (&self.known, channels == own) else {
            return;
        };
        let known = scheduler.add_noise(known, &self.noise);
        for (image, known) in latents.images_mut().zip(known.images()) {
            for (i, (value, known)) in image.iter_mut().zip(known).enumerate() {
                let mask = self.mask()[i / own];
                *value = (1.0 - mask) * known + mask * *value;
            }
        }
    }

    /// The input of a UNet with channels for them: latents, mask, masked picture.
    pub(super) fn concat_mask(&self, input: &Latents) -> Latents {
        let Some(masked) = &self.masked else {
            return input.clone();
        };
        let [images, height, width, own] = input.shape();
        let pixels = height * width;
        let mut data = Vec::with_capacity(images * pixels * (2 * own + 1));
        for image in input.images() {
            for pixel in 0..pixels {
                let range = pixel * own..(pixel + 1) * own;
                data.extend_from_slice(&image[range.clone()]);
                data.push(self.mask()[pixel]);
                data.extend_from_slice(&masked.data()[range]);
            }
        }
        Latents::new([images, height, width, 2 * own + 1], data)
    }
}
