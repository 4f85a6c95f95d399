//! Contents that several models of a cache share. Newer versions of Python's `huggingface_hub`
//! move a file that came over the Xet protocol to `blobs/AB/XETHASH` in the cache folder, leave a
//! link to it in the model's `blobs`, and list the links in `XETHASH.refs`.
//!
//! This program does not put files there; it reads through the links, and takes away what its
//! removals leave without any.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The shared file that a model's blob is a link to.
pub(super) fn target(cache: &Path, blob: &Path) -> Option<PathBuf> {
    let link = fs::read_link(blob).ok()?;
    let hash = link.file_name()?.to_str()?;
    let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if hash.len() != 64 || !hash.bytes().all(hexadecimal) {
        return None;
    }
    let shared = cache.join("blobs").join(&hash[..2]).join(hash);
    let same = fs::canonicalize(blob).ok()? == fs::canonicalize(&shared).ok()?;
    same.then_some(shared)
}

/// Removes a shared file that no link leads to any more, and returns its size. When in doubt it
/// stays: without its list of links, or with a list that cannot be read.
pub(super) fn sweep(cache: &Path, shared: &Path) -> u64 {
    swept(cache, shared).unwrap_or(0)
}

fn swept(cache: &Path, shared: &Path) -> Option<u64> {
    let beside = |ending: &str| {
        let name = shared.file_name()?.to_str()?;
        Some(shared.with_file_name(format!("{name}.{ending}")))
    };
    let mut options = File::options();
    let lock = options.create(true).append(true);
    let lock = lock.open(beside("lock")?).ok()?;
    lock.lock().ok()?;
    let manifest = beside("refs")?;
    let list = fs::read_to_string(&manifest).ok()?;
    let leads_here = |line: &str| target(cache, &cache.join(line)).as_deref() == Some(shared);
    if list.lines().any(leads_here) {
        return Some(0);
    }
    let size = fs::symlink_metadata(shared).ok().filter(|m| m.is_file())?;
    fs::remove_file(shared).ok()?;
    let _ = fs::remove_file(&manifest);
    Some(size.len())
}
