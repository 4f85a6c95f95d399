//! The two ways in which a hub names a file by what is in it: the SHA-256 of large files (Git
//! LFS), and Git's own hash of small ones.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::files::hex;

/// The hash that the contents of a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Id {
    /// SHA-256 of the contents, in hexadecimal.
    Sha256(String),
    /// SHA-1 of Git's blob header and the contents, in hexadecimal.
    Git(String),
}

impl Id {
    /// Tells them apart by their length. `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Id> {
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() {
            _ if !text.bytes().all(lower) => None,
            64 => Some(Id::Sha256(text.to_string())),
            40 => Some(Id::Git(text.to_string())),
            _ => None,
        }
    }

    /// In hexadecimal.
    pub(super) fn text(&self) -> &str {
        match self {
            Id::Sha256(text) | Id::Git(text) => text,
        }
    }

    /// Starts to hash contents of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Id::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Id::Git(_) => {
                let mut sha = Sha1::new();
                sha.update(format!("blob {size}\0"));
                Hasher::Git(sha)
            }
        }
    }
}

/// A hash of contents that come piece by piece.
pub(super) enum Hasher {
    /// The hash of the contents alone.
    Sha256(Sha256),
    /// The hash of Git's blob header and the contents.
    Git(Sha1),
}

impl Hasher {
    /// Adds the next piece.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(sha) => sha.update(bytes),
            Hasher::Git(sha) => sha.update(bytes),
        }
    }

    /// The hash of all pieces.
    pub(super) fn finish(self) -> Id {
        match self {
            Hasher::Sha256(sha) => Id::Sha256(hex(&sha.finalize())),
            Hasher::Git(sha) => Id::Git(hex(&sha.finalize())),
        }
    }
}

/// Whether the file at `path` is what `id` names. `told` gets the bytes of every piece.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn matches(path: &Path, id: &Id, told: &mut dyn FnMut(u64)) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut hasher = id.hasher(file.metadata()?.len());
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish() == *id),
            n => {
                hasher.update(&piece[..n]);
                told(n as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum_and_of_git() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        for text in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let id = Id::parse(text).unwrap();
            assert!(matches(&path, &id, &mut |_| {}).unwrap(), "{text}");
            let wrong = Id::parse(&text.replace('5', "6")).unwrap();
            assert!(!matches(&path, &wrong, &mut |_| {}).unwrap());
        }
        assert_eq!(Id::parse("CE013625030ba8dba906f756967f9e9ca394464a"), None);
        assert_eq!(Id::parse("abc"), None);
    }
}
