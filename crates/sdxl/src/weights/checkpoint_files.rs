//! The files of a checkpoint's parts: a folder with files for each part, or one file for all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inversion::Inversions;
use super::layer_cache::LayerCache;
use super::layout::find_weights;
use super::lora::OpenedLoras;
use super::part::Part;
use super::replacement::Replacement;
use super::single_file::SingleFile;
use super::tensor_set::TensorSet;
use crate::device::Device;
use crate::error::{Error, Result};

/// The files of a checkpoint, and what was put in the place of some of them.
#[derive(Clone)]
pub struct CheckpointFiles {
    pub(super) root: PathBuf,
    pub(super) variant: Option<String>,
    pub(super) single: Option<Arc<SingleFile>>,
    pub(super) vae: Option<Arc<Replacement>>,
    pub(super) unet: Option<Arc<Replacement>>,
    pub(super) adapters: Arc<OpenedLoras>,
    pub(super) layer_cache: Arc<LayerCache>,
    pub(super) inversions: Arc<Inversions>,
    /// The device that its networks are loaded to.
    pub(super) device: Arc<dyn Device>,
}

impl CheckpointFiles {
    /// The folder, or the file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Gives the file or folder that replaces a part, if there is one.
    pub(super) fn replacement(&self, part: Part) -> Option<&Replacement> {
        match part {
            Part::Vae => self.vae.as_deref(),
            Part::UNet => self.unet.as_deref(),
            Part::TextEncoder | Part::TextEncoder2 => None,
        }
    }

    /// The file that says how a part is built; a single file itself.
    pub fn config_path(&self, part: Part) -> PathBuf {
        match self.replacement(part) {
            Some(other) => other.path().to_path_buf(),
            _ if self.single.is_some() => self.root.clone(),
            _ => self.root.join(part.folder()).join("config.json"),
        }
    }

    /// The folder of the tokenizer that goes with a text encoder; a single file has none and
    /// means CLIP's.
    pub fn tokenizer_folder(&self, part: Part) -> Option<PathBuf> {
        self.single.is_none().then(|| {
            self.root.join(match part {
                Part::TextEncoder => "tokenizer",
                _ => "tokenizer_2",
            })
        })
    }

    /// The weight files of a part, in the order of their shards.
    ///
    /// # Errors
    /// Weights that are missing.
    pub fn weight_files(&self, part: Part) -> Result<Vec<PathBuf>> {
        match (self.replacement(part), &self.single) {
            (Some(other), _) => Ok(other.files().to_vec()),
            (_, Some(_)) => Ok(vec![self.root.clone()]),
            _ => find_weights(&self.root, self.variant.as_deref(), part),
        }
    }

    /// The LoRAs that are added to the weights.
    pub fn adapters(&self) -> &OpenedLoras {
        &self.adapters
    }

    /// The packed layers of its networks that are in memory.
    #[cfg(test)]
    pub(crate) fn layer_cache(&self) -> &LayerCache {
        &self.layer_cache
    }

    /// The textual inversions that its prompts may use.
    pub fn inversions(&self) -> &Inversions {
        &self.inversions
    }

    /// Maps a part's weights and checks the files' headers. What is read from them has the
    /// LoRAs added.
    ///
    /// # Errors
    /// Weights that are missing or wrong.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        let stored = self.stored_tensors(part)?;
        let changed = stored.with_changes(self.adapters.of(part));
        Ok(changed.with_cache(&self.layer_cache).on(&self.device))
    }

    fn stored_tensors(&self, part: Part) -> Result<TensorSet> {
        match (self.replacement(part), &self.single) {
            (Some(other), _) => Ok(other.tensors().clone()),
            (_, Some(single)) => single
                .tensors(part)
                .cloned()
                .ok_or_else(|| missing_part(&self.root, part)),
            _ => TensorSet::open(&self.weight_files(part)?),
        }
    }
}

/// Makes the error for a single file that lacks a part.
pub(super) fn missing_part(path: &Path, part: Part) -> Error {
    match part {
        Part::TextEncoder | Part::TextEncoder2 => Error::file(path, "it lacks a text encoder"),
        Part::UNet => Error::file(path, "it has no UNet"),
        Part::Vae => Error::file(path, "it has no VAE baked in").with_hint(
            "give one with `vae`, such as the file of madebyollin/sdxl-vae-fp16-fix or the vae/ \
             folder of the base model",
        ),
    }
}
