//! A miniature of Stable Diffusion XL, trained from scratch on drawn scenes, that travels
//! inside the program: a base and a refiner in the Hugging Face folder layout.
//!
//! The program has to be one file and yet load this model by the very code that loads a
//! full checkpoint, which maps files. So the files are put into the user's cache folder, once,
//! and opened there. How the model is made, and what it can draw: `tools/demo-model`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use tempfile::{NamedTempFile, TempDir};

/// A file of the model: its path inside the folder, with `/` between folders, and its bytes.
pub struct File {
    /// Such as `unet/config.json`.
    pub path: &'static str,
    /// The contents.
    pub bytes: &'static [u8],
}

/// Files of folder `$from`, each named as it will be.
macro_rules! files {
    ($($from:literal: $($path:literal),+;)+) => {
        &[$($(File {
            path: $path,
            bytes: include_bytes!(concat!("../", $from, "/", $path)),
        }),+),+]
    };
}

/// One of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demo {
    /// Makes pictures from noise.
    Base,
    /// Finishes pictures of the base.
    Refiner,
}

impl Demo {
    /// Both, in the order they run.
    pub const ALL: [Demo; 2] = [Demo::Base, Demo::Refiner];

    /// Gives the name that stands for the model where a checkpoint folder is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Demo::Base => "demo",
            Demo::Refiner => "demo-refiner",
        }
    }

    /// The model of this name. A folder that is called `demo` is written `./demo`.
    pub fn named(name: &Path) -> Option<Demo> {
        Demo::ALL.into_iter().find(|d| name.as_os_str() == d.name())
    }

    /// Gives the name of its folder in an exported copy.
    pub fn folder_name(self) -> &'static str {
        match self {
            Demo::Base => "base",
            Demo::Refiner => "refiner",
        }
    }

    /// All its files. The second text encoder and the VAE of the refiner are the base's, and
    /// kept once.
    pub fn files(self) -> &'static [File] {
        match self {
            Demo::Base => files! {
                "base":
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "text_encoder_2/config.json",
                "text_encoder_2/model.safetensors",
                "tokenizer/merges.txt",
                "tokenizer/special_tokens_map.json",
                "tokenizer/tokenizer_config.json",
                "tokenizer/vocab.json",
                "tokenizer_2/merges.txt",
                "tokenizer_2/special_tokens_map.json",
                "tokenizer_2/tokenizer_config.json",
                "tokenizer_2/vocab.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors";
            },
            Demo::Refiner => files! {
                "refiner":
                "model_index.json",
                "scheduler/scheduler_config.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors";
                "base":
                "text_encoder_2/config.json",
                "text_encoder_2/model.safetensors",
                "tokenizer_2/merges.txt",
                "tokenizer_2/special_tokens_map.json",
                "tokenizer_2/tokenizer_config.json",
                "tokenizer_2/vocab.json",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors";
            },
        }
    }

    /// Writes the model as a folder `into`, which is made. Files that are there with the same
    /// contents are left alone; others of the same names are replaced, each at once.
    ///
    /// # Errors
    /// The file system's error, with the path.
    pub fn write(self, into: &Path) -> io::Result<()> {
        for file in self.files() {
            let path = into.join(file.path);
            write_if_other(&path, file.bytes)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        }
        Ok(())
    }

    /// The model as a folder on this machine, ready to be opened: in the user's cache, or,
    /// where that cannot be written, in a folder that lasts as long as the result.
    ///
    /// # Errors
    /// When neither the cache nor the system's folder for temporary files can be written.
    pub fn unpack(self) -> io::Result<Unpacked> {
        if let Ok(folders) = etcetera::choose_base_strategy() {
            let version = env!("CARGO_PKG_VERSION");
            let path = folders
                .cache_dir()
                .join(format!("sdxl/demo-{version}"))
                .join(self.folder_name());
            if self.write(&path).is_ok() {
                return Ok(Unpacked { path, _temp: None });
            }
        }
        let temp = tempfile::Builder::new().prefix("sdxl-demo-").tempdir()?;
        self.write(temp.path())?;
        Ok(Unpacked {
            path: temp.path().to_path_buf(),
            _temp: Some(temp),
        })
    }
}

/// A demo model on disk.
pub struct Unpacked {
    path: PathBuf,
    _temp: Option<TempDir>,
}

impl Unpacked {
    /// The folder that holds `model_index.json`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Through a file of another name, so that no reader ever sees half of one.
fn write_if_other(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Sizes first: two versions of a model differ there or in the first pages.
    let same = fs::metadata(path).is_ok_and(|m| m.len() == bytes.len() as u64)
        && fs::read(path).is_ok_and(|there| there == bytes);
    if same {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(demo: Demo) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(demo.folder_name())
    }

    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => found.extend(files_below(&path)),
                false => found.push(path),
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_lists_hold_every_file_of_the_folders() {
        let base = repository(Demo::Base);
        for demo in Demo::ALL {
            let root = repository(demo);
            let listed: Vec<PathBuf> = demo.files().iter().map(|f| root.join(f.path)).collect();
            for path in files_below(&root) {
                assert!(listed.contains(&path), "{} is not listed", path.display());
            }
            for file in demo.files() {
                // What the refiner has no file for is the base's.
                let own = root.join(file.path);
                let path = if own.exists() {
                    own
                } else {
                    base.join(file.path)
                };
                assert!(fs::read(path).unwrap() == file.bytes, "{}", file.path);
            }
        }
    }

    #[test]
    fn both_models_together_stay_below_24_megabytes() {
        let total: u64 = Demo::ALL
            .into_iter()
            .flat_map(|d| files_below(&repository(d)))
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(total <= 24_000_000, "{total} bytes");
    }

    #[test]
    fn writing_repairs_what_is_broken_and_leaves_the_rest_alone() {
        let temp = TempDir::new().unwrap();
        let folder = temp.path().join("base");
        Demo::Base.write(&folder).unwrap();
        let kept = fs::metadata(folder.join("model_index.json")).unwrap();
        fs::write(folder.join("unet/config.json"), "{").unwrap();
        fs::remove_file(folder.join("vae/config.json")).unwrap();
        Demo::Base.write(&folder).unwrap();
        for file in Demo::Base.files() {
            assert!(fs::read(folder.join(file.path)).unwrap() == file.bytes);
        }
        let again = fs::metadata(folder.join("model_index.json")).unwrap();
        assert_eq!(kept.modified().unwrap(), again.modified().unwrap());
    }

    #[test]
    fn names_are_names_and_not_paths() {
        assert_eq!(Demo::named(Path::new("demo")), Some(Demo::Base));
        assert_eq!(Demo::named(Path::new("demo-refiner")), Some(Demo::Refiner));
        assert_eq!(Demo::named(Path::new("./demo")), None);
        assert_eq!(Demo::named(Path::new("demo/")), None);
    }
}
