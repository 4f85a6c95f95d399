//! LoRAs by name: the file in a folder that a prompt means.

use std::path::{Path, PathBuf};

use super::Lora;
use super::blocks::BlockScales;
use crate::error::{Error, Result};
use crate::prompt::LoraUse;
use crate::weights::TensorSet;

/// Folders inside folders that are looked into.
const MAX_DEPTH: usize = 8;

impl Lora {
    /// Makes the LoRA that a prompt asks for, once its file is known.
    pub fn named(wanted: &LoraUse, file: PathBuf) -> Lora {
        Lora {
            text_scale: wanted.text_weight.map(|w| w as f32),
            blocks: (!wanted.block_weights.is_empty())
                .then(|| BlockScales::Listed(wanted.block_weights.clone())),
            name: Some(wanted.name.clone()),
            ..Lora::new(file, wanted.weight as f32)
        }
    }
}

/// The file that `name` means in `folder` and the folders inside it: `NAME.safetensors`; else, as
/// in A1111's web UI, the one whose trainer called it so (`ss_output_name` in its header). A name
/// with `/` says in which folder inside it the file is.
///
/// # Errors
/// No such folder, no such file (with the names that are most like it), or several.
pub fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    if !folder.is_dir() {
        let message = format!(
            "it asks for the LoRA `{name}`, and there is no folder {} to look for it in",
            folder.display()
        );
        return Err(Error::request("prompt", message)
            .with_hint("name the folder with `lora_dir`, or the file with `loras`"));
    }
    let mut files = Vec::new();
    list(folder, MAX_DEPTH, &mut files)?;
    let inside = |path: &Path| -> String {
        let path = path.strip_prefix(folder).unwrap_or(path).with_extension("");
        let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy()).collect();
        parts.join("/")
    };
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let mut found: Vec<&PathBuf> = (files.iter()).filter(|path| inside(path) == name).collect();
    if found.is_empty() {
        found = (files.iter())
            .filter(|path| stem(path).as_deref() == Some(name))
            .collect();
    }
    if found.is_empty() {
        // A file that cannot be read is not the one that is meant.
        let called = |path: &&PathBuf| {
            let set = TensorSet::open(std::slice::from_ref(*path));
            set.is_ok_and(|set| set.metadata("ss_output_name") == Some(name))
        };
        found = files.iter().filter(called).collect();
    }
    match found[..] {
        [one] => Ok(one.clone()),
        [] => Err(unknown(
            folder,
            name,
            files.iter().map(|path| inside(path)).collect(),
        )),
        [first, second, ..] => {
            let (one, other) = (first.display(), second.display());
            let message = format!("the LoRA `{name}` may be {one} or {other}");
            Err(Error::request("prompt", message)
                .with_hint(format!("write which, as in <lora:{}:1>", inside(first))))
        }
    }
}

/// Adds the files below `folder`, in the order of their names.
fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::read(folder, &e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let ending = path.extension().unwrap_or_default();
        if path.is_dir() {
            if depth > 0 {
                list(&path, depth - 1, files)?;
            }
        } else if ending.eq_ignore_ascii_case("safetensors") {
            files.push(path);
        }
    }
    Ok(())
}

fn unknown(folder: &Path, name: &str, mut known: Vec<String>) -> Error {
    let wanted = name.to_lowercase();
    let likeness = |known: &str| {
        let known = known.rsplit('/').next().unwrap_or(known).to_lowercase();
        let within = known.contains(&wanted) || wanted.contains(&known);
        strsim::jaro_winkler(&known, &wanted).max(if within { 0.9 } else { 0.0 })
    };
    known.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
    let near: Vec<String> = (known.iter().take(3)).map(|n| format!("`{n}`")).collect();
    let there = match near.len() {
        0 => "holds no .safetensors file".to_string(),
        1 => format!("has {} alone", near[0]),
        _ => format!(
            "has no such file; the nearest names are {}",
            near.join(", ")
        ),
    };
    let message = format!(
        "it asks for the LoRA `{name}`, and the folder {} {there}",
        folder.display()
    );
    Error::request("prompt", message).with_hint("`lora_dir` names another folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file without tensors; `called` is its trainer's name for it.
    fn write(path: &Path, called: Option<&str>) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let header = match called {
            Some(name) => format!(r#"{{"__metadata__":{{"ss_output_name":"{name}"}}}}"#),
            None => "{}".to_string(),
        };
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn names_are_files_folders_and_what_their_trainers_said() {
        let dir = tempfile::TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["ink", "pixel-art", "a/fur", "b/fur", "a/deep/fox", "b/ink"] {
            write(&at(&format!("{name}.safetensors")), None);
        }
        write(&at("b/x1.safetensors"), Some("watercolour"));
        write(&at("upper.SAFETENSORS"), None);
        std::fs::write(at("broken.safetensors"), "no").unwrap();
        std::fs::write(at("ink.txt"), "a picture").unwrap();
        let found = |name: &str, file: &str| {
            assert_eq!(find(dir.path(), name).unwrap(), at(file), "{name}");
        };
        // A file of the folder itself comes before one further down.
        found("ink", "ink.safetensors");
        found("b/ink", "b/ink.safetensors");
        found("fox", "a/deep/fox.safetensors");
        found("a/fur", "a/fur.safetensors");
        found("watercolour", "b/x1.safetensors");
        found("upper", "upper.SAFETENSORS");

        let refused = |name: &str| find(dir.path(), name).unwrap_err().to_string();
        let error = refused("fur");
        assert!(error.contains("<lora:a/fur:1>"), "{error}");
        for (name, near) in [
            ("Ink", "`ink`"),
            ("pixelart", "`pixel-art`"),
            ("fo", "`a/deep/fox`"),
        ] {
            let error = refused(name);
            assert!(
                error.contains(&format!("`{name}`")) && error.contains(near),
                "{error}"
            );
        }
        assert!(
            find(&at("none"), "ink")
                .unwrap_err()
                .to_string()
                .contains("`lora_dir`")
        );
        std::fs::create_dir(at("empty")).unwrap();
        let error = find(&at("empty"), "ink").unwrap_err().to_string();
        assert!(error.contains("holds no"), "{error}");
    }
}
