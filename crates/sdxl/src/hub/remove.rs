//! Taking models out of the cache: a revision's links, and the contents that nothing links to any
//! more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{RepoFolder, files_below};
use super::error::HubError;
use super::name::{ModelName, is_commit};
use super::scan::{Cached, revisions};
use super::{Hub, shared_blobs};
use crate::error::Result;

/// The revisions and files that are taken away when a model, or one revision of it, is removed.
#[derive(Debug)]
pub struct Removal {
    /// The revisions that go.
    pub revisions: Vec<Cached>,
    /// Bytes of files that go. Contents that several models share may stay.
    pub bytes: u64,
    repo: RepoFolder,
    cache: PathBuf,
    blobs: Vec<PathBuf>,
    /// Whether no revision stays.
    whole: bool,
}

impl Hub {
    /// Finds out what there is to remove: all of a model or, with a revision, that one.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn removal(&self, name: &ModelName) -> Result<Removal> {
        let cache = &self.settings.cache;
        let repo = RepoFolder::new(cache, &name.repo);
        let wanted = match &name.revision {
            Some(revision) => repo.commit_of(revision),
            None => None,
        };
        let goes = |of: &Cached| match (&name.revision, &wanted) {
            (None, _) => true,
            (Some(_), Some(commit)) => of.commit == *commit,
            // The beginning of a commit, as lists show it.
            (Some(start), None) => start.len() >= 7 && of.commit.starts_with(start.as_str()),
        };
        let (revisions, stay): (Vec<Cached>, Vec<Cached>) =
            revisions(cache, &name.repo).into_iter().partition(goes);
        let whole = stay.is_empty();
        // Without a revision, whatever is left of a pull that was given up goes too.
        if revisions.is_empty() && (name.revision.is_some() || !repo.path().is_dir()) {
            let error = HubError::NotCached {
                name: name.to_string(),
                cache: cache.clone(),
            };
            return Err(error.into());
        }
        let kept: BTreeSet<PathBuf> = stay.iter().flat_map(blobs_of).collect();
        let blobs: Vec<PathBuf> = match whole {
            true => (files_below(&repo.path().join("blobs")).iter())
                .map(|name| repo.blob(name))
                .collect(),
            false => {
                let own: BTreeSet<PathBuf> = revisions.iter().flat_map(blobs_of).collect();
                own.difference(&kept).cloned().collect()
            }
        };
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |m| m.len());
        Ok(Removal {
            bytes: blobs.iter().map(size).sum(),
            revisions,
            repo,
            cache: cache.clone(),
            blobs,
            whole,
        })
    }
}

/// The contents that a revision's files lead to, where they are links.
fn blobs_of(of: &Cached) -> Vec<PathBuf> {
    let blob = |file: &String| {
        let link = of.snapshot.join(file);
        let target = fs::read_link(&link).ok()?;
        // A name in `blobs`, whatever the way there.
        let blobs = of.snapshot.parent()?.parent()?.join("blobs");
        Some(blobs.join(target.file_name()?))
    };
    of.files.keys().filter_map(blob).collect()
}

impl Removal {
    /// Removes it.
    ///
    /// # Errors
    /// A file that cannot be removed. What went before it is gone.
    pub fn carry_out(&self) -> Result<()> {
        // Links first: what stays is never a name that leads nowhere.
        for of in &self.revisions {
            remove_folder(&of.snapshot)?;
            for name in &of.revisions {
                remove_file(&self.repo.path().join("refs").join(name))?;
            }
            if is_commit(&of.commit) {
                let notes = self.repo.path();
                remove_folder(&notes.join(".no_exist").join(&of.commit))?;
                remove_file(&notes.join("trees").join(format!("{}.json", of.commit)))?;
            }
        }
        for blob in &self.blobs {
            let shared = shared_blobs::target(&self.cache, blob);
            remove_file(blob)?;
            if let Some(shared) = shared {
                shared_blobs::sweep(&self.cache, &shared);
            }
        }
        if self.whole {
            remove_folder(&self.repo.path())?;
            remove_folder(&self.repo.locks())?;
        }
        Ok(())
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(HubError::cache(path, &e).into()),
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(HubError::cache(path, &e).into()),
        _ => Ok(()),
    }
}
