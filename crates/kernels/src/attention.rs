//! Attention without the matrix of scores: softmax is computed online over blocks of keys
//! (Dao et al., "FlashAttention", 2022, after Milakov and Gimelshein, "Online normalizer
//! calculation for softmax", 2018).
//!
//! Keys and values of a head are packed once into panels, as weights are: the keys to be
//! multiplied along the head dimension, the values along the keys. Then chunks of queries
//! go over blocks of keys that stay in the L2 cache; both products are the tiles of
//! `tile.rs`. Scores, exponentials and sums are `f32`; with bf16 activations the
//! probabilities are rounded to bf16 for the second product, as the values are.
//!
//! The optimisations, each with the speed after it (one Zen 4 core, bf16, share of the peak for
//! 4096 x 4096 / 4096 x 77 tokens with heads of 64):
//! 1. Tiles over blocks of 512 keys, `exp` of 1 ULP: 69 / 29 %.
//! 2. Powers of two with a polynomial of degree 4, maxima of all rows in lanes, and a last
//!    panel of keys no wider than needed: 75 / 27 %.
//! 3. Everything on vectors inlined (closures are not): 78 / 44 %.
//! 4. Keys packed into prefetched lines: 79 / 45 %.

#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::disjoint::DisjointOut;
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::isa::Isa;
use crate::math::exp2;
use crate::simd::{MAX_LANES, MAX_PANEL, MAX_ROWS, Op, Simd, prefetch_read, prefetch_write};
use crate::stop::StopFlag;
use crate::tile::{Bf16Bf16, F32, Kernel, tile};

mod layout;

pub use layout::AttentionShape;
use layout::{HeadLayout, PackHead};

/// Computes `softmax(q kᵀ / sqrt(head_dim)) v` for each sample and head.
///
/// Token `t` of sample `b`, head `h`, starts at `(b * queries + t) * q_stride + h * head_dim`
/// in `q`, and likewise with `keys` and `kv_stride` in `k` and `v`, so that all three may be
/// parts of one product. `out` is dense, `[batch, queries, heads * head_dim]`.
///
/// # Panics
/// If a slice is too short for its shape, or there are no keys.
pub fn attention<E: Element>(q: &[E], k: &[E], v: &[E], s: &AttentionShape, out: &mut [E]) {
    attention_for(Isa::current(), q, k, v, s, None, out);
}

/// Computes [`attention`] with a mask, `[batch, keys]`: keys whose entry is false are hidden from
/// every query. If all keys of a query are hidden, all get the same weight.
///
/// # Panics
/// As [`attention`], and if `mask` has another length.
pub fn masked_attention<E: Element>(
    q: &[E],
    k: &[E],
    v: &[E],
    s: &AttentionShape,
    mask: &[bool],
    out: &mut [E],
) {
    assert_eq!(mask.len(), s.batch * s.keys, "length of the mask");
    attention_for(Isa::current(), q, k, v, s, Some(mask), out);
}

/// Gives the bytes that an attention of elements `E` works in: its keys and values, packed.
pub fn attention_workspace<E: Element>(s: &AttentionShape) -> usize {
    let layout = HeadLayout::new(Isa::current(), s, E::IS_BF16);
    s.batch * s.heads * layout.head_len() * size_of::<E>()
}

/// Queries of a task, in tiles.
const CHUNK_TILES: usize = 16;

fn attention_for<E: Element>(
    isa: Isa,
    q: &[E],
    k: &[E],
    v: &[E],
    s: &AttentionShape,
    mask: Option<&[bool]>,
    out: &mut [E],
) {
    let model = s.heads * s.head_dim;
    let needed = |tokens: usize, stride: usize| {
        let tokens = s.batch * tokens;
        if tokens == 0 {
            0
        } else {
            (tokens - 1) * stride + model
        }
    };
    assert!(
        s.q_stride >= model && s.kv_stride >= model,
        "tokens overlap"
    );
    assert!(
        q.len() >= needed(s.queries, s.q_stride),
        "queries too short"
    );
    assert!(k.len() >= needed(s.keys, s.kv_stride), "keys too short");
    assert!(v.len() >= needed(s.keys, s.kv_stride), "values too short");
    assert_eq!(
        out.len(),
        s.batch * s.queries * model,
        "length of the output"
    );
    assert!(s.keys > 0, "no keys");
    let stop = StopFlag::current();
    if out.is_empty() || stop.is_raised() {
        return;
    }

    let layout = HeadLayout::new(isa, s, E::IS_BF16);
    let heads = s.batch * s.heads;
    let mut packed = vec![E::default(); heads * layout.head_len()];
    packed
        .par_chunks_mut(layout.head_len())
        .enumerate()
        .for_each(|(head, packed)| {
            if stop.is_raised() {
                return;
            }
            let first = head / s.heads * s.keys * s.kv_stride + head % s.heads * s.head_dim;
            let pack = PackHead {
                layout: &layout,
                k: &k[first..],
                v: &v[first..],
                shape: s,
                out: packed,
            };
            dispatch(isa, pack);
        });

    let chunk = CHUNK_TILES * layout.rows;
    let chunks = s.queries.div_ceil(chunk);
    let shared = DisjointOut::new(out);
    (0..heads * chunks).into_par_iter().for_each(|task| {
        if stop.is_raised() {
            return;
        }
        let (head, c) = (task / chunks, task % chunks);
        let task = QueryChunk {
            q,
            packed: &packed[head * layout.head_len()..][..layout.head_len()],
            shape: s,
            layout: &layout,
            head,
            mask: mask.map(|mask| &mask[head / s.heads * s.keys..][..s.keys]),
            queries: c * chunk..s.queries.min((c + 1) * chunk),
            out: &shared,
        };
        dispatch(isa, task);
    });
}

/// Some queries of one head.
struct QueryChunk<'a, E> {
    q: &'a [E],
    packed: &'a [E],
    shape: &'a AttentionShape,
    layout: &'a HeadLayout,
    head: usize,
    /// The mask of this sample's keys; `None` hides no key.
    mask: Option<&'a [bool]>,
    queries: std::ops::Range<usize>,
    out: &'a DisjointOut<'a, E>,
}

impl<E: Element> Op for QueryChunk<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (E::IS_BF16, S::PANEL_VECTORS) {
            (true, 4) => self.flash::<S, Bf16Bf16, 4>(s),
            (true, _) => self.flash::<S, Bf16Bf16, 2>(s),
            (false, 4) => self.flash::<S, F32<f32>, 4>(s),
            (false, _) => self.flash::<S, F32<f32>, 2>(s),
        }
    }
}

/// The score of a hidden key: low enough for a probability of zero, and finite, because the
/// difference of two infinities is not a number.
const MASKED: f32 = -1e30;

/// Rows of a tile in whole vectors.
const ROW_LANES: usize = MAX_ROWS.next_multiple_of(MAX_LANES);

/// The state of the softmax of a tile's queries, in lanes, after some blocks of keys.
struct SoftmaxState {
    /// The largest score so far, times the factor that makes the exponentials powers of two.
    max: [f32; ROW_LANES],
    /// The sum of exponentials, relative to that of the largest score.
    total: [f32; ROW_LANES],
}

impl<E: Element> QueryChunk<'_, E> {
    #[inline(always)]
    fn flash<S: Simd, K: Kernel<A: Element>, const NV: usize>(&self, s: S) {
        assert!(E::IS_BF16 == K::A::IS_BF16 && NV == S::PANEL_VECTORS);
        let (shape, layout) = (self.shape, self.layout);
        let width = NV * S::LANES;
        let tiles = self.queries.len().div_ceil(S::ROWS);
        let (sample, head) = (self.head / shape.heads, self.head % shape.heads);
        let keys = self.packed.as_ptr();
        let values = keys.wrapping_add(layout.keys_len());

        for query in self.queries.clone() {
            let token = sample * shape.queries + query;
            let q = &self.q[token * shape.q_stride + head * shape.head_dim..];
            let out = (token * shape.heads + head) * shape.head_dim;
            for i in (0..shape.head_dim).step_by(64 / size_of::<E>()) {
                prefetch_read(q.as_ptr().wrapping_add(i));
                prefetch_write(self.out.address(out + i));
            }
        }
        // The sums of a tile and a panel, row after row.
        let of_panel = S::ROWS * MAX_PANEL;
        let mut weighted_sums = vec![0f32; tiles * layout.dim_panels * of_panel];
        let mut running: Vec<SoftmaxState> = (0..tiles)
            .map(|_| SoftmaxState {
                max: [MASKED; ROW_LANES],
                total: [0.0; ROW_LANES],
            })
            .collect();
        let mut scores = vec![0f32; S::ROWS * layout.block];
        let mut probabilities = vec![K::A::default(); S::ROWS * layout.block];

        for first_key in (0..shape.keys).step_by(layout.block) {
            // Keys of this block, and with the padding of the last.
            let here = (shape.keys - first_key).min(layout.block);
            let padded = here.next_multiple_of(S::LANES);
            for t in 0..tiles {
                // The queries of a tile; the last one fills up an incomplete tile.
                let query =
                    |r: usize| (self.queries.start + t * S::ROWS + r).min(self.queries.end - 1);
                if shape.causal && first_key > query(S::ROWS - 1) {
                    continue;
                }
                let mut rows = [std::ptr::null::<K::A>(); MAX_ROWS];
                let rows = &mut rows[..S::ROWS];
                for (r, row) in rows.iter_mut().enumerate() {
                    let at = (sample * shape.queries + query(r)) * shape.q_stride;
                    *row = self.q[at + head * shape.head_dim..].as_ptr().cast();
                }
                for key in (0..padded).step_by(width) {
                    let w = keys
                        .wrapping_add((first_key + key) * layout.dim_steps)
                        .cast();
                    let out = &mut scores[key..];
                    let (len, stride) = (shape.head_dim, layout.block);
                    // SAFETY: a query has head_dim elements; the panel was packed with
                    // head_dim padded to whole steps and keys to whole vectors; E and K::A
                    // are the same type.
                    unsafe {
                        match (padded - key).min(width) / S::LANES {
                            1 => tile::<S, K, 1>(s, rows, 0, len, w, false, out, stride),
                            2 if NV > 2 => tile::<S, K, 2>(s, rows, 0, len, w, false, out, stride),
                            3 => tile::<S, K, 3>(s, rows, 0, len, w, false, out, stride),
                            _ => tile::<S, K, NV>(s, rows, 0, len, w, false, out, stride),
                        }
                    }
                }
                for r in 0..S::ROWS {
                    // Keys this query sees, of those in this block.
                    let mut seen = here;
                    if shape.causal {
                        seen = seen.min((query(r) + 1).saturating_sub(first_key));
                    }
                    let scores = &mut scores[r * layout.block..];
                    scores[seen..padded].fill(MASKED);
                    if let Some(mask) = self.mask {
                        for (score, seen) in scores[..seen].iter_mut().zip(&mask[first_key..]) {
                            if !seen {
                                *score = MASKED;
                            }
                        }
                    }
                }
                let of_tile = layout.dim_panels * of_panel;
                let sums = &mut weighted_sums[t * of_tile..(t + 1) * of_tile];
                self.softmax::<S, K>(
                    s,
                    &scores,
                    padded,
                    &mut running[t],
                    &mut probabilities,
                    sums,
                );
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = probabilities[r * layout.block..].as_ptr();
                }
                for (panel, sums) in sums.chunks_exact_mut(of_panel).enumerate() {
                    let at = panel * layout.values_panel_len() + first_key * width;
                    let w = values.wrapping_add(at).cast();
                    // SAFETY: a row of probabilities has a block of elements; the values
                    // were packed with the keys padded to whole vectors.
                    unsafe { tile::<S, K, NV>(s, rows, 0, padded, w, true, sums, width) }
                }
            }
        }

        for (i, query) in self.queries.clone().enumerate() {
            let (t, r) = (i / S::ROWS, i % S::ROWS);
            let at = ((sample * shape.queries + query) * shape.heads + head) * shape.head_dim;
            // SAFETY: within the output, whose length was checked; this head of this query is
            // the task's alone.
            let out = unsafe { self.out.part(at, shape.head_dim) };
            let factor = s.splat(1.0 / running[t].total[r]);
            for j in (0..shape.head_dim).step_by(S::LANES) {
                let panel = t * layout.dim_panels + j / width;
                let sums = &weighted_sums[panel * of_panel..][..of_panel];
                let y = s.mul(s.read(sums, r * width + j % width), factor);
                s.write(out, j, y);
            }
        }
    }

    /// Turns the scores of a tile with `keys` keys into unnormalised probabilities, and
    /// brings what was summed before to the same scale.
    #[inline(always)]
    fn softmax<S: Simd, K: Kernel<A: Element>>(
        &self,
        s: S,
        scores: &[f32],
        keys: usize,
        running: &mut SoftmaxState,
        probabilities: &mut [K::A],
        weighted_sums: &mut [f32],
    ) {
        const UNROLL: usize = 4;
        let block = self.layout.block;
        let step = UNROLL * S::LANES;
        let whole = keys / step * step;
        // Powers of two are cheaper than those of e: the scale of the scores changes it.
        let scale = std::f32::consts::LOG2_E / (self.shape.head_dim as f32).sqrt();

        let mut peaks = [MASKED; ROW_LANES];
        for (r, scores) in scores.chunks_exact(block).enumerate() {
            let mut peak = [s.splat(MASKED); UNROLL];
            for part in scores[..whole].chunks_exact(step) {
                for (u, peak) in peak.iter_mut().enumerate() {
                    *peak = s.max(*peak, s.read(part, u * S::LANES));
                }
            }
            for i in (whole..keys).step_by(S::LANES) {
                peak[0] = s.max(peak[0], s.read(scores, i));
            }
            let peak = s.max(s.max(peak[0], peak[1]), s.max(peak[2], peak[3]));
            peaks[r] = s.reduce_max(peak);
        }
        // All rows at once, in lanes.
        let mut factors = [0f32; ROW_LANES];
        for i in (0..ROW_LANES).step_by(S::LANES) {
            let before = s.read(&running.max, i);
            let now = s.max(before, s.mul(s.read(&peaks, i), s.splat(scale)));
            let factor = exp2(s, s.sub(before, now), false);
            s.write(&mut running.max, i, now);
            s.write(&mut factors, i, factor);
            let total = s.mul(s.read(&running.total, i), factor);
            s.write(&mut running.total, i, total);
        }
        let rows = scores
            .chunks_exact(block)
            .zip(probabilities.chunks_exact_mut(block));
        for (r, (scores, out)) in rows.enumerate() {
            let shift = s.splat(-running.max[r]);
            let mut sum = [s.zero(); UNROLL];
            let parts = scores[..whole].chunks_exact(step);
            for (part, out) in parts.zip(out.chunks_exact_mut(step)) {
                for (u, sum) in sum.iter_mut().enumerate() {
                    let x = s.fma(s.read(part, u * S::LANES), s.splat(scale), shift);
                    let p = exp2(s, x, K::A::IS_BF16);
                    *sum = s.add(*sum, p);
                    s.write(out, u * S::LANES, p);
                }
            }
            for i in (whole..keys).step_by(S::LANES) {
                let x = s.fma(s.read(scores, i), s.splat(scale), shift);
                let p = exp2(s, x, K::A::IS_BF16);
                sum[0] = s.add(sum[0], p);
                s.write(out, i, p);
            }
            let sum = s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3]));
            running.total[r] += s.reduce_sum(sum);
        }
        if factors[..S::ROWS].iter().any(|factor| *factor != 1.0) {
            let width = S::LANES * S::PANEL_VECTORS;
            for sums in weighted_sums.chunks_exact_mut(S::ROWS * MAX_PANEL) {
                for (row, factor) in sums.chunks_exact_mut(width).zip(factors).take(S::ROWS) {
                    for i in (0..width).step_by(S::LANES) {
                        let scaled = s.mul(s.read(row, i), s.splat(factor));
                        s.write(row, i, scaled);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::test::{assert_close, noise, rounded};

    /// Attention in f64, straight from its definition.
    fn reference(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        s: &AttentionShape,
        mask: Option<&[bool]>,
    ) -> Vec<f64> {
        let model = s.heads * s.head_dim;
        let mut out = vec![0.0; s.batch * s.queries * model];
        for b in 0..s.batch {
            for h in 0..s.heads {
                for t in 0..s.queries {
                    let q = &q[(b * s.queries + t) * s.q_stride + h * s.head_dim..];
                    let seen = if s.causal { s.keys.min(t + 1) } else { s.keys };
                    let seen: Vec<usize> = (0..seen)
                        .filter(|j| mask.is_none_or(|mask| mask[b * s.keys + j]))
                        .collect();
                    let at = |j: usize| (b * s.keys + j) * s.kv_stride + h * s.head_dim;
                    let scores: Vec<f64> = (seen.iter())
                        .map(|&j| {
                            let dot = (0..s.head_dim)
                                .map(|i| f64::from(q[i]) * f64::from(k[at(j) + i]))
                                .sum::<f64>();
                            dot / (s.head_dim as f64).sqrt()
                        })
                        .collect();
                    let peak = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|x| (x - peak).exp()).sum();
                    for i in 0..s.head_dim {
                        let y: f64 = (seen.iter().zip(&scores))
                            .map(|(&j, score)| (score - peak).exp() * f64::from(v[at(j) + i]))
                            .sum();
                        out[(b * s.queries + t) * model + h * s.head_dim + i] = y / total;
                    }
                }
            }
        }
        out
    }

    fn check<E: Element>(isa: Isa, s: &AttentionShape, mask: Option<&[bool]>, sharpness: f32) {
        let q: Vec<f32> = noise(1, s.batch * s.queries * s.q_stride);
        let q: Vec<E> = rounded(&q.iter().map(|v| v * sharpness).collect::<Vec<_>>());
        let k: Vec<E> = rounded(&noise(2, s.batch * s.keys * s.kv_stride));
        let v: Vec<E> = rounded(&noise(3, s.batch * s.keys * s.kv_stride));
        let wide = |x: &[E]| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
        let want = reference(&wide(&q), &wide(&k), &wide(&v), s, mask);
        let mut out = vec![E::default(); want.len()];
        attention_for(isa, &q, &k, &v, s, mask, &mut out);
        // Scores of size x carry an error of x ulp, and e^x turns it into a relative one.
        let tolerance = if E::IS_BF16 {
            5e-3
        } else {
            1e-6 * f64::from(sharpness.max(1.0))
        };
        assert_close(&out, &want, tolerance, &format!("{isa} {s:?}"));
    }

    #[test]
    fn every_shape_agrees_with_the_reference() {
        let shape = |heads, head_dim, queries, keys, causal| AttentionShape {
            batch: 2,
            heads,
            head_dim,
            queries,
            keys,
            q_stride: heads * head_dim,
            kv_stride: heads * head_dim,
            causal,
        };
        for isa in Isa::available() {
            for s in [
                shape(1, 1, 1, 1, false),
                shape(2, 8, 5, 7, false),
                shape(2, 9, 13, 65, false),
                shape(3, 64, 97, 77, false),
                shape(1, 64, 100, 577, false),
                shape(2, 64, 77, 77, true),
                shape(1, 20, 600, 600, true),
                shape(1, 512, 20, 300, false),
                shape(1, 130, 6, 64, false),
            ] {
                for sharpness in [1.0, 8.0] {
                    check::<f32>(isa, &s, None, sharpness);
                    check::<bf16>(isa, &s, None, sharpness);
                }
            }
            let s = shape(2, 16, 30, 40, false);
            let strided = AttentionShape {
                q_stride: 100,
                kv_stride: 70,
                ..s
            };
            check::<f32>(isa, &strided, None, 1.0);
            check::<bf16>(isa, &strided, None, 1.0);
        }
    }

    #[test]
    fn hidden_keys_count_for_nothing() {
        let shape = |queries, keys, causal| AttentionShape {
            batch: 3,
            heads: 2,
            head_dim: 20,
            queries,
            keys,
            q_stride: 40,
            kv_stride: 40,
            causal,
        };
        for isa in Isa::available() {
            for s in [shape(77, 77, true), shape(9, 601, false)] {
                // Each sample hides other keys, the first one hides none; the first key, which
                // under a causal mask is all that the first query sees, is always seen.
                let mask: Vec<bool> = (0..s.batch * s.keys)
                    .map(|i| i % s.keys == 0 || i / s.keys == 0 || i % s.keys % 5 != i / s.keys)
                    .collect();
                check::<f32>(isa, &s, Some(&mask), 1.0);
                check::<bf16>(isa, &s, Some(&mask), 8.0);
            }
        }
    }

    #[test]
    fn a_block_without_any_seen_key_is_forgotten() {
        let s = AttentionShape {
            batch: 1,
            heads: 1,
            head_dim: 8,
            queries: 3,
            keys: 1100,
            q_stride: 8,
            kv_stride: 8,
            causal: false,
        };
        let mut mask = vec![false; s.keys];
        mask[1050] = true;
        for isa in Isa::available() {
            check::<f32>(isa, &s, Some(&mask), 1.0);
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let s = AttentionShape {
            batch: 1,
            heads: 3,
            head_dim: 16,
            queries: 500,
            keys: 700,
            q_stride: 48,
            kv_stride: 48,
            causal: false,
        };
        let (q, k, v) = (noise(1, 500 * 48), noise(2, 700 * 48), noise(3, 700 * 48));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0f32; q.len()];
            pool.unwrap()
                .install(|| attention(&q, &k, &v, &s, &mut out));
            out
        };
        assert_eq!(run(1), run(3));
    }
}
