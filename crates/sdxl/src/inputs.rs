//! The files that a run starts from, read before any weights are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::image::read::MAX_FILE;
use crate::latents::Latents;
use crate::recipe::{hash_bytes, read_bounded};
use crate::request::Request;

/// An input file of a run, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The request's field that names it.
    pub field: String,
    /// As it was named.
    pub path: PathBuf,
    /// SHA-256 of its contents, in hexadecimal.
    pub sha256: String,
}

/// What a run starts from besides its seed. `Inputs::default()` is a run from noise.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// With `strength`: finished latents to make anew. With `denoising_start` and no refiner: noisy
    /// latents to go on with. Else standard normal latents instead of noise from the seed.
    pub latents: Option<Latents>,
    /// The picture of image to image, red, green and blue.
    pub init_image: Option<Pixels>,
    /// Grey, white where something new is wanted.
    pub mask: Option<Pixels>,
    /// Where the pictures came from, for the recipe.
    pub files: Vec<InputFile>,
}

impl Inputs {
    /// Reads the pictures that `request` names.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is missing, no picture, damaged or too large.
    pub fn read(request: &Request) -> Result<Inputs> {
        let mut files = Vec::new();
        let mut read = |field: &str, path: &Path, decode: Decode| -> Result<Pixels> {
            let bytes = read_bounded(path, MAX_FILE)?;
            let pixels = decode(&bytes).map_err(|message| Error::file(path, message))?;
            files.push(InputFile {
                field: field.to_string(),
                path: path.to_path_buf(),
                sha256: hash_bytes(&bytes),
            });
            Ok(pixels)
        };
        let init_image = (request.init_image.as_deref())
            .map(|path| read("init_image", path, Pixels::decode_rgb))
            .transpose()?;
        let mask = (request.mask.as_deref())
            .map(|path| read("mask", path, Pixels::decode_grey))
            .transpose()?;
        Ok(Inputs {
            latents: None,
            init_image,
            mask,
            files,
        })
    }
}

type Decode = fn(&[u8]) -> std::result::Result<Pixels, String>;
