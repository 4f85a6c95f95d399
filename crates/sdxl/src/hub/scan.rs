//! The contents of the cache: models, their revisions, and the kind of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::cache::{RepoFolder, files_below};
use super::name::is_commit;
use crate::weights::folder::{Part, named_class, read_json};
use crate::weights::recognise;
use crate::weights::safetensors::TensorSet;

/// The kind of a model in the cache, as this program can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
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

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Base => f.write_str("Stable Diffusion XL base"),
            Kind::Refiner => f.write_str("Stable Diffusion XL refiner"),
            Kind::Vae => f.write_str("VAE"),
            Kind::File(what) => f.write_str(what),
            Kind::Other(Some(class)) => write!(f, "not for this program ({class})"),
            Kind::Other(None) => f.write_str("not for this program"),
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
    pub kind: Kind,
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

fn kind(snapshot: &Path, files: &BTreeMap<String, u64>) -> Kind {
    let json = |file: &str| read_json::<Map<String, Value>>(&snapshot.join(file)).ok();
    let class = |map: &Map<String, Value>| {
        let name = map.get("_class_name").and_then(Value::as_str);
        name.map(str::to_string)
    };
    if let Some(index) = json("model_index.json") {
        return match class(&index) {
            Some(name) if name.starts_with("StableDiffusionXL") => {
                match named_class(&index, Part::TextEncoder) {
                    Some(_) => Kind::Base,
                    None => Kind::Refiner,
                }
            }
            other => Kind::Other(other),
        };
    }
    let described = json("config.json").and_then(|config| class(&config));
    if described.as_deref() == Some("AutoencoderKL") {
        return Kind::Vae;
    }
    let mut weights = files.keys().filter(|f| f.ends_with(".safetensors"));
    if let (Some(file), None) = (weights.next(), described)
        && let Ok(tensors) = TensorSet::open(&[snapshot.join(file)])
    {
        return match recognise::Kind::of(&tensors) {
            recognise::Kind::Base => Kind::Base,
            recognise::Kind::Refiner => Kind::Refiner,
            recognise::Kind::Vae => Kind::Vae,
            recognise::Kind::Lora => Kind::File("LoRA"),
            recognise::Kind::Embedding => Kind::File("textual inversion"),
            _ => Kind::Other(None),
        };
    }
    Kind::Other(None)
}
