//! A request: everything that decides which pictures are made.
//!
//! Field names, units and defaults are those of diffusers'
//! `StableDiffusionXLPipeline.__call__`; front ends have no defaults of their own.

pub mod aspect;
mod choices;
mod json;
mod loras;
mod picture;
mod wildcards;

pub use aspect::Aspect;
pub use choices::{PooledFrom, PromptSyntax, PromptWeighting, VaeTiling};
pub use picture::{ExtendMargins, ResizeMode, UpscaleMethod};

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::noise::Rng;
use crate::noise_schedule::{AYS_SDXL_SIGMAS, AYS_SDXL_TIMESTEPS};

/// A width and a height in pixels, written `1024x768`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let parsed = s
            .split_once(['x', 'X'])
            .and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
        match parsed {
            Some((width, height)) => Ok(Size { width, height }),
            None => Err(format!(
                "`{s}` is not a size; write WIDTHxHEIGHT, as in 1024x768"
            )),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(s: String) -> std::result::Result<Self, String> {
        s.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

/// Everything a user can ask for. `Request::default()` with a prompt is a good request.
///
/// ```
/// let request = sdxl::Request { prompt: vec!["a lighthouse".into()], ..Default::default() };
/// assert_eq!(request.steps, 50);
/// request.check().unwrap();
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// The prompt, a description of the picture; several prompts make several pictures.
    pub prompt: Vec<String>,
    /// A prompt of its own for the second text encoder: one, or one a prompt.
    pub prompt_2: Vec<String>,
    /// The negative prompt, a description of what the picture must not show: none, one, or one a
    /// prompt. None and `""` differ: see
    /// [`crate::weights::Checkpoint::force_zeros_for_empty_prompt`].
    pub negative_prompt: Vec<String>,
    /// The negative prompt for the second text encoder.
    pub negative_prompt_2: Vec<String>,
    /// The syntax in which prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// File of prompts that are encoded already, to be given instead of `prompt`; see
    /// [`crate::text::embeds_file`].
    pub prompt_embeds: Option<PathBuf>,
    /// File of encoded negative prompts. `None`: those in `prompt_embeds`, else
    /// `negative_prompt`.
    pub negative_prompt_embeds: Option<PathBuf>,
    /// The effect of weights in prompts.
    pub prompt_weighting: PromptWeighting,
    /// Whether prompts of more than 77 tokens (start and end included) are cut. `None`: plain
    /// ones are, as in diffusers; others take as many chunks of 77 as they need.
    pub truncate_long_prompts: Option<bool>,
    /// The text that the pooled vector is computed from. `None`: the clean text with A1111's
    /// syntax, else the raw text, each as its own program does.
    pub pooled_from: Option<PooledFrom>,
    /// One seed for the whole batch, or one a picture. Empty: drawn at random.
    pub seed: Vec<u64>,
    /// The random number generator that the seeds are for.
    pub rng: Rng,
    /// Denoising steps.
    pub steps: usize,
    /// Width in pixels, a multiple of 8. `None`: what the checkpoint was trained at.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8.
    pub height: Option<usize>,
    /// The training size of the nearest aspect ratio, instead of `width` and `height`, which
    /// it becomes.
    pub aspect: Option<Aspect>,
    /// Classifier-free guidance scale (Ho & Salimans 2022); off at 1 and below.
    pub guidance_scale: f32,
    /// Guidance scales instead of the one: from the first step to the last, straight lines
    /// between them. As many as steps give each step its own.
    pub guidance_schedule: Vec<f32>,
    /// Guidance only from the first of these fractions of the steps up to the second
    /// (Kynkäänniemi et al. 2024); the other steps see the prompt alone and take half the time.
    pub guidance_interval: Option<[f64; 2]>,
    /// Pulls the guided prediction back to the unguided one's contrast, 0 to 1
    /// (Lin et al. 2023, section 3.4).
    pub guidance_rescale: f32,
    /// Pictures a prompt.
    pub num_images: usize,
    /// Layers skipped at the end of the text encoders, beyond the one SDXL skips.
    pub clip_skip: Option<usize>,
    /// Micro-conditioning: the size the training picture had. `None`: the picture's.
    pub original_size: Option<Size>,
    /// Micro-conditioning: the size wanted. `None`: the picture's.
    pub target_size: Option<Size>,
    /// Micro-conditioning: pixels cropped off the top and off the left.
    pub crops_coords_top_left: [usize; 2],
    /// Negative micro-conditioning; as in diffusers it counts only if
    /// `negative_target_size` is given too.
    pub negative_original_size: Option<Size>,
    /// Negative micro-conditioning, with `negative_original_size`.
    pub negative_target_size: Option<Size>,
    /// Negative micro-conditioning, with the two negative sizes.
    pub negative_crops_coords_top_left: [usize; 2],
    /// Scheduler by diffusers class name or short name. `None`: the checkpoint's.
    pub scheduler: Option<String>,
    /// Keys of `scheduler_config.json` to set, by name.
    pub scheduler_options: Map<String, Value>,
    /// Timesteps to visit instead of `steps` evenly spaced ones; in JSON a list, or a name
    /// (see [`parse_timesteps`]).
    #[serde(deserialize_with = "timesteps_or_name")]
    pub timesteps: Vec<f64>,
    /// Noise levels to visit instead of `steps` computed ones; in JSON a list, or a name
    /// (see [`parse_sigmas`]).
    #[serde(deserialize_with = "sigmas_or_name")]
    pub sigmas: Vec<f64>,
    /// Stochasticity of DDIM and its kin, 0 to 1.
    pub eta: f64,
    /// Stop when this fraction of the noise is gone, leaving noisy latents (to a refiner, where
    /// there is one).
    pub denoising_end: Option<f64>,
    /// Begin where this fraction of the noise is gone: the refiner, where there is one, else
    /// the run, with latents given to it.
    pub denoising_start: Option<f64>,
    /// The fraction of the noise that the base takes away before the refiner goes on: both
    /// `denoising_end` and `denoising_start`. 0.8 where there is a refiner and nothing else is said.
    pub denoising_fraction: Option<f64>,
    /// The finished picture through the refiner once more, as image to image of this strength,
    /// instead of handing over in the middle.
    pub refiner_strength: Option<f64>,
    /// The aesthetic score that a refiner is conditioned on, 1 to 10: a higher one asks for a more
    /// beautiful picture.
    pub aesthetic_score: f32,
    /// The aesthetic score in a refiner's negative conditioning: that of a picture to stay away
    /// from.
    pub negative_aesthetic_score: f32,
    /// The picture to start from, for image to image.
    pub init_image: Option<PathBuf>,
    /// The way to fit an input picture whose aspect ratio is not `width` to `height`.
    pub resize_mode: ResizeMode,
    /// The strength of image to image, 0 to 1: the share of an input picture that is made new.
    /// This share of the steps runs. `None`: 0.3, with a mask 0.9999, which are diffusers'
    /// defaults.
    pub strength: Option<f64>,
    /// Which part of `init_image` is made new: a picture of its size, white there.
    pub mask: Option<PathBuf>,
    /// Black of the mask for white.
    pub invert_mask: bool,
    /// Blurs the mask's edge, by a Gaussian of so many pixels.
    pub mask_blur: f64,
    /// Work on the masked part alone, with so many pixels around, enlarged to `width` x `height`;
    /// the result is laid into the picture.
    pub mask_crop_padding: Option<usize>,
    /// Lay the result into the input picture where the mask is white; all other pixels come
    /// back as they were.
    pub keep_unmasked: bool,
    /// Outpainting: pixels added on each side of `init_image`.
    pub extend: ExtendMargins,
    /// Second pass: enlarge the finished picture so many times and go over it as image to image.
    pub upscale: Option<f64>,
    /// Strength of the second pass.
    pub upscale_strength: f64,
    /// The method of the second pass's enlargement: of the picture or of the latents.
    pub upscale_method: UpscaleMethod,
    /// Whether the VAE decodes tile by tile.
    pub vae_tiling: VaeTiling,
    /// Side of the VAE's tiles in pixels, a multiple of 32 from 128: smaller ones take less memory
    /// and differ more from the whole. `None`: the size that the checkpoint was made for (SDXL:
    /// 1024). If it is given, larger pictures are tiled unless `vae_tiling` is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tile_size: Option<u32>,
    /// Whether the VAE decodes the pictures of a batch one by one (less memory).
    pub vae_slicing: bool,
    /// Whether pictures carry the invisible watermark (those large enough for it: see
    /// [`crate::watermark`]).
    pub watermark: bool,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            prompt: Vec::new(),
            prompt_2: Vec::new(),
            negative_prompt: Vec::new(),
            negative_prompt_2: Vec::new(),
            prompt_syntax: PromptSyntax::Compel,
            prompt_embeds: None,
            negative_prompt_embeds: None,
            prompt_weighting: PromptWeighting::Auto,
            truncate_long_prompts: None,
            pooled_from: None,
            seed: Vec::new(),
            rng: Rng::TorchCpu,
            steps: 50,
            width: None,
            height: None,
            aspect: None,
            guidance_scale: 5.0,
            guidance_schedule: Vec::new(),
            guidance_interval: None,
            guidance_rescale: 0.0,
            num_images: 1,
            clip_skip: None,
            original_size: None,
            target_size: None,
            crops_coords_top_left: [0, 0],
            negative_original_size: None,
            negative_target_size: None,
            negative_crops_coords_top_left: [0, 0],
            scheduler: None,
            scheduler_options: Map::new(),
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            eta: 0.0,
            denoising_end: None,
            denoising_start: None,
            denoising_fraction: None,
            refiner_strength: None,
            aesthetic_score: 6.0,
            negative_aesthetic_score: 2.5,
            init_image: None,
            resize_mode: ResizeMode::Stretch,
            strength: None,
            mask: None,
            invert_mask: false,
            mask_blur: 0.0,
            mask_crop_padding: None,
            keep_unmasked: false,
            extend: ExtendMargins::default(),
            upscale: None,
            upscale_strength: 0.4,
            upscale_method: UpscaleMethod::Lanczos,
            vae_tiling: VaeTiling::Auto,
            vae_tile_size: None,
            vae_slicing: true,
            watermark: true,
        }
    }
}

/// Timesteps from text: a name, or numbers with commas between them. `ays` is the list for
/// SDXL of "Align Your Steps" (Sabour, Fidler & Kreis 2024), ten steps.
///
/// # Errors
/// Text that is neither, with what it should be.
pub fn parse_timesteps(text: &str) -> std::result::Result<Vec<f64>, String> {
    numbers(text, &AYS_SDXL_TIMESTEPS)
}

/// Noise levels from text, as [`parse_timesteps`] reads them.
///
/// # Errors
/// Text that is neither, with what it should be.
pub fn parse_sigmas(text: &str) -> std::result::Result<Vec<f64>, String> {
    numbers(text, &AYS_SDXL_SIGMAS)
}

fn numbers(text: &str, ays: &[f64]) -> std::result::Result<Vec<f64>, String> {
    if text.trim().eq_ignore_ascii_case("ays") {
        return Ok(ays.to_vec());
    }
    let numbers: std::result::Result<Vec<f64>, _> =
        text.split(',').map(|part| part.trim().parse()).collect();
    numbers.map_err(|_| {
        format!("`{text}` is not a list of numbers with commas between them, nor the name `ays`")
    })
}

/// The JSON value of a field that takes a list of numbers or the name of one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of numbers, or the name `ays`")]
enum ListOrName {
    List(Vec<f64>),
    Name(String),
}

fn timesteps_or_name<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<f64>, D::Error> {
    match ListOrName::deserialize(from)? {
        ListOrName::List(list) => Ok(list),
        ListOrName::Name(name) => parse_timesteps(&name).map_err(serde::de::Error::custom),
    }
}

fn sigmas_or_name<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Vec<f64>, D::Error> {
    match ListOrName::deserialize(from)? {
        ListOrName::List(list) => Ok(list),
        ListOrName::Name(name) => parse_sigmas(&name).map_err(serde::de::Error::custom),
    }
}

/// Largest numbers that make sense; beyond them a typing error is likelier than a wish.
pub(crate) const MAX_SIDE: usize = 16384;
const MAX_STEPS: usize = 1000;
const MAX_IMAGES: usize = 4096;

impl Request {
    /// Whether cond and uncond are both computed, at some step at least.
    pub fn guided(&self) -> bool {
        match self.guidance_schedule.as_slice() {
            [] => self.guidance_scale > 1.0,
            scales => scales.iter().any(|scale| *scale > 1.0),
        }
    }

    /// The size that pictures are made at; `None` until [`crate::Pipeline::prepare`] has decided it,
    /// where the request leaves it open.
    pub fn decided_size(&self) -> Option<Size> {
        Some(Size {
            width: self.width?,
            height: self.height?,
        })
    }

    /// [`Self::decided_size`] of the request of a run or of a picture.
    ///
    /// # Panics
    /// If it is not decided.
    pub fn picture_size(&self) -> Size {
        self.decided_size()
            .expect("the size is decided when a run is prepared")
    }

    /// Number of pictures the request makes.
    pub fn images(&self) -> usize {
        self.prompt.len().saturating_mul(self.num_images)
    }

    /// Rejects a number of steps that contradicts the timesteps or sigmas beside it.
    /// [`Self::check`] does so too, except for the default number of steps, which cannot be
    /// told from none; a front end that knows that it was asked for calls this.
    ///
    /// # Errors
    /// [`Error::Request`] with both numbers.
    pub fn check_steps_agree(&self) -> Result<()> {
        let agree = match (self.timesteps.len(), self.sigmas.len()) {
            (0, 0) => true,
            (0, sigmas) => {
                // With the level of the result or without: which, the scheduler knows.
                sigmas == self.steps || sigmas == self.steps + 1
            }
            (timesteps, _) => timesteps == self.steps,
        };
        if agree {
            return Ok(());
        }
        let (name, list) = if self.timesteps.is_empty() {
            ("sigmas", &self.sigmas)
        } else {
            ("timesteps", &self.timesteps)
        };
        let message = format!(
            "{} given, but {name} lists {} values, which decide the steps",
            self.steps,
            list.len()
        );
        Err(Error::request("steps", message).with_hint("leave one out"))
    }

    /// Accepts or rejects the request as far as that can be told without a checkpoint.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what was given and what is possible.
    pub fn check(&self) -> Result<()> {
        let no = |field, message: String, hint: &str| -> Result<()> {
            Err(Error::request(field, message).with_hint(hint))
        };
        if self.prompt_embeds.is_some() {
            if self.prompt.iter().any(|text| !text.is_empty()) {
                return no(
                    "prompt_embeds",
                    "prompt and prompt_embeds are both given".into(),
                    "give one of them",
                );
            }
        } else if self.negative_prompt_embeds.is_some() {
            return no(
                "negative_prompt_embeds",
                "there are no prompt_embeds to go with them".into(),
                "give `prompt_embeds` too, or negative_prompt instead",
            );
        } else if self.prompt.is_empty() {
            return no(
                "prompt",
                "there is none".into(),
                "say what the picture should show",
            );
        }
        if self.negative_prompt_embeds.is_some() && !self.negative_prompt.is_empty() {
            return no(
                "negative_prompt_embeds",
                "negative_prompt and negative_prompt_embeds are both given".into(),
                "give one of them",
            );
        }
        let prompts = self.prompt.len();
        for (name, list) in [
            ("prompt_2", &self.prompt_2),
            ("negative_prompt", &self.negative_prompt),
            ("negative_prompt_2", &self.negative_prompt_2),
        ] {
            if prompts > 0 && list.len() > 1 && list.len() != prompts {
                return no(
                    name,
                    format!("{} given for {prompts} prompts", list.len()),
                    "give one, or one for each",
                );
            }
        }
        if let Some(aspect) = &self.aspect
            && (self.width.is_some() || self.height.is_some())
        {
            return no(
                "aspect",
                format!("{aspect} given beside width or height, which it decides"),
                "give one or the other",
            );
        }
        for (name, value) in [("width", self.width), ("height", self.height)] {
            if let Some(value) = value {
                check_side(name, value)?;
            }
        }
        if let Some(side) = self.vae_tile_size
            && (side < 128 || !side.is_multiple_of(32))
        {
            return no(
                "vae_tile_size",
                format!("{side} given"),
                "it must be a multiple of 32 from 128",
            );
        }
        if self.steps == 0 || self.steps > MAX_STEPS {
            return no(
                "steps",
                format!("{} given", self.steps),
                &format!("use 1 to {MAX_STEPS}"),
            );
        }
        if self.num_images == 0 || self.images() > MAX_IMAGES {
            return no(
                "num_images",
                format!("{} for {prompts} prompts given", self.num_images),
                &format!("use 1 to {MAX_IMAGES} pictures in all"),
            );
        }
        // How many prompts a file of encoded ones has is seen when it has been read.
        let counted = prompts > 0;
        if counted && self.seed.len() > 1 && self.seed.len() != self.images() {
            return no(
                "seed",
                format!(
                    "{} seeds given for {} pictures",
                    self.seed.len(),
                    self.images()
                ),
                "give one, or one for each",
            );
        }
        if !self.guidance_scale.is_finite() {
            return no(
                "guidance_scale",
                format!("{} is not a number to compute with", self.guidance_scale),
                "5 is usual",
            );
        }
        for (name, value) in [
            ("guidance_rescale", f64::from(self.guidance_rescale)),
            ("eta", self.eta),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return no(name, format!("{value} given"), "use 0 to 1");
            }
        }
        if let Some(end) = self.denoising_end
            && !(end > 0.0 && end <= 1.0)
        {
            return no(
                "denoising_end",
                format!("{end} given"),
                "use more than 0, up to 1",
            );
        }
        self.check_picture()?;
        if !self.timesteps.is_empty() && !self.sigmas.is_empty() {
            return no(
                "sigmas",
                "timesteps and sigmas are both given".into(),
                "give one of them",
            );
        }
        for (name, list) in [("timesteps", &self.timesteps), ("sigmas", &self.sigmas)] {
            if list.iter().any(|v| !v.is_finite() || *v < 0.0) {
                return no(
                    name,
                    "not every value is a number to compute with".into(),
                    "use numbers from 0 on",
                );
            }
        }
        // The default says nothing: it stands wherever nobody asked for a number of steps.
        if self.steps != Request::default().steps {
            self.check_steps_agree()?;
        }
        for (name, size) in [
            ("original_size", self.original_size),
            ("target_size", self.target_size),
            ("negative_original_size", self.negative_original_size),
            ("negative_target_size", self.negative_target_size),
        ] {
            if let Some(size) = size
                && (size.width == 0 || size.height == 0)
            {
                return no(
                    name,
                    format!("{size} has no pixels"),
                    "use sides of 1 or more",
                );
            }
        }
        Ok(())
    }
}

fn check_side(field: &'static str, value: usize) -> Result<()> {
    if value == 0 || !value.is_multiple_of(8) || value > MAX_SIDE {
        let near = ((value + 4) / 8 * 8).clamp(8, MAX_SIDE);
        return Err(
            Error::request(field, format!("{value} given")).with_hint(format!(
                "it must be a multiple of 8 from 8 to {MAX_SIDE} (nearest: {near})"
            )),
        );
    }
    Ok(())
}
