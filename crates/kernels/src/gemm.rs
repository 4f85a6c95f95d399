//! The matrix product all heavy operations share: rows of activations, found through
//! pointers, times packed panels of weights.
//!
//! One tile is 6 rows by one panel (AVX-512: 6 x 64, so 24 accumulators, four vectors of
//! weights and a broadcast activation fill the 32 registers; AVX2: 6 x 16). The
//! activations are broadcast straight from where they lie, so a convolution is the same
//! product with one list of row pointers for each tap. A sum along `k` is cut into blocks
//! whose sums are added: this bounds the rounding error (each block starts from zero) and
//! the part of a panel that must stay in the L2 cache while the rows go by.
//!
//! Every output is summed in an order that depends on `k` alone: not on the number of
//! threads, nor on its place in a tile.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::element::Element;
use crate::math::{Activation, gelu};
use crate::pack::{Panels, WeightFormat};
use crate::simd::{MAX_PANEL, Op, Simd, dispatch};

/// Rows of a tile.
pub(crate) const ROWS: usize = 6;

/// The sums of a tile, row after row, each as long as the panel is wide.
pub(crate) type TileSums = [f32; ROWS * MAX_PANEL];

/// One kind of multiplication: what activations and weights are.
pub(crate) trait Kernel {
    /// Activations.
    type A: Element;
    /// Weights.
    type W;
    /// Values of `k` in a step.
    const DEPTH: usize;

    /// Adds the products of a step, `k..k + DEPTH`, to the sums.
    ///
    /// # Safety
    /// Each row must have these elements, and `w` a step of `NV` vectors.
    unsafe fn step<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const Self::A; ROWS],
        k: usize,
        w: *const Self::W,
    );

    /// As `step`, when only `k` is left of a step of two.
    ///
    /// # Safety
    /// As for `step`, with one element in each row.
    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize>(
        _: S,
        _: &mut [[S::V; NV]; ROWS],
        _: &[*const Self::A; ROWS],
        _: usize,
        _: *const Self::W,
    ) {
        unreachable!("kernels of two values a step have their own");
    }
}

/// `f32` activations with weights that are widened one by one: `f32` or `f16`.
pub(crate) struct Single<W>(PhantomData<W>);

/// `f32` activations with pairs of `bf16`.
pub(crate) struct Pairs;

/// Pairs of `bf16` on both sides.
pub(crate) struct Dot;

pub(crate) trait SingleWeight: Copy {
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;
}

impl SingleWeight for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }
}

impl SingleWeight for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

impl<W: SingleWeight> Kernel for Single<W> {
    type A = f32;
    type W = W;
    const DEPTH: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const W,
    ) {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { W::load(s, w.add(v * S::LANES)) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat(unsafe { *rows[r].add(k) });
            for v in 0..NV {
                sums[r][v] = s.fma(a, weights[v], sums[r][v]);
            }
        }
    }
}

impl Kernel for Pairs {
    type A = f32;
    type W = bf16;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for half in 0..2 {
            let mut weights = [s.zero(); NV];
            for (v, weight) in weights.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pairs = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *weight = if half == 0 {
                    s.even(pairs)
                } else {
                    s.odd(pairs)
                };
            }
            for r in 0..ROWS {
                // SAFETY: the caller's promise.
                let a = s.splat(unsafe { *rows[r].add(k + half) });
                for v in 0..NV {
                    sums[r][v] = s.fma(a, weights[v], sums[r][v]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat(unsafe { *rows[r].add(k) });
            for (v, sum) in sums[r].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pairs = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *sum = s.fma(a, s.even(pairs), *sum);
            }
        }
    }
}

impl Kernel for Dot {
    type A = bf16;
    type W = bf16;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const bf16; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let pair = unsafe { rows[r].add(k).cast::<u32>().read_unaligned() };
            let a = s.splat_pair(u32::from_le(pair));
            for v in 0..NV {
                sums[r][v] = s.dot(sums[r][v], a, weights[v]);
            }
        }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const bf16; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat_pair(u32::from(unsafe { (*rows[r].add(k)).to_bits() }));
            for (v, sum) in sums[r].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let weights = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *sum = s.dot(*sum, a, weights);
            }
        }
    }
}

/// Sums of one tile over one block of `k`: `out = rows · panel`, or `out += ...`.
///
/// `rows` lists [`ROWS`] pointers for each segment; of each row the elements
/// `offset..offset + len` are taken. The sum starts from zero in either case.
///
/// # Safety
/// All rows must have these elements. `w` must have `rows.len() / ROWS` segments of `len`
/// padded to whole steps, each step `NV` vectors wide.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, K: Kernel, const NV: usize>(
    s: S,
    rows: &[*const K::A],
    offset: usize,
    len: usize,
    mut w: *const K::W,
    add: bool,
    out: &mut TileSums,
) {
    let width = NV * S::LANES;
    let mut sums = [[s.zero(); NV]; ROWS];
    for segment in rows.chunks_exact(ROWS) {
        let mut a = [std::ptr::null(); ROWS];
        for r in 0..ROWS {
            a[r] = segment[r].wrapping_add(offset);
        }
        let mut k = 0;
        while k + K::DEPTH <= len {
            // SAFETY: k + DEPTH <= len, and the caller promises len elements.
            unsafe {
                K::step::<S, NV>(s, &mut sums, &a, k, w);
                w = w.add(K::DEPTH * width);
            }
            k += K::DEPTH;
        }
        if k < len {
            // SAFETY: one element is left, and the panel is padded to a whole step.
            unsafe {
                K::last::<S, NV>(s, &mut sums, &a, k, w);
                w = w.add(K::DEPTH * width);
            }
        }
    }
    for r in 0..ROWS {
        for v in 0..NV {
            let at = out[r * width + v * S::LANES..].as_mut_ptr();
            // SAFETY: r * width + (v + 1) * LANES <= ROWS * width <= ROWS * MAX_PANEL.
            unsafe {
                let sum = if add {
                    s.add(s.load(at), sums[r][v])
                } else {
                    sums[r][v]
                };
                s.store(at, sum);
            }
        }
    }
}

/// What is done to the sums on their way out.
pub(crate) struct Epilogue<'a, E> {
    pub(crate) bias: Option<&'a [f32]>,
    /// A second bias for each sample of a batch, and the rows of a sample.
    pub(crate) sample_bias: Option<(&'a [f32], usize)>,
    pub(crate) activation: Activation,
    pub(crate) residual: Option<&'a [E]>,
    /// The panel's left half times the gelu of its right half; `bias` has both halves.
    pub(crate) geglu: bool,
}

/// A pointer that tasks may share, because each writes to its own part.
struct Shared<T>(*mut T);
// SAFETY: see the type; `Gemm::run` gives disjoint tiles to its tasks.
unsafe impl<T: Send> Sync for Shared<T> {}

/// A part of the sum along `k`: of some segments, the same piece of each.
struct Block {
    first_segment: usize,
    segments: usize,
    offset: usize,
    len: usize,
    /// Padded values of `k` before this block.
    k: usize,
}

fn blocks(w: &Panels, longest: usize) -> Vec<Block> {
    let mut out = Vec::new();
    let padded = w.segment_len.next_multiple_of(w.format.depth());
    if padded > longest {
        for segment in 0..w.segments {
            for offset in (0..w.segment_len).step_by(longest) {
                out.push(Block {
                    first_segment: segment,
                    segments: 1,
                    offset,
                    len: longest.min(w.segment_len - offset),
                    k: segment * padded + offset,
                });
            }
        }
        return out;
    }
    // As many whole segments as fit, evenly.
    let parts = w.segments.div_ceil(longest / padded);
    let each = w.segments.div_ceil(parts);
    for first_segment in (0..w.segments).step_by(each) {
        out.push(Block {
            first_segment,
            segments: each.min(w.segments - first_segment),
            offset: 0,
            len: w.segment_len,
            k: first_segment * padded,
        });
    }
    out
}

/// `out[row, ..] = epilogue(source(row) · Wᵀ)`.
pub(crate) struct Gemm<'a, A, E, F> {
    pub(crate) rows: usize,
    pub(crate) w: &'a Panels,
    /// `source(row, pointers)` sets, for each segment, where the row's elements lie:
    /// `segment_len` readable ones.
    pub(crate) source: F,
    pub(crate) epilogue: Epilogue<'a, E>,
    pub(crate) activations: PhantomData<A>,
}

impl<A, E, F> Gemm<'_, A, E, F>
where
    A: Element,
    E: Element,
    F: Fn(usize, &mut [*const A]) + Sync,
{
    /// Runs the product; `out` is `[rows, outputs]`.
    ///
    /// # Safety
    /// `source` must keep its promise.
    pub(crate) unsafe fn run(&self, out: &mut [E]) {
        let outputs = if self.epilogue.geglu {
            out.len() / self.rows.max(1)
        } else {
            self.w.n
        };
        assert_eq!(out.len(), self.rows * outputs, "length of the output");
        if self.rows == 0 {
            return;
        }
        let longest = match (A::IS_BF16, self.w.format) {
            (true, WeightFormat::Bf16) => 4096,
            (false, _) => 512,
            (true, _) => unreachable!("bf16 activations meet bf16 weights only"),
        };
        let blocks = blocks(self.w, longest);

        // Tasks: a group of panels times a chunk of rows. The chunks of a group follow
        // each other, so that a thread meets each panel's weights once.
        let chunk = 32 * ROWS;
        let chunks = self.rows.div_ceil(chunk);
        let panels = self.w.count();
        let group = if chunks >= 16 { 8 } else { 1 }.min(panels);
        let groups = panels.div_ceil(group);
        let shared = Shared(out.as_mut_ptr());
        (0..groups * chunks).into_par_iter().for_each(|task| {
            let (g, c) = (task / chunks, task % chunks);
            let first = g * group;
            let task = Task {
                gemm: self,
                blocks: &blocks,
                panels: first..panels.min(first + group),
                rows: c * chunk..self.rows.min((c + 1) * chunk),
                out: &shared,
                outputs,
            };
            dispatch(self.w.isa, task);
        });
    }
}

struct Task<'a, A, E, F> {
    gemm: &'a Gemm<'a, A, E, F>,
    blocks: &'a [Block],
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    out: &'a Shared<E>,
    outputs: usize,
}

impl<A, E, F> Op for Task<'_, A, E, F>
where
    A: Element,
    E: Element,
    F: Fn(usize, &mut [*const A]) + Sync,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table = self.table();
        for panel in self.panels.clone() {
            match self.gemm.w.format {
                // The type parameter A decides which arm is alive; the casts are to itself.
                WeightFormat::Bf16 if A::IS_BF16 => self.panel::<S, Dot>(s, &table, panel),
                WeightFormat::Bf16 => self.panel::<S, Pairs>(s, &table, panel),
                WeightFormat::F16 => self.panel::<S, Single<f16>>(s, &table, panel),
                WeightFormat::F32 => self.panel::<S, Single<f32>>(s, &table, panel),
            }
        }
    }
}

impl<A, E, F> Task<'_, A, E, F>
where
    A: Element,
    E: Element,
    F: Fn(usize, &mut [*const A]) + Sync,
{
    /// The row pointers: for each tile, for each segment, those of its rows. The rows
    /// missing from the last tile repeat the last row.
    fn table(&self) -> Vec<*const A> {
        let segments = self.gemm.w.segments;
        let tiles = self.rows.len().div_ceil(ROWS);
        let mut table = vec![std::ptr::null(); tiles * segments * ROWS];
        let mut of_row = vec![std::ptr::null(); segments];
        for (t, tile) in table.chunks_exact_mut(segments * ROWS).enumerate() {
            for r in 0..ROWS {
                let row = (self.rows.start + t * ROWS + r).min(self.rows.end - 1);
                (self.gemm.source)(row, &mut of_row);
                for (segment, pointer) in of_row.iter().enumerate() {
                    tile[segment * ROWS + r] = *pointer;
                }
            }
        }
        table
    }

    #[inline(always)]
    fn panel<S: Simd, K: Kernel>(&self, s: S, table: &[*const A], panel: usize) {
        assert_eq!(A::IS_BF16, K::A::IS_BF16);
        // SAFETY: A and K::A are the same type, f32 or bf16 both.
        let table: &[*const K::A] =
            unsafe { std::slice::from_raw_parts(table.as_ptr().cast(), table.len()) };
        let vectors = self.gemm.w.panel_width(panel) / S::LANES;
        match vectors {
            1 => self.columns::<S, K, 1>(s, table, panel),
            2 => self.columns::<S, K, 2>(s, table, panel),
            3 if S::PANEL_VECTORS > 2 => self.columns::<S, K, 3>(s, table, panel),
            4 if S::PANEL_VECTORS > 2 => self.columns::<S, K, 4>(s, table, panel),
            _ => unreachable!("a panel of {vectors} vectors"),
        }
    }

    #[inline(always)]
    fn columns<S: Simd, K: Kernel, const NV: usize>(
        &self,
        s: S,
        table: &[*const K::A],
        panel: usize,
    ) {
        let segments = self.gemm.w.segments;
        let width = NV * S::LANES;
        let tiles = table.len() / (segments * ROWS);
        let mut sums =
            vec![[0f32; ROWS * MAX_PANEL]; if self.blocks.len() > 1 { tiles } else { 1 }];
        for (b, block) in self.blocks.iter().enumerate() {
            let w = self.gemm.w.panel(panel);
            let w = w.wrapping_add(self.gemm.w.offset(block.k, width)).cast();
            for t in 0..tiles {
                let at = (t * segments + block.first_segment) * ROWS;
                let rows = &table[at..at + block.segments * ROWS];
                let sums = &mut sums[if self.blocks.len() > 1 { t } else { 0 }];
                // SAFETY: `source` promises segment_len elements behind each pointer, and
                // a block stays within a segment; the panel was packed with these
                // segments and this width.
                unsafe {
                    tile::<S, K, NV>(s, rows, block.offset, block.len, w, b > 0, sums);
                }
                if b + 1 == self.blocks.len() {
                    let first = self.rows.start + t * ROWS;
                    for (r, row) in (first..self.rows.end.min(first + ROWS)).enumerate() {
                        self.finish(s, row, panel, &sums[r * width..(r + 1) * width]);
                    }
                }
            }
        }
    }

    /// Writes one row of a tile to the output.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, row: usize, panel: usize, sums: &[f32]) {
        let epilogue = &self.gemm.epilogue;
        let width = if epilogue.geglu {
            self.gemm.w.width / 2
        } else {
            self.gemm.w.width
        };
        let first = panel * width;
        let count = (self.outputs - first).min(width);
        let at = row * self.outputs + first;
        // SAFETY: the task owns these columns of these rows, and `run` checked the length.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), count) };
        let residual = epilogue.residual.map(|x| &x[at..at + count]);
        let bias = epilogue.bias.map(|b| &b[first..first + count]);
        if epilogue.geglu {
            let gate_bias = epilogue.bias.map(|b| &b[self.outputs + first..][..count]);
            for i in (0..count).step_by(S::LANES) {
                let mut hidden = s.read(sums, i);
                let mut gate = s.read(sums, width + i);
                if let (Some(bias), Some(gate_bias)) = (bias, gate_bias) {
                    hidden = s.add(hidden, s.read(bias, i));
                    gate = s.add(gate, s.read(gate_bias, i));
                }
                s.write(out, i, s.mul(hidden, gelu(s, gate)));
            }
            return;
        }
        let sample_bias = epilogue
            .sample_bias
            .map(|(b, rows)| &b[row / rows * self.outputs + first..][..count]);
        for i in (0..count).step_by(S::LANES) {
            let mut y = s.read(sums, i);
            if let Some(bias) = bias {
                y = s.add(y, s.read(bias, i));
            }
            if let Some(bias) = sample_bias {
                y = s.add(y, s.read(bias, i));
            }
            y = epilogue.activation.apply(s, y);
            if let Some(residual) = residual {
                y = s.add(y, s.read(residual, i));
            }
            s.write(out, i, y);
        }
    }
}
