//! The events of a run, and its result.

use super::plan::Plan;
use super::preview::Preview;
use crate::image::{Picture, Pixels};
use crate::latents::Latents;
use crate::request::Request;
use crate::warning::Warning;

/// An event of a run. They come in the order of the work.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The prompts are about to be encoded.
    Encoding,
    /// A network's weights are about to be read.
    Loading,
    /// An evaluation of the UNet has ended.
    Step(StepEvent<'a>),
    /// A picture is about to be decoded.
    Decoding {
        /// The number of the picture, from 1.
        index: usize,
        /// Pictures in all.
        total: usize,
    },
    /// A picture is finished: it can be written while others are made.
    Picture(PictureEvent<'a>),
}

/// The end of an evaluation of the UNet.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct StepEvent<'a> {
    /// Evaluations done.
    pub index: usize,
    /// Evaluations in all.
    pub total: usize,
    /// Seconds that this one took.
    pub seconds: f64,
    pub(super) preview: &'a Preview,
}

impl StepEvent<'_> {
    /// Small pictures of what the latents are becoming, an eighth of the pictures' width and height:
    /// one for each picture of the group at work. Costs next to nothing, and nothing unless it is
    /// called; for checkpoints whose VAE is not SDXL's, the first call decodes a few small latents to
    /// learn what they look like.
    ///
    /// # Errors
    /// Weights of the VAE that cannot be read.
    pub fn preview(&self) -> crate::Result<Vec<Pixels>> {
        self.preview.pictures()
    }
}

/// A finished picture.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct PictureEvent<'a> {
    /// The number of the picture, from 1.
    pub index: usize,
    /// Pictures in all.
    pub total: usize,
    /// The picture.
    pub picture: &'a Picture,
    /// Whether the VAE decoded it tile by tile.
    pub vae_tiled: bool,
}

/// The result of a run, with everything that was decided about it.
#[non_exhaustive]
pub struct Output {
    /// The pictures, those of the first prompt first; of a resumed run those that were not given out
    /// before it was saved.
    pub images: Vec<Picture>,
    /// The final latents, before the VAE's scaling, one a picture; all of them, also of a resumed
    /// run.
    pub latents: Latents,
    /// The request with nothing left open: size, seed, strength.
    pub request: Request,
    /// The class of the scheduler.
    pub scheduler: &'static str,
    /// The arrangement in memory.
    pub plan: Plan,
    /// Whether the VAE decoded tile by tile, be it for want of memory.
    pub vae_tiled: bool,
    /// Everything the user should know.
    pub warnings: Vec<Warning>,
}
