//! Hashes by which other inputs and other weights are recognised when a run goes on.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::hex;
use crate::inputs::Inputs;
use crate::precision::Precision;
use crate::weights::{Checkpoint, Part};

/// Everything besides the request that decides a run's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MadeBy {
    /// Version of this library.
    pub(super) version: String,
    pub(super) precision: Precision,
    pub(super) isa: String,
    /// Fingerprints of the weights, the base's first.
    pub(super) weights: Vec<String>,
    /// The class of each stage's scheduler, and the timesteps that it visits.
    pub(super) schedules: Vec<(String, Vec<f64>)>,
}

/// A hash of what a run starts from besides its request.
pub(super) fn of_inputs(inputs: &Inputs) -> String {
    let mut hasher = Sha256::new();
    let mut add = |name: &str, shape: &[usize], bytes: &[u8]| {
        hasher.update(format!("{name} {shape:?}\n"));
        hasher.update(bytes);
    };
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    if let Some(latents) = &inputs.latents {
        add("latents", &latents.shape(), &bytes(latents.data()));
    }
    for (name, pixels) in [("init_image", &inputs.init_image), ("mask", &inputs.mask)] {
        if let Some(pixels) = pixels {
            let shape = [pixels.width, pixels.height, pixels.channels];
            add(name, &shape, &pixels.data);
        }
    }
    if let Some(embeds) = &inputs.embeds {
        for text in embeds.positive.iter().chain(&embeds.negative) {
            let all = [bytes(&text.context), bytes(&text.pooled)].concat();
            add("prompt_embeds", &[text.pooled.len()], &all);
        }
    }
    hex(&hasher.finalize())
}

/// A hash of a checkpoint that does not read its gigabytes: the small files whole, and of each weight
/// file its length, its beginning (names and places of the tensors), its end, and pieces between. The
/// files of LoRAs and textual inversions too.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn of_checkpoint(checkpoint: &Checkpoint) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut files: Vec<PathBuf> = configurations(checkpoint.root());
    for part in Part::ALL.into_iter().filter(|part| checkpoint.has(*part)) {
        files.extend(checkpoint.weight_files(part)?);
    }
    let loras = checkpoint.files().adapters().loras();
    let words = checkpoint.files().inversions().files();
    files.extend(loras.iter().map(|lora| lora.file.clone()));
    files.extend(words.iter().map(|word| word.file.clone()));
    files.dedup();
    for path in files {
        sample(&path, &mut hasher).map_err(|e| Error::read(&path, &e))?;
    }
    for lora in loras {
        hasher.update(format!(
            "{:?} {:?} {:?}",
            lora.scale, lora.text_scale, lora.blocks
        ));
    }
    Ok(hex(&hasher.finalize()))
}

/// The JSON and text files of a checkpoint's folder, in order.
fn configurations(root: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let is_small = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        path.is_file() && (extension == "json" || extension == "txt")
    };
    let (folders, mut files): (Vec<_>, Vec<_>) = list(root).into_iter().partition(|p| p.is_dir());
    files.extend(folders.iter().flat_map(|folder| list(folder)));
    files.retain(is_small);
    files
}

/// Adds pieces of a file to a hash.
fn sample(path: &Path, hasher: &mut Sha256) -> std::io::Result<()> {
    const PIECES: u64 = 32;
    const PIECE: u64 = 16 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hasher.update(length.to_le_bytes());
    if length <= PIECES * PIECE {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        hasher.update(bytes);
        return Ok(());
    }
    let mut bytes = vec![0; PIECE as usize];
    for piece in 0..PIECES {
        let last = length - PIECE;
        let from = if piece + 1 == PIECES {
            last
        } else {
            last / PIECES * piece
        };
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut bytes)?;
        hasher.update(&bytes);
    }
    Ok(())
}
