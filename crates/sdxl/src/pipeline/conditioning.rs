//! The prompts of a request, encoded: what every step of the run is conditioned on.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::prompt::{Join, Prompt, ResolvedContent, ResolvedPart, ResolvedPrompt, WeightedSpan};
use crate::request::Request;
use crate::text::embeds_file::Embeds;
use crate::text::{Conditioning, TextEncoders, TextInput, TextOptions};
use crate::warning::{Warning, WarningKind};
use crate::weights::Checkpoint;

/// A conditioning and how much its prediction counts.
pub(super) type Weighted = (f32, Arc<Conditioning>);

/// One side of the guidance over a run.
struct EncodedSide {
    /// The conditionings that the steps choose from: each a single prediction, or several where the
    /// prompt has `AND`.
    variants: Vec<Vec<Weighted>>,
    /// Which of them each step uses; empty if all use the first.
    at: Vec<usize>,
}

impl EncodedSide {
    fn one(conditioning: Arc<Conditioning>) -> EncodedSide {
        EncodedSide {
            variants: vec![vec![(1.0, conditioning)]],
            at: Vec::new(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Conditioning>> {
        self.variants.iter().flatten().map(|(_, c)| c)
    }

    fn at(&self, step: usize) -> &[Weighted] {
        // Steps beyond the last stay with its variant.
        let variant = match self.at.as_slice() {
            [] => 0,
            [.., last] => self.at.get(step).copied().unwrap_or(*last),
        };
        &self.variants[variant]
    }

    fn pad(&mut self, text: &TextEncoders, tokens: usize, options: &TextOptions) -> Result<()> {
        for (_, conditioning) in self.variants.iter_mut().flatten() {
            *conditioning = text.pad(conditioning, tokens, options)?;
        }
        Ok(())
    }
}

/// A prompt's positive and negative conditioning, all of one length.
pub(super) struct PromptPair {
    positive: EncodedSide,
    negative: EncodedSide,
}

impl PromptPair {
    /// The predictions that make the positive side of a step, counted from 0.
    pub(super) fn positive(&self, step: usize) -> &[Weighted] {
        self.positive.at(step)
    }

    /// The negative side of a step.
    pub(super) fn negative(&self, step: usize) -> &Arc<Conditioning> {
        &self.negative.at(step)[0].1
    }

    /// Number of text tokens, for so many channels a token.
    pub(super) fn tokens(&self, channels: usize) -> usize {
        self.negative(0).tokens(channels)
    }

    /// Everything that some step is conditioned on.
    pub(super) fn texts(&self) -> impl Iterator<Item = &Arc<Conditioning>> {
        self.positive.all().chain(self.negative.all())
    }

    /// Whether some step's positive side is a sum: of differences from the negative side, which is
    /// computed then, guided or not.
    pub(super) fn is_composed(&self) -> bool {
        let variants = &self.positive.variants;
        variants.iter().any(|v| !matches!(v[..], [(1.0, _)]))
    }

    /// Most predictions that a step of the positive side takes.
    pub(super) fn parts(&self) -> usize {
        let parts = self.positive.variants.iter().map(Vec::len);
        parts.max().expect("a prompt has a conditioning")
    }
}

/// The prompts of a request, read once.
pub(super) struct Prompts {
    prompt: Vec<Prompt>,
    prompt_2: Vec<Prompt>,
    negative_prompt: Vec<Prompt>,
    negative_prompt_2: Vec<Prompt>,
    /// The negative prompt where there is none.
    empty: Prompt,
}

/// A prompt as it was written, and what was read from it.
type Text<'a> = (&'a str, &'a Prompt);

impl Prompts {
    /// Reads the prompts of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] that says where a prompt cannot be read.
    pub(super) fn parse(request: &Request) -> Result<Prompts> {
        let all = |field: &'static str, texts: &[String]| -> Result<Vec<Prompt>> {
            let parse = |text: &String| Prompt::parse(text, request.prompt_syntax);
            let all = texts.iter().map(parse).collect::<Result<_>>();
            all.map_err(|error| error.of_field("prompt", field))
        };
        Ok(Prompts {
            prompt: all("prompt", &request.prompt)?,
            prompt_2: all("prompt_2", &request.prompt_2)?,
            negative_prompt: all("negative_prompt", &request.negative_prompt)?,
            negative_prompt_2: all("negative_prompt_2", &request.negative_prompt_2)?,
            empty: Prompt::parse("", request.prompt_syntax)?,
        })
    }

    /// Whether some prompt is several predictions (`AND`) at one of `steps`: they are summed as
    /// differences from the negative one, guided or not.
    pub(super) fn are_composed(&self, steps: usize) -> bool {
        let is_composed = |prompt: &Prompt| {
            let count = if prompt.changes_by_step() { steps } else { 1 };
            (0..count).any(|step| !is_single(&prompt.at(step, steps.max(1))))
        };
        (self.prompt.iter().chain(&self.prompt_2)).any(is_composed)
    }

    /// All of them, with the fields that they are in.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Prompt)> {
        let lists = [
            ("prompt", &self.prompt),
            ("prompt_2", &self.prompt_2),
            ("negative_prompt", &self.negative_prompt),
            ("negative_prompt_2", &self.negative_prompt_2),
        ];
        (lists.into_iter()).flat_map(|(field, list)| list.iter().map(move |read| (field, read)))
    }
}

/// Refuses encoded prompts that do not go with the rest.
///
/// # Errors
/// [`Error::Request`] that says why.
pub(super) fn check_embeds(
    checkpoint: &Checkpoint,
    refiner: bool,
    request: &Request,
    embeds: &Embeds,
) -> Result<()> {
    if refiner {
        return Err(Error::request(
            "prompt_embeds",
            "they are of the base's two text encoders, and a refiner reads the prompt with its own",
        )
        .with_hint("give the prompt instead"));
    }
    let (given, prompts) = (embeds.positive.len(), request.prompt.len());
    if given != prompts {
        return Err(Error::request(
            "prompt_embeds",
            format!("{given} given for {prompts} prompts"),
        ));
    }
    embeds.check(
        checkpoint.unet.cross_attention_dim,
        checkpoint.text_encoder_2.projection_dim,
    )
}

/// Whether one prediction, unweighted, is all there is to it.
fn is_single(resolved: &ResolvedPrompt) -> bool {
    resolved.join == Join::Concat
        || matches!(&resolved.parts[..], [] | [ResolvedPart { weight: 1.0, .. }])
}

/// Encodes every prompt of the request with the text encoders of `checkpoint`, in order, or takes
/// `embeds` instead; `steps` are the steps of the whole way from noise to picture.
///
/// # Errors
/// Prompts that cannot be tokenized.
pub(super) fn encode(
    (checkpoint, text): (&Checkpoint, &TextEncoders),
    request: &Request,
    prompts: &Prompts,
    embeds: Option<&Embeds>,
    steps: usize,
    warn: &mut dyn FnMut(Warning),
) -> Result<Vec<PromptPair>> {
    let options = TextOptions::of(request);
    // clip_skip is for the positive prompt only, as in the reference.
    let negative_options = TextOptions {
        clip_skip: None,
        ..options
    };
    let zeros = checkpoint.force_zeros_for_empty_prompt && request.negative_prompt.is_empty();
    let given = |side: &[Conditioning], i: usize| -> Option<EncodedSide> {
        let conditioning = side.get(if side.len() == 1 { 0 } else { i })?;
        Some(EncodedSide::one(Arc::new(conditioning.clone())))
    };
    let mut pairs: Vec<PromptPair> = Vec::new();
    for (i, prompt) in prompts.prompt.iter().enumerate() {
        let mut side = |text_1: Text, text_2: Option<Text>, options: &TextOptions, negative| {
            let texts = (text_1, text_2.filter(|(raw, _)| !raw.is_empty()));
            let field = if negative {
                "negative_prompt"
            } else {
                "prompt"
            };
            let mut warn = |warning: Warning| {
                warn(Warning {
                    field: Some(field),
                    ..warning
                });
            };
            encode_side(text, texts, options, negative, steps, &mut warn)
        };
        let mut positive = match embeds {
            Some(embeds) => given(&embeds.positive, i).ok_or_else(|| {
                let (given, prompts) = (embeds.positive.len(), request.prompt.len());
                let message = format!("{given} given for {prompts} prompts");
                Error::request("prompt_embeds", message)
            })?,
            None => {
                let text_2 = pick(&request.prompt_2, &prompts.prompt_2, i);
                side((&request.prompt[i], prompt), text_2, &options, false)?
            }
        };
        // Several parts are summed as differences from the negative side, guided or not.
        let composed = positive
            .variants
            .iter()
            .any(|v| !matches!(v[..], [(1.0, _)]));
        let negative = if !request.guided() && !composed {
            None
        } else if let Some(side) = embeds.and_then(|e| given(&e.negative, i)) {
            Some(side)
        } else if zeros {
            None
        } else {
            let text_1 = pick(&request.negative_prompt, &prompts.negative_prompt, i);
            let text_1 = text_1.unwrap_or(("", &prompts.empty));
            let text_2 = pick(&request.negative_prompt_2, &prompts.negative_prompt_2, i);
            Some(side(text_1, text_2, &negative_options, true)?)
        };
        let channels = text.channels();
        let tokens = (positive.all())
            .chain(negative.iter().flat_map(EncodedSide::all))
            .map(|c| c.tokens(channels))
            .max()
            .expect("a prompt has a conditioning");
        positive.pad(text, tokens, &options)?;
        let negative = match negative {
            Some(mut negative) => {
                negative.pad(text, tokens, &negative_options)?;
                negative
            }
            None => EncodedSide::one(Arc::new(Conditioning::zeros_like(&positive.at(0)[0].1))),
        };
        pairs.push(PromptPair { positive, negative });
    }
    Ok(pairs)
}

/// The prompts and negative prompts of a request, with the fields that they are in.
fn texts(request: &Request) -> impl Iterator<Item = (&'static str, &String)> {
    let lists = [
        ("prompt", &request.prompt),
        ("prompt_2", &request.prompt_2),
        ("negative_prompt", &request.negative_prompt),
        ("negative_prompt_2", &request.negative_prompt_2),
    ];
    (lists.into_iter()).flat_map(|(field, list)| list.iter().map(move |text| (field, text)))
}

/// Warnings of LoRAs and textual inversions that do nothing: those that no prompt asks for, mostly
/// for a slip in a name, and those that a prompt asks for in vain.
pub(super) fn warnings(
    checkpoint: &Checkpoint,
    request: &Request,
    prompts: &Prompts,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for word in checkpoint.files().inversions().words() {
        let token = word.token.to_lowercase();
        if !texts(request).any(|(_, text)| text.to_lowercase().contains(&token)) {
            let message = format!(
                "{}: no prompt says `{}`, so this textual inversion does nothing",
                word.file.display(),
                word.token
            );
            let kind = WarningKind::EmbeddingUnused;
            warnings.push(Warning::new(kind, "embeddings", message));
        }
    }
    let loaded = checkpoint.files().adapters().loras();
    for (field, prompt) in prompts.all() {
        for lora in prompt.loras() {
            let name = &lora.name;
            if field.starts_with("negative") {
                let message = format!(
                    "the negative prompt asks for the LoRA `{name}`: LoRAs change the whole \
                     picture and are taken from the prompt only"
                );
                let kind = WarningKind::LoraInNegativePrompt;
                warnings.push(Warning::new(kind, field, message));
            } else if !loaded.iter().any(|l| l.name.as_ref() == Some(name)) {
                let message = format!(
                    "the prompt asks for the LoRA `{name}`, which the checkpoint was opened without"
                );
                warnings.push(Warning::new(WarningKind::LoraMissing, field, message));
            }
        }
    }
    warnings.extend(texts(request).find_map(|(field, text)| {
        let warning = Prompt::warning(text, request.prompt_syntax)?;
        Some(Warning {
            field: Some(field),
            ..warning
        })
    }));
    warnings
}

/// The text for prompt `index`: a list holds none, one for all, or one each.
fn pick<'a>(raw: &'a [String], read: &'a [Prompt], index: usize) -> Option<Text<'a>> {
    let index = if raw.len() == 1 { 0 } else { index };
    Some((raw.get(index)?, read.get(index)?))
}

fn encode_side(
    text: &TextEncoders,
    ((raw, prompt), second): (Text<'_>, Option<Text<'_>>),
    options: &TextOptions,
    negative: bool,
    steps: usize,
    warn: &mut dyn FnMut(Warning),
) -> Result<EncodedSide> {
    let (raw_2, prompt_2) = second.unzip();
    let changes = prompt.changes_by_step() || prompt_2.is_some_and(Prompt::changes_by_step);
    let mut seen: Vec<(ResolvedPrompt, Option<ResolvedPrompt>)> = Vec::new();
    let mut side = EncodedSide {
        variants: Vec::new(),
        at: Vec::new(),
    };
    for step in 0..if changes { steps.max(1) } else { 1 } {
        let resolve = |prompt: &Prompt| {
            let resolved = prompt.at(step, steps.max(1));
            if negative {
                as_text(resolved)
            } else {
                resolved
            }
        };
        let now = (resolve(prompt), prompt_2.map(resolve));
        let known = seen.iter().position(|before| *before == now);
        side.at.push(known.unwrap_or(seen.len()));
        if known.is_none() {
            let variant =
                encode_variant(text, (raw, raw_2), (&now.0, now.1.as_ref()), options, warn)?;
            side.variants.push(variant);
            seen.push(now);
        }
    }
    Ok(side)
}

/// Encodes the conditioning of one step.
fn encode_variant(
    text: &TextEncoders,
    (raw, raw_2): (&str, Option<&str>),
    (resolved, resolved_2): (&ResolvedPrompt, Option<&ResolvedPrompt>),
    options: &TextOptions,
    warn: &mut dyn FnMut(Warning),
) -> Result<Vec<Weighted>> {
    let resolved_2 = resolved_2.unwrap_or(resolved);
    let raw_2 = raw_2.unwrap_or(raw);
    let mut encode = |parts: &[ResolvedPart], parts_2: &[ResolvedPart]| {
        let (input, input_2) = (
            TextInput { raw, parts },
            TextInput {
                raw: raw_2,
                parts: parts_2,
            },
        );
        text.encode(input, input_2, options, warn)
    };
    let composed = |r: &ResolvedPrompt| r.join == Join::Compose && !r.parts.is_empty();
    if !composed(resolved) && !composed(resolved_2) {
        return Ok(vec![(1.0, encode(&resolved.parts, &resolved_2.parts)?)]);
    }
    // Each part is encoded without its weight, which is that of its prediction.
    let alone = |r: &ResolvedPrompt| -> Vec<(f64, Vec<ResolvedPart>)> {
        if !composed(r) {
            return vec![(1.0, r.parts.clone())];
        }
        let part = |p: &ResolvedPart| {
            let content = p.content.clone();
            (
                p.weight,
                vec![ResolvedPart {
                    content,
                    weight: 1.0,
                }],
            )
        };
        r.parts.iter().map(part).collect()
    };
    let (first, second) = (alone(resolved), alone(resolved_2));
    if second.len() != 1 && second.len() != first.len() {
        let message = format!(
            "it has {} parts joined by AND and the prompt has {}",
            second.len(),
            first.len()
        );
        return Err(Error::request("prompt_2", message).with_hint("give as many, or one"));
    }
    (first.iter().enumerate())
        .map(|(i, (weight, parts))| {
            let (_, parts_2) = &second[if second.len() == 1 { 0 } else { i }];
            Ok((*weight as f32, encode(parts, parts_2)?))
        })
        .collect()
}

/// A negative prompt has one prediction: there `AND` is a word, as it is in A1111.
fn as_text(resolved: ResolvedPrompt) -> ResolvedPrompt {
    if is_single(&resolved) {
        return ResolvedPrompt {
            join: Join::Concat,
            ..resolved
        };
    }
    let mut spans: Vec<WeightedSpan> = Vec::new();
    let word = |text: String| WeightedSpan::Text { text, weight: 1.0 };
    for (i, part) in resolved.parts.into_iter().enumerate() {
        if i > 0 {
            spans.push(word("AND".into()));
        }
        match part.content {
            ResolvedContent::Text(text) => spans.extend(text),
            ResolvedContent::Blend { members, .. } => {
                spans.extend(members.into_iter().flat_map(|m| m.0))
            }
        }
        if part.weight != 1.0 {
            spans.push(word(format!(":{}", part.weight)));
        }
    }
    ResolvedPrompt {
        parts: vec![ResolvedPart {
            content: ResolvedContent::Text(spans),
            weight: 1.0,
        }],
        join: Join::Concat,
    }
}
