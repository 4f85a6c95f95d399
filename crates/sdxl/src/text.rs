//! Prompts to conditioning: both text encoders, side by side.

#[doc(hidden)]
pub mod chunks;
#[doc(hidden)]
pub mod clip;
pub mod embeds_file;
mod encoder;
#[doc(hidden)]
pub mod tokenizer;
pub(crate) mod tokenizer_files;
pub(crate) mod vocabulary;
mod weighting;

use std::sync::{Arc, Mutex, PoisonError};

use crate::cancel;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::prompt::{ResolvedContent, ResolvedPart, WeightedSpan};
use crate::request::{PooledFrom, PromptSyntax, PromptWeighting, Request};
use crate::tensor::Tensor;
use crate::warning::{Warning, WarningKind};
use crate::weights::{Part, TextCheckpoint};
use chunks::{ChunkLayout, Splitting};
use encoder::Encoder;
use weighting::{WeightArithmetic, WeightingMethod};

/// One prompt as the UNet gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// Text states, `[tokens, channels]`, the first encoder's channels first.
    pub context: Vec<f32>,
    /// Pooled text, `[projection_dim]`.
    pub pooled: Vec<f32>,
}

impl Conditioning {
    /// Number of tokens, for so many channels a token.
    pub fn tokens(&self, channels: usize) -> usize {
        self.context.len() / channels.max(1)
    }

    fn bytes(&self) -> usize {
        size_of::<f32>() * (self.context.len() + self.pooled.len())
    }

    /// Makes the conditioning of an absent negative prompt: zeros, in the shape of another
    /// conditioning.
    pub fn zeros_like(other: &Conditioning) -> Conditioning {
        Conditioning {
            context: vec![0.0; other.context.len()],
            pooled: vec![0.0; other.pooled.len()],
        }
    }

    /// The rows' text states `[B, tokens, channels]` and pooled vectors `[B, dim]`.
    pub fn stack(rows: &[&Conditioning], channels: usize) -> (Tensor, Tensor) {
        let tokens = rows[0].context.len() / channels;
        let context = rows.iter().flat_map(|r| r.context.clone()).collect();
        let pooled = rows.iter().flat_map(|r| r.pooled.clone()).collect();
        (
            Tensor::from_f32(vec![rows.len(), tokens, channels], context),
            Tensor::from_f32(vec![rows.len(), rows[0].pooled.len()], pooled),
        )
    }
}

/// The options of a request for the encoding of its prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextOptions {
    /// Layers skipped at the end of the encoders, beyond the one SDXL skips.
    pub clip_skip: Option<usize>,
    /// The effect of weights in prompts.
    pub arithmetic: WeightArithmetic,
    /// The places where long prompts are divided.
    pub splitting: Splitting,
    /// Whether long prompts are cut instead.
    pub truncate: bool,
    /// Which text the pooled vector is of.
    pub pooled_from: PooledFrom,
}

impl TextOptions {
    /// Takes the options from `request`; those that it leaves open follow from its prompt syntax:
    /// each language as its own program does it, and plain text as diffusers does.
    pub fn of(request: &Request) -> TextOptions {
        let syntax = request.prompt_syntax;
        TextOptions {
            clip_skip: request.clip_skip,
            arithmetic: match (request.prompt_weighting, syntax) {
                (PromptWeighting::Compel, _) => WeightArithmetic::Compel,
                (PromptWeighting::A1111, _) => WeightArithmetic::A1111,
                (PromptWeighting::A1111NoNorm, _) => WeightArithmetic::A1111NoNorm,
                (PromptWeighting::ComfyUi, _) => WeightArithmetic::ComfyUi,
                (PromptWeighting::Auto, PromptSyntax::A1111) => WeightArithmetic::A1111,
                (PromptWeighting::Auto, _) => WeightArithmetic::Compel,
            },
            splitting: match syntax {
                PromptSyntax::A1111 => Splitting::Commas,
                _ => Splitting::Sentences,
            },
            truncate: request
                .truncate_long_prompts
                .unwrap_or(syntax == PromptSyntax::Plain),
            pooled_from: request.pooled_from.unwrap_or(match syntax {
                PromptSyntax::A1111 => PooledFrom::Clean,
                _ => PooledFrom::Raw,
            }),
        }
    }

    fn method(&self) -> WeightingMethod {
        WeightingMethod {
            skip: 1 + self.clip_skip.unwrap_or(0),
            arithmetic: self.arithmetic,
            splitting: self.splitting,
            truncate: self.truncate,
        }
    }
}

/// The input of one text encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextInput<'a> {
    /// The prompt as written.
    pub raw: &'a str,
    /// The parts that were read from it; they follow one another along the token axis.
    pub parts: &'a [ResolvedPart],
}

/// Bytes of encoded prompts that are kept: about a hundred chunks of a full-size model.
const CACHE_BYTES: usize = 64 << 20;

/// An encoded prompt and what there was to say about it.
#[derive(Clone)]
struct Known {
    conditioning: Arc<Conditioning>,
    warnings: Vec<Warning>,
}

/// The text encoders of a checkpoint: two for a base model, the second for a refiner.
/// Prompts that were encoded lately are remembered.
pub struct TextEncoders {
    first: Option<Encoder>,
    second: Arc<Encoder>,
    /// The latest last.
    known: Mutex<Vec<(String, Known)>>,
}

impl TextEncoders {
    /// Reads tokenizers and weights; `streamed`: weights stay in their files and are packed as they
    /// are used.
    ///
    /// # Errors
    /// A missing or wrong file, and parts that do not go together.
    pub fn load(parts: &TextCheckpoint, precision: Precision, streamed: bool) -> Result<Self> {
        let second = Encoder::load(parts, Part::TextEncoder2, precision, streamed)?;
        let first = (parts.text_encoder.is_some())
            .then(|| Encoder::load(parts, Part::TextEncoder, precision, streamed))
            .transpose()?;
        if let Some(first) = &first
            && first.tokenizer().max_length() != second.tokenizer().max_length()
        {
            return Err(Error::file(
                parts.files().root().join("tokenizer"),
                "the two tokenizers have different model_max_length; they belong to different models",
            ));
        }
        Ok(TextEncoders {
            first,
            second: Arc::new(second),
            known: Mutex::default(),
        })
    }

    /// The second encoder alone, as a refiner has it, in memory once for both.
    pub fn second_alone(&self) -> Self {
        TextEncoders {
            first: None,
            second: Arc::clone(&self.second),
            known: Mutex::default(),
        }
    }

    /// Whether both have one second encoder in memory.
    #[cfg(test)]
    pub(crate) fn share_second(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.second, &other.second)
    }

    /// Channels of a token's state, both encoders together.
    pub fn channels(&self) -> usize {
        self.first.as_ref().map_or(0, Encoder::width) + self.second.width()
    }

    /// Sequences of 77 tokens that the text encoders have read since they were loaded, both
    /// together: what is remembered is not read again.
    pub fn runs(&self) -> usize {
        self.first.as_ref().map_or(0, Encoder::runs) + self.second.runs()
    }

    /// Encodes a prompt: the last hidden layer but one of each encoder (`clip_skip` k:
    /// k layers earlier, less than the encoders have), side by side, and the pooled
    /// vector of the second. `input_2` is what the second encoder reads, unless it is the only
    /// one, which, as in the reference, reads `input`. An encoder that needs fewer chunks than
    /// the other is filled up with states of the empty text.
    ///
    /// # Errors
    /// Text that a tokenizer refuses, and [`Error::Cancelled`].
    pub fn encode(
        &self,
        input: TextInput<'_>,
        input_2: TextInput<'_>,
        options: &TextOptions,
        warn: &mut dyn FnMut(Warning),
    ) -> Result<Arc<Conditioning>> {
        // Debug writes every number so that it reads back the same.
        let key = format!("{input:?} {input_2:?} {options:?}");
        let found = self.look_up(&key);
        let known = match found {
            Some(known) => known,
            None => {
                let known = self.encode_anew(input, input_2, options)?;
                // It outlives this run.
                cancel::check()?;
                self.remember(key, known.clone());
                known
            }
        };
        for warning in known.warnings {
            warn(warning);
        }
        Ok(known.conditioning)
    }

    fn look_up(&self, key: &str) -> Option<Known> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|(k, _)| k == key)?;
        let entry = all.remove(at);
        let known = entry.1.clone();
        all.push(entry);
        Some(known)
    }

    fn remember(&self, key: String, known: Known) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(k, _)| *k != key);
        all.push((key, known));
        let size = |(key, known): &(String, Known)| key.len() + known.conditioning.bytes();
        let mut total: usize = all.iter().map(size).sum();
        while total > CACHE_BYTES && !all.is_empty() {
            total -= size(&all.remove(0));
        }
    }

    fn encode_anew(
        &self,
        input: TextInput<'_>,
        input_2: TextInput<'_>,
        options: &TextOptions,
    ) -> Result<Known> {
        let method = options.method();
        let input_2 = if self.first.is_some() { input_2 } else { input };
        let (second, pooled) = self.second_and_pooled(input_2, options)?;
        let mut warnings = Vec::new();
        let mut say = |encoder: &Encoder, cut: &[u32]| {
            if !cut.is_empty() {
                let message = format!(
                    "the prompt is longer than the text encoder's {} tokens; this was cut off: {}",
                    encoder.tokenizer().max_length(),
                    encoder.tokenizer().decode(cut)
                );
                warnings.push(Warning::new(WarningKind::PromptCut, "prompt", message));
            }
        };
        say(&self.second, &second.cut);
        let context = match &self.first {
            None => second.values,
            Some(encoder) => {
                let first = weighting::states(encoder, input.parts, method)?;
                // The same text is cut at the same place by both: one warning is enough.
                if input.parts != input_2.parts {
                    say(encoder, &first.cut);
                }
                let (mut a, mut b) = (first.values, second.values);
                let (width, width_2) = (encoder.width(), self.second.width());
                let tokens = (a.len() / width).max(b.len() / width_2);
                weighting::pad(&mut a, tokens * width, &encoder.empty(method.skip)?);
                weighting::pad(&mut b, tokens * width_2, &self.second.empty(method.skip)?);
                side_by_side(&a, width, &b, width_2)
            }
        };
        Ok(Known {
            conditioning: Arc::new(Conditioning { context, pooled }),
            warnings,
        })
    }

    /// States of the second encoder and the pooled vector.
    fn second_and_pooled(
        &self,
        input: TextInput<'_>,
        options: &TextOptions,
    ) -> Result<(weighting::States, Vec<f32>)> {
        let (encoder, method) = (&self.second, options.method());
        let tokenizer = encoder.tokenizer();
        if options.pooled_from == PooledFrom::Raw {
            let raw = tokenizer.sequence(&tokenizer.ids(input.raw)?);
            // Without weights both mostly come from the same sequence.
            if let [part] = input.parts
                && part.weight == 1.0
                && let ResolvedContent::Text(spans) = &part.content
            {
                let layout = ChunkLayout::new(tokenizer, spans, method.splitting, method.truncate)?;
                if let [chunk] = &layout.chunks[..]
                    && chunk.ids == raw
                    && layout.fragments.iter().all(|f| f.weight == 1.0)
                {
                    let (values, pooled) = encoder.states_and_pooled(raw, method.skip)?;
                    let cut = layout.cut;
                    return Ok((weighting::States { values, cut }, pooled));
                }
            }
            let states = weighting::states(encoder, input.parts, method)?;
            return Ok((states, encoder.pooled(raw)?));
        }
        let states = weighting::states(encoder, input.parts, method)?;
        Ok((states, self.clean_pooled(input.parts, method.splitting)?))
    }

    /// The pooled vector of the words without their weights; a blend's is the blend of its
    /// members'.
    fn clean_pooled(&self, parts: &[ResolvedPart], splitting: Splitting) -> Result<Vec<f32>> {
        if let [part] = parts
            && let ResolvedContent::Blend { members, normalize } = &part.content
        {
            let pooled = (members.iter())
                .map(|(spans, _)| self.pooled_of(spans, splitting))
                .collect::<Result<Vec<_>>>()?;
            let weights: Vec<f64> = members.iter().map(|(_, weight)| *weight).collect();
            return Ok(weighting::weighted_sum(&pooled, &weights, *normalize));
        }
        let mut spans: Vec<WeightedSpan> = Vec::new();
        for part in parts {
            match &part.content {
                ResolvedContent::Text(text) => spans.extend_from_slice(text),
                ResolvedContent::Blend { members, .. } => {
                    spans.extend(members.iter().flat_map(|(text, _)| text.clone()));
                }
            }
        }
        self.pooled_of(&spans, splitting)
    }

    /// The pooled vector of the first 75 tokens; A1111's is that of the first chunk.
    fn pooled_of(&self, spans: &[WeightedSpan], splitting: Splitting) -> Result<Vec<f32>> {
        let whole = splitting == Splitting::Sentences;
        let mut layout = ChunkLayout::new(self.second.tokenizer(), spans, splitting, whole)?;
        let first = layout.chunks.swap_remove(0);
        Ok(self.second.pooled_at_end(first.ids)?)
    }

    /// `conditioning` with states of the empty text appended until it has `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Request`] where that many whole chunks do not make it; [`Error::Cancelled`].
    pub fn pad(
        &self,
        conditioning: &Arc<Conditioning>,
        tokens: usize,
        options: &TextOptions,
    ) -> Result<Arc<Conditioning>> {
        let channels = self.channels();
        let now = conditioning.tokens(channels);
        if now == tokens {
            return Ok(Arc::clone(conditioning));
        }
        let chunk = self.second.tokenizer().max_length();
        if now > tokens || !(tokens - now).is_multiple_of(chunk) {
            let message =
                format!("{now} and {tokens} tokens are given for the two sides of the guidance");
            return Err(Error::request("prompt_embeds", message)
                .with_hint(format!("they must differ by whole chunks of {chunk}")));
        }
        let skip = options.method().skip;
        let empty = match &self.first {
            None => self.second.empty(skip)?.to_vec(),
            Some(first) => side_by_side(
                &first.empty(skip)?,
                first.width(),
                &self.second.empty(skip)?,
                self.second.width(),
            ),
        };
        let mut padded = Conditioning::clone(conditioning);
        weighting::pad(&mut padded.context, tokens * channels, &empty);
        Ok(Arc::new(padded))
    }
}

/// Two encoders' states of the same tokens, token by token.
fn side_by_side(a: &[f32], width_a: usize, b: &[f32], width_b: usize) -> Vec<f32> {
    let mut joined = Vec::with_capacity(a.len() + b.len());
    for (a, b) in a.chunks_exact(width_a).zip(b.chunks_exact(width_b)) {
        joined.extend_from_slice(a);
        joined.extend_from_slice(b);
    }
    joined
}
