//! The Hugging Face folder layout of a checkpoint: which files hold which part.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::part::Part;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::weights::safetensors::is_named_pickle;

/// Refuses a pipeline that is not SDXL's and have the parts that SDXL needs.
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
/// Unlike [`Checkpoint::open`](super::Checkpoint::open) this does not stop at the first.
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
            let folder = root.join(tokenizer);
            // transformers 5 writes one file in the place of the two.
            if !folder.join("tokenizer.json").is_file() {
                wanted.push(folder.join("vocab.json"));
                wanted.push(folder.join("merges.txt"));
            }
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
        .find(|n| is_named_pickle(Path::new(n.as_str())))
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
pub(super) fn only_safetensors(root: &Path) -> Option<PathBuf> {
    let names = names_in(root);
    let mut files = names.iter().filter(|n| n.ends_with(".safetensors"));
    match (files.next(), files.next()) {
        (Some(one), None) => Some(root.join(one)),
        _ => None,
    }
}

pub(super) fn what_is_in(root: &Path) -> String {
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
