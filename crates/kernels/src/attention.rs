//! Attention without the matrix of scores: softmax is computed online over blocks of keys
//! (Dao et al., "FlashAttention", 2022, after Milakov and Gimelshein, "Online normalizer
//! calculation for softmax", 2018).
//!
//! Keys and values of a head are packed once into panels, as weights are: the keys to be
//! multiplied along the head dimension, the values along the keys. Then chunks of queries
//! go over blocks of keys that stay in the L2 cache; both products are the tiles of
//! `gemm`. Scores, exponentials and sums are `f32`; with bf16 activations the
//! probabilities are rounded to bf16 for the second product, as the values are.

#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::element::Element;
use crate::gemm::{Dot, Kernel, ROWS, Single, TileSums, tile};
use crate::isa::Isa;
use crate::math::exp;
use crate::simd::{MAX_PANEL, Op, Simd, dispatch, panel_shape};

/// Shapes and layout of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens that ask.
    pub queries: usize,
    /// Tokens that are looked at.
    pub keys: usize,
    /// Elements between consecutive tokens of the queries.
    pub q_stride: usize,
    /// Elements between consecutive tokens of the keys, and of the values.
    pub kv_stride: usize,
    /// A query sees only keys at its own position and before.
    pub causal: bool,
}

/// `softmax(q kᵀ / sqrt(head_dim)) v` for each sample and head.
///
/// Token `t` of sample `b`, head `h`, starts at `(b * queries + t) * q_stride + h * head_dim`
/// in `q`, and likewise with `keys` and `kv_stride` in `k` and `v`, so that all three may be
/// parts of one product. `out` is dense, `[batch, queries, heads * head_dim]`.
///
/// # Panics
/// If a slice is too short for its shape, or there are no keys.
pub fn attention<E: Element>(q: &[E], k: &[E], v: &[E], s: &AttentionShape, out: &mut [E]) {
    attention_on(Isa::current(), q, k, v, s, out);
}

/// Queries of a task, in tiles.
const CHUNK_TILES: usize = 16;

/// The most keys of a block.
const MAX_BLOCK: usize = 512;

fn attention_on<E: Element>(
    isa: Isa,
    q: &[E],
    k: &[E],
    v: &[E],
    s: &AttentionShape,
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
    if out.is_empty() {
        return;
    }

    let layout = Layout::new(isa, s, E::IS_BF16);
    let heads = s.batch * s.heads;
    let mut packed = vec![E::default(); heads * layout.head_len()];
    packed
        .par_chunks_mut(layout.head_len())
        .enumerate()
        .for_each(|(head, packed)| {
            let first = head / s.heads * s.keys * s.kv_stride + head % s.heads * s.head_dim;
            layout.pack(&k[first..], &v[first..], s, packed);
        });

    let chunk = CHUNK_TILES * ROWS;
    let chunks = s.queries.div_ceil(chunk);
    let shared = Shared(out.as_mut_ptr());
    (0..heads * chunks).into_par_iter().for_each(|task| {
        let (head, c) = (task / chunks, task % chunks);
        let task = Chunk {
            q,
            packed: &packed[head * layout.head_len()..][..layout.head_len()],
            shape: s,
            layout: &layout,
            head,
            queries: c * chunk..s.queries.min((c + 1) * chunk),
            out: &shared,
        };
        dispatch(isa, task);
    });
}

/// A pointer that tasks may share, because each writes to its own part.
struct Shared<T>(*mut T);
// SAFETY: see the type; each task writes its own queries of its own head.
unsafe impl<T: Send> Sync for Shared<T> {}

/// How the keys and values of one head are packed.
struct Layout {
    /// Columns of a panel.
    width: usize,
    /// Values of `k` in a step of the product.
    depth: usize,
    /// The head dimension, padded to whole steps.
    dim_steps: usize,
    /// Keys, padded to whole panels.
    keys: usize,
    /// Panels of the head dimension.
    dim_panels: usize,
    /// Keys of a block, whole panels.
    block: usize,
}

impl Layout {
    fn new(isa: Isa, s: &AttentionShape, pairs: bool) -> Layout {
        let (width, _) = panel_shape(isa);
        let depth = if pairs { 2 } else { 1 };
        let bytes = if pairs { 2 } else { 4 };
        // Keys and values of a block fill half of an L2 cache of 1 MB.
        let fits = (512 << 10) / (2 * bytes * s.head_dim);
        let block = (fits / width * width).clamp(width, MAX_BLOCK);
        Layout {
            width,
            depth,
            dim_steps: s.head_dim.next_multiple_of(depth),
            keys: s.keys.next_multiple_of(width),
            dim_panels: s.head_dim.div_ceil(width),
            block,
        }
    }

    fn keys_len(&self) -> usize {
        self.keys * self.dim_steps
    }

    fn values_panel_len(&self) -> usize {
        self.keys * self.width
    }

    fn head_len(&self) -> usize {
        self.keys_len() + self.dim_panels * self.values_panel_len()
    }

    /// Packs one head; `out` is zero where there is padding.
    fn pack<E: Element>(&self, k: &[E], v: &[E], s: &AttentionShape, out: &mut [E]) {
        let (width, depth) = (self.width, self.depth);
        let (keys, values) = out.split_at_mut(self.keys_len());
        for t in 0..s.keys {
            let (panel, column) = (t / width, t % width);
            let to = &mut keys[panel * width * self.dim_steps..];
            for (i, value) in k[t * s.kv_stride..][..s.head_dim].iter().enumerate() {
                to[(i / depth * width + column) * depth + i % depth] = *value;
            }
            for (i, value) in v[t * s.kv_stride..][..s.head_dim].iter().enumerate() {
                let (panel, column) = (i / width, i % width);
                let at = (t / depth * width + column) * depth + t % depth;
                values[panel * self.values_panel_len() + at] = *value;
            }
        }
    }
}

/// Some queries of one head.
struct Chunk<'a, E> {
    q: &'a [E],
    packed: &'a [E],
    shape: &'a AttentionShape,
    layout: &'a Layout,
    head: usize,
    queries: std::ops::Range<usize>,
    out: &'a Shared<E>,
}

impl<E: Element> Op for Chunk<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (E::IS_BF16, S::PANEL_VECTORS) {
            (true, 4) => self.flash::<S, Dot, 4>(s),
            (true, _) => self.flash::<S, Dot, 2>(s),
            (false, 4) => self.flash::<S, Single<f32>, 4>(s),
            (false, _) => self.flash::<S, Single<f32>, 2>(s),
        }
    }
}

impl<E: Element> Chunk<'_, E> {
    #[inline(always)]
    fn flash<S: Simd, K: Kernel, const NV: usize>(&self, s: S) {
        assert!(E::IS_BF16 == K::A::IS_BF16 && NV == S::PANEL_VECTORS);
        let (shape, layout) = (self.shape, self.layout);
        let width = NV * S::LANES;
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let tiles = self.queries.len().div_ceil(ROWS);
        let (sample, head) = (self.head / shape.heads, self.head % shape.heads);
        let keys = self.packed.as_ptr();
        let values = keys.wrapping_add(layout.keys_len());

        let mut weighted = vec![[0f32; ROWS * MAX_PANEL]; tiles * layout.dim_panels];
        let mut largest = vec![[f32::NEG_INFINITY; ROWS]; tiles];
        let mut total = vec![[0f32; ROWS]; tiles];
        let mut scores: Vec<TileSums> = vec![[0.0; ROWS * MAX_PANEL]; layout.block / width];
        let mut probabilities = vec![K::A::default(); ROWS * layout.block];

        for first_key in (0..shape.keys).step_by(layout.block) {
            let here = (shape.keys - first_key).min(layout.block);
            let panels = here.div_ceil(width);
            for t in 0..tiles {
                // The queries of a tile; the last one fills up an incomplete tile.
                let query =
                    |r: usize| (self.queries.start + t * ROWS + r).min(self.queries.end - 1);
                if shape.causal && first_key > query(ROWS - 1) {
                    continue;
                }
                let mut rows = [std::ptr::null::<K::A>(); ROWS];
                for (r, row) in rows.iter_mut().enumerate() {
                    let at = (sample * shape.queries + query(r)) * shape.q_stride;
                    *row = self.q[at + head * shape.head_dim..].as_ptr().cast();
                }
                for (panel, scores) in scores.iter_mut().enumerate().take(panels) {
                    let at = (first_key + panel * width) * layout.dim_steps;
                    let w = keys.wrapping_add(at).cast();
                    // SAFETY: a query has head_dim elements; the panel was packed with
                    // head_dim padded to whole steps; E and K::A are the same type.
                    unsafe {
                        tile::<S, K, NV>(s, &rows, 0, shape.head_dim, w, false, scores);
                    }
                }
                for r in 0..ROWS {
                    // Keys this query sees, of those in this block.
                    let seen = if shape.causal {
                        here.min((query(r) + 1).saturating_sub(first_key))
                    } else {
                        here
                    };
                    let mut peak = s.splat(f32::NEG_INFINITY);
                    for (panel, scores) in scores.iter_mut().enumerate().take(panels) {
                        let row = &mut scores[r * width..(r + 1) * width];
                        if seen < (panel + 1) * width {
                            row[seen.saturating_sub(panel * width)..].fill(f32::NEG_INFINITY);
                        }
                        for i in (0..width).step_by(S::LANES) {
                            peak = s.max(peak, s.read(row, i));
                        }
                    }
                    let before = largest[t][r];
                    let now = before.max(s.largest(peak) * scale);
                    largest[t][r] = now;
                    let mut sum = s.zero();
                    let row = &mut probabilities[r * layout.block..(r + 1) * layout.block];
                    for (panel, scores) in scores.iter().enumerate().take(panels) {
                        for i in (0..width).step_by(S::LANES) {
                            let score = s.read(scores, r * width + i);
                            let p = exp(s, s.fma(score, s.splat(scale), s.splat(-now)));
                            sum = s.add(sum, p);
                            s.write(row, panel * width + i, p);
                        }
                    }
                    let fade = (before - now).exp();
                    total[t][r] = total[t][r] * fade + s.sum(sum);
                    if fade != 1.0 {
                        for panel in 0..layout.dim_panels {
                            let sums = &mut weighted[t * layout.dim_panels + panel];
                            for i in (r * width..(r + 1) * width).step_by(S::LANES) {
                                let faded = s.mul(s.read(sums, i), s.splat(fade));
                                s.write(sums, i, faded);
                            }
                        }
                    }
                }
                let mut rows = [std::ptr::null(); ROWS];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = probabilities[r * layout.block..].as_ptr();
                }
                let steps = panels * width;
                for panel in 0..layout.dim_panels {
                    let at = panel * layout.values_panel_len() + first_key * width;
                    let w = values.wrapping_add(at).cast();
                    let sums = &mut weighted[t * layout.dim_panels + panel];
                    // SAFETY: a row of probabilities has a block of elements; the values
                    // were packed with the keys padded to whole panels.
                    unsafe { tile::<S, K, NV>(s, &rows, 0, steps, w, true, sums) }
                }
            }
        }

        for (i, query) in self.queries.clone().enumerate() {
            let (t, r) = (i / ROWS, i % ROWS);
            let at = ((sample * shape.queries + query) * shape.heads + head) * shape.head_dim;
            // SAFETY: the task owns this head of this query.
            let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), shape.head_dim) };
            let factor = s.splat(1.0 / total[t][r]);
            for j in (0..shape.head_dim).step_by(S::LANES) {
                let sums = &weighted[t * layout.dim_panels + j / width];
                let y = s.mul(s.read(sums, r * width + j % width), factor);
                s.write(out, j, y);
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
    fn reference(q: &[f32], k: &[f32], v: &[f32], s: &AttentionShape) -> Vec<f64> {
        let model = s.heads * s.head_dim;
        let mut out = vec![0.0; s.batch * s.queries * model];
        for b in 0..s.batch {
            for h in 0..s.heads {
                for t in 0..s.queries {
                    let q = &q[(b * s.queries + t) * s.q_stride + h * s.head_dim..];
                    let seen = if s.causal { s.keys.min(t + 1) } else { s.keys };
                    let at = |j: usize| (b * s.keys + j) * s.kv_stride + h * s.head_dim;
                    let scores: Vec<f64> = (0..seen)
                        .map(|j| {
                            let dot = (0..s.head_dim)
                                .map(|i| f64::from(q[i]) * f64::from(k[at(j) + i]))
                                .sum::<f64>();
                            dot / (s.head_dim as f64).sqrt()
                        })
                        .collect();
                    let peak = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|x| (x - peak).exp()).sum();
                    for i in 0..s.head_dim {
                        let y: f64 = (0..seen)
                            .map(|j| (scores[j] - peak).exp() * f64::from(v[at(j) + i]))
                            .sum();
                        out[(b * s.queries + t) * model + h * s.head_dim + i] = y / total;
                    }
                }
            }
        }
        out
    }

    fn check<E: Element>(isa: Isa, s: &AttentionShape, sharpness: f32) {
        let q: Vec<f32> = noise(1, s.batch * s.queries * s.q_stride);
        let q: Vec<E> = rounded(&q.iter().map(|v| v * sharpness).collect::<Vec<_>>());
        let k: Vec<E> = rounded(&noise(2, s.batch * s.keys * s.kv_stride));
        let v: Vec<E> = rounded(&noise(3, s.batch * s.keys * s.kv_stride));
        let wide = |x: &[E]| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
        let want = reference(&wide(&q), &wide(&k), &wide(&v), s);
        let mut out = vec![E::default(); want.len()];
        attention_on(isa, &q, &k, &v, s, &mut out);
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
                    check::<f32>(isa, &s, sharpness);
                    check::<bf16>(isa, &s, sharpness);
                }
            }
            let s = shape(2, 16, 30, 40, false);
            let strided = AttentionShape {
                q_stride: 100,
                kv_stride: 70,
                ..s
            };
            check::<f32>(isa, &strided, 1.0);
            check::<bf16>(isa, &strided, 1.0);
        }
    }
}
