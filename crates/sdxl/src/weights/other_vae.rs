//! A VAE that stands in for a checkpoint's own: `--vae`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::folder::{Part, files_of, read_json};
use super::infer;
use super::names::Names;
use super::recognise::Kind;
use super::safetensors::TensorSet;
use super::single_file::original_vae;
use crate::error::{Error, Result};
use crate::model::config::VaeConfig;

/// An opened VAE: names and configuration, no weights yet.
pub struct OtherVae {
    path: PathBuf,
    config: Value,
    files: Vec<PathBuf>,
    tensors: TensorSet,
}

impl OtherVae {
    /// Opens a VAE's folder (with `config.json`), a checkpoint's folder, or a file: a VAE in
    /// either set of names or a whole checkpoint. A file without a `config.json` beside it is
    /// taken for SDXL's, which is decoded in `f32`.
    ///
    /// # Errors
    /// Something that has no VAE in it.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<OtherVae> {
        if path.is_dir() {
            return Self::of_folder(path, variant);
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
                let kind = Kind::of(&all);
                let what = kind.describe();
                return Err(Error::file(
                    path,
                    format!("there is no VAE in this file: it is {what}"),
                ));
            };
            let (tensors, config) = original_vae(&all, prefix, None, path)?;
            (all.renamed(tensors), config)
        };
        Ok(OtherVae {
            path: path.to_path_buf(),
            config,
            files,
            tensors,
        })
    }

    fn of_folder(path: &Path, variant: Option<&str>) -> Result<OtherVae> {
        let folder = if path.join("model_index.json").is_file() {
            path.join(Part::Vae.folder())
        } else {
            path.to_path_buf()
        };
        let stem = Part::Vae.file_stem();
        let mut files = None;
        for variant in [variant, None, Some("fp16")] {
            if files.is_none() {
                files = files_of(&folder, stem, variant)?;
            }
        }
        let files = files.ok_or_else(|| {
            let text = format!("there is no VAE here; {stem}.safetensors should be in it");
            Error::file(&folder, text)
        })?;
        Ok(OtherVae {
            path: path.to_path_buf(),
            config: read_json(&folder.join("config.json"))?,
            tensors: TensorSet::open(&files)?,
            files,
        })
    }

    /// As it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its configuration.
    ///
    /// # Errors
    /// A `config.json` that does not make sense or that this program cannot run.
    pub fn config(&self) -> Result<VaeConfig> {
        let config: VaeConfig = serde_json::from_value(self.config.clone())
            .map_err(|e| Error::file(&self.path, format!("its config is not as expected: {e}")))?;
        config.check(&self.path)?;
        Ok(config)
    }

    /// Its configuration as JSON.
    pub fn config_json(&self) -> &Value {
        &self.config
    }

    /// Its weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Its tensors, with the names of a folder.
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
