//! The diagnosis of a checkpoint or another file of weights: what is wrong with it, and what to do.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::inversion::{InversionFile, Inversions, Widths};
use super::loader::Loader;
use super::lora::{BaseNetworks, Lora, OpenedLoras};
use super::recognise::{FileKind, lora_text_width};
use super::single_file::refuse_scaled;
use crate::error::Result;
use crate::model::unet::UNet;
use crate::precision::Precision;
use crate::text::clip::ClipTextModel;
use crate::text::tokenizer::Tokenizer;
use crate::weights::TensorSet;
use crate::weights::layout::files_of;
use crate::weights::{Checkpoint, CheckpointKind, Part, missing_files};

/// Lengths of the vectors that the text encoders of SDXL base take.
const PUBLISHED: Widths = Widths {
    first: Some(768),
    second: 1280,
};

/// Something to know about a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Whether it stands in the way of a picture.
    pub problem: bool,
    /// The finding, and what to do; fields are named as hints name them (see [`crate::error`]).
    pub text: String,
}

fn problem(text: impl Into<String>) -> Finding {
    Finding {
        problem: true,
        text: text.into(),
    }
}

fn note(text: impl Into<String>) -> Finding {
    Finding {
        problem: false,
        text: text.into(),
    }
}

/// Looks at a folder or a file. Reads headers and small files, no weights.
pub fn examine(path: &Path, variant: Option<&str>) -> Vec<Finding> {
    let mut found = Vec::new();
    if path.is_file() {
        match TensorSet::open(&[path.to_path_buf()]) {
            Err(error) => return vec![problem(error.to_string())],
            Ok(tensors) => match FileKind::of(&tensors) {
                FileKind::Base | FileKind::Refiner => {}
                FileKind::Lora => return lora(path, &tensors),
                FileKind::Embedding => return vec![inversion(path)],
                FileKind::Vae => return vec![vae_file(&tensors)],
                FileKind::OriginalUNet => return vec![unet_file(&tensors, path)],
                kind => {
                    let (what, advice) = (kind.describe(), kind.advice());
                    return vec![problem(format!("this is {what}; {advice}"))];
                }
            },
        }
    } else {
        found.extend(pointers(path));
        found.extend(missing_files(path).into_iter().map(problem));
        found.extend(variants(path));
    }
    let checkpoint = match Checkpoint::open(path, variant) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let text = error.to_string();
            // Said already, of a missing file.
            if !found.iter().any(|f| same_file(&f.text, &text)) {
                found.push(problem(text));
            }
            return found;
        }
    };
    for part in Part::ALL {
        if !checkpoint.has(part) {
            continue;
        }
        if let Err(error) = checkpoint.tensors(part) {
            let text = error.to_string();
            if !found.iter().any(|f| same_file(&f.text, &text)) {
                found.push(problem(text));
            }
        }
        if matches!(part, Part::TextEncoder | Part::TextEncoder2)
            && let Err(error) = Tokenizer::of(checkpoint.files(), part)
        {
            let text = error.to_string();
            if !found.iter().any(|f| same_file(&f.text, &text)) {
                found.push(problem(text));
            }
        }
    }
    if checkpoint.family() == CheckpointKind::Refiner {
        found.push(note(
            "this is a refiner: it finishes pictures and cannot start one from a prompt; give it \
             with `refiner`, beside a base checkpoint as `model`",
        ));
    }
    found.extend(vae(&checkpoint));
    found.extend(schedule(&checkpoint));
    found
}

/// Whether two messages begin with the same path.
fn same_file(a: &str, b: &str) -> bool {
    let path = |text: &str| text.split(": ").next().map(str::to_string);
    path(a) == path(b)
}

/// Files of a Git checkout whose contents were never fetched.
fn pointers(root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        paths.sort();
        paths
    };
    for path in inside(root) {
        let paths = if path.is_dir() {
            inside(&path)
        } else {
            vec![path]
        };
        for path in paths.iter().filter(|path| is_pointer(path)) {
            found.push(problem(format!(
                "{}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in the \
                 checkpoint's folder or download the file again",
                path.display()
            )));
        }
    }
    found
}

fn is_pointer(path: &Path) -> bool {
    let start = b"version https://git-lfs";
    let mut read = [0; 23];
    File::open(path).is_ok_and(|mut f| f.read_exact(&mut read).is_ok()) && read == *start
}

/// A variant that some parts have and others lack.
fn variants(root: &Path) -> Vec<Finding> {
    let there = |part: Part, variant: Option<&str>| {
        let files = files_of(&root.join(part.folder()), part.file_stem(), variant);
        matches!(files, Ok(Some(_)))
    };
    let names = |parts: &[Part]| -> String {
        let names: Vec<&str> = parts.iter().map(|p| p.folder()).collect();
        names.join(", ")
    };
    let parts: Vec<Part> = (Part::ALL.into_iter())
        .filter(|p| there(*p, None) || there(*p, Some("fp16")))
        .collect();
    let half: Vec<Part> = (parts.iter().copied())
        .filter(|p| there(*p, Some("fp16")))
        .collect();
    let plain: Vec<Part> = (parts.iter().copied())
        .filter(|p| there(*p, None))
        .collect();
    let mut found = Vec::new();
    if !half.is_empty() && half.len() < parts.len() {
        let without: Vec<Part> = (parts.iter().copied())
            .filter(|p| !half.contains(p))
            .collect();
        found.push(note(format!(
            "only {} have weights of variant fp16; with `variant fp16` the plain ones are used of {}",
            names(&half),
            names(&without)
        )));
    }
    if plain.is_empty() && !half.is_empty() {
        found.push(note(
            "there are weights of variant fp16 only, which are used with or without `variant fp16`",
        ));
    }
    found
}

/// A VAE alone. That of Stable Diffusion 1 has the same shapes, and nothing that tells it apart.
fn vae_file(tensors: &TensorSet) -> Finding {
    let (what, advice) = (FileKind::Vae.describe(), FileKind::Vae.advice());
    let latents = (tensors.iter())
        .find(|(name, _)| name.ends_with("decoder.conv_in.weight"))
        .and_then(|(_, tensor)| tensor.shape().get(1).copied());
    match latents {
        Some(4) | None => note(format!(
            "this is {what}; {advice}. SDXL's own overflows in f16, so it is decoded in f32 unless a \
             config.json beside it says force_upcast false (right for madebyollin/sdxl-vae-fp16-fix)"
        )),
        Some(channels) => problem(format!(
            "this is a VAE of another family: its latents have {channels} channels, SDXL's 4; get one \
             made for SDXL"
        )),
    }
}

/// A UNet alone, in `.safetensors` or GGUF.
fn unet_file(tensors: &TensorSet, path: &Path) -> Finding {
    match refuse_scaled(tensors, path) {
        Err(error) => problem(error.to_string()),
        Ok(()) => {
            let (what, advice) = (
                FileKind::OriginalUNet.describe(),
                FileKind::OriginalUNet.advice(),
            );
            note(format!("this is {what}; {advice}"))
        }
    }
}

fn vae(checkpoint: &Checkpoint) -> Vec<Finding> {
    let config = &checkpoint.vae;
    let mut found = Vec::new();
    if config.scaling_factor == 0.18215 && config.latents_mean.is_none() {
        found.push(problem(format!(
            "{}: scaling_factor is 0.18215, that of Stable Diffusion 1 and 2; SDXL's is 0.13025. \
             This VAE gives wrong colours with an SDXL UNet: give the right one with `vae`",
            checkpoint.config_path(Part::Vae).display()
        )));
    }
    if config.force_upcast {
        found.push(note(
            "the VAE is decoded in f32 whatever the precision (force_upcast): SDXL's first VAE \
             overflows in f16, which gives black pictures. madebyollin/sdxl-vae-fp16-fix, given \
             with `vae`, does not",
        ));
    } else {
        found.push(note(
            "the VAE says that it may be decoded in 16 bits (force_upcast false): right for \
             madebyollin/sdxl-vae-fp16-fix, but the first VAE of SDXL overflows in f16. If \
             pictures come out black, set it to true",
        ));
    }
    found
}

fn schedule(checkpoint: &Checkpoint) -> Vec<Finding> {
    let config = &checkpoint.scheduler;
    let is = |key: &str, value: &str| config.get(key).and_then(|v| v.as_str()) == Some(value);
    let zero = config.get("rescale_betas_zero_snr") == Some(&true.into());
    if !is("prediction_type", "v_prediction") {
        return Vec::new();
    }
    let mut text = "the UNet predicts v".to_string();
    if zero {
        text.push_str(
            ", down to a signal-to-noise ratio of zero: `guidance_rescale 0.7` keeps pictures from \
             being overexposed",
        );
    }
    vec![note(text)]
}

/// A textual inversion, judged by the sizes of the published model.
fn inversion(path: &Path) -> Finding {
    let file = InversionFile {
        file: path.to_path_buf(),
        token: None,
    };
    match Inversions::open(&[file], &[], PUBLISHED) {
        Ok(_) => note(
            "this is a textual inversion: give a checkpoint as the model and this file with \
             `embeddings`",
        ),
        Err(error) => problem(error.to_string()),
    }
}

/// A LoRA, judged by the code that adds it to a checkpoint: for SDXL base, whose tensors are known
/// without a file.
fn lora(path: &Path, tensors: &TensorSet) -> Vec<Finding> {
    if lora_text_width(tensors) == Some(1280) {
        return vec![note(
            "this is a LoRA for SDXL's refiner; it does not go with the base model",
        )];
    }
    let judged = || -> Result<Vec<Finding>> {
        let base = Checkpoint::with_random_weights()?;
        let parts = [Part::UNet, Part::TextEncoder, Part::TextEncoder2];
        let tensors = parts.into_iter().map(|part| {
            let set =
                TensorSet::asked_by(|set| load(&base, part, &Loader::new(set, Precision::F32)));
            Ok((part, set?))
        });
        let networks = BaseNetworks {
            unet: &base.unet,
            unet_config: base.config_path(Part::UNet),
            tensors: tensors.collect::<Result<_>>()?,
        };
        let opened = OpenedLoras::open(&[Lora::new(path, 1.0)], &networks)?;
        Inversions::open(&[], opened.bundles(), PUBLISHED)?;
        let mut found = vec![note(
            "this is a LoRA: give a checkpoint as the model and this file with `loras`",
        )];
        let words = opened.bundles().iter();
        found.extend(words.map(|bundle| {
            note(format!(
                "it brings a textual inversion along: write `{}` in a prompt",
                bundle.word
            ))
        }));
        found.extend(
            opened
                .warnings()
                .iter()
                .map(|warning| note(warning.to_string())),
        );
        Ok(found)
    };
    judged().unwrap_or_else(|error| vec![problem(error.to_string())])
}

/// Loads a network that LoRAs change.
fn load(base: &Checkpoint, part: Part, from: &Loader<'_>) -> Result<()> {
    match (part, &base.text_encoder) {
        (Part::UNet, _) => UNet::load(&base.unet, &base.config_path(part), from).map(drop),
        (Part::TextEncoder, Some(config)) => ClipTextModel::load(config, from, false).map(drop),
        _ => ClipTextModel::load(&base.text_encoder_2, from, true).map(drop),
    }
}
