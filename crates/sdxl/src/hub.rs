//! Checkpoints from a model hub, by name, in the cache that Python's `huggingface_hub` keeps.
//!
//! Files in the cache are used without asking the hub: a run never waits for the network when it
//! has its files, and a name means the same files tomorrow. [`Hub::pull`] asks what the hub has
//! now.

mod cache;
mod digest;
mod download;
mod error;
mod event;
mod http;
mod listing;
mod name;
mod remove;
mod scan;
mod select;
mod settings;
mod shared_blobs;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::read_json;
use cache::{RepoFolder, files_below};
use download::Downloader;
use http::{Client, Watch};
use listing::Listing;
use select::{Selection, View, select};

pub use error::HubError;
pub use event::DownloadEvent;
pub use name::ModelName;
pub use remove::Removal;
pub use scan::{Cached, ModelKind, scan};
pub use select::{FetchOptions, Purpose};
pub use settings::Settings;
pub use verify::{Broken, Verified};

/// A model that is here.
#[derive(Debug, Clone)]
pub struct FoundModel {
    /// The snapshot's folder, or a file in it: what [`crate::Checkpoint::open`] takes.
    pub path: PathBuf,
    /// The name, with the commit as its revision: the same files on any machine.
    pub name: ModelName,
    /// The variant to open it with.
    pub variant: Option<String>,
}

/// A hub and its cache on this machine.
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// As the settings say.
    pub fn new(settings: Settings) -> Hub {
        Hub { settings }
    }

    /// The cache folder.
    pub fn cache(&self) -> &Path {
        &self.settings.cache
    }

    /// Finds a model in the cache, whether it has all its files or not.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn cached(&self, name: &ModelName) -> Result<FoundModel> {
        let folder = RepoFolder::new(&self.settings.cache, &name.repo);
        let missing = || HubError::NotCached {
            name: name.to_string(),
            cache: self.settings.cache.clone(),
        };
        let commit = folder.commit_of(name.revision()).ok_or_else(missing)?;
        let path = folder.snapshot(&commit);
        let files = files_below(&path);
        let root = |f: &&String| !f.contains('/') && f.ends_with(".safetensors");
        let mut singles = files.iter().filter(root);
        let path = match (&name.file, singles.next(), singles.next()) {
            _ if files.is_empty() => return Err(missing().into()),
            (Some(file), ..) => Some(path.join(file)).filter(|p| p.is_file()),
            (None, Some(one), None) if !path.join("config.json").is_file() => Some(path.join(one)),
            _ => Some(path),
        };
        Ok(FoundModel {
            path: path.ok_or_else(missing)?,
            name: name.at(&commit),
            variant: None,
        })
    }

    /// A model with everything that is wanted of it: from the cache if it is there, else from the
    /// hub.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn get(
        &self,
        name: &ModelName,
        want: &FetchOptions,
        told: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<FoundModel> {
        match self.find(name, want)? {
            Ok(found) => Ok(found),
            Err(missing) if self.settings.offline => Err(self.offline(name, missing)),
            Err(_) => self.pull(name, want, told),
        }
    }

    /// Fetches what the hub now means by a name, but for the files that are here.
    ///
    /// # Errors
    /// A [`HubError`], or a model that is not for this program. What has come stays, and the next
    /// pull goes on from there.
    pub fn pull(
        &self,
        name: &ModelName,
        want: &FetchOptions,
        told: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<FoundModel> {
        if self.settings.offline {
            return self.get(name, want, told);
        }
        let watch = Watch {
            told,
            stopped: AtomicBool::new(false),
        };
        let client = Client::new(&self.settings)?;
        let listing = Listing::fetch(&client, name, &watch)?;
        let folder = RepoFolder::new(&self.settings.cache, &name.repo);
        let downloader = Downloader {
            client: &client,
            folder: &folder,
            listing: &listing,
            repo: &name.repo,
            watch: &watch,
        };
        let snapshot = folder.snapshot(&listing.commit);
        let files: Vec<String> = listing.files.keys().cloned().collect();
        let view = View {
            name,
            files: &files,
            lacks: &|file| !listing.has(file),
            read: &|file| {
                downloader.bring(&[file.to_string()])?;
                read_json(&snapshot.join(file))
            },
        };
        let selection = select(want, &view)?;
        if let Some(file) = selection.missing.first() {
            return Err(no_file(name, file, &listing).into());
        }
        downloader.bring(&selection.files)?;
        for file in &selection.absent {
            folder.set_absent(&listing.commit, file)?;
        }
        // Last, so that the name goes on to mean what is complete.
        folder.set_commit(name.revision(), &listing.commit)?;
        Ok(found(name, &listing.commit, &snapshot, selection))
    }

    /// Finds a model in the cache if all that is wanted of it is there; else gives what it lacks.
    fn find(
        &self,
        name: &ModelName,
        want: &FetchOptions,
    ) -> Result<std::result::Result<FoundModel, Vec<String>>> {
        let folder = RepoFolder::new(&self.settings.cache, &name.repo);
        let Some(commit) = folder.commit_of(name.revision()) else {
            return Ok(Err(Vec::new()));
        };
        let snapshot = folder.snapshot(&commit);
        let files = files_below(&snapshot);
        let view = View {
            name,
            files: &files,
            lacks: &|file| folder.absent(&commit, file).is_file(),
            read: &|file| read_json::<Map<String, Value>>(&snapshot.join(file)),
        };
        let mut selection = select(want, &view)?;
        let missing = std::mem::take(&mut selection.missing);
        Ok(match missing.is_empty() {
            true => Ok(found(name, &commit, &snapshot, selection)),
            false => Err(missing),
        })
    }

    fn offline(&self, name: &ModelName, missing: Vec<String>) -> crate::Error {
        let missing = match missing.is_empty() {
            true => vec![format!("`{name}`")],
            false => missing.iter().map(|f| format!("{f} of `{name}`")).collect(),
        };
        let error = HubError::Offline {
            name: name.to_string(),
            cache: self.settings.cache.clone(),
            folder: RepoFolder::new(&self.settings.cache, &name.repo).name(),
            missing,
        };
        error.into()
    }
}

fn found(name: &ModelName, commit: &str, snapshot: &Path, selection: Selection) -> FoundModel {
    FoundModel {
        path: match &selection.single {
            Some(file) => snapshot.join(file),
            None => snapshot.to_path_buf(),
        },
        name: name.at(commit),
        variant: selection.variant,
    }
}

/// Says that a repository lacks a file, and what it has in its place.
fn no_file(name: &ModelName, file: &str, listing: &Listing) -> HubError {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beside = |f: &&String| f.rsplit_once('/').map_or("", |(folder, _)| folder) == folder;
    let files: Vec<&str> = (listing.files.keys())
        .filter(beside)
        .map(|f| f.as_str())
        .collect();
    let hint = match files
        .iter()
        .find(|f| f.ends_with(".bin") || f.ends_with(".ckpt"))
    {
        Some(pickle) => Some(format!(
            "{pickle} is a pickle, which can run any program when opened and is never read: look \
             for a revision or a copy of the model with safetensors"
        )),
        None if files.is_empty() => None,
        None => Some(format!("beside it there are: {}", files.join(", "))),
    };
    HubError::NoFile {
        repo: name.repo.clone(),
        file: file.to_string(),
        hint,
    }
}
