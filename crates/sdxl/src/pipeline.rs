//! A loaded checkpoint, ready to make pictures.

mod canvas;
mod conditioning;
mod denoise;
mod generate;
mod guidance;
mod inpaint;
mod predict;
mod refine;
mod resolve;
mod stages;
mod start;
mod vae;

pub use refine::Refiner;
pub(crate) use resolve::fresh_seed;
pub use resolve::resolve;
pub use stages::{build_scheduler, evaluations};

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Picture;
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::memory;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::request::Request;
use crate::text::TextEncoders;
use crate::weights::folder::{Checkpoint, Part};
use crate::weights::{Loader, Precision};
use refine::Shared;

/// How to load a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Use weight files named `*.VARIANT.safetensors` (`fp16`).
    pub variant: Option<String>,
    /// Precision of the networks. `None`: [`default_precision`].
    pub precision: Option<Precision>,
}

/// bfloat16 where the processor multiplies it natively, else `f32`.
pub fn default_precision() -> Precision {
    match sdxl_kernels::Isa::current() {
        sdxl_kernels::Isa::Avx512Bf16 => Precision::Bf16,
        _ => Precision::F32,
    }
}

/// What happens during a run, in order.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Something the user should know, such as a prompt that was cut.
    Warning(&'a str),
    /// The prompts are being encoded.
    Encoding,
    /// An evaluation of the UNet has ended.
    Step {
        /// Evaluations done.
        index: usize,
        /// Evaluations in all.
        total: usize,
        /// How long this one took.
        seconds: f64,
    },
    /// A picture is about to be decoded.
    Decoding {
        /// Which one, from 1.
        index: usize,
        /// Pictures in all.
        total: usize,
    },
}

/// What a run makes.
pub struct Output {
    /// The pictures: those of the first prompt first.
    pub images: Vec<Picture>,
    /// The final latents, before the VAE's scaling, one a picture.
    pub latents: Latents,
    /// Whether the VAE decoded them tile by tile, be it for want of memory.
    pub vae_tiled: bool,
}

/// A loaded checkpoint. Immutable: one can serve many runs at once.
pub struct Pipeline {
    checkpoint: Checkpoint,
    precision: Precision,
    text: TextEncoders,
    unet: UNet,
    vae: Arc<Vae>,
    refiner: Option<Refiner>,
}

impl Pipeline {
    /// Opens the checkpoint folder `root` and loads it.
    ///
    /// # Errors
    /// [`Error::File`] for what is missing or wrong in the folder; [`Error::Machine`]
    /// where the weights do not fit in memory.
    pub fn load(root: &Path, options: &LoadOptions) -> Result<Pipeline> {
        let checkpoint = Checkpoint::open(root, options.variant.as_deref())?;
        let precision = options.precision.unwrap_or_else(default_precision);
        Self::from_checkpoint(checkpoint, precision)
    }

    /// Loads the weights of an opened checkpoint.
    pub fn from_checkpoint(checkpoint: Checkpoint, precision: Precision) -> Result<Pipeline> {
        memory::check(
            &format!("this checkpoint in {precision}"),
            memory::of_weights(&checkpoint, precision)?,
            "use --precision bf16 or f16, or a machine with more memory",
        )?;
        Self::load_parts(checkpoint, precision, None)
    }

    /// Loads what `shared` does not have already.
    fn load_parts(
        checkpoint: Checkpoint,
        precision: Precision,
        shared: Option<&Shared>,
    ) -> Result<Pipeline> {
        let text = match shared.map(|s| s.text(&checkpoint)).transpose()?.flatten() {
            Some(text) => text,
            None => TextEncoders::load(&checkpoint.text_parts(), precision)?,
        };
        let config_path = checkpoint.config_path(Part::UNet);
        let unet = UNet::load(
            &checkpoint.unet,
            &config_path,
            &Loader::new(&checkpoint.tensors(Part::UNet)?, precision),
        )?;
        // The published VAE overflows in half precision: black pictures. So f32, always,
        // where its config asks for it.
        let vae_precision = if checkpoint.vae.force_upcast {
            Precision::F32
        } else {
            precision
        };
        let vae = match shared.map(|s| s.vae(&checkpoint)).transpose()?.flatten() {
            Some(vae) => vae,
            None => Arc::new(Vae::load(
                &checkpoint.vae,
                &Loader::new(&checkpoint.tensors(Part::Vae)?, vae_precision),
            )?),
        };
        Ok(Pipeline {
            checkpoint,
            precision,
            text,
            unet,
            vae,
            refiner: None,
        })
    }

    /// This pipeline with a refiner (another one than before, where there was one). Its weights
    /// are read in the background from now on; the first run that comes to it waits for them.
    ///
    /// # Errors
    /// [`Error::File`] for a checkpoint that is no refiner or has latents of another scale;
    /// [`Error::Machine`] where both do not fit in memory.
    pub fn with_refiner(mut self, checkpoint: Checkpoint) -> Result<Pipeline> {
        self.refiner = None;
        self.refiner = Some(Refiner::load_beside(&self, checkpoint)?);
        Ok(self)
    }

    /// The refiner.
    pub fn refiner(&self) -> Option<&Refiner> {
        self.refiner.as_ref()
    }

    /// The checkpoint's configuration.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The text encoders, with the prompts that they remember.
    pub fn text_encoders(&self) -> &TextEncoders {
        &self.text
    }

    /// The precision of the networks.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Makes the pictures that `request` asks for, from the input pictures that it names.
    /// `start` are latents to start from instead of noise drawn from the seed, see
    /// [`Inputs::latents`]. `observe` sees what happens and can stop the run after any step.
    ///
    /// # Errors
    /// Whatever [`Inputs::read`] and [`resolve`] refuse, and [`Error::Cancelled`].
    pub fn generate(
        &self,
        request: &Request,
        start: Option<Latents>,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let inputs = Inputs {
            latents: start,
            ..Inputs::read(request)?
        };
        self.generate_from(request, &inputs, observe)
    }

    /// [`Self::generate`] from inputs in memory: the paths in `request` are not looked at.
    ///
    /// # Errors
    /// Whatever [`resolve`] refuses, and [`Error::Cancelled`].
    pub fn generate_from(
        &self,
        request: &Request,
        inputs: &Inputs,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let refiner = self.refiner.as_ref().map(Refiner::checkpoint);
        let request = resolve(&self.checkpoint, refiner, self.precision, request, inputs)?;
        generate::run(self, &request, inputs, observe)
    }
}

fn proceed(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
