//! The recipe of a picture: a request plus what is needed to repeat it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{FileHash, read_bounded};
use crate::image::{Texts, xmp};
use crate::inputs::InputFile;
use crate::precision::Precision;
use crate::request::{Request, UpscaleMethod};
use crate::scheduler;
use crate::weights::InversionFile;
use crate::weights::lora::Lora;
use crate::weights::{Checkpoint, Part};

/// The refiner of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefinerRecipe {
    /// The checkpoint as it was named.
    pub model: PathBuf,
    /// The refiner's weight files.
    pub files: Vec<FileHash>,
}

/// Everything needed to make a picture again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of this program.
    pub version: String,
    /// The checkpoint as it was named.
    pub model: PathBuf,
    /// The variant of the weight files, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The replacement for the checkpoint's VAE, as it was named, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// The replacement for the checkpoint's UNet, as it was named, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<PathBuf>,
    /// The LoRAs that were added, as they were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    /// The textual inversions that prompts could use, with the words that stand for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<InversionFile>,
    /// Precision of the networks.
    pub precision: Precision,
    /// Instruction set of the kernels; another one rounds differently.
    pub isa: String,
    /// SHA-256 of the latents file the run started from, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_sha256: Option<String>,
    /// The pictures that the run started from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputFile>,
    /// The weight files.
    pub files: Vec<FileHash>,
    /// The refiner, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<RefinerRecipe>,
    /// The class of the scheduler that ran.
    pub scheduler_class: String,
    /// The request, with size and seed filled in.
    #[serde(deserialize_with = "read_request")]
    pub request: Request,
    /// Which of the request's pictures this is, from 0.
    pub image_index: usize,
}

/// Reads a request; one that does not say how its prompts are read is from a version that had
/// plain ones only.
fn read_request<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Request, D::Error> {
    let mut fields = Map::<String, Value>::deserialize(from)?;
    fields
        .entry("prompt_syntax")
        .or_insert_with(|| Value::from("plain"));
    serde_json::from_value(Value::Object(fields)).map_err(serde::de::Error::custom)
}

impl Recipe {
    /// Reads a recipe from a PNG, JPEG or WebP that carries one, or from a JSON file.
    ///
    /// # Errors
    /// A file without a recipe, or with one this version cannot read.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = if let Some(texts) = Texts::read(path)? {
            texts.recipe.ok_or_else(|| {
                Error::file(
                    path,
                    "this picture carries no sdxl recipe (made by another tool, or saved again by an \
                     editor); `sdxl show` prints what it does carry",
                )
            })?
        } else {
            let bytes = read_bounded(path, RECIPE_LIMIT)?;
            String::from_utf8(bytes).map_err(|_| {
                Error::file(
                    path,
                    "this is no picture (PNG, JPEG or WebP), nor a recipe as JSON",
                )
            })?
        };
        let unusable =
            |e: serde_json::Error| Error::file(path, format!("its recipe cannot be used: {e}"));
        let mut recipe: serde_json::Value = serde_json::from_str(&text).map_err(unusable)?;
        if recipe.get("axes").is_some() {
            return Err(Error::file(
                path,
                "this is a sheet of many pictures; each of them has a recipe of its own, in the \
                 folder of the sheet's name with .cells",
            ));
        }
        if let Some(request) = recipe.get_mut("request").and_then(|r| r.as_object_mut()) {
            // Recipes older than the watermark were made without it.
            request.entry("watermark").or_insert(false.into());
        }
        serde_json::from_value(recipe).map_err(unusable)
    }

    /// The recipe as JSON, as it is stored in pictures.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a recipe has string keys only")
    }

    /// Gives the texts that go into a picture's file: the recipe itself, the text that other tools
    /// read, and the source type.
    pub fn texts(&self) -> Texts {
        Texts {
            parameters: Some(self.parameters()),
            recipe: Some(self.to_json()),
            source_type: Some(
                match self.request.init_image {
                    None => xmp::TRAINED,
                    Some(_) => xmp::COMPOSITE,
                }
                .to_string(),
            ),
            ..Texts::default()
        }
    }

    /// The text that A1111 writes under `parameters` and other tools read.
    pub fn parameters(&self) -> String {
        let r = &self.request;
        let at = |list: &[String], i: usize| -> Option<String> {
            list.get(if list.len() == 1 { 0 } else { i }).cloned()
        };
        let prompt_index = self.image_index / r.num_images.max(1);
        let mut text = at(&r.prompt, prompt_index).unwrap_or_default();
        if let Some(negative) = at(&r.negative_prompt, prompt_index) {
            text.push_str(&format!("\nNegative prompt: {negative}"));
        }
        let karras = r
            .scheduler_options
            .get("use_karras_sigmas")
            .is_some_and(|v| v == true);
        // A class without a counterpart there keeps its own name.
        let sampler = scheduler::class(&self.scheduler_class)
            .and_then(|info| info.a1111)
            .unwrap_or(&self.scheduler_class);
        let sampler = format!("{sampler}{}", if karras { " Karras" } else { "" });
        let steps = [r.timesteps.len(), r.sigmas.len().saturating_sub(1)]
            .into_iter()
            .find(|n| *n > 0)
            .unwrap_or(r.steps);
        let seed = r.seed.get(self.image_index).or(r.seed.first());
        text.push_str(&format!(
            "\nSteps: {steps}, Sampler: {sampler}, CFG scale: {}",
            r.guidance_scale
        ));
        // A recipe that was written by hand may leave both open.
        if let Some(seed) = seed {
            text.push_str(&format!(", Seed: {seed}"));
        }
        if let Some(size) = r.decided_size() {
            text.push_str(&format!(", Size: {size}"));
        }
        // A checkpoint in one file comes first of all.
        let unet = self.files.iter().find(|f| f.name.starts_with("unet/"));
        if let Some(unet) = unet.or(self.files.first().filter(|f| !f.name.contains('/'))) {
            let hash = unet.sha256.get(..10).unwrap_or(&unet.sha256);
            text.push_str(&format!(", Model hash: {hash}"));
        }
        if let Some(name) = self.model.file_name() {
            text.push_str(&format!(", Model: {}", name.to_string_lossy()));
        }
        if let Some(skip) = r.clip_skip {
            // A1111 counts the layer that SDXL always skips.
            text.push_str(&format!(", Clip skip: {}", skip + 1));
        }
        if let Some(strength) = r.strength.or(r.upscale.map(|_| r.upscale_strength)) {
            text.push_str(&format!(", Denoising strength: {strength}"));
        }
        if let Some(factor) = r.upscale {
            let method = match r.upscale_method {
                UpscaleMethod::Lanczos => "Lanczos",
                UpscaleMethod::Latent => "Latent",
            };
            text.push_str(&format!(
                ", Hires upscale: {factor}, Hires upscaler: {method}"
            ));
        }
        if r.mask_blur > 0.0 {
            text.push_str(&format!(", Mask blur: {}", r.mask_blur));
        }
        if let Some(name) = self.refiner.as_ref().and_then(|r| r.model.file_name()) {
            text.push_str(&format!(", Refiner: {}", name.to_string_lossy()));
            if let Some(end) = r.denoising_fraction.or(r.denoising_end) {
                text.push_str(&format!(", Refiner switch at: {end}"));
            }
        }
        text.push_str(&format!(", Version: sdxl {}", self.version));
        text
    }
}

/// Most bytes a recipe file may have; real ones have a few thousand.
const RECIPE_LIMIT: u64 = 64 << 20;

/// Hashes all weight files of a checkpoint, and the LoRAs and textual inversions added to it, with
/// `hash`: [`hash_file`](crate::files::hash_file), which takes seconds for a full-size one and is
/// best called beside the run, or a function that remembers its results.
pub fn hash_weights(
    checkpoint: &Checkpoint,
    hash: &dyn Fn(&Path) -> Result<(u64, String)>,
) -> Result<Vec<FileHash>> {
    let mut hashes = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    for part in Part::ALL {
        if !checkpoint.has(part) {
            continue;
        }
        for path in checkpoint.weight_files(part)? {
            // A single file holds all parts, and is hashed once.
            if seen.contains(&path) {
                continue;
            }
            let name = match path.strip_prefix(checkpoint.root()) {
                Ok(inside) if inside.file_name().is_some() => inside,
                _ => path.file_name().map_or(path.as_path(), Path::new),
            };
            let parts: Vec<_> = name.iter().map(|p| p.to_string_lossy()).collect();
            let (bytes, sha256) = hash(&path)?;
            hashes.push(FileHash {
                name: parts.join("/"),
                bytes,
                sha256,
            });
            seen.push(path);
        }
    }
    let loras = checkpoint.files().adapters().loras();
    let embeddings = checkpoint.files().inversions().files();
    let added = (loras.iter().map(|l| &l.file)).chain(embeddings.iter().map(|e| &e.file));
    for path in added {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let (bytes, sha256) = hash(path)?;
        hashes.push(FileHash {
            name: name.to_string_lossy().into_owned(),
            bytes,
            sha256,
        });
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            version: "0.1.0".into(),
            model: "models/base".into(),
            variant: None,
            vae: None,
            unet: None,
            loras: Vec::new(),
            embeddings: Vec::new(),
            precision: Precision::F32,
            isa: "avx2".into(),
            latents_sha256: None,
            inputs: Vec::new(),
            refiner: None,
            files: vec![FileHash {
                name: "unet/diffusion_pytorch_model.safetensors".into(),
                bytes: 3,
                sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
            }],
            scheduler_class: "EulerDiscreteScheduler".into(),
            request: Request {
                prompt: vec!["a cat".into(), "a dog".into()],
                negative_prompt: vec!["rain".into()],
                seed: vec![7],
                num_images: 2,
                steps: 20,
                width: Some(64),
                height: Some(96),
                ..Request::default()
            },
            image_index: 3,
        }
    }

    #[test]
    fn json_round_trip() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("recipe.json");
        std::fs::write(&path, recipe().to_json()).unwrap();
        assert_eq!(Recipe::read(&path).unwrap(), recipe());
        std::fs::write(&path, "{}").unwrap();
        assert!(Recipe::read(&path).is_err());
    }

    #[test]
    fn a_recipe_without_a_syntax_is_plain() {
        let mut old: Value = serde_json::from_str(&recipe().to_json()).unwrap();
        assert_eq!(old["request"]["prompt_syntax"], "compel");
        let fields = old["request"].as_object_mut().unwrap();
        for field in ["prompt_syntax", "prompt_weighting", "pooled_from"] {
            fields.remove(field);
        }
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("recipe.json");
        std::fs::write(&path, old.to_string()).unwrap();
        let read = Recipe::read(&path).unwrap().request;
        assert_eq!(read.prompt_syntax, crate::PromptSyntax::Plain);
        assert_eq!(read.prompt, recipe().request.prompt);
    }

    #[test]
    fn parameters_are_what_other_tools_parse() {
        assert_eq!(
            recipe().parameters(),
            "a dog\nNegative prompt: rain\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 7, \
             Size: 64x96, Model hash: ba7816bf8f, Model: base, Version: sdxl 0.1.0"
        );
    }

    #[test]
    fn a_short_hash_in_a_foreign_recipe_is_no_accident() {
        let mut recipe = recipe();
        recipe.files[0].sha256 = "abc".into();
        assert!(recipe.parameters().contains("Model hash: abc,"));
    }
}
