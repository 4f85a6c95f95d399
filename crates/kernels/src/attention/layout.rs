//! The shape of an attention, and the layout that the keys and values of a head are packed by.

use crate::dispatch::{TileShape, tile_shape};
use crate::element::Element;
use crate::isa::Isa;
use crate::simd::{Op, Simd, prefetch_write};

/// Shapes and layout of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query tokens of a sample.
    pub queries: usize,
    /// Key tokens of a sample, and as many value tokens.
    pub keys: usize,
    /// Elements between consecutive tokens of the queries.
    pub q_stride: usize,
    /// Elements between consecutive tokens of the keys, and of the values.
    pub kv_stride: usize,
    /// A query sees only keys at its own position and before.
    pub causal: bool,
}

/// The most keys of a block.
const MAX_BLOCK: usize = 512;

/// The layout of the packed keys and values of one head.
pub(super) struct HeadLayout {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    /// Values of `k` in a step of the product.
    depth: usize,
    /// The head dimension, padded to whole steps.
    pub(super) dim_steps: usize,
    /// Keys, padded to whole vectors.
    keys: usize,
    /// Panels of the head dimension.
    pub(super) dim_panels: usize,
    /// Keys of a block, whole panels.
    pub(super) block: usize,
}

impl HeadLayout {
    /// Returns the layout for elements that are multiplied one by one, or in pairs (bf16).
    pub(super) fn new(isa: Isa, s: &AttentionShape, pairs: bool) -> HeadLayout {
        let TileShape {
            rows,
            columns: width,
            lanes,
        } = tile_shape(isa);
        let depth = if pairs { 2 } else { 1 };
        let bytes = if pairs { 2 } else { 4 };
        // Keys and values of a block fill half of an L2 cache of 1 MB.
        let fitting = (512 << 10) / (2 * bytes * s.head_dim);
        let keys = s.keys.next_multiple_of(lanes);
        let block = (fitting / width * width).clamp(width, MAX_BLOCK);
        HeadLayout {
            rows,
            width,
            depth,
            dim_steps: s.head_dim.next_multiple_of(depth),
            keys,
            dim_panels: s.head_dim.div_ceil(width),
            block: block.min(keys.next_multiple_of(width)),
        }
    }

    /// Returns the number of elements of the packed keys.
    pub(super) fn keys_len(&self) -> usize {
        self.keys * self.dim_steps
    }

    /// Returns the number of elements of a panel of packed values.
    pub(super) fn values_panel_len(&self) -> usize {
        self.keys * self.width
    }

    /// Returns the number of elements of the packed head: keys, then values.
    pub(super) fn head_len(&self) -> usize {
        self.keys_len() + self.dim_panels * self.values_panel_len()
    }

    /// Packs one head; `out` is zero where there is padding.
    #[inline(always)]
    fn pack<E: Element>(&self, k: &[E], v: &[E], s: &AttentionShape, out: &mut [E]) {
        let (width, depth) = (self.width, self.depth);
        let (keys, values) = out.split_at_mut(self.keys_len());
        for (panel, keys) in keys.chunks_mut(width * self.dim_steps).enumerate() {
            let columns = keys.len() / self.dim_steps;
            let first = panel * width;
            // A key goes to as many lines as it has steps; none is in a cache yet.
            for line in keys.chunks(64 / size_of::<E>()) {
                prefetch_write(line.as_ptr());
            }
            for column in 0..columns.min(s.keys - first) {
                let row = &k[(first + column) * s.kv_stride..][..s.head_dim];
                if depth == 1 {
                    for (to, from) in keys[column..].iter_mut().step_by(columns).zip(row) {
                        *to = *from;
                    }
                    continue;
                }
                let (pairs, last) = row.as_chunks::<2>();
                let steps = keys.as_chunks_mut::<2>().0[column..].iter_mut();
                for (to, from) in steps.step_by(columns).zip(pairs) {
                    *to = *from;
                }
                if let [last] = last {
                    keys[(pairs.len() * columns + column) * 2] = *last;
                }
            }
        }
        for (panel, values) in values.chunks_mut(self.values_panel_len()).enumerate() {
            let columns = panel * width..s.head_dim.min((panel + 1) * width);
            if depth == 1 {
                for (t, to) in values.chunks_exact_mut(width).take(s.keys).enumerate() {
                    to[..columns.len()].copy_from_slice(&v[t * s.kv_stride..][columns.clone()]);
                }
                continue;
            }
            for (step, to) in values.chunks_exact_mut(2 * width).enumerate() {
                let to = to.as_chunks_mut::<2>().0;
                let t = 2 * step;
                if t + 1 < s.keys {
                    let first = &v[t * s.kv_stride..][columns.clone()];
                    let second = &v[(t + 1) * s.kv_stride..][columns.clone()];
                    for ((to, a), b) in to.iter_mut().zip(first).zip(second) {
                        *to = [*a, *b];
                    }
                } else if t < s.keys {
                    let first = &v[t * s.kv_stride..][columns.clone()];
                    for (to, a) in to.iter_mut().zip(first) {
                        to[0] = *a;
                    }
                }
            }
        }
    }
}

/// Packs a head. It computes nothing, but is compiled with wide moves this way.
pub(super) struct PackHead<'a, E> {
    pub(super) layout: &'a HeadLayout,
    pub(super) k: &'a [E],
    pub(super) v: &'a [E],
    pub(super) shape: &'a AttentionShape,
    pub(super) out: &'a mut [E],
}

impl<E: Element> Op for PackHead<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.layout.pack(self.k, self.v, self.shape, self.out);
    }
}
