//! The flags about prompts, shared by `sdxl generate` and `sdxl plot`.

use clap::Args;
use sdxl::{PooledFrom, PromptSyntax, PromptWeighting, Request};

use super::heading;
use super::values::{names, set, switch};

/// Texts, and how they are read.
#[derive(Args)]
#[command(next_help_heading = heading::PROMPT)]
pub(super) struct TextArgs {
    /// Description of what the picture must not show (once, or once per prompt); without it the
    /// checkpoint decides between an empty text and none
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Vec<String>,
    /// A prompt of its own for the second text encoder (once, or once per prompt)
    #[arg(long, value_name = "TEXT")]
    pub prompt_2: Vec<String>,
    /// The negative prompt for the second text encoder
    #[arg(long, value_name = "TEXT")]
    negative_prompt_2: Vec<String>,
    /// Syntax that prompts are written in
    #[arg(long, value_parser = names::<PromptSyntax>())]
    prompt_syntax: Option<PromptSyntax>,
    /// Method of applying the weights in prompts
    #[arg(long, value_parser = names::<PromptWeighting>())]
    prompt_weighting: Option<PromptWeighting>,
    /// Cut prompts of more than 77 tokens, instead of encoding them in several chunks
    /// [default: on with plain syntax, else off]
    #[arg(long)]
    truncate_long_prompts: bool,
    /// The negative
    #[arg(long)]
    no_truncate_long_prompts: bool,
    /// Text that the pooled vector is computed from [default: clean with a1111 syntax, else raw]
    #[arg(long, value_parser = names::<PooledFrom>())]
    pooled_from: Option<PooledFrom>,
    /// Layers of the text encoders to skip, beyond the one SDXL skips
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
}

impl TextArgs {
    /// Puts whatever was typed into `r`.
    pub(super) fn apply(&self, r: &mut Request) {
        set(&mut r.negative_prompt, &self.negative_prompt);
        set(&mut r.prompt_2, &self.prompt_2);
        set(&mut r.negative_prompt_2, &self.negative_prompt_2);
        set(&mut r.prompt_syntax, &self.prompt_syntax);
        set(&mut r.prompt_weighting, &self.prompt_weighting);
        let truncate = switch(self.truncate_long_prompts, self.no_truncate_long_prompts);
        set(&mut r.truncate_long_prompts, &truncate);
        set(&mut r.pooled_from, &self.pooled_from);
        set(&mut r.clip_skip, &self.clip_skip);
    }
}
