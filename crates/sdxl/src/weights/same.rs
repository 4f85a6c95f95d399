//! Whether two checkpoints hold the same part, which then is kept in memory once.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::cancel;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, Part};

/// Whether `part` (and, of a text encoder, its tokenizer) is the same in both checkpoints:
/// equal configuration, and files that are one file or equal byte for byte.
///
/// # Errors
/// A file that is missing or cannot be read, and [`Error::Cancelled`].
pub fn same_part(a: &Checkpoint, b: &Checkpoint, part: Part) -> Result<bool> {
    let configs = match part {
        Part::TextEncoder => a.text_encoder == b.text_encoder,
        Part::TextEncoder2 => a.text_encoder_2 == b.text_encoder_2,
        Part::Vae => a.vae == b.vae,
        // No two checkpoints are of use that share it.
        Part::UNet => false,
    };
    // A LoRA is for the checkpoint that it was given with.
    let changed = |c: &Checkpoint| c.files().adapters().of(part).is_some();
    Ok(configs
        && same_words(a, b, part)
        && !changed(a)
        && !changed(b)
        && same_tokenizer(a, b, part)?
        && same_files(&a.weight_files(part)?, &b.weight_files(part)?)?)
}

/// Whether textual inversions say the same to a text encoder.
fn same_words(a: &Checkpoint, b: &Checkpoint, part: Part) -> bool {
    let words = |c: &Checkpoint| -> Vec<(String, Vec<f32>)> {
        let words = c.files().inversions().words().iter();
        words
            .map(|w| (w.token.clone(), w.rows(part).to_vec()))
            .collect()
    };
    let text = matches!(part, Part::TextEncoder | Part::TextEncoder2);
    !text || words(a) == words(b)
}

fn same_tokenizer(a: &Checkpoint, b: &Checkpoint, part: Part) -> Result<bool> {
    if !matches!(part, Part::TextEncoder | Part::TextEncoder2) {
        return Ok(true);
    }
    let folders = (
        a.files().tokenizer_folder(part),
        b.files().tokenizer_folder(part),
    );
    let (a, b) = match folders {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Ok(a.is_none() && b.is_none()),
    };
    let names = [
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ];
    for name in names {
        let (a, b) = (a.join(name), b.join(name));
        if a.exists() != b.exists() || a.exists() && !same_file(&a, &b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_files(a: &[PathBuf], b: &[PathBuf]) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        if !same_file(a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Most pairs are told apart by their sizes, or told equal by being links to one file; the
/// rest are read once, which costs less than packing one of them.
fn same_file(a: &Path, b: &Path) -> Result<bool> {
    let opened = |path: &Path| -> Result<(PathBuf, u64, BufReader<File>)> {
        let failed = |e: std::io::Error| Error::read(path, &e);
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let real = path.canonicalize().map_err(failed)?;
        Ok((real, length, BufReader::with_capacity(1 << 20, file)))
    };
    let (real_a, length_a, mut file_a) = opened(a)?;
    let (real_b, length_b, mut file_b) = opened(b)?;
    if real_a == real_b || length_a != length_b {
        return Ok(real_a == real_b);
    }
    let (mut chunk_a, mut chunk_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut left = length_a;
    while left > 0 {
        cancel::check()?;
        let size = left.min(1 << 20) as usize;
        let (chunk_a, chunk_b) = (&mut chunk_a[..size], &mut chunk_b[..size]);
        file_a.read_exact(chunk_a).map_err(|e| Error::read(a, &e))?;
        file_b.read_exact(chunk_b).map_err(|e| Error::read(b, &e))?;
        if chunk_a != chunk_b {
            return Ok(false);
        }
        left -= size as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::same_file;

    #[test]
    fn equal_bytes_are_one_file_and_a_changed_one_is_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let long = vec![7u8; (1 << 20) + 5];
        let mut changed = long.clone();
        changed[1 << 20] = 8;
        let (a, b) = (write("a", &long), write("b", &long));
        assert!(same_file(&a, &a).unwrap() && same_file(&a, &b).unwrap());
        assert!(!same_file(&a, &write("c", &changed)).unwrap());
        assert!(!same_file(&a, &write("d", &long[1..])).unwrap());
        assert!(same_file(&a, &dir.path().join("none")).is_err());
    }
}
