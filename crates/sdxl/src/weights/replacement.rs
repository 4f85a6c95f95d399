//! A VAE or a UNet that stands in for a checkpoint's own: `--vae`, `--unet`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::infer;
use super::names::Names;
use super::recognise::FileKind;
use super::single_file::{markers, original_unet, original_vae, refuse_scaled, stored_configs};
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::model::config::VaeConfig;
use crate::weights::Part;
use crate::weights::StoredTensor;
use crate::weights::TensorSet;
use crate::weights::layout::files_of;
use crate::weights::part::config_key;

/// An opened part: names and configuration, no weights yet.
pub struct Replacement {
    path: PathBuf,
    /// Nothing: it is built as the part that it replaces.
    config: Option<Value>,
    files: Vec<PathBuf>,
    scheduler: Option<Map<String, Value>>,
    tensors: TensorSet,
}

impl Replacement {
    /// Opens a VAE's folder (with `config.json`), a checkpoint's folder, or a file: a VAE in
    /// either set of names or a whole checkpoint. A file without a `config.json` beside it is
    /// taken for SDXL's, which is decoded in `f32`.
    ///
    /// # Errors
    /// Something that has no VAE in it.
    pub fn vae(path: &Path, variant: Option<&str>) -> Result<Replacement> {
        if path.is_dir() {
            return Self::of_folder(path, Part::Vae, variant);
        }
        let files = vec![path.to_path_buf()];
        let all = TensorSet::open(&files)?;
        all.check_shapes(|name| name.contains("encoder.") || name.contains("decoder."))?;
        let starts = |prefix: &str| all.iter().any(|(name, _)| name.starts_with(prefix));
        let (tensors, config) = if starts("encoder.down_blocks.") {
            let beside = path.with_file_name("config.json");
            let config = if beside.is_file() {
                read_json(&beside)?
            } else {
                config_of_shapes(&all, path)?
            };
            (all, config)
        } else {
            let prefix = ["first_stage_model.", "vae.", ""]
                .into_iter()
                .find(|prefix| starts(&format!("{prefix}encoder.down.")));
            let Some(prefix) = prefix else {
                let kind = FileKind::of(&all);
                let what = kind.describe();
                return Err(Error::file(
                    path,
                    format!("there is no VAE in this file: it is {what}"),
                ));
            };
            let (tensors, config) = original_vae(&all, prefix, None, path)?;
            (all.renamed(tensors), config)
        };
        Ok(Replacement {
            path: path.to_path_buf(),
            config: Some(config),
            files,
            scheduler: None,
            tensors,
        })
    }

    /// Opens a UNet's folder (with `config.json`), a checkpoint's folder, or a file: `.safetensors`
    /// or GGUF, with the original names, alone or in a whole checkpoint, or with diffusers' names. How
    /// it is built is told by its header, its shapes or a `config.json` beside it; where they tell
    /// nothing, it is taken to be built as the UNet that it replaces, whose config is `replaced` or
    /// in the same file as the rest of the checkpoint. Where it says that it predicts `v`,
    /// [`Replacement::scheduler`] tells.
    ///
    /// # Errors
    /// Something that has no SDXL UNet in it.
    pub fn unet(path: &Path, variant: Option<&str>, replaced: &Path) -> Result<Replacement> {
        if path.is_dir() {
            return Self::of_folder(path, Part::UNet, variant);
        }
        let files = vec![path.to_path_buf()];
        let all = TensorSet::open(&files)?;
        let starts = |prefix: &str| all.iter().any(|(name, _)| name.starts_with(prefix));
        let prefix = ["model.diffusion_model.", ""]
            .into_iter()
            .find(|prefix| starts(&format!("{prefix}label_emb.")));
        let Some(prefix) = prefix else {
            return Self::unet_in_diffusers_names(path, all);
        };
        refuse_scaled(&all, path)?;
        all.check_shapes(|name| name.starts_with(prefix))?;
        let (v_prediction, zero_snr) = markers(&all);
        let stored = stored_configs(&all, path)?.remove(&config_key(Part::UNet));
        let (tensors, config) = match original_unet(&all, prefix, stored, path) {
            Err(_) if replaced.is_file() => {
                original_unet(&all, prefix, Some(read_json(replaced)?), path)?
            }
            told => told?,
        };
        Ok(Replacement {
            path: path.to_path_buf(),
            config: Some(config),
            files,
            scheduler: v_prediction.then(|| infer::scheduler(true, zero_snr)),
            tensors: all.renamed(tensors),
        })
    }

    /// A UNet with the names of a folder's, in a file by itself, as SDXL-Lightning, Hyper-SD and DMD2
    /// are handed on.
    fn unet_in_diffusers_names(path: &Path, all: TensorSet) -> Result<Replacement> {
        let has = |name: String| all.get(&name).is_some();
        // Every UNet of SDXL has these two, and nothing else has both.
        let marks = ["conv_in.weight", "add_embedding.linear_1.weight"];
        let prefix = (["", "unet.", "model."].into_iter())
            .find(|prefix| marks.iter().all(|mark| has(format!("{prefix}{mark}"))));
        let Some(prefix) = prefix else {
            let kind = FileKind::of(&all);
            return Err(Error::file(
                path,
                format!(
                    "there is no UNet of SDXL in this file: it is {}",
                    kind.describe()
                ),
            ));
        };
        refuse_scaled(&all, path)?;
        all.check_shapes(|name| name.starts_with(prefix))?;
        let stored = stored_configs(&all, path)?.remove(&config_key(Part::UNet));
        let beside = path.with_file_name("config.json");
        let config = match stored {
            None if beside.is_file() => {
                let config: Map<String, Value> = read_json(&beside)?;
                let class = config.get("_class_name").and_then(Value::as_str);
                // That of another model says nothing about this one.
                (class == Some("UNet2DConditionModel")).then_some(Value::Object(config))
            }
            stored => stored,
        };
        let (v_prediction, zero_snr) = markers(&all);
        let own = |(name, tensor): (&str, &StoredTensor)| {
            Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
        };
        Ok(Replacement {
            path: path.to_path_buf(),
            config,
            files: vec![path.to_path_buf()],
            scheduler: v_prediction.then(|| infer::scheduler(true, zero_snr)),
            tensors: all.renamed(all.iter().filter_map(own).collect()),
        })
    }

    fn of_folder(path: &Path, part: Part, variant: Option<&str>) -> Result<Replacement> {
        let folder = if path.join("model_index.json").is_file() {
            path.join(part.folder())
        } else {
            path.to_path_buf()
        };
        let stem = part.file_stem();
        let mut files = None;
        for variant in [variant, None, Some("fp16")] {
            if files.is_none() {
                files = files_of(&folder, stem, variant)?;
            }
        }
        let files = files.ok_or_else(|| {
            let text = format!(
                "there is no {} here; {stem}.safetensors should be in it",
                part.folder()
            );
            Error::file(&folder, text)
        })?;
        Ok(Replacement {
            path: path.to_path_buf(),
            config: Some(read_json(&folder.join("config.json"))?),
            tensors: TensorSet::open(&files)?,
            files,
            scheduler: None,
        })
    }

    /// Gives the path of the file or folder, as the caller named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the part's configuration; `None`: it is that of the part that is replaced.
    ///
    /// # Errors
    /// A `config.json` that does not make sense.
    pub fn config<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let config = self.config.clone().map(serde_json::from_value).transpose();
        config.map_err(|e| Error::file(&self.path, format!("its config is not as expected: {e}")))
    }

    /// The scheduler that a UNet asks for which says that it predicts `v`.
    pub fn scheduler(&self) -> Option<&Map<String, Value>> {
        self.scheduler.as_ref()
    }

    /// Gives the part's configuration as JSON, where it is not that of the part that is replaced.
    pub fn config_json(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// Gives the part's weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Gives the part's tensors, with the names of a folder.
    pub fn tensors(&self) -> &TensorSet {
        &self.tensors
    }
}

/// The configuration of a VAE in a folder's names, from its shapes.
fn config_of_shapes(all: &TensorSet, path: &Path) -> Result<Value> {
    let usual = json!({ "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2 });
    let usual: VaeConfig =
        serde_json::from_value(usual).map_err(|e| Error::file(path, e.to_string()))?;
    let names = Names::vae(&usual);
    let originals: HashMap<String, Vec<usize>> = (all.iter())
        .filter_map(|(name, tensor)| Some((names.to_original(name)?, tensor.shape().to_vec())))
        .collect();
    infer::vae(&|name| originals.get(name).cloned(), path)
}
