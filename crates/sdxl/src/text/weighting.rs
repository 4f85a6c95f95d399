//! Prompt weights, and how they change the states of a text encoder.

use super::chunks::{Chunk, ChunkLayout, Splitting};
use super::encoder::{Encoder, Sequence};
use crate::cancel::OrCancelled;
use crate::error::Result;
use crate::prompt::{ResolvedContent, ResolvedPart, WeightedSpan};

/// The arithmetic by which a prompt weight changes the states of a text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightArithmetic {
    /// Compel's: states move away from those of the empty text by their weight; for every span
    /// below 1 the result is also mixed with what the prompt is when that span is hidden.
    Compel,
    /// A1111's: states are multiplied by their weight, and each chunk is then brought back to its
    /// mean.
    A1111,
    /// A1111's without the mean: "No norm" in its settings.
    A1111NoNorm,
    /// ComfyUI's: states move away from those of the empty text by their weight, or towards them.
    ComfyUi,
}

/// The method by which one encoder turns parts of a prompt into states.
#[derive(Clone, Copy)]
pub(super) struct WeightingMethod {
    /// Layers skipped at the end of the encoder.
    pub skip: usize,
    /// The arithmetic that applies prompt weights.
    pub arithmetic: WeightArithmetic,
    /// The rule by which long texts are divided into chunks.
    pub splitting: Splitting,
    /// Whether long texts are cut instead.
    pub truncate: bool,
}

/// States of one encoder.
pub(super) struct States {
    /// `[tokens, width]`, a whole number of chunks.
    pub values: Vec<f32>,
    /// Tokens that were cut off.
    pub cut: Vec<u32>,
}

/// The states of parts one after the other, along the token axis. No parts are the empty text.
///
/// # Errors
/// Text that the tokenizer refuses, and [`crate::Cancelled`].
pub(super) fn states(
    encoder: &Encoder,
    parts: &[ResolvedPart],
    method: WeightingMethod,
) -> Result<States> {
    if parts.is_empty() {
        return of_text(encoder, &[], method);
    }
    let mut all = States {
        values: Vec::new(),
        cut: Vec::new(),
    };
    for part in parts {
        let mut states = match &part.content {
            ResolvedContent::Text(spans) => of_text(encoder, spans, method)?,
            ResolvedContent::Blend { members, normalize } => {
                of_blend(encoder, members, *normalize, method)?
            }
        };
        if part.weight != 1.0 {
            let empty = encoder.empty(method.skip)?;
            for (value, empty) in states.values.iter_mut().zip(empty.iter().cycle()) {
                *value = empty + (*value - empty) * part.weight as f32;
            }
        }
        all.values.append(&mut states.values);
        all.cut.append(&mut states.cut);
    }
    Ok(all)
}

/// Appends states of the empty text until there are `len` values.
pub(super) fn pad(values: &mut Vec<f32>, len: usize, empty: &[f32]) {
    while values.len() < len {
        values.extend_from_slice(empty);
    }
}

/// A weighted sum; shorter members are padded first.
fn of_blend(
    encoder: &Encoder,
    members: &[(Vec<WeightedSpan>, f64)],
    normalize: bool,
    method: WeightingMethod,
) -> Result<States> {
    let mut all = Vec::with_capacity(members.len());
    let mut cut = Vec::new();
    for (spans, _) in members {
        let mut states = of_text(encoder, spans, method)?;
        cut.append(&mut states.cut);
        all.push(states.values);
    }
    let empty = encoder.empty(method.skip)?;
    let len = all.iter().map(Vec::len).max().unwrap_or(empty.len());
    for values in &mut all {
        pad(values, len, &empty);
    }
    let weights: Vec<f64> = members.iter().map(|(_, weight)| *weight).collect();
    Ok(States {
        values: weighted_sum(&all, &weights, normalize),
        cut,
    })
}

/// The sum of vectors of one length by weight, the weights divided by their sum first
/// if `normalize`.
pub(super) fn weighted_sum(members: &[Vec<f32>], weights: &[f64], normalize: bool) -> Vec<f32> {
    let whole = if normalize { weights.iter().sum() } else { 1.0 };
    let len = members.first().map_or(0, Vec::len);
    let mut sums = vec![0f64; len];
    for (values, weight) in members.iter().zip(weights) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value) * (weight / whole);
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

fn of_text(encoder: &Encoder, spans: &[WeightedSpan], method: WeightingMethod) -> Result<States> {
    let tokenizer = encoder.tokenizer();
    let layout = ChunkLayout::new(tokenizer, spans, method.splitting, method.truncate)?;
    let sequences: Vec<Sequence> = (layout.chunks.iter())
        .map(|chunk| Sequence {
            ids: chunk.ids.clone(),
            seen: None,
        })
        .collect();
    let mut chunks = encoder.states(&sequences, method.skip)?;
    match method.arithmetic {
        WeightArithmetic::A1111 | WeightArithmetic::A1111NoNorm => {
            let restore = method.arithmetic == WeightArithmetic::A1111;
            for (states, chunk) in chunks.iter_mut().zip(&layout.chunks) {
                multiply(states, chunk, restore);
            }
        }
        WeightArithmetic::ComfyUi | WeightArithmetic::Compel => {
            for (states, chunk) in chunks.iter_mut().zip(&layout.chunks) {
                move_from_empty(encoder, states, chunk, method.skip)?;
            }
        }
    }
    let values = if method.arithmetic == WeightArithmetic::Compel {
        mix_with_hidden(encoder, &layout, chunks, method)?
    } else {
        chunks.concat()
    };
    Ok(States {
        values,
        cut: layout.cut,
    })
}

/// A1111's weights: `z · w`, then all of it times `mean(z) / mean(z · w)`.
fn multiply(states: &mut [f32], chunk: &Chunk, restore: bool) {
    if chunk.weights.iter().all(|w| *w == 1.0) {
        return;
    }
    let mean = |values: &[f32]| {
        values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64
    };
    let before = mean(states);
    let width = states.len() / chunk.weights.len();
    for (state, weight) in states.chunks_exact_mut(width).zip(&chunk.weights) {
        for value in state {
            *value *= weight;
        }
    }
    let ratio = before / mean(states);
    // All weights 0, say, leave nothing to restore.
    if restore && ratio.is_finite() {
        for value in states {
            *value = (f64::from(*value) * ratio) as f32;
        }
    }
}

/// `z0 + (z - z0) · w`, where `z0` is the empty text at the same position. Weight 1 leaves a
/// state as it is, to the last bit.
fn move_from_empty(
    encoder: &Encoder,
    states: &mut [f32],
    chunk: &Chunk,
    skip: usize,
) -> OrCancelled<()> {
    if chunk.weights.iter().all(|w| *w == 1.0) {
        return Ok(());
    }
    let empty = encoder.empty(skip)?;
    let width = encoder.width();
    let places = states
        .chunks_exact_mut(width)
        .zip(empty.chunks_exact(width))
        .zip(&chunk.weights);
    for ((state, empty), weight) in places {
        if *weight != 1.0 {
            for (value, empty) in state.iter_mut().zip(empty) {
                *value = empty + (*value - empty) * weight;
            }
        }
    }
    Ok(())
}

/// The smallest weight whose share is computed: at 0 it would be infinite.
const SMALLEST: f64 = 1e-5;

/// Compel's weights below 1. For every such span the prompt is encoded with the span hidden, and
/// counts `tan((1 - w) π/2)` beside the 1 of the whole prompt: at 0.5 both count alike, towards 0
/// only the prompt without the span is left.
fn mix_with_hidden(
    encoder: &Encoder,
    layout: &ChunkLayout,
    whole: Vec<Vec<f32>>,
    method: WeightingMethod,
) -> OrCancelled<Vec<f32>> {
    if layout.fragments.iter().all(|f| f.weight >= 1.0) {
        return Ok(whole.concat());
    }
    let positions = layout.positions(encoder.tokenizer());
    let mut sums: Vec<Vec<f64>> = (whole.iter())
        .map(|states| states.iter().map(|v| f64::from(*v)).collect())
        .collect();
    let mut total = 1.0;
    for (fragment, range) in layout.fragments.iter().zip(positions) {
        let Some(range) = range else { continue };
        if fragment.weight >= 1.0 {
            continue;
        }
        let share = ((1.0 - fragment.weight.max(SMALLEST)) * std::f64::consts::FRAC_PI_2).tan();
        total += share;
        let (mut touched, mut sequences) = (Vec::new(), Vec::new());
        for (i, chunk) in layout.chunks.iter().enumerate() {
            let length = chunk.ids.len();
            let seen: Vec<bool> = (0..length)
                .map(|t| {
                    // What stands at a chunk's two ends belongs to no span, unless the
                    // prompt is cut.
                    let edge = (t == 0 || t + 1 == length) && !method.truncate;
                    edge || !range.contains(&(i * length + t))
                })
                .collect();
            if seen.contains(&false) {
                touched.push(i);
                sequences.push(Sequence {
                    ids: chunk.ids.clone(),
                    seen: Some(seen),
                });
            }
        }
        let mut hidden = encoder.states(&sequences, method.skip)?;
        for (states, &i) in hidden.iter_mut().zip(&touched) {
            move_from_empty(encoder, states, &layout.chunks[i], method.skip)?;
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // A chunk that the span does not reach is the same without it.
            let states = match touched.iter().position(|t| *t == i) {
                Some(at) => &hidden[at],
                None => &whole[i],
            };
            for (sum, value) in sums.iter_mut().zip(states) {
                *sum += share * f64::from(*value);
            }
        }
    }
    let mixed = sums.concat().into_iter().map(|v| (v / total) as f32);
    Ok(mixed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(weights: &[f32]) -> Chunk {
        Chunk {
            ids: vec![0; weights.len()],
            weights: weights.to_vec(),
            owners: Vec::new(),
        }
    }

    #[test]
    fn a1111_weights_keep_the_mean_where_asked() {
        // mean 2.5; weighted 1, 2, 6, 8: mean 4.25
        let mut states = [1.0, 2.0, 3.0, 4.0];
        multiply(&mut states, &chunk(&[1.0, 2.0]), true);
        let ratio = 2.5 / 4.25;
        let expected = [1.0, 2.0, 6.0, 8.0].map(|v: f64| (v * ratio) as f32);
        assert_eq!(states, expected);

        let mut states = [1.0, 2.0, 3.0, 4.0];
        multiply(&mut states, &chunk(&[1.0, 2.0]), false);
        assert_eq!(states, [1.0, 2.0, 6.0, 8.0]);

        // Nothing is left to restore.
        let mut states = [1.0, 2.0, 3.0, 4.0];
        multiply(&mut states, &chunk(&[0.0, 0.0]), true);
        assert_eq!(states, [0.0; 4]);
    }

    #[test]
    fn blends_divide_by_the_sum_of_weights_only_if_told() {
        let members = [vec![1.0, 0.0], vec![0.0, 2.0]];
        assert_eq!(weighted_sum(&members, &[1.0, 3.0], true), [0.25, 1.5]);
        assert_eq!(weighted_sum(&members, &[1.0, 3.0], false), [1.0, 6.0]);
    }
}
