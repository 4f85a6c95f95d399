//! A loaded checkpoint, ready to make pictures.

mod conditioning;
mod generate;
mod guidance;

pub use generate::check_start;

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::{Error, Result};
use crate::image::Picture;
use crate::latents::Latents;
use crate::memory;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::request::Request;
use crate::scheduler::{self, Plan, SchedulerConfig, Steps};
use crate::text::TextEncoders;
use crate::text::embeds_file::Embeds;
use crate::weights::folder::{Checkpoint, Family, Part};
use crate::weights::{Loader, Precision};

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
}

/// A loaded checkpoint. Immutable: one can serve many runs at once.
pub struct Pipeline {
    checkpoint: Checkpoint,
    precision: Precision,
    text: TextEncoders,
    unet: UNet,
    vae: Vae,
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
        let text = TextEncoders::load(&checkpoint.text_parts(), precision)?;
        let config_path = checkpoint.root().join("unet/config.json");
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
        let vae = Vae::load(
            &checkpoint.vae,
            &Loader::new(&checkpoint.tensors(Part::Vae)?, vae_precision),
        )?;
        Ok(Pipeline {
            checkpoint,
            precision,
            text,
            unet,
            vae,
        })
    }

    /// The checkpoint's configuration.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The precision of the networks.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Makes the pictures that `request` asks for. `start` are standard normal latents
    /// to use instead of noise drawn from the seed. `observe` sees what happens and
    /// can stop the run after any step.
    ///
    /// # Errors
    /// Whatever [`resolve`] refuses, and [`Error::Cancelled`].
    pub fn generate(
        &self,
        request: &Request,
        start: Option<Latents>,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let request = resolve(&self.checkpoint, self.precision, request)?;
        generate::run(self, &request, None, start, observe)
    }

    /// [`Self::generate`] of prompts that are encoded already. `request.prompt` holds as many
    /// (empty) texts as `embeds` has prompts; an absent negative side is encoded from the request.
    ///
    /// # Errors
    /// As [`Self::generate`], and sides whose lengths cannot be made equal.
    pub fn generate_from_embeds(
        &self,
        request: &Request,
        embeds: &Embeds,
        start: Option<Latents>,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let request = resolve(&self.checkpoint, self.precision, request)?;
        generate::run(self, &request, Some(embeds), start, observe)
    }
}

/// The request with everything decided that was left open (size, seed), after checking
/// that this checkpoint and this machine can do it. Needs no weights.
///
/// # Errors
/// [`Error::Request`] naming the field; [`Error::Scheduler`] for its options;
/// [`Error::Machine`] where the pictures would not fit in memory.
pub fn resolve(
    checkpoint: &Checkpoint,
    precision: Precision,
    request: &Request,
) -> Result<Request> {
    request.check()?;
    conditioning::check(request)?;
    if checkpoint.family() == Family::Refiner {
        return Err(Error::file(
            checkpoint.root(),
            "this is a refiner, which finishes a picture and cannot start one from a prompt; give \
             a base checkpoint",
        ));
    }
    if checkpoint.unet.in_channels != checkpoint.vae.latent_channels {
        return Err(Error::file(
            checkpoint.root().join("unet/config.json"),
            format!(
                "in_channels is {}, not the {} of the latents: an inpainting model, which cannot \
                 make a picture from a prompt alone",
                checkpoint.unet.in_channels, checkpoint.vae.latent_channels
            ),
        ));
    }
    let mut request = request.clone();
    let (height, width) = checkpoint.unet.default_latent_size();
    request.height.get_or_insert(8 * height);
    request.width.get_or_insert(8 * width);
    // Written back resolved, so that the check sees the checkpoint's size too.
    request.check()?;
    if request.seed.is_empty() {
        request.seed.push(fresh_seed());
    }
    build_scheduler(checkpoint, &request)?;
    let encoders = [
        checkpoint.text_encoder.as_ref(),
        Some(&checkpoint.text_encoder_2),
    ];
    for config in encoders.into_iter().flatten() {
        let (skip, layers) = (request.clip_skip.unwrap_or(0), config.num_hidden_layers);
        if skip >= layers {
            return Err(Error::request(format!(
                "clip_skip: {skip} given, but a text encoder has {layers} layers; use up to {}",
                layers - 1
            )));
        }
    }

    let size = request.picture_size();
    let pixels = (size.width * size.height) as u64;
    let one = memory::of_unet_image(&checkpoint.unet, precision, pixels, request.guided());
    let decode = match request.vae_tiling {
        crate::request::Tiling::Off => memory::of_decode(&checkpoint.vae, pixels),
        _ => 0,
    };
    memory::check(
        &format!("a picture of {size}"),
        one.max(decode) + 12 * pixels,
        "ask for a smaller one",
    )?;
    Ok(request)
}

/// The scheduler of a resolved request, at the start of its run.
///
/// # Errors
/// [`Error::Scheduler`] for a name or an option that it does not have.
pub fn build_scheduler(checkpoint: &Checkpoint, request: &Request) -> Result<scheduler::Scheduler> {
    let mut config = SchedulerConfig::from_json(checkpoint.scheduler.clone())?;
    if let Some(name) = &request.scheduler {
        config = config.with_scheduler(name)?;
    }
    for (option, value) in &request.scheduler_options {
        config.set(option, value.clone())?;
    }
    let steps = if !request.timesteps.is_empty() {
        Steps::Timesteps(request.timesteps.clone())
    } else if !request.sigmas.is_empty() {
        Steps::Sigmas(request.sigmas.clone())
    } else {
        Steps::Count(request.steps)
    };
    let mut plan = Plan::new(steps);
    plan.eta = request.eta;
    plan.denoising_end = request.denoising_end.filter(|end| *end < 1.0);
    Ok(scheduler::build(&config, &plan)?)
}

/// A seed nobody chose: from the clock, below 2^32 so that other tools can use it too.
fn fresh_seed() -> u64 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64);
    // Multiplying by an odd constant spreads the fast-changing low bits over the word.
    nanos.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}
