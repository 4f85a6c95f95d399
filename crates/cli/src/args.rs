//! The words of `sdxl generate`: every field of a request under its own name.

#[cfg(feature = "c2pa")]
mod credentials;
mod start;

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use sdxl::Named as _;
use sdxl::device;
use sdxl::image::Format;
use sdxl::memory::Budget;
use sdxl::request::Aspect;
use sdxl::weights::lora::Lora;
use sdxl::{
    InversionFile, Offload, PooledFrom, Precision, PromptSyntax, PromptWeighting, Request, Rng,
    Size, Tiling,
};
use serde_json::Value;

/// Defaults come from the library; the program has none of its own.
fn defaults() -> Request {
    Request::default()
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// When the VAE decodes tile by tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TilingWord {
    /// Only if the picture would not fit in memory otherwise
    Auto,
    /// Always, for pictures larger than a tile
    On,
    /// Never
    Off,
}

/// The syntax that prompts are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SyntaxWord {
    /// Compel's: `word+`, `(some words)1.3`, `("a", "b").blend(0.3, 0.7)`
    Compel,
    /// AUTOMATIC1111's: `(some words:1.3)`, `[from:to:0.4]`, `AND`
    A1111,
    /// None: the prompt as it stands
    Plain,
}

impl SyntaxWord {
    /// The library's word.
    pub fn syntax(self) -> PromptSyntax {
        match self {
            SyntaxWord::Compel => PromptSyntax::Compel,
            SyntaxWord::A1111 => PromptSyntax::A1111,
            SyntaxWord::Plain => PromptSyntax::Plain,
        }
    }
}

/// The method of applying the weights in prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightingWord {
    /// The method that goes with the syntax
    Auto,
    /// Away from the empty text; below 1, towards the prompt without the words
    Compel,
    /// Multiplied, and each chunk brought back to its mean
    A1111,
    /// Multiplied
    A1111NoNorm,
    /// Away from the empty text, or towards it
    #[value(name = "comfyui")]
    ComfyUi,
}

impl WeightingWord {
    /// The library's word.
    pub fn weighting(self) -> PromptWeighting {
        match self {
            WeightingWord::Auto => PromptWeighting::Auto,
            WeightingWord::Compel => PromptWeighting::Compel,
            WeightingWord::A1111 => PromptWeighting::A1111,
            WeightingWord::A1111NoNorm => PromptWeighting::A1111NoNorm,
            WeightingWord::ComfyUi => PromptWeighting::ComfyUi,
        }
    }
}

/// The text that the pooled vector is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PooledWord {
    /// The prompt as written, signs included
    Raw,
    /// The words alone
    Clean,
}

impl PooledWord {
    /// The library's word.
    pub fn pooled_from(self) -> PooledFrom {
        match self {
            PooledWord::Raw => PooledFrom::Raw,
            PooledWord::Clean => PooledFrom::Clean,
        }
    }
}

/// Numbers with commas between them, or the name of a list.
#[derive(Debug, Clone)]
pub struct Numbers(pub Vec<f64>);

impl Numbers {
    /// Parses the value of `--timesteps`.
    pub fn timesteps(text: &str) -> Result<Self, String> {
        sdxl::request::timesteps(text).map(Numbers)
    }

    /// Parses the value of `--sigmas`.
    pub fn sigmas(text: &str) -> Result<Self, String> {
        sdxl::request::sigmas(text).map(Numbers)
    }
}

/// `sdxl generate`
#[derive(Args)]
pub struct GenerateArgs {
    /// Show on standard error where the time went, by operator and by layer
    #[arg(long, help_heading = "Output")]
    pub profile: bool,
    /// Draw where the time went
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub svg: Option<PathBuf>,
    /// Description of the picture; several prompts make several pictures
    #[arg(required_unless_present_any = ["recipe", "prompt_embeds"])]
    pub prompt: Vec<String>,
    /// Make the choices `{red|green|blue}` in prompts, by the seed, for every picture
    #[arg(long, help_heading = "Prompt")]
    pub wildcards: bool,
    /// The same, and take `__name__` from a line of name.txt in this folder
    #[arg(long, value_name = "DIR", help_heading = "Prompt")]
    pub wildcards_dir: Option<PathBuf>,
    /// Prompts that are encoded already, instead of texts (safetensors, as `sdxl prompt
    /// --output-embeddings` and diffusers have them: prompt_embeds, pooled_prompt_embeds)
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "prompt",
        help_heading = "Prompt"
    )]
    pub prompt_embeds: Option<PathBuf>,
    /// The same for what the picture must not show, if it is not in the file of --prompt-embeds
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    pub negative_prompt_embeds: Option<PathBuf>,
    /// Pictures per prompt
    #[arg(long, value_name = "N", default_value_t = defaults().num_images, help_heading = "Picture")]
    pub num_images: usize,
    /// Seed, or one seed per picture [default: drawn from the clock]
    #[arg(
        long,
        value_name = "N[,N...]",
        value_delimiter = ',',
        help_heading = "Picture"
    )]
    pub seed: Vec<u64>,
    /// Memory that the program may take, such as 4GiB, 4GB or 900MiB: the run is arranged so that it
    /// fits, see `sdxl plan` [default: what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Checkpoint and machine")]
    pub memory: Option<Budget>,
    /// Keep the run in this file while it goes on: the same command takes it up again after a crash, and
    /// the file goes when the pictures are written
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub state: Option<PathBuf>,
    /// Write the state after every N evaluations
    #[arg(long, value_name = "N", default_value_t = 1, requires = "state",
          value_parser = at_least_one, help_heading = "Output")]
    pub state_every: usize,
    /// Check everything and say what the run would take, as `sdxl plan` does, and make nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// Start from these latents (safetensors, `latents` [N,4,H/8,W/8]): instead of noise; with
    /// --strength as a finished picture; with --denoising-start as another run's unfinished one
    #[arg(long, value_name = "FILE", help_heading = "Picture")]
    pub latents: Option<PathBuf>,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = defaults().steps, help_heading = "Sampling")]
    pub steps: usize,
    /// File (*.png, *.jpg or *.webp), or folder for them; with several pictures FILE gets a
    /// number [default: sdxl-SEED.png here]
    #[arg(long, short, value_name = "FILE|DIR", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// png, jpeg or webp [default: what the file's name ends in, else png]
    #[arg(long, help_heading = "Output")]
    pub format: Option<Format>,
    /// Quality of a JPEG, 1 to 100 [default: 90]; makes a WebP lossy, which is lossless without it
    #[arg(long, value_name = "Q", help_heading = "Output")]
    pub quality: Option<u8>,
    /// Also write the final latents (safetensors)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub output_latents: Option<PathBuf>,
    /// The certificate and the private key that pictures are signed with.
    #[cfg(feature = "c2pa")]
    #[command(flatten)]
    pub c2pa: credentials::CredentialsArgs,
    /// Pictures to start from, refiners, second passes.
    #[command(flatten)]
    pub start: start::StartArgs,
    /// The arguments shared with `sdxl plot`.
    #[command(flatten)]
    pub picture: PictureArgs,
}

/// The arguments of every command that makes pictures from prompts.
#[derive(Args)]
pub struct PictureArgs {
    /// A prompt of its own for the second text encoder (once, or once per prompt)
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt_2: Vec<String>,
    /// Description of what the picture must not show (once, or once per prompt); without it the
    /// checkpoint decides between an empty text and none
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub negative_prompt: Vec<String>,
    /// The negative prompt for the second text encoder
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub negative_prompt_2: Vec<String>,
    /// Syntax that prompts are written in
    #[arg(long, value_enum, default_value = "compel", help_heading = "Prompt")]
    pub prompt_syntax: SyntaxWord,
    /// Method of applying the weights in prompts
    #[arg(long, value_enum, default_value = "auto", help_heading = "Prompt")]
    pub prompt_weighting: WeightingWord,
    /// Cut prompts of more than 77 tokens, instead of encoding them in several chunks
    /// [default: true with plain syntax, else false]
    #[arg(long, value_name = "true|false", help_heading = "Prompt")]
    pub truncate_long_prompts: Option<bool>,
    /// Text that the pooled vector is computed from [default: clean with a1111 syntax, else raw]
    #[arg(long, value_enum, help_heading = "Prompt")]
    pub pooled_from: Option<PooledWord>,
    /// Layers of the text encoders to skip, beyond the one SDXL skips
    #[arg(long, value_name = "N", help_heading = "Prompt")]
    pub clip_skip: Option<usize>,

    /// Width in pixels, a multiple of 8 [default: the checkpoint's]
    #[arg(long, value_name = "W", help_heading = "Picture")]
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8 [default: the checkpoint's]
    #[arg(long, value_name = "H", help_heading = "Picture")]
    pub height: Option<usize>,
    /// The training size of the nearest aspect ratio: 16:9, phone, ... (`sdxl aspects` lists them)
    #[arg(long, value_name = "W:H|NAME", conflicts_with_all = ["width", "height"],
          help_heading = "Picture")]
    pub aspect: Option<Aspect>,
    /// Random number generator that the seed starts: torch-cpu or torch-cuda
    #[arg(long, default_value = defaults().rng.name(), help_heading = "Picture")]
    pub rng: Rng,

    /// Classifier-free guidance; off at 1 and below
    #[arg(long, value_name = "G", default_value_t = defaults().guidance_scale,
          allow_negative_numbers = true, help_heading = "Sampling")]
    pub guidance_scale: f32,
    /// Pulls guided contrast back to the unguided one's, 0 to 1
    #[arg(long, value_name = "R", default_value_t = defaults().guidance_rescale,
          allow_negative_numbers = true, help_heading = "Sampling")]
    pub guidance_rescale: f32,
    /// Scheduler, by its diffusers class or a short name [default: the checkpoint's]
    #[arg(long, value_name = "NAME", help_heading = "Sampling")]
    pub scheduler: Option<String>,
    /// A key of scheduler_config.json to set, such as use_karras_sigmas=true
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Sampling")]
    pub scheduler_option: Vec<String>,
    /// Visit these timesteps instead of --steps evenly spaced ones (`ays`: the ten of
    /// "Align Your Steps")
    #[arg(long, value_name = "T,T,...|ays", value_parser = Numbers::timesteps,
          help_heading = "Sampling")]
    pub timesteps: Option<Numbers>,
    /// Visit these noise levels; the last one is the result's (0 for a finished picture;
    /// `ays`: those of "Align Your Steps")
    #[arg(long, value_name = "S,S,...|ays", value_parser = Numbers::sigmas,
          help_heading = "Sampling")]
    pub sigmas: Option<Numbers>,
    /// Stochasticity of DDIM and its kin, 0 to 1
    #[arg(long, default_value_t = defaults().eta, allow_negative_numbers = true,
          help_heading = "Sampling")]
    pub eta: f64,
    /// Stop when this fraction of the noise is gone, leaving noisy latents (to the refiner)
    #[arg(long, value_name = "F", help_heading = "Sampling")]
    pub denoising_end: Option<f64>,

    /// Size of the training picture to imitate [default: the picture's]
    #[arg(long, value_name = "WxH", help_heading = "Size conditioning")]
    pub original_size: Option<Size>,
    /// Size to aim at [default: the picture's]
    #[arg(long, value_name = "WxH", help_heading = "Size conditioning")]
    pub target_size: Option<Size>,
    /// Pixels cropped off the training picture to imitate [default: 0,0]
    #[arg(long, value_name = "TOP,LEFT", value_parser = crop, help_heading = "Size conditioning")]
    pub crops_coords_top_left: Option<[usize; 2]>,
    /// The same to stay away from (counts only with --negative-target-size)
    #[arg(long, value_name = "WxH", help_heading = "Size conditioning")]
    pub negative_original_size: Option<Size>,
    /// The same to stay away from (counts only with --negative-original-size)
    #[arg(long, value_name = "WxH", help_heading = "Size conditioning")]
    pub negative_target_size: Option<Size>,
    /// The same to stay away from [default: 0,0]
    #[arg(long, value_name = "TOP,LEFT", value_parser = crop, help_heading = "Size conditioning")]
    pub negative_crops_coords_top_left: Option<[usize; 2]>,

    /// Checkpoint: the folder that holds model_index.json, one .safetensors file, or a model on
    /// the hub, ORG/NAME[/FILE][@REVISION], of which is fetched what the run needs [default: the
    /// demo model that this program carries]
    #[arg(
        long,
        value_name = "DIR|FILE|NAME",
        help_heading = "Checkpoint and machine"
    )]
    pub model: Option<PathBuf>,
    /// Use weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME", help_heading = "Checkpoint and machine")]
    pub variant: Option<String>,
    /// A VAE to use in the place of the checkpoint's own, named as --model is
    #[arg(
        long,
        value_name = "FILE|DIR|NAME",
        help_heading = "Checkpoint and machine"
    )]
    pub vae: Option<PathBuf>,
    /// A UNet to use in the place of the checkpoint's own: .safetensors or GGUF, or a folder
    #[arg(long, value_name = "FILE|DIR", help_heading = "Checkpoint and machine")]
    pub unet: Option<PathBuf>,
    /// A LoRA (or DoRA, LoHa, LoKr) to add to the checkpoint, scaled (by 1 where nothing is
    /// said); may be given several times. Scales by block multiply it: diffusers' names
    /// (down=0.5,mid=0,up.block_0=1,0.5,0,text_encoder=0.2), or lbw= and the 12 or 20 numbers (or
    /// a preset, such as OUTD) of A1111's LoRA Block Weight
    #[arg(
        long,
        value_name = "FILE[:SCALE][:BLOCKS]",
        help_heading = "Checkpoint and machine"
    )]
    pub lora: Vec<Lora>,
    /// Folder of the LoRAs that prompts ask for by name (<lora:NAME:0.8> in A1111's language,
    /// withLora(NAME, 0.8) in Compel's): NAME.safetensors, also in folders inside it. That of
    /// A1111's web UI is models/Lora
    /// [default: the folder that SDXL_LORA_DIR names, else loras]
    #[arg(long, value_name = "DIR", help_heading = "Checkpoint and machine")]
    pub lora_dir: Option<PathBuf>,
    /// A textual inversion (with clip_l and clip_g) and the word that stands for it in prompts
    /// [default: the word it was trained for, else the file's name]; may be given several times
    #[arg(
        long,
        value_name = "FILE[:TOKEN]",
        help_heading = "Checkpoint and machine"
    )]
    pub embedding: Vec<InversionFile>,
    /// f32 (diffusers' numbers), bf16, f16, or int8 (fastest, a quarter of f32's memory; see the
    /// README for how near) [default: bf16 where the processor has it, else f32]
    #[arg(long, help_heading = "Checkpoint and machine")]
    pub precision: Option<Precision>,
    /// Offload mode, which decides what is in memory: `none`, all networks at once; `model`, each
    /// only while it works; `sequential`, of that one only the layer at work, read from the files
    /// at every step: the least memory (with --vae-tile-size 512), and some seconds more a step. No
    /// number changes. [default: model for one run, none for many; sequential where the rest does
    /// not fit]
    #[arg(
        long,
        value_name = "none|model|sequential",
        help_heading = "Checkpoint and machine"
    )]
    pub offload: Option<Offload>,
    /// Device that the networks run on: `auto` (the fastest there is) or `cpu`
    #[arg(
        long,
        value_name = "NAME",
        default_value_t,
        help_heading = "Checkpoint and machine"
    )]
    pub device: device::DeviceChoice,
    /// Decode tile by tile: bounded memory, faint differences between tiles
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        help_heading = "Checkpoint and machine"
    )]
    pub vae_tiling: TilingWord,
    /// Side of the tiles in pixels, a multiple of 32 from 128: smaller ones take less memory and
    /// differ more from the whole [default: the checkpoint's; SDXL has 1024]
    #[arg(long, value_name = "PIXELS", help_heading = "Checkpoint and machine")]
    pub vae_tile_size: Option<u32>,
    /// Decode the pictures of a batch one by one: less memory, same numbers
    #[arg(
        long,
        value_enum,
        default_value = "on",
        help_heading = "Checkpoint and machine"
    )]
    pub vae_slicing: Switch,

    /// Replace files that exist
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Start from the recipe of a picture (PNG, JPEG or WebP of ours, or JSON): alone it makes the same
    /// picture again; flags given beside it win
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub recipe: Option<PathBuf>,
    /// Leave out the invisible watermark that pictures from 256 pixels on carry
    #[arg(long, help_heading = "Output")]
    pub no_watermark: bool,
    /// Print one JSON object about the result, and nothing else, on standard output
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a number of evaluations from 1")),
        Ok(number) => Ok(number),
    }
}

fn crop(text: &str) -> Result<[usize; 2], String> {
    text.split_once(',')
        .and_then(|(top, left)| Some([top.trim().parse().ok()?, left.trim().parse().ok()?]))
        .ok_or_else(|| format!("`{text}` is not TOP,LEFT, as in 0,128"))
}

/// `KEY=VALUE` of `--scheduler-option`; words that are not JSON (`trailing`) are strings.
pub fn scheduler_option(option: &str) -> anyhow::Result<(String, Value)> {
    let Some((key, text)) = option.split_once('=') else {
        return Err(crate::usage(format!(
            "--scheduler-option {option}: write KEY=VALUE, as in use_karras_sigmas=true"
        )));
    };
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    Ok((key.trim().to_string(), value))
}

/// Whether an argument was typed, rather than left at its default.
pub fn given(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// Sets the fields of a request that were typed to what was typed.
macro_rules! take {
    ($from:ident, $matches:ident => $request:ident: $($field:ident),*) => {
        $(if given($matches, stringify!($field)) {
            $request.$field = $from.$field.clone();
        })*
    };
}

impl GenerateArgs {
    /// The request: `base` (a recipe's, or the defaults) with whatever was typed.
    pub fn request(&self, base: Request, matches: &ArgMatches) -> anyhow::Result<Request> {
        let given = |id: &str| given(matches, id);
        let mut r = base;
        if given("steps") {
            // In the place of a recipe's timesteps or sigmas, if it had some.
            r.timesteps.clear();
            r.sigmas.clear();
        }
        // These stand for one another: one that is typed is not held against a recipe's.
        let hand_over = [
            "denoising_end",
            "denoising_start",
            "denoising_fraction",
            "refiner_strength",
        ];
        if hand_over.into_iter().any(given) {
            r.denoising_end = None;
            r.denoising_start = None;
            r.denoising_fraction = None;
            r.refiner_strength = None;
        }
        let mut r = self.picture.request(r, matches)?;
        self.start.apply(&mut r, &given);
        take!(self, matches => r: prompt, seed, num_images, steps);
        // Texts and encoded prompts stand for one another: what is typed replaces a recipe's.
        if given("prompt") {
            r.prompt_embeds = None;
            r.negative_prompt_embeds = None;
        }
        if self.prompt_embeds.is_some() {
            r.prompt.clear();
            r.prompt_embeds = self.prompt_embeds.clone();
        }
        if given("negative_prompt") {
            r.negative_prompt_embeds = None;
        }
        if self.negative_prompt_embeds.is_some() {
            r.negative_prompt.clear();
            r.negative_prompt_2.clear();
            r.negative_prompt_embeds = self.negative_prompt_embeds.clone();
        }
        if self.wildcards || self.wildcards_dir.is_some() {
            r.expand_wildcards(self.wildcards_dir.as_deref())?;
        }
        if given("steps") {
            r.check_steps_agree()?;
        }
        Ok(r)
    }
}

impl PictureArgs {
    /// `base` with whatever was typed.
    pub fn request(&self, base: Request, matches: &ArgMatches) -> anyhow::Result<Request> {
        let given = |id: &str| given(matches, id);
        let mut r = base;
        take!(self, matches => r:
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            rng,
            width,
            height,
            guidance_scale,
            guidance_rescale,
            truncate_long_prompts,
            clip_skip,
            original_size,
            target_size,
            negative_original_size,
            negative_target_size,
            scheduler,
            eta,
            denoising_end
        );
        if self.aspect.is_some() {
            // In the place of a recipe's size.
            r.aspect = self.aspect.clone();
            r.width = None;
            r.height = None;
        }
        if self.timesteps.is_some() || self.sigmas.is_some() {
            // In the place of a recipe's steps.
            let list = |numbers: &Option<Numbers>| numbers.clone().map_or_else(Vec::new, |n| n.0);
            r.timesteps = list(&self.timesteps);
            r.sigmas = list(&self.sigmas);
            r.steps = defaults().steps;
        }
        if let Some(crop) = self.crops_coords_top_left {
            r.crops_coords_top_left = crop;
        }
        if let Some(crop) = self.negative_crops_coords_top_left {
            r.negative_crops_coords_top_left = crop;
        }
        if given("prompt_syntax") {
            r.prompt_syntax = self.prompt_syntax.syntax();
        }
        if given("prompt_weighting") {
            r.prompt_weighting = self.prompt_weighting.weighting();
        }
        if let Some(word) = self.pooled_from {
            r.pooled_from = Some(word.pooled_from());
        }
        if self.vae_tile_size.is_some() {
            r.vae_tile_size = self.vae_tile_size;
        }
        if given("vae_tiling") {
            r.vae_tiling = match self.vae_tiling {
                TilingWord::Auto => Tiling::Auto,
                TilingWord::On => Tiling::On,
                TilingWord::Off => Tiling::Off,
            };
        }
        if given("vae_slicing") {
            r.vae_slicing = self.vae_slicing == Switch::On;
        }
        if self.no_watermark {
            r.watermark = false;
        }
        for option in &self.scheduler_option {
            let (key, value) = scheduler_option(option)?;
            r.scheduler_options.insert(key, value);
        }
        Ok(r)
    }
}
