//! Paths of the repository, and files in general.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// A path below the repository's `golden/`.
pub fn golden(path: &str) -> PathBuf {
    crates().join("../golden").join(path)
}

/// The folder of a checkpoint of the demo, `base` or `refiner`.
pub fn demo(checkpoint: &str) -> PathBuf {
    crates().join("demo").join(checkpoint)
}

/// The folder that holds the crates of the workspace.
fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Copies a folder, following links.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

/// Reads width, height and RGB bytes of a PNG: the file without its compression and its texts.
pub fn read_png(path: &Path) -> (usize, usize, Vec<u8>) {
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rgb).unwrap();
    (info.width as usize, info.height as usize, rgb)
}
