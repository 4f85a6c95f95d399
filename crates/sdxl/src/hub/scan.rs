//! The contents of the cache: models, their revisions, and the kind of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::cache::{RepoFolder, files_below};
use super::name::is_commit;
use crate::files::read_json;
use crate::weights::Part;
use crate::weights::TensorSet;
use crate::weights::layout::named_class;
use crate::weights::recognise::FileKind;

/// The kind of a model in the cache, as this program can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelKind {
    /// A checkpoint of Stable Diffusion XL that starts pictures.
    Base,
    /// One that finishes them.
    Refiner,
    /// An autoencoder alone.
    Vae,
    /// A file of weights that goes with a checkpoint, and what it is.
    File(&'static str),
    /// Nothing that this program uses; a pipeline's class where it is one.
    Other(Option<String>),
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ModelKind::Base => f.write_str("Stable Diffusion XL base"),
            ModelKind::Refiner => f.write_str("Stable Diffusion XL refiner"),
            ModelKind::Vae => f.write_str("VAE"),
            ModelKind::File(what) => f.write_str(what),
            ModelKind::Other(Some(class)) => write!(f, "not for this program ({class})"),
            ModelKind::Other(None) => f.write_str("not for this program"),
        }
    }
}

/// One revision of a model in the cache.
#[derive(Debug, Clone)]
pub struct Cached {
    /// `ORG/NAME`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Branches and tags that last meant this commit.
    pub revisions: Vec<String>,
    /// The files with their sizes in bytes, in the order of their paths.
    pub files: BTreeMap<String, u64>,
    /// The folder of its files.
    pub snapshot: PathBuf,
    /// The kind of the model.
    pub kind: ModelKind,
}

impl Cached {
    /// Bytes of its files. Revisions may share some.
    pub fn bytes(&self) -> u64 {
        self.files.values().sum()
    }
}

/// All models in the cache folder, every revision by itself, in the order of their names.
pub fn scan(cache: &Path) -> Vec<Cached> {
    let mut found: Vec<Cached> = repos(cache)
        .iter()
        .flat_map(|r| revisions(cache, r))
        .collect();
    found.sort_by(|a, b| (&a.repo, &a.commit).cmp(&(&b.repo, &b.commit)));
    found
}

/// The models that have a folder in the cache.
fn repos(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().to_str()?.to_string();
        // `--` is in no name of a hub, so this can be undone.
        Some(name.strip_prefix("models--")?.replace("--", "/"))
    });
    names.collect()
}

/// The revisions of one model.
pub(super) fn revisions(cache: &Path, repo: &str) -> Vec<Cached> {
    let folder = RepoFolder::new(cache, repo);
    let refs = folder.path().join("refs");
    let names = files_below(&refs);
    let meant: Vec<(String, String)> = names
        .into_iter()
        .filter_map(|name| Some((fs::read_to_string(refs.join(&name)).ok()?, name)))
        .collect();
    let snapshots = fs::read_dir(folder.path().join("snapshots"));
    let commits = snapshots.into_iter().flatten().flatten();
    let commits = commits.filter_map(|entry| {
        let name = entry.file_name().to_str()?.to_string();
        is_commit(&name).then_some(name)
    });
    let of = |commit: String| {
        let snapshot = folder.snapshot(&commit);
        let size = |file: &String| fs::metadata(snapshot.join(file)).map_or(0, |m| m.len());
        let files: BTreeMap<String, u64> = (files_below(&snapshot).into_iter())
            .map(|file| (file.clone(), size(&file)))
            .collect();
        Cached {
            repo: repo.to_string(),
            revisions: (meant.iter())
                .filter(|(to, _)| to.trim() == commit)
                .map(|(_, name)| name.clone())
                .collect(),
            kind: kind(&snapshot, &files),
            commit,
            files,
            snapshot,
        }
    };
    commits.map(of).collect()
}

fn kind(snapshot: &Path, files: &BTreeMap<String, u64>) -> ModelKind {
    let json = |file: &str| read_json::<Map<String, Value>>(&snapshot.join(file)).ok();
    let class = |map: &Map<String, Value>| {
        let name = map.get("_class_name").and_then(Value::as_str);
        name.map(str::to_string)
    };
    if let Some(index) = json("model_index.json") {
        return match class(&index) {
            Some(name) if name.starts_with("StableDiffusionXL") => {
                match named_class(&index, Part::TextEncoder) {
                    Some(_) => ModelKind::Base,
                    None => ModelKind::Refiner,
                }
            }
            other => ModelKind::Other(other),
        };
    }
    let described = json("config.json").and_then(|config| class(&config));
    if described.as_deref() == Some("AutoencoderKL") {
        return ModelKind::Vae;
    }
    let mut weights = files.keys().filter(|f| f.ends_with(".safetensors"));
    if let (Some(file), None) = (weights.next(), described)
        && let Ok(tensors) = TensorSet::open(&[snapshot.join(file)])
    {
        return match FileKind::of(&tensors) {
            FileKind::Base => ModelKind::Base,
            FileKind::Refiner => ModelKind::Refiner,
            FileKind::Vae => ModelKind::Vae,
            FileKind::Lora => ModelKind::File("LoRA"),
            FileKind::Embedding => ModelKind::File("textual inversion"),
            _ => ModelKind::Other(None),
        };
    }
    ModelKind::Other(None)
}
