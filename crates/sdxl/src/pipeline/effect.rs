//! Fields without an effect: what a request sets although something else in it, or in the
//! checkpoints, leaves it nothing to do. It is said, never silently taken.
//!
//! A field is said here where what it asks for is not done. Where that comes true anyway (no watermark
//! in a picture too small for one, weights in a prompt that has none) there is nothing to say; and what
//! contradicts something is refused where it is checked.

use serde_json::{Map, Value};

use super::conditioning::Prompts;
use super::stages::{Network, Stage, StartFrom};
use crate::inputs::Inputs;
use crate::request::{PromptSyntax, Request, VaeTiling};
use crate::warning::{Warning, WarningKind};
use crate::weights::Checkpoint;

/// A run, as far as it decides which fields have an effect.
pub(super) struct Circumstances<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// The refiner, where there is one.
    pub refiner: Option<&'a Checkpoint>,
    /// The request.
    pub request: &'a Request,
    /// The pictures, latents and encoded prompts that it starts from.
    pub inputs: &'a Inputs,
    /// The prompts, as they were read.
    pub prompts: &'a Prompts,
    /// The stages.
    pub stages: &'a [Stage],
    /// Steps of the longest way from noise to picture.
    pub steps: usize,
}

impl Circumstances<'_> {
    /// Whether a negative side is computed, for guidance or for parts that are summed.
    fn has_negative(&self) -> bool {
        self.request.guided() || self.prompts.are_composed(self.steps)
    }

    /// Whether prompts were given encoded.
    fn is_encoded(&self) -> bool {
        self.inputs.embeds.is_some()
    }

    /// Whether negative prompts were given encoded.
    fn is_negative_encoded(&self) -> bool {
        (self.inputs.embeds.as_ref()).is_some_and(|embeds| !embeds.negative.is_empty())
    }

    /// Whether some text is encoded.
    fn reads_text(&self) -> bool {
        let negatives = [
            &self.request.negative_prompt,
            &self.request.negative_prompt_2,
        ];
        let negative = negatives.into_iter().flatten().any(|text| !text.is_empty());
        !self.is_encoded() || negative && self.has_negative() && !self.is_negative_encoded()
    }

    /// Whether the negative prompt is zeros and no text.
    fn is_negative_zeros(&self) -> bool {
        self.checkpoint.force_zeros_for_empty_prompt && self.request.negative_prompt.is_empty()
    }

    fn is_masked(&self) -> bool {
        self.inputs.mask.is_some() || !self.request.extend.is_zero()
    }

    fn is_scored(&self, stage: &Stage) -> bool {
        let refiner = self.refiner.filter(|_| stage.network == Network::Refiner);
        let checkpoint = refiner.unwrap_or(self.checkpoint);
        checkpoint.requires_aesthetics_score
    }

    /// Whether some stage is conditioned on an aesthetic score, as refiners are, and not on the size
    /// aimed at.
    fn has_score(&self) -> bool {
        self.stages.iter().any(|stage| self.is_scored(stage))
    }

    /// Whether some stage is conditioned on the size aimed at.
    fn has_target(&self) -> bool {
        self.stages.iter().any(|stage| !self.is_scored(stage))
    }

    /// Whether all stages begin with noise and are conditioned on the size aimed at: those need both
    /// negative sizes, and take none of one.
    fn needs_both_sizes(&self) -> bool {
        (self.stages.iter())
            .all(|stage| !self.is_scored(stage) && stage.start_from == StartFrom::Noise)
    }

    /// Whether some stage is conditioned on the negative crop if both negative sizes are there.
    fn has_negative_crop(&self) -> bool {
        (self.stages.iter())
            .any(|stage| self.is_scored(stage) || stage.start_from == StartFrom::Noise)
    }
}

/// Fields and what leaves them nothing to do.
struct Rule {
    /// The fields.
    fields: &'static [&'static str],
    /// The condition.
    when: fn(&Circumstances) -> bool,
    /// The condition in words.
    why: &'static str,
    /// The advice, which names the other field.
    hint: &'static str,
}

/// All rules; the first that holds for a field is said.
const RULES: &[Rule] = &[
    Rule {
        fields: &["init_image"],
        when: |run| run.inputs.init_image.is_none(),
        why: "the inputs have no picture",
        hint: "read them with Inputs::read",
    },
    Rule {
        fields: &["mask"],
        when: |run| run.inputs.mask.is_none(),
        why: "the inputs have no mask",
        hint: "read them with Inputs::read",
    },
    Rule {
        fields: &["prompt_2", "clip_skip"],
        when: |run| run.is_encoded(),
        why: "the prompt is encoded already",
        hint: "give it as a text instead of `prompt_embeds`",
    },
    Rule {
        fields: &[
            "negative_prompt",
            "negative_prompt_2",
            "negative_prompt_embeds",
            "negative_aesthetic_score",
            "negative_original_size",
            "negative_target_size",
            "negative_crops_coords_top_left",
        ],
        when: |run| !run.has_negative(),
        why: "guidance is off, so nothing is held against the prompt",
        hint: "raise `guidance_scale` above 1",
    },
    Rule {
        fields: &["guidance_rescale", "guidance_interval"],
        when: |run| !run.request.guided(),
        why: "guidance is off",
        hint: "raise `guidance_scale` above 1",
    },
    Rule {
        fields: &["guidance_scale"],
        when: |run| !run.request.guidance_schedule.is_empty(),
        why: "the scales of the schedule are taken",
        hint: "leave out `guidance_schedule` or this",
    },
    Rule {
        fields: &["negative_prompt", "negative_prompt_2"],
        when: |run| run.is_negative_encoded(),
        why: "the encoded prompts have a negative one",
        hint: "use a file of `prompt_embeds` without one",
    },
    Rule {
        fields: &["prompt_2", "negative_prompt_2"],
        when: |run| run.checkpoint.text_encoder.is_none(),
        why: "this checkpoint has one text encoder, which reads the first prompt",
        hint: "say it in `prompt` or `negative_prompt`",
    },
    Rule {
        fields: &["negative_prompt_2"],
        when: |run| run.is_negative_zeros(),
        why: "without a negative prompt this checkpoint takes zeros instead of texts",
        hint: "give `negative_prompt` too",
    },
    Rule {
        fields: &[
            "prompt_syntax",
            "prompt_weighting",
            "truncate_long_prompts",
            "pooled_from",
        ],
        when: |run| !run.reads_text(),
        why: "the prompt is encoded already",
        hint: "give it as a text instead of `prompt_embeds`",
    },
    Rule {
        fields: &["prompt_weighting"],
        when: |run| run.request.prompt_syntax == PromptSyntax::Plain,
        why: "plain prompts have no weights",
        hint: "choose another `prompt_syntax`",
    },
    Rule {
        fields: &["target_size", "negative_target_size"],
        when: |run| !run.has_target(),
        why: "a refiner is conditioned on an aesthetic score in its place",
        hint: "use `aesthetic_score`",
    },
    Rule {
        fields: &["negative_original_size"],
        when: |run| run.needs_both_sizes() && run.request.negative_target_size.is_none(),
        why: "from noise the negative sizes count only together",
        hint: "give `negative_target_size` too",
    },
    Rule {
        fields: &["negative_target_size"],
        when: |run| run.needs_both_sizes() && run.request.negative_original_size.is_none(),
        why: "from noise the negative sizes count only together",
        hint: "give `negative_original_size` too",
    },
    Rule {
        fields: &["negative_crops_coords_top_left"],
        when: |run| !run.has_negative_crop(),
        why: "image to image passes over it, as in diffusers",
        hint: "leave it out, or start without `init_image`",
    },
    Rule {
        fields: &["negative_crops_coords_top_left"],
        when: |run| {
            let sizes = (
                run.request.negative_original_size,
                run.request.negative_target_size,
            );
            !run.has_score() && !matches!(sizes, (Some(_), Some(_)))
        },
        why: "it counts only with both negative sizes",
        hint: "give `negative_original_size` and `negative_target_size` too",
    },
    Rule {
        fields: &["eta"],
        when: |run| !run.stages.iter().any(|stage| stage.info.uses_eta()),
        why: "the scheduler does not use it",
        hint: "choose one that does, such as `scheduler ddim`",
    },
    Rule {
        fields: &["aesthetic_score", "negative_aesthetic_score"],
        when: |run| !run.has_score(),
        why: "it is for refiners, and there is none",
        hint: "give one with `refiner DIR`",
    },
    Rule {
        fields: &["resize_mode"],
        when: |run| run.inputs.init_image.is_none(),
        why: "there is no picture to fit",
        hint: "give `init_image`",
    },
    Rule {
        fields: &["resize_mode"],
        when: |run| run.is_masked() && run.request.mask_crop_padding.is_some(),
        why: "the part around the mask is worked on, which is padded",
        hint: "leave out `mask_crop_padding` or this",
    },
    Rule {
        fields: &["invert_mask"],
        when: |run| run.inputs.mask.is_none(),
        why: "there is no mask",
        hint: "give `mask`",
    },
    Rule {
        fields: &["mask_blur"],
        when: |run| !run.is_masked(),
        why: "there is no mask",
        hint: "give `mask` (or `extend`)",
    },
    Rule {
        fields: &["upscale_strength", "upscale_method"],
        when: |run| run.request.upscale.is_none(),
        why: "there is no second pass",
        hint: "ask for one with `upscale 2`",
    },
    Rule {
        fields: &["vae_tile_size"],
        when: |run| run.request.vae_tiling == VaeTiling::Off,
        why: "the VAE is not to work tile by tile",
        hint: "leave out `vae_tiling off` or this",
    },
];

/// Warnings of the fields that `asked` sets, before anything that it leaves open was decided, and that
/// have no effect in this run.
pub(super) fn warnings(asked: &Request, run: &Circumstances) -> Vec<Warning> {
    let (asked, defaults) = (fields_of(asked), fields_of(&Request::default()));
    let mut warnings: Vec<Warning> = Vec::new();
    for rule in RULES {
        for field in rule.fields {
            let is_said = warnings.iter().any(|said| said.field == Some(*field));
            if !is_said && is_set(field, &asked, &defaults) && (rule.when)(run) {
                let message = format!("`{field}` has no effect: {}", rule.why);
                let warning = Warning::new(WarningKind::NoEffect, *field, message);
                warnings.push(warning.with_hint(rule.hint));
            }
        }
    }
    warnings
}

/// The fields of a request by name. None where it cannot be written as JSON, as with a path that is no
/// Unicode.
fn fields_of(request: &Request) -> Map<String, Value> {
    match serde_json::to_value(request) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// Whether a field has another value than its default. A list of empty texts says nothing.
fn is_set(field: &str, asked: &Map<String, Value>, defaults: &Map<String, Value>) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Array(texts) => texts.iter().all(|text| text == ""),
        other => other.is_null(),
    };
    let Some(value) = asked.get(field).filter(|value| !is_empty(value)) else {
        return false;
    };
    defaults.get(field) != Some(value)
}

#[cfg(test)]
mod tests;
