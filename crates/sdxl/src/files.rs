//! Files read whole and within limits, and their hashes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::{python_json, sniff};

/// A weight file of a checkpoint and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Path inside the checkpoint, with `/` between folders.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the contents, in hexadecimal.
    pub sha256: String,
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// A larger file, or something without an end such as a device.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::read(path, &e))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "this is not a regular file"));
    }
    if metadata.len() > limit {
        return Err(Error::file(
            path,
            format!(
                "it has {} bytes; what is read here has at most {limit}",
                metadata.len()
            ),
        ));
    }
    std::fs::read(path).map_err(|e| Error::read(path, &e))
}

/// Reads a text file of a checkpoint.
///
/// # Errors
/// A file that is missing, or is something else.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = read_file(path)?;
    match python_json::decode(&bytes) {
        Some(text) => Ok(text.trim_start_matches('\u{feff}').to_string()),
        None => Err(Error::file(path, "it is no text")),
    }
}

/// Reads a file of a checkpoint that is no weights.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(
            path,
            "this file of the checkpoint is missing; download it, or the whole checkpoint, again",
        ),
        _ => Error::read(path, &e),
    })?;
    match sniff::impostor(&bytes) {
        Some(what) => Err(Error::file(path, what)),
        None => Ok(bytes),
    }
}

/// Reads a JSON file into `T`, also as Python and editors write it (with bare infinities, in UTF-16); errors
/// name the file, the line and the key.
///
/// # Errors
/// A file that is missing, or is something else, or holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_file(path)?;
    let Some(text) = python_json::decode(&bytes) else {
        return Err(Error::file(path, "it is no text, so it is no JSON"));
    };
    python_json::from_str(&text).map_err(|e| Error::file(path, format!("not as expected: {e}")))
}

/// Size and SHA-256 of a file.
pub fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::read(path, &e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).map_err(|e| Error::read(path, &e))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        total += count as u64;
    }
    Ok((total, hex(&hasher.finalize())))
}

/// SHA-256 of bytes in memory, in hexadecimal.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes a digest in hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_a_known_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // The example of FIPS 180-2.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_file(&path).unwrap(), (3, sha256.to_string()));
        assert_eq!(hash_bytes(b"abc"), sha256);
    }
}
