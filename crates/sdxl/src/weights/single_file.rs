//! A whole checkpoint in one `.safetensors` file, with the names of the original
//! implementation: the form most finetunes are handed on in.
//!
//! Tensors get the names they have in a folder and are read where they lie; no weight is
//! copied. Such a file has no configuration: it is inferred, unless the
//! header holds it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::infer;
use super::names::Names;
use super::part::config_key;
use super::random;
use super::recognise::FileKind;
use crate::error::{Error, Result};
use crate::model::config::{UNetConfig, VaeConfig};
use crate::weights::tensor_set::SCALE;
use crate::weights::{CheckpointKind, Part};
use crate::weights::{ElementType, StoredTensor, TensorSet};

/// Key of the header under which a converted folder's configuration files are kept: a JSON
/// object from their paths to their contents.
pub const CONFIGS: &str = "sdxl.configs";

/// Gives the prefix of the names of a part's tensors.
pub fn prefix(family: CheckpointKind, part: Part) -> &'static str {
    match (part, family) {
        (Part::UNet, _) => "model.diffusion_model.",
        (Part::Vae, _) => "first_stage_model.",
        (Part::TextEncoder, _) => "conditioner.embedders.0.transformer.",
        (Part::TextEncoder2, CheckpointKind::Base) => "conditioner.embedders.1.model.",
        (Part::TextEncoder2, CheckpointKind::Refiner) => "conditioner.embedders.0.model.",
    }
}

/// An opened file: names and configuration, no weights yet.
pub struct SingleFile {
    path: PathBuf,
    family: CheckpointKind,
    parts: HashMap<&'static str, TensorSet>,
    configs: Map<String, Value>,
}

impl SingleFile {
    /// Opens the file and finds its parts. Its VAE may be missing.
    ///
    /// # Errors
    /// A file of another kind, told by what it is; a part that is incomplete.
    pub fn open(path: &Path) -> Result<SingleFile> {
        let all = TensorSet::open(&[path.to_path_buf()])?;
        let kind = FileKind::of(&all);
        let family = match kind {
            FileKind::Base => CheckpointKind::Base,
            FileKind::Refiner => CheckpointKind::Refiner,
            other => {
                let message = format!("this is {}", other.describe());
                return Err(Error::file(path, message).with_hint(other.advice()));
            }
        };
        refuse_scaled(&all, path)?;
        let prefixes = Part::ALL.map(|part| prefix(family, part));
        all.check_shapes(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))?;
        let mut file = SingleFile {
            path: path.to_path_buf(),
            family,
            parts: HashMap::new(),
            configs: stored_configs(&all, path)?,
        };
        let (v_prediction, zero_snr) = markers(&all);
        file.default("model_index.json", || {
            Ok(infer::model_index(family == CheckpointKind::Refiner).into())
        })?;
        file.default("scheduler/scheduler_config.json", || {
            Ok(infer::scheduler(v_prediction, zero_snr).into())
        })?;
        for part in Part::ALL {
            file.add(&all, part)?;
        }
        Ok(file)
    }

    fn default(&mut self, key: &str, infer: impl FnOnce() -> Result<Value>) -> Result<()> {
        if !self.configs.contains_key(key) {
            self.configs.insert(key.to_string(), infer()?);
        }
        Ok(())
    }

    /// Finds a part's tensors and, where the file does not say it, infers its configuration.
    fn add(&mut self, all: &TensorSet, part: Part) -> Result<()> {
        let prefix = prefix(self.family, part);
        let own: Vec<(&str, &StoredTensor)> = (all.iter())
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
            .collect();
        if own.is_empty() || part == Part::TextEncoder && self.family == CheckpointKind::Refiner {
            return Ok(());
        }
        let path = self.path.clone();
        let key = config_key(part);
        let tensors = match part {
            Part::TextEncoder => (own.iter())
                .map(|(name, tensor)| (name.to_string(), (*tensor).clone()))
                .collect(),
            Part::TextEncoder2 => open_clip_tensors(&own, &path)?,
            Part::UNet => {
                let (tensors, config) =
                    original_unet(all, prefix, self.configs.remove(&key), &path)?;
                self.configs.insert(key.clone(), config);
                tensors
            }
            Part::Vae => {
                let (tensors, config) =
                    original_vae(all, prefix, self.configs.remove(&key), &path)?;
                self.configs.insert(key.clone(), config);
                tensors
            }
        };
        let tensors: HashMap<String, StoredTensor> = tensors;
        let shapes = |name: &str| Some(tensors.get(name)?.shape().to_vec());
        match part {
            Part::TextEncoder => self.default(&key, || infer::text_encoder(&shapes, &path))?,
            Part::TextEncoder2 => self.default(&key, || infer::text_encoder_2(&shapes, &path))?,
            Part::UNet | Part::Vae => {}
        }
        self.parts.insert(part.folder(), all.renamed(tensors));
        Ok(())
    }

    /// SDXL base with random weights: configurations, and tensors that are made when they are
    /// read.
    pub(super) fn random() -> SingleFile {
        let parts = Part::ALL.map(|part| (part.folder(), TensorSet::random()));
        SingleFile {
            path: random::NAME.into(),
            family: CheckpointKind::Base,
            parts: parts.into(),
            configs: random::base_configs(),
        }
    }

    /// Base or refiner.
    pub fn family(&self) -> CheckpointKind {
        self.family
    }

    /// The part's tensors under the names they have in a folder; nothing where the file does
    /// not have the part.
    pub fn tensors(&self, part: Part) -> Option<&TensorSet> {
        self.parts.get(part.folder())
    }

    /// Configuration files by their paths in a folder, as read or as inferred.
    pub fn configs(&self) -> &Map<String, Value> {
        &self.configs
    }

    /// A part's configuration.
    ///
    /// # Errors
    /// One from the header that does not make sense.
    pub fn config<T: serde::de::DeserializeOwned>(&self, part: Part) -> Result<T> {
        parse(&self.configs, &config_key(part), &self.path)
    }
}

/// Reads an entry of the configuration.
pub fn parse<T: serde::de::DeserializeOwned>(
    configs: &Map<String, Value>,
    key: &str,
    path: &Path,
) -> Result<T> {
    let value = configs.get(key).cloned().unwrap_or_default();
    serde_json::from_value(value)
        .map_err(|e| Error::file(path, format!("its {key} is not as expected: {e}")))
}

/// The configuration files that the header holds.
///
/// # Errors
/// Something else under their key.
pub fn stored_configs(all: &TensorSet, path: &Path) -> Result<Map<String, Value>> {
    let Some(text) = all.metadata(CONFIGS) else {
        return Ok(Map::new());
    };
    crate::python_json::from_str(text).map_err(|e| {
        Error::file(
            path,
            format!("`{CONFIGS}` in its header is not as expected: {e}"),
        )
    })
}

/// Some tools store 8-bit floats with a factor for each tensor beside it. Bytes with a scale for
/// each row (`X.weight` of type I8 and `X.weight_scale`) are read; what else is to be multiplied is not.
///
/// # Errors
/// Such a file.
pub fn refuse_scaled(all: &TensorSet, path: &Path) -> Result<()> {
    let of_bytes = |name: &str| {
        let weight = all.get(name.strip_suffix(SCALE).unwrap_or_default());
        weight.is_some_and(|t| t.element() == ElementType::Plain(Dtype::I8))
    };
    let scaled = all.iter().find(|(name, _)| {
        *name == "scaled_fp8"
            || name.ends_with(".scale_weight")
            || name.ends_with(".weight_scale") && !of_bytes(name)
    });
    match scaled {
        Some((name, _)) => Err(Error::file(
            path,
            format!(
                "its weights are to be multiplied by factors (`{name}`), which this program does \
                 not do; get the f16 version of the checkpoint"
            ),
        )),
        None => Ok(()),
    }
}

/// Reads what a file with original names says of its noise schedule: whether its UNet predicts `v`,
/// and whether the schedule ends at a signal-to-noise ratio of zero.
pub fn markers(all: &TensorSet) -> (bool, bool) {
    let named = all.metadata("modelspec.prediction_type");
    let v_prediction = all.get("v_pred").is_some() || named.is_some_and(|p| p.starts_with('v'));
    (v_prediction, all.get("ztsnr").is_some())
}

/// A part's configuration, `given` or inferred from the shapes of the tensors that start with
/// `prefix`: as it is used, and as JSON.
fn told_or_inferred<T: serde::de::DeserializeOwned>(
    all: &TensorSet,
    prefix: &str,
    given: Option<Value>,
    part: &str,
    path: &Path,
    infer: impl FnOnce(infer::Shapes<'_>, &Path) -> Result<Value>,
) -> Result<(T, Value)> {
    let shapes = |name: &str| Some(all.get(&format!("{prefix}{name}"))?.shape().to_vec());
    let config = match given {
        Some(config) => config,
        None => infer(&shapes, path)?,
    };
    let parsed = serde_json::from_value(config.clone())
        .map_err(|e| Error::file(path, format!("its {part}'s config is not as expected: {e}")))?;
    Ok((parsed, config))
}

/// The tensors of a UNet with original names that start with `prefix`, and its configuration:
/// `given`, or what the shapes tell.
///
/// # Errors
/// A UNet that is incomplete or of another kind.
pub fn original_unet(
    all: &TensorSet,
    prefix: &str,
    given: Option<Value>,
    path: &Path,
) -> Result<(HashMap<String, StoredTensor>, Value)> {
    let (parsed, config): (UNetConfig, Value) =
        told_or_inferred(all, prefix, given, "UNet", path, infer::unet)?;
    let names = Names::unet(&parsed, path)?;
    let own = (all.iter()).filter_map(|(name, tensor)| {
        Some((names.to_folder(name.strip_prefix(prefix)?)?, tensor.clone()))
    });
    Ok((own.collect(), config))
}

/// The tensors of a VAE with original names that start with `prefix`, and its configuration:
/// `given`, or what the shapes tell.
///
/// # Errors
/// A VAE that is incomplete or of another kind.
pub fn original_vae(
    all: &TensorSet,
    prefix: &str,
    given: Option<Value>,
    path: &Path,
) -> Result<(HashMap<String, StoredTensor>, Value)> {
    let (parsed, config): (VaeConfig, Value) =
        told_or_inferred(all, prefix, given, "VAE", path, infer::vae)?;
    let names = Names::vae(&parsed);
    let own = all.iter().filter_map(|(name, tensor)| {
        let name = names.to_folder(name.strip_prefix(prefix)?)?;
        // Its attention was written with 1x1 convolutions.
        let tensor = match tensor.shape() {
            [n, k, 1, 1] if name.contains(".attentions.") => tensor.reshaped(vec![*n, *k]),
            _ => tensor.clone(),
        };
        Some((name, tensor))
    });
    Ok((own.collect(), config))
}

/// OpenCLIP's tensors with transformers' names: queries, keys and values apart, and the
/// projection the other way round.
fn open_clip_tensors(
    own: &[(&str, &StoredTensor)],
    path: &Path,
) -> Result<HashMap<String, StoredTensor>> {
    let layers = (own.iter())
        .filter(|(name, _)| name.ends_with(".ln_1.weight"))
        .count();
    let names = Names::open_clip(layers);
    let odd = |name: &str, tensor: &StoredTensor| {
        Error::file(
            path,
            format!(
                "tensor `{name}` has shape {:?}, which OpenCLIP's text encoder does not have",
                tensor.shape()
            ),
        )
    };
    let mut found = HashMap::new();
    for (name, tensor) in own {
        if *name == "text_projection" {
            let turned = tensor.transpose().ok_or_else(|| odd(name, tensor))?;
            found.insert("text_projection.weight".to_string(), turned);
        } else if let Some((layer, kind)) = name
            .strip_prefix("transformer.resblocks.")
            .and_then(|rest| rest.split_once(".attn.in_proj_"))
        {
            for (i, letter) in ["q", "k", "v"].iter().enumerate() {
                let third = tensor.slice(i, 3).ok_or_else(|| odd(name, tensor))?;
                found.insert(
                    format!("text_model.encoder.layers.{layer}.self_attn.{letter}_proj.{kind}"),
                    third,
                );
            }
        } else if let Some(name) = names.to_folder(name) {
            found.insert(name, (*tensor).clone());
        }
    }
    Ok(found)
}
