//! Weight files mapped into memory.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::layer_cache::FileStamp;
use super::safetensors::{is_named_pickle, pickle};
use crate::error::{Error, Result};

/// A mapped file and what its header says beside its tensors.
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    pub(super) map: Mmap,
    pub(super) stamp: FileStamp,
    pub(super) metadata: HashMap<String, String>,
}

/// The error for a folder in the place of a file: it names the file that is probably meant.
fn folder(path: &Path) -> Error {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = (entries.map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    let error = Error::file(path, "this is a folder, and one file is wanted");
    match files.first() {
        Some(first) => error.with_hint(format!("give the file in it, such as {}", first.display())),
        None => error.with_hint("it holds no .safetensors file"),
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
pub(super) fn map_file(path: &Path) -> Result<(Mmap, FileStamp)> {
    let file = File::open(path).map_err(|e| Error::read(path, &e))?;
    let metadata = file.metadata().map_err(|e| Error::read(path, &e))?;
    if metadata.is_dir() {
        return Err(folder(path));
    }
    let length = metadata.len();
    if length < 8 && is_named_pickle(path) {
        return Err(pickle(path));
    }
    if length < 8 {
        return Err(Error::file(
            path,
            format!(
                "the file has only {length} bytes, so it cannot hold weights; download it again"
            ),
        ));
    }
    let stamp = FileStamp {
        path: path.to_path_buf(),
        bytes: length,
        modified: metadata.modified().ok(),
    };
    // SAFETY: the map is read-only and private to this module. If another program
    // changes or shortens the file while it is mapped, values change or the process
    // gets a bus error; checkpoints are written once, and every native loader takes
    // this risk for the sake of not reading 7 GB twice.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::read(path, &e))?;
    Ok((map, stamp))
}

/// Tells the system that these bytes of the file are not needed again soon.
#[allow(unsafe_code)]
pub(super) fn release(map: &Mmap, start: usize, end: usize) {
    #[cfg(unix)]
    if end > start {
        // SAFETY: the mapping is shared, read-only and backed by a file, so dropped
        // pages come back with the same contents at the next access.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
    }
    #[cfg(not(unix))]
    let _ = (map, start, end);
}
