//! A loaded checkpoint, ready to make pictures.

mod canvas;
mod conditioning;
mod denoise;
mod generate;
mod guidance;
mod held;
mod inpaint;
mod loras;
mod plan;
mod predict;
mod refine;
mod resolve;
mod stages;
mod start;
mod vae;

pub use held::Residence;
pub use plan::{Asked, Plan, Stretch};
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
use crate::memory::{self, Budget};
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::request::Request;
use crate::text::TextEncoders;
use crate::warning::Warning;
use crate::weights::folder::{Checkpoint, Part};
use crate::weights::{Loader, Precision};
use held::Held;
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
    Warning(&'a Warning),
    /// The prompts are being encoded.
    Encoding,
    /// A network's weights are being read.
    Loading,
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
    /// A picture is finished: it can be written while others are decoded.
    Picture {
        /// Which one, from 1.
        index: usize,
        /// Pictures in all.
        total: usize,
        /// The picture.
        picture: &'a Picture,
        /// Whether the VAE decoded it tile by tile.
        vae_tiled: bool,
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
    /// When its networks are in memory.
    residence: Residence,
    text: Arc<Held<TextEncoders>>,
    unet: Arc<Held<UNet>>,
    vae: Arc<Held<Vae>>,
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

    /// Loads the weights of an opened checkpoint, to stay in memory: [`Residence::Whole`].
    ///
    /// # Errors
    /// As [`Self::with_residence`].
    pub fn from_checkpoint(checkpoint: Checkpoint, precision: Precision) -> Result<Pipeline> {
        Self::with_residence(checkpoint, precision, Residence::Whole)
    }

    /// A pipeline whose networks are in memory as `residence` says. Where they do not stay, what
    /// is wrong with weights shows only when their network is read, in a run.
    ///
    /// # Errors
    /// [`Error::File`] for what is missing or wrong in the weights, as far as they are read now;
    /// [`Error::Machine`] where what is in memory at once does not fit.
    pub fn with_residence(
        checkpoint: Checkpoint,
        precision: Precision,
        residence: Residence,
    ) -> Result<Pipeline> {
        let needed = match residence {
            Residence::Whole => memory::of_weights(&checkpoint, precision)?,
            Residence::InTurn => memory::of_largest_network(&checkpoint, precision)?,
            Residence::Streamed => 0,
        };
        memory::check(
            &format!("this checkpoint in {precision}"),
            needed,
            "use `precision bf16`, f16 or int8, or a machine with more memory",
        )?;
        let pipeline = Self::of(checkpoint, precision, residence, None);
        if residence.stays() {
            pipeline.read_all()?;
        }
        Ok(pipeline)
    }

    /// The networks of `checkpoint`, of which none is read yet. What `base` has too is in memory
    /// once.
    fn of(
        checkpoint: Checkpoint,
        precision: Precision,
        residence: Residence,
        base: Option<&Pipeline>,
    ) -> Pipeline {
        let base = base.map(Shared::of);
        let stays = residence.stays();
        let streamed = residence == Residence::Streamed;
        let text = {
            let (checkpoint, base) = (checkpoint.clone(), base.clone());
            Held::new(stays, move || {
                if let Some(base) = &base
                    && let Some(text) = base.text(&checkpoint)?
                {
                    return Ok(Arc::new(text));
                }
                let text = TextEncoders::load(&checkpoint.text_parts(), precision, streamed)?;
                Ok(Arc::new(text))
            })
        };
        let unet = {
            let checkpoint = checkpoint.clone();
            Held::new(stays, move || {
                let tensors = checkpoint.tensors(Part::UNet)?;
                let path = checkpoint.config_path(Part::UNet);
                let loader = Loader::new(&tensors, precision).streamed(streamed);
                Ok(Arc::new(UNet::load(&checkpoint.unet, &path, &loader)?))
            })
        };
        let vae = {
            let checkpoint = checkpoint.clone();
            Held::new(stays, move || {
                if let Some(base) = &base
                    && let Some(vae) = base.vae(&checkpoint)?
                {
                    return Ok(vae);
                }
                let tensors = checkpoint.tensors(Part::Vae)?;
                let precision = precision.of_part(Part::Vae, checkpoint.vae.force_upcast);
                let loader = Loader::new(&tensors, precision).streamed(streamed);
                Ok(Arc::new(Vae::load(&checkpoint.vae, &loader)?))
            })
        };
        Pipeline {
            checkpoint,
            precision,
            residence,
            text: Arc::new(text),
            unet: Arc::new(unet),
            vae: Arc::new(vae),
            refiner: None,
        }
    }

    /// Reads all networks.
    fn read_all(&self) -> Result<()> {
        self.text.get()?;
        self.unet.get()?;
        self.vae.get()?;
        Ok(())
    }

    /// This pipeline with a refiner (another one than before, where there was one). Where networks
    /// stay in memory, its weights are read in the background from now on, and the first run that
    /// comes to it waits for them.
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

    /// The text encoders, with the prompts that they remember; read now where they are not in
    /// memory.
    ///
    /// # Errors
    /// A file that is missing or wrong.
    pub fn text_encoders(&self) -> Result<Arc<TextEncoders>> {
        self.text.get()
    }

    /// When its networks are in memory.
    pub fn residence(&self) -> Residence {
        self.residence
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
    /// Whatever [`resolve`] and [`Plan::new`] refuse, and [`Error::Cancelled`].
    pub fn generate_from(
        &self,
        request: &Request,
        inputs: &Inputs,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let refiner = self.refiner.as_ref().map(Refiner::checkpoint);
        let request = resolve(&self.checkpoint, refiner, request, inputs)?;
        let plan = Plan::new(&Asked {
            checkpoint: &self.checkpoint,
            refiner,
            precision: self.precision,
            request: &request,
            inputs,
            residences: &[self.residence],
            budget: Budget::free(),
        })?;
        generate::run(self, &plan, &request, inputs, observe)
    }

    /// Makes the pictures of a request that [`resolve`] has decided, as `plan` says, which was made
    /// for it.
    ///
    /// # Errors
    /// A plan for networks that are in memory in another way, and [`Error::Cancelled`].
    pub fn generate_planned(
        &self,
        plan: &Plan,
        request: &Request,
        inputs: &Inputs,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        if (plan.residence, plan.precision) != (self.residence, self.precision) {
            return Err(Error::request("memory", "the plan is of another pipeline")
                .with_hint("make one for this"));
        }
        generate::run(self, plan, request, inputs, observe)
    }
}

fn proceed(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
