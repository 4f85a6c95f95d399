//! The words of `sdxl generate` that are about pictures to start from, refiners and second
//! passes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sdxl::{Margins, Request, ResizeMode, UpscaleMethod};

use super::defaults;

/// The way to fit a picture of another aspect ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResizeWord {
    /// Stretch the picture, as diffusers does
    Stretch,
    /// Take the middle of the picture
    Crop,
    /// Repeat the border of the picture outwards
    Pad,
}

/// The method of enlarging before a second pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UpscaleWord {
    /// The picture, by a Lanczos filter
    Lanczos,
    /// The latents, bilinearly
    Latent,
}

/// Flags whose names are fields of a request.
#[derive(Args)]
pub struct StartArgs {
    /// Guidance scales from the first step to the last, straight lines between them
    #[arg(
        long,
        value_name = "G,G,...",
        value_delimiter = ',',
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub guidance_schedule: Vec<f32>,
    /// Guidance only between these fractions of the steps, such as 0.2,0.8: the others take half
    /// the time
    #[arg(long, value_name = "F,F", value_parser = interval, allow_negative_numbers = true,
          help_heading = "Sampling")]
    pub guidance_interval: Option<[f64; 2]>,
    /// Go on where this fraction of the noise is gone: the refiner or, without one, the run, from
    /// --latents
    #[arg(
        long,
        value_name = "F",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub denoising_start: Option<f64>,

    /// Refiner checkpoint, which finishes what the base begins, named as --model is
    #[arg(long, value_name = "DIR|FILE|NAME", help_heading = "Refiner")]
    pub refiner: Option<PathBuf>,
    /// The fraction of the noise that the base takes away before the refiner goes on
    /// [default with a refiner: 0.8]
    #[arg(
        long,
        value_name = "F",
        allow_negative_numbers = true,
        help_heading = "Refiner"
    )]
    pub denoising_fraction: Option<f64>,
    /// Let the refiner go over the finished picture instead, with this strength
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        help_heading = "Refiner"
    )]
    pub refiner_strength: Option<f64>,
    /// Aesthetic score that a refiner is conditioned on: the higher, the more beautiful the picture
    #[arg(long, value_name = "N", default_value_t = defaults().aesthetic_score,
          allow_negative_numbers = true, help_heading = "Refiner")]
    pub aesthetic_score: f32,
    /// Aesthetic score of the negative conditioning: that of the picture to stay away from
    #[arg(long, value_name = "N", default_value_t = defaults().negative_aesthetic_score,
          allow_negative_numbers = true, help_heading = "Refiner")]
    pub negative_aesthetic_score: f32,

    /// Picture to start from (PNG, JPEG, WebP, GIF, BMP, TIFF, ...)
    #[arg(long, value_name = "FILE", help_heading = "From a picture")]
    pub init_image: Option<PathBuf>,
    /// Degree to which the picture is made new, 0 to 1 [default: 0.3, with a mask 0.9999]
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        help_heading = "From a picture"
    )]
    pub strength: Option<f64>,
    /// Way to fit a picture of another shape than --width by --height
    #[arg(
        long,
        value_enum,
        default_value = "stretch",
        help_heading = "From a picture"
    )]
    pub resize_mode: ResizeWord,
    /// Mask: a picture of the same size, white in the part that is made new
    #[arg(long, value_name = "FILE", help_heading = "From a picture")]
    pub mask: Option<PathBuf>,
    /// Make new what is black in the mask
    #[arg(long, help_heading = "From a picture")]
    pub invert_mask: bool,
    /// Blur the mask's edge, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = defaults().mask_blur,
          allow_negative_numbers = true, help_heading = "From a picture")]
    pub mask_blur: f64,
    /// Work on the masked part alone, with so many pixels around it, at --width by --height
    #[arg(long, value_name = "PIXELS", help_heading = "From a picture")]
    pub mask_crop_padding: Option<usize>,
    /// Give back every pixel outside the mask as it was
    #[arg(long, help_heading = "From a picture")]
    pub keep_unmasked: bool,
    /// Paint on beyond the picture's border: left=128,top=0,right=64,bottom=0
    #[arg(long, value_name = "SIDE=PIXELS,...", help_heading = "From a picture")]
    pub extend: Option<Margins>,

    /// Enlarge the finished picture so many times and go over it once more
    #[arg(
        long,
        value_name = "FACTOR",
        allow_negative_numbers = true,
        help_heading = "Second pass"
    )]
    pub upscale: Option<f64>,
    /// Degree to which the second pass makes the picture new, 0 to 1
    #[arg(long, value_name = "S", default_value_t = defaults().upscale_strength,
          allow_negative_numbers = true, help_heading = "Second pass")]
    pub upscale_strength: f64,
    /// Method of enlarging the picture or its latents
    #[arg(
        long,
        value_enum,
        default_value = "lanczos",
        help_heading = "Second pass"
    )]
    pub upscale_method: UpscaleWord,
}

fn interval(text: &str) -> Result<[f64; 2], String> {
    text.split_once(',')
        .and_then(|(from, to)| Some([from.trim().parse().ok()?, to.trim().parse().ok()?]))
        .ok_or_else(|| format!("`{text}` is not FROM,TO, as in 0.2,0.8"))
}

impl StartArgs {
    /// Puts whatever was typed into `r`.
    pub fn apply(&self, r: &mut Request, given: &dyn Fn(&str) -> bool) {
        macro_rules! take {
            ($($field:ident),*) => {
                $(if given(stringify!($field)) {
                    r.$field = self.$field.clone();
                })*
            };
        }
        take!(
            guidance_schedule,
            guidance_interval,
            denoising_start,
            denoising_fraction,
            refiner_strength,
            aesthetic_score,
            negative_aesthetic_score,
            init_image,
            strength,
            mask,
            invert_mask,
            mask_blur,
            mask_crop_padding,
            keep_unmasked,
            upscale,
            upscale_strength
        );
        if let Some(margins) = self.extend {
            r.extend = margins;
        }
        if given("resize_mode") {
            r.resize_mode = match self.resize_mode {
                ResizeWord::Stretch => ResizeMode::Stretch,
                ResizeWord::Crop => ResizeMode::Crop,
                ResizeWord::Pad => ResizeMode::Pad,
            };
        }
        if given("upscale_method") {
            r.upscale_method = match self.upscale_method {
                UpscaleWord::Lanczos => UpscaleMethod::Lanczos,
                UpscaleWord::Latent => UpscaleMethod::Latent,
            };
        }
    }
}
