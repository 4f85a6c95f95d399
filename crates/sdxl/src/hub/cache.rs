//! The cache folder that is shared with Python's `huggingface_hub`: one folder a model, in it
//! `blobs/HASH` (contents), `snapshots/COMMIT/PATH` (links to them) and `refs/NAME` (commits).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::name::{is_commit, is_relative};

/// A model's folder in the cache.
#[derive(Debug, Clone)]
pub(super) struct RepoFolder {
    cache: PathBuf,
    repo: String,
}

impl RepoFolder {
    pub(super) fn new(cache: &Path, repo: &str) -> RepoFolder {
        RepoFolder {
            cache: cache.to_path_buf(),
            repo: repo.to_string(),
        }
    }

    /// `models--ORG--NAME`.
    pub(super) fn name(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.cache.join(self.name())
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.path().join("blobs").join(etag)
    }

    /// Gives the path of the file that holds what has come so far of a blob.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.path().join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.path().join("snapshots").join(commit)
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(self.name())
    }

    /// An empty file here says that the model has no such file at this commit.
    pub(super) fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.path().join(".no_exist").join(commit).join(file)
    }

    /// The commit that a branch, a tag or a commit last meant here.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.path().join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Notes what a revision means now. A reader finds the old commit or the new one.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.path().join("refs").join(revision);
        let new = path.with_file_name(format!(
            "{}.{}.tmp",
            path.file_name().unwrap_or_default().to_string_lossy(),
            std::process::id()
        ));
        make_folder_of(&path)?;
        fs::write(&new, commit)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| HubError::cache(&path, &e))
    }

    /// Notes that the model has no `file` at `commit`.
    pub(super) fn set_absent(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.absent(commit, file);
        // A variant that somebody typed may be anything.
        if path.exists() || !is_relative(file) {
            return Ok(());
        }
        make_folder_of(&path)?;
        fs::write(&path, "").map_err(|e| HubError::cache(&path, &e))
    }

    /// Puts a blob into a snapshot: a relative link, so that the cache can be moved; where the
    /// file system has none, the file itself, as Python does.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        make_folder_of(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        let failed = |e: io::Error| HubError::cache(&path, &e);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(failed)?;
        }
        match symlink(Path::new(&target), &path) {
            Ok(()) => Ok(()),
            // Another process was as fast.
            Err(_) if path.exists() => Ok(()),
            Err(_) => fs::rename(self.blob(etag), &path).map_err(failed),
        }
    }

    /// Keeps other processes, Python's too, from fetching the same blob at the same time, as long
    /// as the result lives. Where locks do not work, both fetch it; the hash is checked anyway.
    pub(super) fn lock(&self, etag: &str) -> Option<File> {
        let folder = self.locks();
        fs::create_dir_all(&folder).ok()?;
        let mut options = File::options();
        let path = folder.join(format!("{etag}.lock"));
        let file = options.create(true).append(true).open(path).ok()?;
        file.lock().ok()?;
        Some(file)
    }
}

/// Makes the folder that a file is to be in.
pub(super) fn make_folder_of(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| HubError::cache(folder, &e))
}

/// Every file below `folder`, by its path with `/` between folders. Links count as what they
/// lead to; those that lead nowhere are left out.
pub(super) fn files_below(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_string) else {
                continue;
            };
            let path = format!("{prefix}{name}");
            // A folder that is a link is not something a cache has.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                walk(&entry.path(), &format!("{path}/"), found);
            } else if entry.path().is_file() && is_relative(&path) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
