//! A checkpoint, in the Hugging Face folder layout or in one file: which parts it has, which
//! files hold them, and what its configuration files say.
//!
//! Everything is driven by `model_index.json` and the `config.json` of each part; nothing
//! about the model is assumed. A single file's are made up by [`super::single_file`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::files::{Files, missing_part};
use super::inversion::{InversionFile, Inversions, Widths};
use super::lora::{Adapters, Lora};
use super::replacement::Replacement;
use super::safetensors::{TensorSet, refuse_pickle};
use super::single_file::{SingleFile, parse};
use crate::device::{Device, cpu};
use crate::error::{Error, Result};
use crate::model::config::{ClipConfig, UNetConfig, VaeConfig};

/// The kinds of SDXL checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Two text encoders; makes pictures from noise.
    Base,
    /// Only the second text encoder; finishes pictures of a base model.
    Refiner,
}

/// A part of a pipeline that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// CLIP ViT-L text encoder.
    TextEncoder,
    /// OpenCLIP bigG text encoder with projection.
    TextEncoder2,
    /// The denoising network.
    UNet,
    /// The image encoder and decoder.
    Vae,
}

impl Part {
    /// All parts, in the order they run.
    pub const ALL: [Part; 4] = [Part::TextEncoder, Part::TextEncoder2, Part::UNet, Part::Vae];

    /// The folder's name, which is also the key in `model_index.json`.
    pub fn folder(self) -> &'static str {
        match self {
            Part::TextEncoder => "text_encoder",
            Part::TextEncoder2 => "text_encoder_2",
            Part::UNet => "unet",
            Part::Vae => "vae",
        }
    }

    /// The name that weight files start with: transformers and diffusers differ.
    pub(crate) fn file_stem(self) -> &'static str {
        match self {
            Part::TextEncoder | Part::TextEncoder2 => "model",
            Part::UNet | Part::Vae => "diffusion_pytorch_model",
        }
    }

    /// The class that `model_index.json` must name for this part.
    fn class(self) -> &'static str {
        match self {
            Part::TextEncoder => "CLIPTextModel",
            Part::TextEncoder2 => "CLIPTextModelWithProjection",
            Part::UNet => "UNet2DConditionModel",
            Part::Vae => "AutoencoderKL",
        }
    }
}

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
    files: Files,
    family: Family,
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

/// The pipeline must be SDXL's and have the parts that SDXL needs.
pub(crate) fn check_index(path: &Path, index: &Map<String, Value>) -> Result<()> {
    match index.get("_class_name").and_then(Value::as_str) {
        Some(name) if name.starts_with("StableDiffusionXL") => {}
        Some(name) => {
            return Err(Error::file(
                path,
                format!("this is a checkpoint for {name}, not for Stable Diffusion XL"),
            ));
        }
        None => {
            return Err(Error::file(
                path,
                "it names no `_class_name`, so it is not a pipeline's model_index.json",
            ));
        }
    }
    for part in Part::ALL {
        check_class(path, index, part)?;
    }
    for part in [Part::TextEncoder2, Part::UNet, Part::Vae] {
        if named_class(index, part).is_none() {
            return Err(Error::file(
                path,
                format!("it names no `{}`, which SDXL needs", part.folder()),
            ));
        }
    }
    Ok(())
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
        let adapters = Adapters::open(&options.loras, &checkpoint)?;
        checkpoint.files.adapters = Arc::new(adapters);
        let widths = Widths {
            first: checkpoint.text_encoder.as_ref().map(|c| c.hidden_size),
            second: checkpoint.text_encoder_2.hidden_size,
        };
        let inversions = Inversions::open(&options.embeddings, widths)?;
        checkpoint.files.inversions = Arc::new(inversions);
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
        changed.files.adapters = Arc::new(Adapters::open(loras, &changed)?);
        changed.files.kept.tidy();
        Ok(changed)
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
        let mut files = Files {
            root: root.to_path_buf(),
            variant: options.variant.clone(),
            single: None,
            vae: vae.transpose()?.map(Arc::new),
            unet: unet.transpose()?.map(Arc::new),
            adapters: Arc::default(),
            kept: Arc::default(),
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
            .then(|| read_config(&config_path(Part::TextEncoder)))
            .transpose()?;
        let configs = Configs {
            text_encoder,
            text_encoder_2: read_config(&config_path(Part::TextEncoder2))?,
            unet: match &files.unet {
                Some(unet) => unet.config()?,
                None => read_config(&config_path(Part::UNet))?,
            },
            vae: match &files.vae {
                Some(vae) => vae.config()?,
                None => read_config(&config_path(Part::Vae))?,
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
        let files = Files {
            root: super::random::NAME.into(),
            variant: None,
            single: None,
            vae: None,
            unet: None,
            inversions: Arc::default(),
            device: cpu(),
            adapters: Arc::default(),
            kept: Arc::default(),
        };
        Self::of_parts(files, SingleFile::random())
    }

    fn of_single_file(files: Files) -> Result<Self> {
        refuse_pickle(&files.root)?;
        let single = SingleFile::open(&files.root)?;
        Self::of_parts(files, single)
    }

    fn of_parts(mut files: Files, single: SingleFile) -> Result<Self> {
        let root = files.root.clone();
        let has = |part: Part| single.tensors(part).is_some();
        for part in Part::ALL {
            let needed = match part {
                Part::TextEncoder => single.family() == Family::Base,
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
            unet: match &files.unet {
                Some(unet) => unet.config()?,
                None => single.config(Part::UNet)?,
            },
            vae: match &files.vae {
                Some(vae) => vae.config()?,
                None => single.config(Part::Vae)?,
            },
            scheduler: parse(single.configs(), "scheduler/scheduler_config.json", &root)?,
        };
        files.single = Some(Arc::new(single));
        Self::build(files, &index, configs)
    }

    fn build(files: Files, index: &Map<String, Value>, configs: Configs) -> Result<Self> {
        let asked = files
            .unet
            .as_ref()
            .and_then(|unet| unet.scheduler().cloned());
        let flag = |key: &str| index.get(key).and_then(Value::as_bool);
        let checkpoint = Checkpoint {
            files,
            family: if configs.text_encoder.is_some() {
                Family::Base
            } else {
                Family::Refiner
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
        moved.files.kept = Arc::default();
        moved
    }

    /// The folder, or the file.
    pub fn root(&self) -> &Path {
        self.files.root()
    }

    /// Gives the files of all parts.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The file that says how a part is built; a single file itself.
    pub fn config_path(&self, part: Part) -> PathBuf {
        self.files.config_path(part)
    }

    /// Base or refiner.
    pub fn family(&self) -> Family {
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

    /// The text encoders and what goes with them.
    pub fn text_parts(&self) -> TextParts {
        TextParts {
            files: self.files.clone(),
            text_encoder: self.text_encoder.clone(),
            text_encoder_2: self.text_encoder_2.clone(),
        }
    }

    /// Maps a part's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        self.files.tensors(part)
    }
}

/// The text encoders of a checkpoint with their tokenizers: all that encoding prompts
/// takes. A folder need not hold anything else.
#[derive(Clone)]
pub struct TextParts {
    files: Files,
    /// First text encoder; a refiner has none.
    pub text_encoder: Option<ClipConfig>,
    /// Second text encoder.
    pub text_encoder_2: ClipConfig,
}

impl TextParts {
    /// Opens the text parts of the folder `root`: `text_encoder_2` with `tokenizer_2`, and
    /// `text_encoder` with `tokenizer` where they are there; or those of a single file.
    ///
    /// # Errors
    /// Names the file that is missing or that this program cannot run.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<TextParts> {
        let options = OpenOptions {
            variant: variant.map(str::to_string),
            ..OpenOptions::default()
        };
        Self::open_with(root, &options)
    }

    /// [`Self::open`] with textual inversions; LoRAs and VAEs are for whole checkpoints.
    ///
    /// # Errors
    /// As [`Self::open`], and a textual inversion that cannot be used.
    pub fn open_with(root: &Path, options: &OpenOptions) -> Result<TextParts> {
        if root.is_file() {
            return Ok(Checkpoint::open_with(root, options)?.text_parts());
        }
        if !root.is_dir() {
            return Err(Error::file(
                root,
                "there is no such folder; give one that holds text_encoder_2/ and tokenizer_2/",
            ));
        }
        let config = |part: Part| -> Result<ClipConfig> {
            let path = root.join(part.folder()).join("config.json");
            let config: ClipConfig = read_config(&path)?;
            config.check(&path)?;
            Ok(config)
        };
        let first = root.join(Part::TextEncoder.folder()).is_dir();
        let text_encoder = first.then(|| config(Part::TextEncoder)).transpose()?;
        let text_encoder_2 = config(Part::TextEncoder2)?;
        let widths = Widths {
            first: text_encoder.as_ref().map(|c| c.hidden_size),
            second: text_encoder_2.hidden_size,
        };
        Ok(TextParts {
            files: Files {
                root: root.to_path_buf(),
                variant: options.variant.clone(),
                single: None,
                vae: None,
                unet: None,
                adapters: Arc::default(),
                kept: Arc::default(),
                inversions: Arc::new(Inversions::open(&options.embeddings, widths)?),
                device: cpu(),
            },
            text_encoder,
            text_encoder_2,
        })
    }

    /// Gives the files of both text encoders.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Maps a text encoder's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        self.files.tensors(part)
    }
}

/// The weight files of a part of a folder.
///
/// The variant's files are taken where the part has them, else the plain ones; a folder that
/// has only one variant (`fp16`) is used as it is.
pub(super) fn find_weights(root: &Path, variant: Option<&str>, part: Part) -> Result<Vec<PathBuf>> {
    let folder = root.join(part.folder());
    if let Some(variant) = variant {
        if let Some(files) = files_of(&folder, part.file_stem(), Some(variant))? {
            return Ok(files);
        }
        if !variant_exists(root, variant) {
            return Err(Error::file(
                root,
                format!(
                    "no part has weights of variant `{variant}` (such as \
                         unet/diffusion_pytorch_model.{variant}.safetensors)"
                ),
            )
            .with_hint("leave out `variant` to use the plain files"));
        }
    }
    if let Some(files) = files_of(&folder, part.file_stem(), None)? {
        return Ok(files);
    }
    if variant.is_none()
        && let Some(files) = files_of(&folder, part.file_stem(), Some("fp16"))?
    {
        return Ok(files);
    }
    Err(missing_weights(&folder, part))
}

fn variant_exists(root: &Path, variant: &str) -> bool {
    Part::ALL.iter().any(|part| {
        matches!(
            files_of(&root.join(part.folder()), part.file_stem(), Some(variant)),
            Ok(Some(_))
        )
    })
}

/// Every file that a checkpoint folder should have and lacks, each as a sentence.
///
/// Unlike [`Checkpoint::open`] this does not stop at the first.
pub fn missing_files(root: &Path) -> Vec<String> {
    let Ok(index) = read_json::<Map<String, Value>>(&root.join("model_index.json")) else {
        return Vec::new();
    };
    let mut wanted = vec![root.join("scheduler/scheduler_config.json")];
    let mut missing = Vec::new();
    for part in Part::ALL {
        if named_class(&index, part).is_none() {
            continue;
        }
        let folder = root.join(part.folder());
        wanted.push(folder.join("config.json"));
        if let Part::TextEncoder | Part::TextEncoder2 = part {
            let tokenizer = part.folder().replace("text_encoder", "tokenizer");
            wanted.push(root.join(&tokenizer).join("vocab.json"));
            wanted.push(root.join(&tokenizer).join("merges.txt"));
        }
        let found = [None, Some("fp16")]
            .into_iter()
            .any(|variant| !matches!(files_of(&folder, part.file_stem(), variant), Ok(None)));
        if !found {
            missing.push(missing_weights(&folder, part).to_string());
        }
    }
    let absent = wanted.iter().filter(|path| !path.is_file());
    missing.extend(absent.map(|path| format!("{}: this file is missing", path.display())));
    missing
}

fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_json(path)
}

/// Reads a JSON file into `T`; errors name the file, the line and the key.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(
            path,
            "this file of the checkpoint is missing; download it, or the whole checkpoint, again",
        ),
        _ => Error::read(path, &e),
    })?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not as expected: {e}")))
}

/// The class `model_index.json` names for a part; `None` where it says `[null, null]`.
pub(crate) fn named_class(index: &Map<String, Value>, part: Part) -> Option<&str> {
    index.get(part.folder())?.get(1)?.as_str()
}

fn check_class(path: &Path, index: &Map<String, Value>, part: Part) -> Result<()> {
    match named_class(index, part) {
        Some(class) if class != part.class() => Err(Error::file(
            path,
            format!(
                "its `{}` is a {class}; this program knows {}",
                part.folder(),
                part.class()
            ),
        )),
        _ => Ok(()),
    }
}

/// The weight files `stem[.variant].safetensors`, or those listed by the shard index.
pub(super) fn files_of(
    folder: &Path,
    stem: &str,
    variant: Option<&str>,
) -> Result<Option<Vec<PathBuf>>> {
    let [whole, index] = weight_names(stem, variant);
    let whole = folder.join(whole);
    if whole.exists() {
        return Ok(Some(vec![whole]));
    }
    let index = folder.join(index);
    if !index.exists() {
        return Ok(None);
    }
    let parsed: Map<String, Value> = read_json(&index)?;
    let mut files = Vec::new();
    for name in shards(&index, &parsed)? {
        let path = folder.join(name);
        if !path.exists() {
            return Err(Error::file(
                &path,
                "this shard, named by the index beside it, is missing; download it",
            ));
        }
        files.push(path);
    }
    Ok(Some(files))
}

/// Gives the names of a variant's weight files: of a single file, and of the index of several.
pub(crate) fn weight_names(stem: &str, variant: Option<&str>) -> [String; 2] {
    match variant {
        Some(v) => [
            format!("{stem}.{v}.safetensors"),
            format!("{stem}.safetensors.index.{v}.json"),
        ],
        None => [
            format!("{stem}.safetensors"),
            format!("{stem}.safetensors.index.json"),
        ],
    }
}

/// The files beside an index that hold the weights, each once.
pub(crate) fn shards<'a>(path: &Path, index: &'a Map<String, Value>) -> Result<Vec<&'a str>> {
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(
            path,
            "it has no `weight_map`, so it does not say where the weights are",
        ));
    };
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        // A shard is a file beside its index; anything else is not ours to open.
        if Path::new(name).file_name().and_then(|f| f.to_str()) != Some(name) {
            return Err(Error::file(
                path,
                format!("it points outside its folder: `{name}`"),
            ));
        }
    }
    Ok(names)
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| {
            entries
                .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

fn missing_weights(folder: &Path, part: Part) -> Error {
    let wanted = format!("{}.safetensors", part.file_stem());
    let names = names_in(folder);
    if names.is_empty() {
        return Error::file(folder, "this part of the checkpoint is missing")
            .with_hint(format!("{wanted} should be in it"));
    }
    if let Some(pickle) = names
        .iter()
        .find(|n| refuse_pickle(Path::new(n.as_str())).is_err())
    {
        return Error::file(
            folder,
            format!(
                "it has only the pickle file {pickle}, which can run any program when opened and \
                 is never read"
            ),
        )
        .with_hint(format!("get {wanted}"));
    }
    let message = format!("{wanted} is missing (found: {})", names.join(", "));
    Error::file(folder, message)
        .with_hint("for files such as *.fp16.safetensors add `variant fp16`")
}

/// The one `.safetensors` file of a folder that has one.
fn only_safetensors(root: &Path) -> Option<PathBuf> {
    let names = names_in(root);
    let mut files = names.iter().filter(|n| n.ends_with(".safetensors"));
    match (files.next(), files.next()) {
        (Some(one), None) => Some(root.join(one)),
        _ => None,
    }
}

fn what_is_in(root: &Path) -> String {
    let names = names_in(root);
    let inner = names
        .iter()
        .find(|n| root.join(n).join("model_index.json").exists());
    match inner {
        Some(name) => format!(
            "it holds no model_index.json, but {} does; give that folder",
            root.join(name).display()
        ),
        None => "it holds no model_index.json, so it is not a checkpoint in the folder layout"
            .to_string(),
    }
}
