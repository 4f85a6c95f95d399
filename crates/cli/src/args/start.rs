//! The flags of `sdxl generate` about pictures to start from, refiners and second passes.

use std::path::PathBuf;

use clap::Args;
use sdxl::{ExtendMargins, Request, ResizeMode, UpscaleMethod};

use super::heading;
use super::values::{interval, names, set, switch};

/// Flags whose names are fields of a request, and the refiner.
#[derive(Args)]
pub(crate) struct StartArgs {
    /// Guidance scales from the first step to the last, straight lines between them
    #[arg(long, value_name = "G,G,...", value_delimiter = ',', allow_negative_numbers = true,
          help_heading = heading::SAMPLING)]
    pub guidance_schedule: Vec<f32>,
    /// Guidance only between these fractions of the steps, such as 0.2,0.8: the others take half
    /// the time
    #[arg(long, value_name = "F,F", value_parser = interval, allow_negative_numbers = true,
          help_heading = heading::SAMPLING)]
    guidance_interval: Option<[f64; 2]>,
    /// Go on where this fraction of the noise is gone: the refiner or, without one, the run, from
    /// --latents
    #[arg(long, value_name = "F", allow_negative_numbers = true, help_heading = heading::SAMPLING)]
    pub denoising_start: Option<f64>,

    /// Picture to start from (PNG, JPEG, WebP, GIF, BMP, TIFF, ...)
    #[arg(long, value_name = "FILE", help_heading = heading::START)]
    pub init_image: Option<PathBuf>,
    /// Degree to which the picture is made new, 0 to 1 [default: 0.3, with a mask 0.9999]
    #[arg(long, value_name = "S", allow_negative_numbers = true, help_heading = heading::START)]
    strength: Option<f64>,
    /// Mask: a picture of the same size, white in the part that is made new
    #[arg(long, value_name = "FILE", help_heading = heading::START)]
    pub mask: Option<PathBuf>,
    /// Way to fit a picture of another shape than --width by --height
    #[arg(long, value_parser = names::<ResizeMode>(), help_heading = heading::START)]
    resize_mode: Option<ResizeMode>,
    /// Make new what is black in the mask
    #[arg(long, help_heading = heading::START)]
    invert_mask: bool,
    /// The negative
    #[arg(long, help_heading = heading::START)]
    no_invert_mask: bool,
    /// Blur the mask's edge, in pixels
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, help_heading = heading::START)]
    mask_blur: Option<f64>,
    /// Work on the masked part alone, with so many pixels around it, at --width by --height
    #[arg(long, value_name = "PIXELS", help_heading = heading::START)]
    mask_crop_padding: Option<usize>,
    /// Give back every pixel outside the mask as it was
    #[arg(long, help_heading = heading::START)]
    keep_unmasked: bool,
    /// The negative
    #[arg(long, help_heading = heading::START)]
    no_keep_unmasked: bool,
    /// Paint on beyond the picture's border: left=128,top=0,right=64,bottom=0
    #[arg(long, value_name = "SIDE=PIXELS,...", help_heading = heading::START)]
    extend: Option<ExtendMargins>,

    /// Refiner checkpoint, which finishes what the base begins, named as --model is
    #[arg(long, value_name = "DIR|FILE|NAME", help_heading = heading::REFINER)]
    pub refiner: Option<PathBuf>,
    /// The fraction of the noise that the base takes away before the refiner goes on
    /// [default with a refiner: 0.8]
    #[arg(long, value_name = "F", allow_negative_numbers = true, help_heading = heading::REFINER)]
    pub denoising_fraction: Option<f64>,
    /// Let the refiner go over the finished picture instead, with this strength
    #[arg(long, value_name = "S", allow_negative_numbers = true, help_heading = heading::REFINER)]
    pub refiner_strength: Option<f64>,
    /// Aesthetic score that a refiner is conditioned on: the higher, the more beautiful the picture
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = heading::REFINER)]
    aesthetic_score: Option<f32>,
    /// Aesthetic score of the negative conditioning: that of the picture to stay away from
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = heading::REFINER)]
    negative_aesthetic_score: Option<f32>,

    /// Enlarge the finished picture so many times and go over it once more
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true,
          help_heading = heading::SECOND_PASS)]
    upscale: Option<f64>,
    /// Degree to which the second pass makes the picture new, 0 to 1
    #[arg(long, value_name = "S", allow_negative_numbers = true,
          help_heading = heading::SECOND_PASS)]
    upscale_strength: Option<f64>,
    /// Method of enlarging the picture or its latents
    #[arg(long, value_parser = names::<UpscaleMethod>(), help_heading = heading::SECOND_PASS)]
    upscale_method: Option<UpscaleMethod>,
}

impl StartArgs {
    /// Puts whatever was typed into `r`.
    pub(crate) fn apply(&self, r: &mut Request) {
        set(&mut r.guidance_schedule, &self.guidance_schedule);
        set(&mut r.guidance_interval, &self.guidance_interval);
        set(&mut r.denoising_start, &self.denoising_start);
        set(&mut r.init_image, &self.init_image);
        set(&mut r.strength, &self.strength);
        set(&mut r.mask, &self.mask);
        set(&mut r.resize_mode, &self.resize_mode);
        let invert = switch(self.invert_mask, self.no_invert_mask);
        set(&mut r.invert_mask, &invert);
        set(&mut r.mask_blur, &self.mask_blur);
        set(&mut r.mask_crop_padding, &self.mask_crop_padding);
        let keep = switch(self.keep_unmasked, self.no_keep_unmasked);
        set(&mut r.keep_unmasked, &keep);
        set(&mut r.extend, &self.extend);
        set(&mut r.denoising_fraction, &self.denoising_fraction);
        set(&mut r.refiner_strength, &self.refiner_strength);
        set(&mut r.aesthetic_score, &self.aesthetic_score);
        set(
            &mut r.negative_aesthetic_score,
            &self.negative_aesthetic_score,
        );
        set(&mut r.upscale, &self.upscale);
        set(&mut r.upscale_strength, &self.upscale_strength);
        set(&mut r.upscale_method, &self.upscale_method);
    }
}
