//! The words of `sdxl generate`: every field of a request under its own name.
//!
//! A flag that was not typed says nothing: defaults are the library's, and `help.rs` shows them.

#[cfg(feature = "c2pa")]
mod credentials;
mod files;
mod habits;
mod help;
mod model;
mod old;
mod sampling;
mod start;
#[cfg(test)]
mod tests;
mod texts;
mod values;

use std::path::PathBuf;

use clap::Args;
use sdxl::Request;
use sdxl::memory::Budget;

pub(crate) use habits::with_meant;
pub(crate) use help::{arrange, complete};
pub(crate) use model::ModelArgs;
pub(crate) use old::in_new_spelling;
use values::Seed;
use values::set;
pub(crate) use values::{Numbers, names, scheduler_option, switch};

/// The headings of help.
pub(crate) mod heading {
    /// Texts.
    pub(crate) const PROMPT: &str = "Prompt";
    /// Size, seeds and number.
    pub(crate) const PICTURE: &str = "Picture";
    /// The way from noise to a picture.
    pub(crate) const SAMPLING: &str = "Sampling";
    /// Input pictures and masks.
    pub(crate) const START: &str = "From a picture";
    /// The second checkpoint.
    pub(crate) const REFINER: &str = "Refiner";
    /// The second pass.
    pub(crate) const SECOND_PASS: &str = "Second pass";
    /// The sizes that the network is told.
    pub(crate) const CONDITIONING: &str = "Size conditioning";
    /// Checkpoint, precision, memory.
    pub(crate) const MODEL: &str = "Checkpoint and machine";
    /// Files.
    pub(crate) const OUTPUT: &str = "Output";
    /// The axes of `sdxl plot`.
    pub(crate) const SHEET: &str = "Sheet";
}

/// `sdxl generate`
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Description of the picture; several prompts make several pictures
    #[arg(required_unless_present_any = ["recipe", "prompt_embeds"])]
    prompt: Vec<String>,
    /// Make the choices `{red|green|blue}` in prompts, by the seed, for every picture
    #[arg(long, help_heading = heading::PROMPT)]
    wildcards: bool,
    /// The negative
    #[arg(long, overrides_with = "wildcards_dir", help_heading = heading::PROMPT)]
    no_wildcards: bool,
    /// The same, and take `__name__` from a line of name.txt in this folder
    #[arg(long, value_name = "DIR", help_heading = heading::PROMPT)]
    wildcards_dir: Option<PathBuf>,
    /// Prompts that are encoded already, instead of texts (safetensors, as `sdxl prompt
    /// --output-embeddings` and diffusers have them: prompt_embeds, pooled_prompt_embeds)
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", help_heading = heading::PROMPT)]
    prompt_embeds: Option<PathBuf>,
    /// The same for what the picture must not show, if it is not in the file of --prompt-embeds
    #[arg(long, value_name = "FILE", help_heading = heading::PROMPT)]
    negative_prompt_embeds: Option<PathBuf>,
    /// Pictures per prompt
    #[arg(long, value_name = "N", help_heading = heading::PICTURE)]
    num_images: Option<usize>,
    /// Seed, or one seed per picture, which then says how many there are; -1 draws one [default: drawn
    /// from the clock]
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', allow_negative_numbers = true,
          help_heading = heading::PICTURE)]
    seed: Vec<Seed>,
    /// Start from these latents (safetensors, `latents` [N,4,H/8,W/8]): instead of noise; with
    /// --strength as a finished picture; with --denoising-start as another run's unfinished one
    #[arg(long, value_name = "FILE", help_heading = heading::PICTURE)]
    pub latents: Option<PathBuf>,
    /// Denoising steps
    #[arg(long, value_name = "N", help_heading = heading::SAMPLING)]
    steps: Option<usize>,
    /// Pictures to start from, refiners, second passes.
    #[command(flatten)]
    pub start: start::StartArgs,
    /// The arguments shared with `sdxl plot`.
    #[command(flatten)]
    pub picture: PictureArgs,
    /// Memory that the program may take, such as 4GiB, 4GB or 900MiB: the run is arranged so that it
    /// fits, see `sdxl plan` [default: what is free]
    #[arg(long, value_name = "SIZE", help_heading = heading::MODEL)]
    pub memory: Option<Budget>,
    /// The files that are written.
    #[command(flatten)]
    pub files: files::FileArgs,
}

/// The arguments of every command that makes pictures from prompts.
#[derive(Args)]
pub(crate) struct PictureArgs {
    /// Texts.
    #[command(flatten)]
    texts: texts::TextArgs,
    /// The picture's size.
    #[command(flatten)]
    size: sampling::SizeArgs,
    /// The way from noise to a picture.
    #[command(flatten)]
    sampling: sampling::SamplingArgs,
    /// The sizes that the network is told.
    #[command(flatten)]
    conditioning: sampling::ConditioningArgs,
    /// Checkpoint and machine.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Recipes and files.
    #[command(flatten)]
    pub output: files::OutputArgs,
}

impl GenerateArgs {
    /// The request: `base` (a recipe's, or the defaults) with whatever was typed.
    ///
    /// # Errors
    /// Flags that contradict one another, and wildcards that cannot be resolved.
    pub(crate) fn request(&self, base: Request) -> anyhow::Result<Request> {
        let mut r = self.picture.output.reset(base)?;
        if self.steps.is_some() {
            // In the place of a recipe's timesteps or sigmas, if it had some.
            r.timesteps.clear();
            r.sigmas.clear();
        }
        if self.hands_over() {
            // These stand for one another: one that is typed is not held against a recipe's.
            r.denoising_end = None;
            r.denoising_start = None;
            r.denoising_fraction = None;
            r.refiner_strength = None;
        }
        if !self.start.guidance_schedule.is_empty() {
            // In the place of a recipe's one scale.
            r.guidance_scale = Request::default().guidance_scale;
        }
        self.take_the_place_of_texts(&mut r);
        self.picture.apply(&mut r)?;
        self.start.apply(&mut r);
        set(&mut r.prompt, &self.prompt);
        set(&mut r.prompt_embeds, &self.prompt_embeds);
        set(&mut r.negative_prompt_embeds, &self.negative_prompt_embeds);
        set(&mut r.num_images, &self.num_images);
        if let Some(seeds) = Seed::values(&self.seed) {
            // Pictures are as many as seeds, where nobody says how many.
            let prompts = r.prompt.len().max(1);
            if self.num_images.is_none() && seeds.len() > r.images() && seeds.len() % prompts == 0 {
                r.num_images = seeds.len() / prompts;
            }
            r.seed = seeds;
        }
        set(&mut r.steps, &self.steps);
        let wildcards = switch(self.wildcards, self.no_wildcards);
        if wildcards.unwrap_or(self.wildcards_dir.is_some()) {
            r.expand_wildcards(self.wildcards_dir.as_deref())?;
        }
        if self.steps.is_some() {
            r.check_steps_agree()?;
        }
        Ok(r)
    }

    /// Whether one of the flags was typed that say where a run begins, ends, or hands over.
    fn hands_over(&self) -> bool {
        let typed = [
            self.picture.sampling.denoising_end,
            self.start.denoising_start,
            self.start.denoising_fraction,
            self.start.refiner_strength,
        ];
        typed.iter().any(Option::is_some)
    }

    /// Texts and encoded prompts stand for one another: what is typed replaces a recipe's.
    fn take_the_place_of_texts(&self, r: &mut Request) {
        if !self.prompt.is_empty() {
            r.prompt_embeds = None;
            r.negative_prompt_embeds = None;
        }
        if self.prompt_embeds.is_some() {
            r.prompt.clear();
            r.prompt_2.clear();
        }
        if !self.picture.texts.negative_prompt.is_empty() {
            r.negative_prompt_embeds = None;
        }
        if self.negative_prompt_embeds.is_some() {
            r.negative_prompt.clear();
            r.negative_prompt_2.clear();
        }
    }

    /// Whether the file of an input was typed.
    pub(crate) fn names_file_of(&self, field: &str) -> bool {
        match field {
            "init_image" => self.start.init_image.is_some(),
            "mask" => self.start.mask.is_some(),
            "prompt_embeds" => self.prompt_embeds.is_some(),
            "negative_prompt_embeds" => self.negative_prompt_embeds.is_some(),
            _ => false,
        }
    }
}

impl PictureArgs {
    /// `base` (a recipe's request, or the defaults) with whatever was typed.
    ///
    /// # Errors
    /// An option of a scheduler that is not written KEY=VALUE.
    pub(crate) fn request(&self, base: Request) -> anyhow::Result<Request> {
        let mut r = self.output.reset(base)?;
        self.apply(&mut r)?;
        Ok(r)
    }

    fn apply(&self, r: &mut Request) -> anyhow::Result<()> {
        self.texts.apply(r);
        self.size.apply(r);
        self.sampling.apply(r)?;
        self.conditioning.apply(r);
        self.model.apply(r);
        self.output.apply(r);
        Ok(())
    }
}
