//! The opening of a pipeline: where its weights are, and how they are held in memory.

use std::path::{Path, PathBuf};

use super::check::check_refiner;
use super::{Offload, Pipeline, Refiner};
use crate::device;
use crate::error::Result;
use crate::memory::{self, Budget};
use crate::precision::Precision;
use crate::weights::InversionFile;
use crate::weights::lora::Lora;
use crate::weights::{Checkpoint, OpenOptions};

/// bfloat16 where the processor multiplies it natively, else `f32`.
pub fn default_precision() -> Precision {
    match sdxl_kernels::Isa::current().multiplies_bf16() {
        true => Precision::Bf16,
        false => Precision::F32,
    }
}

/// The place of a checkpoint.
#[derive(Clone)]
pub enum CheckpointSource {
    /// A folder, a single file or, with the feature `hub`, a model's name on the hub.
    Named(PathBuf),
    /// A checkpoint that is open already.
    Opened(Box<Checkpoint>),
}

impl From<&Path> for CheckpointSource {
    fn from(path: &Path) -> CheckpointSource {
        CheckpointSource::Named(path.to_path_buf())
    }
}

impl From<PathBuf> for CheckpointSource {
    fn from(path: PathBuf) -> CheckpointSource {
        CheckpointSource::Named(path)
    }
}

impl From<&PathBuf> for CheckpointSource {
    fn from(path: &PathBuf) -> CheckpointSource {
        CheckpointSource::Named(path.clone())
    }
}

impl From<&str> for CheckpointSource {
    fn from(name: &str) -> CheckpointSource {
        CheckpointSource::Named(name.into())
    }
}

impl From<String> for CheckpointSource {
    fn from(name: String) -> CheckpointSource {
        CheckpointSource::Named(name.into())
    }
}

impl From<Checkpoint> for CheckpointSource {
    fn from(checkpoint: Checkpoint) -> CheckpointSource {
        CheckpointSource::Opened(Box::new(checkpoint))
    }
}

impl CheckpointSource {
    /// Opens the checkpoint. What stands beside a name in `options` does not change one that is
    /// open already.
    fn open(self, options: &OpenOptions, precision: Precision) -> Result<Checkpoint> {
        match self {
            CheckpointSource::Opened(checkpoint) => Ok(*checkpoint),
            CheckpointSource::Named(name) => open_named(&name, options, precision),
        }
    }
}

/// A path that exists comes first: a folder `org/name` is never taken for a model on the hub.
#[cfg(feature = "hub")]
fn open_named(named: &Path, options: &OpenOptions, precision: Precision) -> Result<Checkpoint> {
    use crate::hub::{FetchOptions, Hub, ModelName, Purpose, Settings};
    let name = named.to_str().and_then(ModelName::parse);
    let Some(name) = name.filter(|_| !named.exists()) else {
        return Checkpoint::open_with(named, options);
    };
    let replaced = [
        (crate::Part::Vae, options.vae.is_some()),
        (crate::Part::UNet, options.unet.is_some()),
    ];
    let want = FetchOptions {
        purpose: Purpose::Checkpoint,
        precision,
        variant: options.variant.clone(),
        replaced: replaced.into_iter().filter(|r| r.1).map(|r| r.0).collect(),
    };
    let found = Hub::new(Settings::from_env()).get(&name, &want, &|_| {})?;
    let options = OpenOptions {
        variant: options.variant.clone().or(found.variant),
        ..options.clone()
    };
    Checkpoint::open_with(&found.path, &options)
}

#[cfg(not(feature = "hub"))]
fn open_named(named: &Path, options: &OpenOptions, _precision: Precision) -> Result<Checkpoint> {
    Checkpoint::open_with(named, options)
}

/// A pipeline that is being opened: [`Pipeline::open`], then what is to be other than usual, then
/// [`PipelineBuilder::load`] or [`PipelineBuilder::lazy`].
///
/// ```no_run
/// use sdxl::{Lora, Offload, Pipeline, Precision};
///
/// let pipeline = Pipeline::open("stabilityai/stable-diffusion-xl-base-1.0")
///     .refiner("stabilityai/stable-diffusion-xl-refiner-1.0")
///     .lora(Lora::new("ink.safetensors", 0.8))
///     .precision(Precision::Bf16)
///     .offload(Offload::Model)
///     .load()?;
/// # Ok::<(), sdxl::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct PipelineBuilder {
    source: CheckpointSource,
    refiner: Option<CheckpointSource>,
    options: OpenOptions,
    precision: Option<Precision>,
    device: device::DeviceChoice,
    offload: Option<Offload>,
    budget: Option<Budget>,
}

impl Pipeline {
    /// Opens a checkpoint: a folder, a single file, a model's name on the hub, or a
    /// [`Checkpoint`] that is open already. Unless [`PipelineBuilder::offload`] or
    /// [`PipelineBuilder::offload_by_run`] says otherwise, all networks are loaded and stay in memory.
    pub fn open(source: impl Into<CheckpointSource>) -> PipelineBuilder {
        PipelineBuilder {
            source: source.into(),
            refiner: None,
            options: OpenOptions::default(),
            precision: None,
            device: device::DeviceChoice::Auto,
            offload: Some(Offload::None),
            budget: None,
        }
    }
}

impl PipelineBuilder {
    /// Uses weight files named `*.VARIANT.safetensors` (`fp16`) where a part has them.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.options.variant = Some(variant.into());
        self
    }

    /// Sets the precision of the networks. Without it: [`default_precision`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// Sets the device that computes. Without it: the fastest there is.
    pub fn device(mut self, device: device::DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Says which networks are in memory. Where they do not stay, what is wrong with weights shows
    /// only when their network is loaded, in a run.
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = Some(offload);
        self
    }

    /// Lets every run decide which networks are in memory: what costs least of what fits. Nothing is
    /// loaded before the first run.
    pub fn offload_by_run(mut self) -> Self {
        self.offload = None;
        self
    }

    /// Sets the memory that the process may take, within which runs are arranged. Without it: what is
    /// free when a run is prepared.
    pub fn memory(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Adds a LoRA.
    pub fn lora(mut self, lora: Lora) -> Self {
        self.options.loras.push(lora);
        self
    }

    /// Adds a textual inversion; a refiner, which reads the same prompts, has it too.
    pub fn embedding(mut self, embedding: InversionFile) -> Self {
        self.options.embeddings.push(embedding);
        self
    }

    /// Uses another VAE, a file or a folder, also for a refiner.
    pub fn vae(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.vae = Some(path.into());
        self
    }

    /// Uses another UNet, a file or a folder.
    pub fn unet(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.unet = Some(path.into());
        self
    }

    /// Adds a refiner. Where networks stay in memory, its weights are read in the background, and the
    /// first run that comes to it waits for them.
    pub fn refiner(mut self, source: impl Into<CheckpointSource>) -> Self {
        self.refiner = Some(source.into());
        self
    }

    /// Opens the files, and loads the networks where they are to stay in memory.
    ///
    /// # Errors
    /// The errors of [`Self::lazy`]; [`Error::File`](crate::Error::File) for weights that are
    /// wrong, and [`Error::Machine`](crate::Error::Machine) for more than fits in memory, as far as
    /// networks are loaded now.
    pub fn load(mut self) -> Result<Pipeline> {
        let refiner = self.refiner.take();
        let (offload, options) = (self.offload, self.options.clone());
        let (device, precision) = (self.device, self.chosen_precision());
        let mut pipeline = self.lazy()?;
        let checkpoint = &pipeline.checkpoint;
        let needed = match offload {
            Some(Offload::None) => memory::weight_bytes(checkpoint, precision)?,
            Some(Offload::Model) => memory::largest_network_bytes(checkpoint, precision)?,
            // Plans of runs say what fits.
            Some(Offload::Sequential) | None => 0,
        };
        memory::check_fits(
            &format!("this checkpoint in {precision}"),
            needed,
            "use `precision bf16`, f16 or int8, or a machine with more memory",
        )?;
        let refiner = (refiner)
            .map(|source| open_refiner(source, &options, precision, device))
            .transpose()?;
        if let Some(refiner) = &refiner {
            check_refiner(&pipeline.checkpoint, refiner)?;
        }
        if pipeline.is_pinned() {
            pipeline.networks.load_all()?;
        }
        if let Some(checkpoint) = refiner {
            pipeline.refiner = Some(Refiner::load_beside(&pipeline, checkpoint)?);
        }
        Ok(pipeline)
    }

    /// Opens the files; every network is loaded when a run first needs it.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for what is missing or wrong in the files, and for a
    /// refiner that is none or does not go with the base.
    pub fn lazy(self) -> Result<Pipeline> {
        let precision = self.chosen_precision();
        let checkpoint = self.source.open(&self.options, precision)?;
        let checkpoint = on_device(checkpoint, self.device);
        let held = (self.offload, self.budget);
        let mut pipeline = Pipeline::of(checkpoint, precision, held, None);
        if let Some(source) = self.refiner {
            let checkpoint = open_refiner(source, &self.options, precision, self.device)?;
            pipeline.refiner = Some(Refiner::lazy_beside(&pipeline, checkpoint)?);
        }
        Ok(pipeline)
    }

    fn chosen_precision(&self) -> Precision {
        self.precision.unwrap_or_else(default_precision)
    }
}

fn open_refiner(
    source: CheckpointSource,
    options: &OpenOptions,
    precision: Precision,
    device: device::DeviceChoice,
) -> Result<Checkpoint> {
    // Neither a UNet nor LoRAs made for the base fit the refiner.
    let options = OpenOptions {
        unet: None,
        loras: Vec::new(),
        ..options.clone()
    };
    Ok(on_device(source.open(&options, precision)?, device))
}

/// The checkpoint on the device that was named; one that was opened before may be on one already.
fn on_device(checkpoint: Checkpoint, device: device::DeviceChoice) -> Checkpoint {
    match device {
        device::DeviceChoice::Auto => checkpoint,
        named => checkpoint.on(named.device()),
    }
}
