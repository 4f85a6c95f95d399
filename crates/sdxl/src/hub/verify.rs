//! Reading files of the cache again and comparing them with the hash that they are called by.

use std::fs;
use std::path::PathBuf;

use super::cache::RepoFolder;
use super::digest::{Id, matches};
use super::error::HubError;
use super::name::ModelName;
use super::scan::revisions;
use super::{Hub, shared_blobs};
use crate::error::Result;

/// The result of checking the files of a model.
#[derive(Debug, Default)]
pub struct Verified {
    /// Files that are what they should be.
    pub good: usize,
    /// Files of which the cache does not say what they should be.
    pub unknown: Vec<String>,
    /// Files that are something else.
    pub broken: Vec<Broken>,
}

/// A file that is not what it should be.
#[derive(Debug)]
pub struct Broken {
    /// The path of the file in the repository.
    pub file: String,
    /// The description of what is wrong.
    pub what: String,
    cache: PathBuf,
    folder: RepoFolder,
    etag: String,
}

impl Broken {
    /// Removes its contents, so that the next pull fetches them.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove(&self) -> Result<()> {
        let path = self.folder.blob(&self.etag);
        let shared = shared_blobs::target(&self.cache, &path);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::cache(&path, &e).into());
            }
            _ => {}
        }
        if let Some(shared) = shared {
            shared_blobs::sweep(&self.cache, &shared);
        }
        Ok(())
    }
}

impl Hub {
    /// Reads all files of a model, or of one revision. `told` gets a file's path, and how many
    /// bytes of it were just read.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn verify(&self, name: &ModelName, told: &mut dyn FnMut(&str, u64)) -> Result<Verified> {
        let cache = &self.settings.cache;
        let folder = RepoFolder::new(cache, &name.repo);
        let commit = (name.revision.as_deref()).map(|r| folder.commit_of(r).unwrap_or(r.into()));
        let mut found = Verified::default();
        let mut all = revisions(cache, &name.repo);
        all.retain(|of| {
            commit
                .as_ref()
                .is_none_or(|c| of.commit.starts_with(c.as_str()))
        });
        if all.is_empty() {
            let error = HubError::NotCached {
                name: name.to_string(),
                cache: cache.clone(),
            };
            return Err(error.into());
        }
        let mut seen = std::collections::BTreeSet::new();
        for of in &all {
            for file in links_below(&of.snapshot) {
                let path = of.snapshot.join(&file);
                let target = fs::read_link(&path).ok();
                let etag = target.as_deref().and_then(|t| t.file_name()?.to_str());
                let Some(id) = etag.and_then(Id::parse) else {
                    found.unknown.push(file);
                    continue;
                };
                // Revisions share files.
                if !seen.insert(id.text().to_string()) {
                    continue;
                }
                let what = match matches(&path, &id, &mut |bytes| told(&file, bytes)) {
                    Ok(true) => {
                        found.good += 1;
                        continue;
                    }
                    Ok(false) => {
                        format!("its contents have changed (its SHA is not {})", id.text())
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        "its contents are gone".to_string()
                    }
                    Err(e) => format!("it cannot be read: {e}"),
                };
                found.broken.push(Broken {
                    file,
                    what,
                    cache: cache.clone(),
                    folder: folder.clone(),
                    etag: id.text().to_string(),
                });
            }
        }
        Ok(found)
    }
}

/// Every file of a snapshot, also those whose contents are gone.
fn links_below(snapshot: &std::path::Path) -> Vec<String> {
    fn walk(folder: &std::path::Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().is_ok_and(|t| t.is_dir()) {
                true => walk(&entry.path(), &format!("{path}/"), found),
                false => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    walk(snapshot, "", &mut found);
    found.sort();
    found
}
