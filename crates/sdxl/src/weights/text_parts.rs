//! The text encoders of a checkpoint, which can be opened without the rest of it.

use std::path::Path;
use std::sync::Arc;

use super::checkpoint::{Checkpoint, OpenOptions};
use super::checkpoint_files::CheckpointFiles;
use super::inversion::{Inversions, Widths};
use super::part::Part;
use super::tensor_set::TensorSet;
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::model::config::ClipConfig;

/// The text encoders of a checkpoint with their tokenizers: all that encoding prompts
/// takes. A folder need not hold anything else.
#[derive(Clone)]
pub struct TextCheckpoint {
    files: CheckpointFiles,
    /// First text encoder; a refiner has none.
    pub text_encoder: Option<ClipConfig>,
    /// Second text encoder.
    pub text_encoder_2: ClipConfig,
}

impl TextCheckpoint {
    /// Opens the text parts of the folder `root`: `text_encoder_2` with `tokenizer_2`, and
    /// `text_encoder` with `tokenizer` where they are there; or those of a single file.
    ///
    /// # Errors
    /// Names the file that is missing or that this program cannot run.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<TextCheckpoint> {
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
    pub fn open_with(root: &Path, options: &OpenOptions) -> Result<TextCheckpoint> {
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
            let config: ClipConfig = read_json(&path)?;
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
        Ok(TextCheckpoint {
            files: CheckpointFiles {
                root: root.to_path_buf(),
                variant: options.variant.clone(),
                single: None,
                vae: None,
                unet: None,
                adapters: Arc::default(),
                layer_cache: Arc::default(),
                inversions: Arc::new(Inversions::open(&options.embeddings, &[], widths)?),
                device: cpu(),
            },
            text_encoder,
            text_encoder_2,
        })
    }

    /// Gives the files of both text encoders.
    pub fn files(&self) -> &CheckpointFiles {
        &self.files
    }

    /// Maps a text encoder's weights and checks the files' headers.
    pub fn tensors(&self, part: Part) -> Result<TensorSet> {
        self.files.tensors(part)
    }
}

impl Checkpoint {
    /// The text encoders and what goes with them.
    pub fn text_parts(&self) -> TextCheckpoint {
        TextCheckpoint {
            files: self.files().clone(),
            text_encoder: self.text_encoder.clone(),
            text_encoder_2: self.text_encoder_2.clone(),
        }
    }
}
