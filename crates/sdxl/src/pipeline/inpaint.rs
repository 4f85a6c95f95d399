//! Inpainting: what the mask adds to the loop.

use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::scheduler::Scheduler;

/// The masked part of a picture, on the grid of the latents.
pub struct Inpainting {
    /// 1 where something new is made, else 0; `[1, H, W, 1]`.
    hole: Latents,
    /// The picture's latents, `[N, H, W, C]`, to which the rest is held. A UNet with channels for
    /// the mask holds to it by itself.
    known: Option<Latents>,
    /// The noise of this stage, `[N, H, W, C]`.
    noise: Latents,
    /// The latents of the picture without its masked part, `[1, H, W, C]`, for a UNet that sees
    /// them.
    masked: Option<Latents>,
}

impl Inpainting {
    /// `hole` is a mask of `width` pixels a row; a latent is masked where the first of its
    /// pixels is, which is how the reference shrinks masks.
    ///
    /// # Errors
    /// [`Error::Request`] where no latent is masked.
    pub fn new(
        hole: &[bool],
        known: Option<Latents>,
        noise: Latents,
        masked: Option<Latents>,
    ) -> Result<Self> {
        let [_, height, width, _] = noise.shape();
        let values: Vec<f32> = (0..height * width)
            .map(|i| hole[i / width * 8 * width * 8 + i % width * 8])
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
        Ok(Inpainting {
            hole: Latents::new([1, height, width, 1], values),
            known,
            noise,
            masked,
        })
    }

    /// The same for a stage that starts with noise of its own.
    pub fn with_noise(self, noise: Latents) -> Self {
        Inpainting { noise, ..self }
    }

    /// Puts the picture back outside the hole, with as much noise as the next evaluation
    /// expects, for a UNet of `channels`.
    pub fn hold(&self, latents: &mut Latents, scheduler: &Scheduler, channels: usize) {
        let [_, _, _, own] = latents.shape();
        let (Some(known), true) = (&self.known, channels == own) else {
            return;
        };
        let known = scheduler.add_noise(known, &self.noise);
        for (image, known) in latents.images_mut().zip(known.images()) {
            for (i, (value, known)) in image.iter_mut().zip(known).enumerate() {
                let hole = self.hole.data()[i / own];
                *value = (1.0 - hole) * known + hole * *value;
            }
        }
    }

    /// What a UNet with channels for them is shown: latents, mask, masked picture.
    pub fn widen(&self, input: Latents) -> Latents {
        let Some(masked) = &self.masked else {
            return input;
        };
        let [images, height, width, own] = input.shape();
        let pixels = height * width;
        let mut data = Vec::with_capacity(images * pixels * (2 * own + 1));
        for image in input.images() {
            for pixel in 0..pixels {
                let range = pixel * own..(pixel + 1) * own;
                data.extend_from_slice(&image[range.clone()]);
                data.push(self.hole.data()[pixel]);
                data.extend_from_slice(&masked.data()[range]);
            }
        }
        Latents::new([images, height, width, 2 * own + 1], data)
    }
}
