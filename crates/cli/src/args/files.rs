//! The flags about the files that a run writes and goes on from.

use std::path::PathBuf;

use clap::Args;
use sdxl::image::Format;
use sdxl::{Recipe, Request};

#[cfg(feature = "c2pa")]
use super::credentials;
use super::heading;
use super::values::{at_least_one, names, part_of_recipe, set, switch};

/// The files of `sdxl generate`.
#[derive(Args)]
#[command(next_help_heading = heading::OUTPUT)]
pub(crate) struct FileArgs {
    /// File (*.png, *.jpg or *.webp), or folder for them; with several pictures FILE gets a
    /// number [default: sdxl-SEED.png here]
    #[arg(long, short, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,
    /// Format of the pictures [default: what the file's name ends in, else png]
    #[arg(long, value_parser = names::<Format>(), ignore_case = true)]
    pub format: Option<Format>,
    /// Quality of a JPEG, 1 to 100 [default: 90]; makes a WebP lossy, which is lossless without it
    #[arg(long, value_name = "Q")]
    pub quality: Option<u8>,
    /// Also write the final latents (safetensors)
    #[arg(long, value_name = "FILE")]
    pub output_latents: Option<PathBuf>,
    /// Keep the run in this file while it goes on: the same command takes it up again after a crash, and
    /// the file goes when the pictures are written
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Write the state after every N evaluations [default: 1]
    #[arg(long, value_name = "N", requires = "state", value_parser = at_least_one)]
    pub state_every: Option<usize>,
    /// Check everything and say what the run would take, as `sdxl plan` does, and make nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Show on standard error where the time went, by operator and by layer
    #[arg(long)]
    pub profile: bool,
    /// Draw where the time went
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// The certificate and the private key that pictures are signed with.
    #[cfg(feature = "c2pa")]
    #[command(flatten)]
    pub c2pa: credentials::CredentialsArgs,
}

/// The flags about output that `sdxl generate` and `sdxl plot` share.
#[derive(Args)]
#[command(next_help_heading = heading::OUTPUT)]
pub(crate) struct OutputArgs {
    /// Start from the recipe of a picture (PNG, JPEG or WebP of ours, or JSON): alone it makes the same
    /// picture again; flags given beside it win
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Leave these flags out of the recipe, as in mask,upscale,lora
    #[arg(long, value_name = "FLAG,...", value_delimiter = ',', requires = "recipe",
          value_parser = part_of_recipe)]
    reset: Vec<&'static str>,
    /// Put the invisible watermark into pictures from 256 pixels on
    #[arg(long)]
    watermark: bool,
    /// The negative
    #[arg(long)]
    no_watermark: bool,
    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
    /// The negative
    #[arg(long)]
    no_overwrite: bool,
    /// Print one JSON object about the result, and nothing else, on standard output
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Whether files that exist are replaced.
    pub(crate) fn overwrites(&self) -> bool {
        switch(self.overwrite, self.no_overwrite).unwrap_or(false)
    }

    /// Reads the recipe, if there is one, without the models and files that are to be left out.
    ///
    /// # Errors
    /// A file without a recipe.
    pub(crate) fn read_recipe(&self) -> sdxl::Result<Option<Recipe>> {
        let Some(path) = &self.recipe else {
            return Ok(None);
        };
        let mut was = Recipe::read(path)?;
        for part in &self.reset {
            match *part {
                "variant" => was.variant = None,
                "vae" => was.vae = None,
                "unet" => was.unet = None,
                "lora" => was.loras.clear(),
                "embedding" => was.embeddings.clear(),
                "refiner" => was.refiner = None,
                "latents" => was.latents_sha256 = None,
                _ => {}
            }
        }
        Ok(Some(was))
    }

    /// The recipe's request without the fields that are to be left out.
    ///
    /// # Errors
    /// A request that cannot be written as JSON.
    pub(crate) fn reset(&self, mut request: Request) -> sdxl::Result<Request> {
        for part in &self.reset {
            if *part == "refiner" {
                // What says where a refiner takes over.
                request.denoising_end = None;
                request.denoising_start = None;
                request.denoising_fraction = None;
                request.refiner_strength = None;
            } else if Request::fields().contains(part) {
                request.reset(part)?;
            }
        }
        Ok(request)
    }

    /// Puts whatever was typed into `r`.
    pub(crate) fn apply(&self, r: &mut Request) {
        let watermark = switch(self.watermark, self.no_watermark);
        set(&mut r.watermark, &watermark);
    }
}
