//! The flags about the picture's size and the way from noise to it, shared by `sdxl generate` and
//! `sdxl plot`.

use clap::Args;
use sdxl::request::Aspect;
use sdxl::{Request, Rng, Size};

use super::heading;
use super::values::{Numbers, crop, names, scheduler_option, set};

/// The picture's size and its noise.
#[derive(Args)]
#[command(next_help_heading = heading::PICTURE)]
pub(super) struct SizeArgs {
    /// Width in pixels, a multiple of 8 [default: the checkpoint's]
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Height in pixels, a multiple of 8 [default: the checkpoint's]
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// The training size of the nearest aspect ratio: 16:9, phone, ... (`sdxl aspects` lists them)
    #[arg(long, value_name = "W:H|NAME", conflicts_with_all = ["width", "height"])]
    aspect: Option<Aspect>,
    /// Random number generator that the seed starts
    #[arg(long, value_parser = names::<Rng>())]
    rng: Option<Rng>,
}

impl SizeArgs {
    /// Puts whatever was typed into `r`.
    pub(super) fn apply(&self, r: &mut Request) {
        // One stands in the place of a recipe's other.
        if self.aspect.is_some() {
            (r.width, r.height) = (None, None);
        }
        if self.width.is_some() || self.height.is_some() {
            r.aspect = None;
        }
        set(&mut r.width, &self.width);
        set(&mut r.height, &self.height);
        set(&mut r.aspect, &self.aspect);
        set(&mut r.rng, &self.rng);
    }
}

/// The way from noise to a picture.
#[derive(Args)]
#[command(next_help_heading = heading::SAMPLING)]
pub(super) struct SamplingArgs {
    /// Classifier-free guidance; off at 1 and below
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Pulls guided contrast back to the unguided one's, 0 to 1
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    guidance_rescale: Option<f32>,
    /// Scheduler, by its diffusers class or a short name [default: the checkpoint's]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// A key of scheduler_config.json to set, such as use_karras_sigmas=true
    #[arg(long, value_name = "KEY=VALUE")]
    scheduler_option: Vec<String>,
    /// Visit these timesteps instead of --steps evenly spaced ones (`ays`: the ten of
    /// "Align Your Steps")
    #[arg(long, value_name = "T,T,...|ays", value_parser = Numbers::timesteps)]
    timesteps: Option<Numbers>,
    /// Visit these noise levels; the last one is the result's (0 for a finished picture;
    /// `ays`: those of "Align Your Steps")
    #[arg(long, value_name = "S,S,...|ays", value_parser = Numbers::sigmas)]
    sigmas: Option<Numbers>,
    /// Stochasticity of DDIM and its kin, 0 to 1
    #[arg(long, allow_negative_numbers = true)]
    eta: Option<f64>,
    /// Stop when this fraction of the noise is gone, leaving noisy latents (to the refiner)
    #[arg(long, value_name = "F")]
    pub denoising_end: Option<f64>,
}

impl SamplingArgs {
    /// Puts whatever was typed into `r`.
    ///
    /// # Errors
    /// An option of a scheduler that is not written KEY=VALUE.
    pub(super) fn apply(&self, r: &mut Request) -> anyhow::Result<()> {
        if self.guidance_scale.is_some() {
            // In the place of a recipe's schedule.
            r.guidance_schedule.clear();
        }
        set(&mut r.guidance_scale, &self.guidance_scale);
        set(&mut r.guidance_rescale, &self.guidance_rescale);
        set(&mut r.scheduler, &self.scheduler);
        for option in &self.scheduler_option {
            let (key, value) = scheduler_option(option)?;
            r.scheduler_options.insert(key, value);
        }
        if self.timesteps.is_some() || self.sigmas.is_some() {
            // In the place of a recipe's steps.
            let list = |numbers: &Option<Numbers>| numbers.clone().map_or_else(Vec::new, |n| n.0);
            r.timesteps = list(&self.timesteps);
            r.sigmas = list(&self.sigmas);
            r.steps = Request::default().steps;
        }
        set(&mut r.eta, &self.eta);
        set(&mut r.denoising_end, &self.denoising_end);
        Ok(())
    }
}

/// The sizes that the network is told.
#[derive(Args)]
#[command(next_help_heading = heading::CONDITIONING)]
pub(super) struct ConditioningArgs {
    /// Size of the training picture to imitate [default: the picture's]
    #[arg(long, value_name = "WxH")]
    original_size: Option<Size>,
    /// Size to aim at [default: the picture's]
    #[arg(long, value_name = "WxH")]
    target_size: Option<Size>,
    /// Pixels cropped off the training picture to imitate
    #[arg(long, value_name = "TOP,LEFT", value_parser = crop)]
    crops_coords_top_left: Option<[usize; 2]>,
    /// The same to stay away from (from noise it counts only with --negative-target-size)
    #[arg(long, value_name = "WxH")]
    negative_original_size: Option<Size>,
    /// The same to stay away from (from noise it counts only with --negative-original-size)
    #[arg(long, value_name = "WxH")]
    negative_target_size: Option<Size>,
    /// The same to stay away from
    #[arg(long, value_name = "TOP,LEFT", value_parser = crop)]
    negative_crops_coords_top_left: Option<[usize; 2]>,
}

impl ConditioningArgs {
    /// Puts whatever was typed into `r`.
    pub(super) fn apply(&self, r: &mut Request) {
        set(&mut r.original_size, &self.original_size);
        set(&mut r.target_size, &self.target_size);
        set(&mut r.crops_coords_top_left, &self.crops_coords_top_left);
        set(&mut r.negative_original_size, &self.negative_original_size);
        set(&mut r.negative_target_size, &self.negative_target_size);
        set(
            &mut r.negative_crops_coords_top_left,
            &self.negative_crops_coords_top_left,
        );
    }
}
