//! The files that a run starts from, read before any weights are.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{hash_bytes, read_bounded};
use crate::image::MAX_FILE;
use crate::image::Pixels;
use crate::latents::Latents;
use crate::request::Request;
use crate::text::embeds_file::Embeds;

/// An input file of a run, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The request's field that names it.
    pub field: String,
    /// The path, as the request names it.
    pub path: PathBuf,
    /// SHA-256 of its contents, in hexadecimal.
    pub sha256: String,
}

/// The data that a run starts from besides its seed. `Inputs::default()` is a run from noise.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// With `strength`: finished latents to make anew. With `denoising_start` and no refiner: noisy
    /// latents to go on with. Else standard normal latents instead of noise from the seed.
    pub latents: Option<Latents>,
    /// The picture of image to image, red, green and blue.
    pub init_image: Option<Pixels>,
    /// Grey, white where something new is wanted.
    pub mask: Option<Pixels>,
    /// Prompts that are encoded already, for the (empty) ones of the request.
    pub embeds: Option<Embeds>,
    /// The files of the pictures and encoded prompts, for the recipe.
    pub files: Vec<InputFile>,
    /// SHA-256 of the file of `latents`, in hexadecimal, for the recipe.
    pub latents_sha256: Option<String>,
}

impl Inputs {
    /// Reads the pictures and the encoded prompts that `request` names.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is missing, damaged, too large, or of another kind.
    pub fn read(request: &Request) -> Result<Inputs> {
        let mut files = Vec::new();
        let mut bytes_of = |field: &str, path: &Path| -> Result<Vec<u8>> {
            let bytes = read_bounded(path, MAX_FILE)?;
            files.push(InputFile {
                field: field.to_string(),
                path: path.to_path_buf(),
                sha256: hash_bytes(&bytes),
            });
            Ok(bytes)
        };
        let mut embeds = (request.prompt_embeds.as_deref())
            .map(|path| Embeds::read(&bytes_of("prompt_embeds", path)?, path))
            .transpose()?;
        if let (Some(embeds), Some(path)) = (&mut embeds, &request.negative_prompt_embeds) {
            embeds.read_negative(&bytes_of("negative_prompt_embeds", path)?, path)?;
        }
        let mut read = |field: &str, path: &Path, decode: Decode| -> Result<Pixels> {
            let bytes = bytes_of(field, path)?;
            decode(&bytes).map_err(|message| Error::file(path, message))
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
            embeds,
            files,
            latents_sha256: None,
        })
    }
}

type Decode = fn(&[u8]) -> std::result::Result<Pixels, String>;
