//! A checkpoint, in the Hugging Face folder layout or in one file: which parts it has, which
//! files hold them, and what its configuration files say.
//!
//! Everything is driven by `model_index.json` and the `config.json` of each part; nothing
//! about the model is assumed. A single file's are made up by [`super::single_file`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::checkpoint_files::{CheckpointFiles, missing_part};
use super::inversion::{InversionFile, Inversions, Widths};
use super::layout::{check_index, named_class, only_safetensors, what_is_in};
use super::lora::{BaseNetworks, Lora, OpenedLoras};
use super::part::{CheckpointKind, Part};
use super::replacement::Replacement;
use super::single_file::{SingleFile, parse};
use super::tensor_set::TensorSet;
use crate::device::{Device, cpu};
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::model::config::{ClipConfig, UNetConfig, VaeConfig};

/// Options for opening a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Use weight files named `*.VARIANT.safetensors` (`fp16`) where a part has them.
    pub variant: Option<String>,
    /// A VAE to use in the place of the checkpoint's own: a folder or a file.
    pub vae: Option<PathBuf>,
    /// A UNet to use in the place of the checkpoint's own: a folder, or a `.safetensors` or GGUF
    /// file.
    pub unet: Option<PathBuf>,
    /// LoRAs to add to the weights.
    pub loras: Vec<Lora>,
    /// Textual inversions that prompts may use.
    pub embeddings: Vec<InversionFile>,
}

/// An opened checkpoint: its configuration read and checked, no weights yet.
#[derive(Clone)]
pub struct Checkpoint {
    files: CheckpointFiles,
    family: CheckpointKind,
    /// Whether an absent negative prompt means zeros instead of an encoded "".
    pub force_zeros_for_empty_prompt: bool,
    /// Whether the size ids end in an aesthetic score instead of a target size.
    pub requires_aesthetics_score: bool,
    /// First text encoder; a refiner has none.
    pub text_encoder: Option<ClipConfig>,
    /// Second text encoder.
    pub text_encoder_2: ClipConfig,
    /// Denoising network.
    pub unet: UNetConfig,
    /// Image encoder and decoder.
    pub vae: VaeConfig,
    /// `scheduler_config.json` as it is, unknown keys included.
    pub scheduler: Map<String, Value>,
}

/// The contents of a checkpoint's configuration files.
struct Configs {
    text_encoder: Option<ClipConfig>,
    text_encoder_2: ClipConfig,
    unet: UNetConfig,
    vae: VaeConfig,
    scheduler: Map<String, Value>,
}

/// The configuration of a part that stands in for another, where it has one of its own.
fn replaced<T: DeserializeOwned>(part: &Option<Arc<Replacement>>) -> Result<Option<T>> {
    let config = part.as_ref().map(|part| part.config()).transpose()?;
    Ok(config.flatten())
}

impl Checkpoint {
    /// Opens the folder or file `root`. With `variant` (`fp16`), weight files named
    /// `*.fp16.safetensors` are used where a part has them.
    ///
    /// # Errors
    /// Names the file that is missing, or cannot be read, or is of another kind of model, or that
    /// holds something this program cannot run.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Self> {
        let options = OpenOptions {
            variant: variant.map(str::to_string),
            ..OpenOptions::default()
        };
        Self::open_with(root, &options)
    }

    /// Opens the folder or file `root`.
    ///
    /// # Errors
    /// As [`Self::open`], and a VAE, a LoRA or a textual inversion that cannot be used.
    pub fn open_with(root: &Path, options: &OpenOptions) -> Result<Self> {
        let mut checkpoint = Self::open_bare(root, options)?;
        checkpoint.files.adapters = Arc::new(checkpoint.adapters(&options.loras)?);
        checkpoint.files.inversions = Arc::new(checkpoint.inversions(&options.embeddings)?);
        Ok(checkpoint)
    }

    /// The same checkpoint with these LoRAs in the place of those that it has. Networks that are
    /// loaded from both have the layers in common that are the same.
    ///
    /// # Errors
    /// LoRAs that do not fit.
    pub fn with_loras(&self, loras: &[Lora]) -> Result<Checkpoint> {
        let mut changed = self.clone();
        changed.files.adapters = Arc::default();
        changed.files.adapters = Arc::new(changed.adapters(loras)?);
        let words = changed.inversions(self.files.inversions().files())?;
        changed.files.inversions = Arc::new(words);
        changed.files.layer_cache.evict_dropped();
        Ok(changed)
    }

    /// Opens LoRAs for the networks of this checkpoint, which has none yet.
    fn adapters(&self, loras: &[Lora]) -> Result<OpenedLoras> {
        if loras.is_empty() {
            return Ok(OpenedLoras::default());
        }
        let parts = [Part::UNet, Part::TextEncoder, Part::TextEncoder2];
        let tensors = (parts.into_iter().filter(|part| self.has(*part)))
            .map(|part| Ok((part, self.tensors(part)?)))
            .collect::<Result<_>>()?;
        let networks = BaseNetworks {
            unet: &self.unet,
            unet_config: self.config_path(Part::UNet),
            tensors,
        };
        OpenedLoras::open(loras, &networks)
    }

    /// Opens textual inversions for the text encoders of this checkpoint, with those that its LoRAs
    /// bring along.
    fn inversions(&self, files: &[InversionFile]) -> Result<Inversions> {
        let widths = Widths {
            first: self.text_encoder.as_ref().map(|c| c.hidden_size),
            second: self.text_encoder_2.hidden_size,
        };
        Inversions::open(files, self.files.adapters.bundles(), widths)
    }

    fn open_bare(root: &Path, options: &OpenOptions) -> Result<Self> {
        if !root.exists() {
            return Err(Error::file(
                root,
                "there is no such checkpoint; give the folder that holds model_index.json, a \
                 checkpoint in one .safetensors file, or the name of a model on the hub, which \
                 is ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FILE.safetensors",
            ));
        }
        let variant = options.variant.as_deref();
        let vae = (options.vae.as_ref()).map(|path| Replacement::vae(path, variant));
        let unet = (options.unet.as_ref())
            .map(|path| Replacement::unet(path, variant, &root.join("unet/config.json")));
        let mut files = CheckpointFiles {
            root: root.to_path_buf(),
            variant: options.variant.clone(),
            single: None,
            vae: vae.transpose()?.map(Arc::new),
            unet: unet.transpose()?.map(Arc::new),
            adapters: Arc::default(),
            layer_cache: Arc::default(),
            inversions: Arc::default(),
            device: cpu(),
        };
        if root.is_file() {
            return Self::of_single_file(files);
        }
        let index_path = root.join("model_index.json");
        if !index_path.exists() {
            // Some folders hold nothing but the checkpoint in one file.
            if let Some(only) = only_safetensors(root) {
                files.root = only;
                return Self::of_single_file(files);
            }
            return Err(Error::file(root, what_is_in(root)));
        }
        let index: Map<String, Value> = read_json(&index_path)?;
        check_index(&index_path, &index)?;
        let present = |part: Part| named_class(&index, part).is_some();
        let config_path = |part: Part| root.join(part.folder()).join("config.json");
        let text_encoder: Option<ClipConfig> = present(Part::TextEncoder)
            .then(|| read_json(&config_path(Part::TextEncoder)))
            .transpose()?;
        let configs = Configs {
            text_encoder,
            text_encoder_2: read_json(&config_path(Part::TextEncoder2))?,
            unet: match replaced(&files.unet)? {
                Some(config) => config,
                None => read_json(&config_path(Part::UNet))?,
            },
            vae: match replaced(&files.vae)? {
                Some(config) => config,
                None => read_json(&config_path(Part::Vae))?,
            },
            scheduler: read_json(&root.join("scheduler/scheduler_config.json"))?,
        };
        Self::build(files, &index, configs)
    }

    /// SDXL base 1.0 with random weights in the place of its own, see [`super::random`].
    ///
    /// # Errors
    /// None.
    pub fn with_random_weights() -> Result<Self> {
        let files = CheckpointFiles {
            root: super::random::NAME.into(),
            variant: None,
            single: None,
            vae: None,
            unet: None,
            inversions: Arc::default(),
            device: cpu(),
            adapters: Arc::default(),
            layer_cache: Arc::default(),
        };
        Self::of_parts(files, SingleFile::random())
    }

    fn of_single_file(files: CheckpointFiles) -> Result<Self> {
        let single = SingleFile::open(&files.root)?;
        Self::of_parts(files, single)
    }

    fn of_parts(mut files: CheckpointFiles, single: SingleFile) -> Result<Self> {
        let root = files.root.clone();
        let has = |part: Part| single.tensors(part).is_some();
        for part in Part::ALL {
            let needed = match part {
                Part::TextEncoder => single.family() == CheckpointKind::Base,
                Part::Vae => files.vae.is_none(),
                _ => true,
            };
            if needed && !has(part) {
                return Err(missing_part(&root, part));
            }
        }
        let index: Map<String, Value> = parse(single.configs(), "model_index.json", &root)?;
        check_index(&root, &index)?;
        let configs = Configs {
            text_encoder: has(Part::TextEncoder)
                .then(|| single.config(Part::TextEncoder))
                .transpose()?,
            text_encoder_2: single.config(Part::TextEncoder2)?,
            unet: match replaced(&files.unet)? {
                Some(config) => config,
                None => single.config(Part::UNet)?,
            },
            vae: match replaced(&files.vae)? {
                Some(config) => config,
                None => single.config(Part::Vae)?,
            },
            scheduler: parse(single.configs(), "scheduler/scheduler_config.json", &root)?,
        };
        files.single = Some(Arc::new(single));
        Self::build(files, &index, configs)
    }

    fn build(files: CheckpointFiles, index: &Map<String, Value>, configs: Configs) -> Result<Self> {
        let asked = files
            .unet
            .as_ref()
            .and_then(|unet| unet.scheduler().cloned());
        let flag = |key: &str| index.get(key).and_then(Value::as_bool);
        let checkpoint = Checkpoint {
            files,
            family: if configs.text_encoder.is_some() {
                CheckpointKind::Base
            } else {
                CheckpointKind::Refiner
            },
            // diffusers' defaults where a key is absent.
            force_zeros_for_empty_prompt: flag("force_zeros_for_empty_prompt").unwrap_or(true),
            requires_aesthetics_score: flag("requires_aesthetics_score").unwrap_or(false),
            text_encoder: configs.text_encoder,
            text_encoder_2: configs.text_encoder_2,
            unet: configs.unet,
            vae: configs.vae,
            scheduler: asked.unwrap_or(configs.scheduler),
        };
        let path = |part: Part| checkpoint.config_path(part);
        if let Some(config) = &checkpoint.text_encoder {
            config.check(&path(Part::TextEncoder))?;
        }
        let second = &checkpoint.text_encoder_2;
        second.check(&path(Part::TextEncoder2))?;
        checkpoint.unet.check(&path(Part::UNet))?;
        checkpoint.vae.check(&path(Part::Vae))?;
        checkpoint.check_fit(&path(Part::UNet))?;
        Ok(checkpoint)
    }

    /// The parts' sizes must agree with one another.
    fn check_fit(&self, unet_config: &Path) -> Result<()> {
        let context = self.text_encoder.as_ref().map_or(0, |c| c.hidden_size)
            + self.text_encoder_2.hidden_size;
        if self.unet.cross_attention_dim != context {
            return Err(Error::file(
                unet_config,
                format!(
                    "cross_attention_dim is {}, but the text encoders give {context} channels; the \
                     parts come from different models",
                    self.unet.cross_attention_dim
                ),
            ));
        }
        let ids = if self.requires_aesthetics_score { 5 } else { 6 };
        let expected = self.text_encoder_2.projection_dim + ids * self.unet.addition_time_embed_dim;
        if self.unet.projection_class_embeddings_input_dim != expected {
            return Err(Error::file(
                unet_config,
                format!(
                    "projection_class_embeddings_input_dim is {}, but the pooled text and {ids} size \
                     ids make {expected}; is `requires_aesthetics_score` in model_index.json right?",
                    self.unet.projection_class_embeddings_input_dim
                ),
            ));
        }
        Ok(())
    }

    /// The same checkpoint, whose networks are loaded to `device`. One that is opened is on the
    /// CPU.
    pub fn on(&self, device: Arc<dyn Device>) -> Checkpoint {
        let mut moved = self.clone();
        moved.files.device = device;
        // Layers that another device packed are none of this one's.
        moved.files.layer_cache = Arc::default();
        moved
    }

    /// The folder, or the file.
    pub fn root(&self) -> &Path {
        self.files.root()
    }

    /// Gives the files of all parts.
    pub fn files(&self) -> &CheckpointFiles {
        &self.files
    }

    /// The file that says how a part is built; a single file itself.
    pub fn config_path(&self, part: Part) -> PathBuf {
        self.files.config_path(part)
    }

    /// Base or refiner.
    pub fn family(&self) -> CheckpointKind {
        self.family
    }

    /// Whether the checkpoint has this part.
    pub fn has(&self, part: Part) -> bool {
        part != Part::TextEncoder || self.text_encoder.is_some()
    }

    /// The weight files of a part, in the order of their shards.
    pub fn weight_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        self.files.weight_files(part)
    }

    /// Maps a part's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        self.files.tensors(part)
    }
}
