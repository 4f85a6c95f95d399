//! A checkpoint in the Hugging Face folder layout: which parts it has, which files
//! hold them, and what its configuration files say.
//!
//! Everything is driven by `model_index.json` and the `config.json` of each part;
//! nothing about the model is assumed.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::safetensors::{TensorSet, refuse_pickle};
use crate::error::{Error, Result};
use crate::model::config::{ClipConfig, UNetConfig, VaeConfig};

/// What kind of SDXL checkpoint a folder holds.
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
    fn file_stem(self) -> &'static str {
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

/// An opened checkpoint folder: its configuration read and checked, no weights yet.
#[derive(Clone)]
pub struct Checkpoint {
    root: PathBuf,
    family: Family,
    variant: Option<String>,
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

impl Checkpoint {
    /// Opens the folder `root`. With `variant` (`fp16`), weight files named
    /// `*.fp16.safetensors` are used where a part has them.
    ///
    /// # Errors
    /// Names the file that is missing, unreadable, of another kind of model, or that
    /// holds something this program cannot run.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Self> {
        if !root.exists() {
            return Err(Error::file(
                root,
                "there is no such checkpoint folder; give the folder that holds model_index.json",
            ));
        }
        if root.is_file() {
            refuse_pickle(root)?;
            return Err(Error::file(
                root,
                "this is a file; a checkpoint in the folder layout is needed (the folder that \
                 holds model_index.json, unet/, vae/ and so on)",
            ));
        }
        let index_path = root.join("model_index.json");
        if !index_path.exists() {
            return Err(Error::file(root, what_is_in(root)));
        }
        let index: Map<String, Value> = read_json(&index_path)?;
        let class = index.get("_class_name").and_then(Value::as_str);
        match class {
            Some(name) if name.starts_with("StableDiffusionXL") => {}
            Some(name) => {
                return Err(Error::file(
                    &index_path,
                    format!("this is a checkpoint for {name}, not for Stable Diffusion XL"),
                ));
            }
            None => {
                return Err(Error::file(
                    &index_path,
                    "it names no `_class_name`, so it is not a pipeline's model_index.json",
                ));
            }
        }
        let flag = |key: &str| index.get(key).and_then(Value::as_bool).unwrap_or(false);
        for part in Part::ALL {
            check_class(&index_path, &index, part)?;
        }
        let present = |part: Part| named_class(&index, part).is_some();
        for part in [Part::TextEncoder2, Part::UNet, Part::Vae] {
            if !present(part) {
                return Err(Error::file(
                    &index_path,
                    format!("it names no `{}`, which SDXL needs", part.folder()),
                ));
            }
        }
        let config_path = |part: Part| root.join(part.folder()).join("config.json");
        let text_encoder: Option<ClipConfig> = present(Part::TextEncoder)
            .then(|| read_config(&config_path(Part::TextEncoder)))
            .transpose()?;
        let checkpoint = Checkpoint {
            root: root.to_path_buf(),
            family: if text_encoder.is_some() {
                Family::Base
            } else {
                Family::Refiner
            },
            variant: variant.map(str::to_string),
            // diffusers' default where the key is absent.
            force_zeros_for_empty_prompt: index
                .get("force_zeros_for_empty_prompt")
                .and_then(Value::as_bool)
                .unwrap_or(true),
            requires_aesthetics_score: flag("requires_aesthetics_score"),
            text_encoder,
            text_encoder_2: read_config(&config_path(Part::TextEncoder2))?,
            unet: read_config(&config_path(Part::UNet))?,
            vae: read_config(&config_path(Part::Vae))?,
            scheduler: read_json(&root.join("scheduler/scheduler_config.json"))?,
        };
        if let Some(config) = &checkpoint.text_encoder {
            config.check(&config_path(Part::TextEncoder))?;
        }
        checkpoint
            .text_encoder_2
            .check(&config_path(Part::TextEncoder2))?;
        checkpoint.unet.check(&config_path(Part::UNet))?;
        checkpoint.vae.check(&config_path(Part::Vae))?;
        checkpoint.check_fit(&config_path(Part::UNet))?;
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

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Base or refiner.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The tokenizer folder that goes with a text encoder.
    pub fn tokenizer_folder(&self, part: Part) -> PathBuf {
        tokenizer_folder(&self.root, part)
    }

    /// Whether the checkpoint has this part.
    pub fn has(&self, part: Part) -> bool {
        part != Part::TextEncoder || self.text_encoder.is_some()
    }

    /// The weight files of a part, in the order of their shards.
    ///
    /// The variant's files are taken where the part has them, else the plain ones;
    /// a folder that has only one variant (`fp16`) is used as it is.
    pub fn weight_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        find_weights(&self.root, self.variant.as_deref(), part)
    }

    /// The text encoders and what goes with them.
    pub fn text_parts(&self) -> TextParts {
        TextParts {
            root: self.root.clone(),
            variant: self.variant.clone(),
            text_encoder: self.text_encoder.clone(),
            text_encoder_2: self.text_encoder_2.clone(),
        }
    }

    /// Maps a part's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        TensorSet::open(&self.weight_files(part)?)
    }
}

/// The text encoders of a checkpoint folder with their tokenizers: all that encoding prompts
/// takes. The folder need not hold anything else.
#[derive(Clone)]
pub struct TextParts {
    root: PathBuf,
    variant: Option<String>,
    /// First text encoder; a refiner has none.
    pub text_encoder: Option<ClipConfig>,
    /// Second text encoder.
    pub text_encoder_2: ClipConfig,
}

impl TextParts {
    /// Opens the text parts of the folder `root`: `text_encoder_2` with `tokenizer_2`, and
    /// `text_encoder` with `tokenizer` where they are there.
    ///
    /// # Errors
    /// Names the file that is missing or that this program cannot run.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<TextParts> {
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
        Ok(TextParts {
            root: root.to_path_buf(),
            variant: variant.map(str::to_string),
            text_encoder: first.then(|| config(Part::TextEncoder)).transpose()?,
            text_encoder_2: config(Part::TextEncoder2)?,
        })
    }

    /// The tokenizer folder that goes with a text encoder.
    pub fn tokenizer_folder(&self, part: Part) -> PathBuf {
        tokenizer_folder(&self.root, part)
    }

    /// Maps a text encoder's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        TensorSet::open(&find_weights(&self.root, self.variant.as_deref(), part)?)
    }
}

fn tokenizer_folder(root: &Path, part: Part) -> PathBuf {
    root.join(match part {
        Part::TextEncoder => "tokenizer",
        _ => "tokenizer_2",
    })
}

fn find_weights(root: &Path, variant: Option<&str>, part: Part) -> Result<Vec<PathBuf>> {
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
                         unet/diffusion_pytorch_model.{variant}.safetensors); leave out --variant \
                         to use the plain files"
                ),
            ));
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
    Err(Error::file(&folder, missing_weights(&folder, part)))
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
            missing.push(Error::file(&folder, missing_weights(&folder, part)).to_string());
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
fn named_class(index: &Map<String, Value>, part: Part) -> Option<&str> {
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
fn files_of(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Option<Vec<PathBuf>>> {
    let (whole, index) = match variant {
        Some(v) => (
            format!("{stem}.{v}.safetensors"),
            format!("{stem}.safetensors.index.{v}.json"),
        ),
        None => (
            format!("{stem}.safetensors"),
            format!("{stem}.safetensors.index.json"),
        ),
    };
    let whole = folder.join(whole);
    if whole.exists() {
        return Ok(Some(vec![whole]));
    }
    let index = folder.join(index);
    if !index.exists() {
        return Ok(None);
    }
    let parsed: Map<String, Value> = read_json(&index)?;
    let Some(map) = parsed.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(
            &index,
            "it has no `weight_map`, so it does not say where the weights are",
        ));
    };
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        // A shard is a file beside its index; anything else is not ours to open.
        if Path::new(name).file_name().and_then(|f| f.to_str()) != Some(name) {
            return Err(Error::file(
                &index,
                format!("it points outside its folder: `{name}`"),
            ));
        }
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

fn missing_weights(folder: &Path, part: Part) -> String {
    let wanted = format!("{}.safetensors", part.file_stem());
    let names = names_in(folder);
    if names.is_empty() {
        return format!("this part of the checkpoint is missing; {wanted} should be in it");
    }
    if let Some(pickle) = names
        .iter()
        .find(|n| refuse_pickle(Path::new(n.as_str())).is_err())
    {
        return format!(
            "it has only the pickle file {pickle}, which can run any program when opened and is \
             never read; get {wanted}"
        );
    }
    format!(
        "{wanted} is missing (found: {}); for files such as *.fp16.safetensors add --variant fp16",
        names.join(", ")
    )
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
