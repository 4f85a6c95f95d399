//! The matrix product all heavy operations share: rows of activations, found through
//! pointers, times packed panels of weights, in the tiles of `tile.rs`.
//!
//! The activations are read from where they lie, so a convolution is the same product with
//! one list of row pointers for each tap. A sum along `k` is cut into blocks whose sums are
//! added: this bounds the rounding error (each block starts from zero) and the part of a
//! panel that must stay in the L2 cache while the rows go by.
//!
//! The optimisations, each with the speed after it (one Zen 4 core, bf16, share of the peak of
//! 232 GFLOP/s for 2048 x 1280 x 1280 / 8192 x 640 x 640):
//! 1. 6 x 64 tiles, panels that stay in L2, sums finished from L1: 86 / 78 %.
//! 2. The output of a tile is prefetched for writing while the tile is computed; before,
//!    each store waited for memory: 88 / 86 %.
//! 3. Full panels are finished by a loop of known length, without a check for every vector:
//!    95 / 92 %.
//!
//! Huge pages for the panels, and prefetching weights that come from memory, made no
//! difference.
//!
//! Every output is summed in an order that depends on `k` alone: not on the number of
//! threads, nor on its place in a tile.

#![allow(unsafe_code)]

use std::any::TypeId;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use crate::disjoint::DisjointOut;
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::isa::Isa;
use crate::math::{Activation, gelu};
use crate::panels::Panels;
use crate::simd::{MAX_PANEL, Op, Simd, prefetch_write};
use crate::stop::StopFlag;
use crate::tile::{Bf16Bf16, F32, F32Bf16, Kernel, Operand, U8I8, tile};
use crate::weights::WeightFormat;

/// The operations on the sums before they are written to the output.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a, E> {
    /// For int8, the scales of the input, and how many rows share one.
    pub(crate) input_scales: Option<(&'a [f32], usize)>,
    pub(crate) bias: Option<&'a [f32]>,
    /// A second bias for each sample of a batch, and the rows of a sample.
    pub(crate) sample_bias: Option<(&'a [f32], usize)>,
    pub(crate) activation: Activation,
    pub(crate) residual: Option<&'a [E]>,
    /// The panel's left half times the gelu of its right half; `bias` has both halves.
    pub(crate) geglu: bool,
    /// Maps a row of the product to the row of the output that it becomes; `None` keeps the
    /// order. The other members count rows of the output.
    pub(crate) output_row: Option<&'a (dyn Fn(usize) -> usize + Sync)>,
}

impl<'a, E> Epilogue<'a, E> {
    /// Returns the same operations with another residual, for an output of its type.
    pub(crate) fn with_residual<'b, F>(&self, residual: Option<&'b [F]>) -> Epilogue<'b, F>
    where
        'a: 'b,
    {
        Epilogue {
            input_scales: self.input_scales,
            bias: self.bias,
            sample_bias: self.sample_bias,
            activation: self.activation,
            residual,
            geglu: self.geglu,
            output_row: self.output_row,
        }
    }

    /// Returns the row of the output that a row of the product becomes.
    #[inline(always)]
    fn output_row(&self, row: usize) -> usize {
        match self.output_row {
            Some(output_row) => output_row(row),
            None => row,
        }
    }

    /// Returns the number of outputs that a full panel makes.
    fn columns(&self, w: &Panels) -> usize {
        if self.geglu { w.width / 2 } else { w.width }
    }
}

/// Computes a tile: see [`tile`].
struct TileOp<'a, K: Kernel, const NV: usize> {
    rows: &'a [*const K::A],
    offset: usize,
    len: usize,
    w: *const K::W,
    add: bool,
    out: &'a mut [f32],
}

impl<K: Kernel, const NV: usize> Op for TileOp<'_, K, NV> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if NV > S::PANEL_VECTORS {
            unreachable!("panels are not that wide");
        }
        // SAFETY: `multiply`, which alone makes these, passes its promises on.
        unsafe {
            tile::<S, K, NV>(
                s,
                self.rows,
                self.offset,
                self.len,
                self.w,
                self.add,
                self.out,
                NV * S::LANES,
            );
        }
    }
}

/// A block of the sum along `k`: the same range of elements of some segments.
struct KBlock {
    first_segment: usize,
    segments: usize,
    offset: usize,
    len: usize,
    /// Values of `k` before this block, with padding.
    k: usize,
}

fn k_blocks(w: &Panels, max_len: usize) -> Vec<KBlock> {
    let mut out = Vec::new();
    let padded = w.segment_len.next_multiple_of(w.format.depth());
    // Bytes are padded on both sides.
    let segment_len = match w.format {
        WeightFormat::Int8 => padded,
        _ => w.segment_len,
    };
    if padded > max_len {
        for segment in 0..w.segments {
            for offset in (0..segment_len).step_by(max_len) {
                out.push(KBlock {
                    first_segment: segment,
                    segments: 1,
                    offset,
                    len: max_len.min(segment_len - offset),
                    k: segment * padded + offset,
                });
            }
        }
        return out;
    }
    // As many whole segments as fit, evenly.
    let parts = w.segments.div_ceil(max_len / padded);
    let each = w.segments.div_ceil(parts);
    for first_segment in (0..w.segments).step_by(each) {
        out.push(KBlock {
            first_segment,
            segments: each.min(w.segments - first_segment),
            offset: 0,
            len: segment_len,
            k: first_segment * padded,
        });
    }
    out
}

/// Computes the sums of one tile over one block of `k`, with the kernel for activations `A` and
/// these weights.
///
/// # Safety
/// As for [`tile`]: `rows` point to elements of the block's segments; `w` is
/// the weights of the block in a panel of `vectors` vectors.
unsafe fn multiply<A: Operand>(
    weights: &Panels,
    vectors: usize,
    rows: &[*const A],
    block: &KBlock,
    w: *const u8,
    add: bool,
    out: &mut [f32],
) {
    fn with<A: Operand, K: Kernel>(
        isa: Isa,
        vectors: usize,
        rows: &[*const A],
        block: &KBlock,
        w: *const u8,
        add: bool,
        out: &mut [f32],
    ) {
        assert_eq!(TypeId::of::<A>(), TypeId::of::<K::A>());
        // SAFETY: A and K::A are the same type.
        let rows = unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) };
        let (offset, len, w) = (block.offset, block.len, w.cast());
        macro_rules! run {
            ($vectors:literal) => {
                dispatch(
                    isa,
                    TileOp::<K, $vectors> {
                        rows,
                        offset,
                        len,
                        w,
                        add,
                        out,
                    },
                )
            };
        }
        match vectors {
            1 => run!(1),
            2 => run!(2),
            3 => run!(3),
            4 => run!(4),
            _ => unreachable!("a panel of {vectors} vectors"),
        }
    }
    let run = match weights.format {
        WeightFormat::F32 => with::<A, F32<f32>>,
        WeightFormat::F16 => with::<A, F32<f16>>,
        WeightFormat::Bf16 if TypeId::of::<A>() == TypeId::of::<f32>() => with::<A, F32Bf16>,
        WeightFormat::Bf16 => with::<A, Bf16Bf16>,
        WeightFormat::Int8 => with::<A, U8I8>,
    };
    run(weights.isa, vectors, rows, block, w, add, out);
}

/// Finds the elements of a row: `source(row, pointers)` sets, for each segment, where they
/// begin.
type RowSource<'a, A> = dyn Fn(usize, &mut [*const A]) + Sync + 'a;

/// Computes `out[row, ..] = epilogue(source(row) · Wᵀ)` for `rows` rows of `outputs`.
///
/// # Safety
/// `source` must set pointers to `segment_len` readable elements. If the epilogue maps rows, it
/// must map different ones to different rows within `out`.
pub(crate) unsafe fn product<A: Operand, E: Element>(
    rows: usize,
    w: &Panels,
    source: &RowSource<A>,
    epilogue: &Epilogue<E>,
    outputs: usize,
    out: &mut [E],
) {
    let columns = epilogue.columns(w);
    assert_eq!(outputs.div_ceil(columns), w.count(), "outputs of a row");
    assert!(out.len() >= rows * outputs, "length of the output");
    // Half a megabyte of the panel at a time, and for f32 sums of bounded error.
    let max_len = if TypeId::of::<A>() == TypeId::of::<f32>() {
        512
    } else {
        8192 / size_of::<A>()
    };
    let blocks = k_blocks(w, max_len);

    // Tasks: a group of panels times a chunk of rows. The chunks of a group follow each
    // other, so that a thread meets each panel's weights once.
    let chunk = 32 * w.tile_rows;
    let chunks = rows.div_ceil(chunk);
    let panels = w.count();
    let group = if chunks >= 16 { 8 } else { 1 }.min(panels);
    let groups = panels.div_ceil(group);
    let shared = DisjointOut::new(out);
    let stop = StopFlag::current();
    (0..groups * chunks).into_par_iter().for_each(|task| {
        if stop.is_raised() {
            return;
        }
        let (g, c) = (task / chunks, task % chunks);
        let task = RowChunk {
            w,
            blocks: &blocks,
            epilogue,
            rows: c * chunk..rows.min((c + 1) * chunk),
            out: &shared,
            outputs,
        };
        let table = task.row_pointers(source);
        for panel in g * group..panels.min((g + 1) * group) {
            // SAFETY: the caller's promise about the rows.
            unsafe { task.panel(&table, panel) }
        }
    });
}

/// The product of a chunk of rows.
struct RowChunk<'a, E> {
    w: &'a Panels,
    blocks: &'a [KBlock],
    epilogue: &'a Epilogue<'a, E>,
    rows: Range<usize>,
    out: &'a DisjointOut<'a, E>,
    outputs: usize,
}

impl<E: Element> RowChunk<'_, E> {
    /// Lists the row pointers: for each tile, for each segment, those of its rows. The rows
    /// missing from the last tile repeat the last row.
    fn row_pointers<A: Operand>(&self, source: &RowSource<A>) -> Vec<*const A> {
        let (segments, height) = (self.w.segments, self.w.tile_rows);
        let tiles = self.rows.len().div_ceil(height);
        let mut table = vec![std::ptr::null(); tiles * segments * height];
        let mut of_row = vec![std::ptr::null(); segments];
        for (t, tile) in table.chunks_exact_mut(segments * height).enumerate() {
            for r in 0..height {
                let row = (self.rows.start + t * height + r).min(self.rows.end - 1);
                source(row, &mut of_row);
                for (segment, pointer) in of_row.iter().enumerate() {
                    tile[segment * height + r] = *pointer;
                }
            }
        }
        table
    }

    /// Brings the output of a tile into the cache while the tile is computed: otherwise
    /// writing it waits for memory.
    fn prefetch(&self, tile: usize, panel: usize) {
        let width = self.epilogue.columns(self.w);
        let first = self.rows.start + tile * self.w.tile_rows;
        for row in first..self.rows.end.min(first + self.w.tile_rows) {
            for column in (0..width).step_by(64 / size_of::<E>()) {
                let at = self.epilogue.output_row(row) * self.outputs + panel * width + column;
                prefetch_write(self.out.address(at));
            }
        }
    }

    /// Computes the product of the chunk with a panel and writes it.
    ///
    /// # Safety
    /// The pointers in `table` must be to whole segments.
    unsafe fn panel<A: Operand>(&self, table: &[*const A], panel: usize) {
        let (segments, height) = (self.w.segments, self.w.tile_rows);
        let vectors = self.w.panel_vectors(panel);
        let tiles = table.len() / (segments * height);
        let single = self.blocks.len() == 1;
        let of_tile = height * MAX_PANEL;
        let mut sums = vec![0f32; if single { 1 } else { tiles } * of_tile];
        for (b, block) in self.blocks.iter().enumerate() {
            let w = self.w.panel(panel, block.k);
            for t in 0..tiles {
                let at = (t * segments + block.first_segment) * height;
                let rows = &table[at..at + block.segments * height];
                let sums = &mut sums[if single { 0 } else { t } * of_tile..][..of_tile];
                if b + 1 == self.blocks.len() {
                    self.prefetch(t, panel);
                }
                // SAFETY: a block stays within its segments, whose elements the caller
                // promises; the panel was packed with these segments and this width.
                unsafe { multiply(self.w, vectors, rows, block, w, b > 0, sums) }
                if b + 1 == self.blocks.len() {
                    let first = self.rows.start + t * height;
                    let finish = FinishTile {
                        task: self,
                        rows: first..self.rows.end.min(first + height),
                        panel,
                        sums,
                    };
                    dispatch(self.w.isa, finish);
                }
            }
        }
    }
}

/// Writes a tile to the output.
struct FinishTile<'a, E> {
    task: &'a RowChunk<'a, E>,
    rows: Range<usize>,
    panel: usize,
    sums: &'a [f32],
}

impl<E: Element> Op for FinishTile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A full panel has a length the compiler knows: no vector needs checks.
        let full = S::LANES * S::PANEL_VECTORS;
        let epilogue = self.task.epilogue;
        let columns = epilogue.columns(self.task.w);
        let outputs = self.task.outputs;
        let columns = self.panel * columns..outputs.min((self.panel + 1) * columns);
        if epilogue.geglu {
            if columns.len() == full / 2 {
                self.write_geglu(s, columns, full / 2);
            } else {
                let count = columns.len();
                self.write_geglu(s, columns, count);
            }
        } else if columns.len() == full {
            self.write_activated(s, columns, full);
        } else {
            let count = columns.len();
            self.write_activated(s, columns, count);
        }
    }
}

impl<'a, E: Element> FinishTile<'a, E> {
    /// Returns the given columns of an output row.
    #[inline(always)]
    fn out(&self, row: usize, columns: &Range<usize>) -> &'a mut [E] {
        let at = row * self.task.outputs + columns.start;
        // SAFETY: within the output, whose length `product` checked; these columns of these
        // rows are the task's alone, and it asks for each of them once.
        unsafe { self.task.out.part(at, columns.len()) }
    }

    /// Returns the sums of a row as `f32`: those of int8 are integers, in which the activations'
    /// offset of 128 has to be taken back and the scales applied.
    #[inline(always)]
    fn dequantised<'b, S: Simd>(
        &self,
        s: S,
        row: usize,
        sums: &'b [f32],
        f32s: &'b mut [f32; MAX_PANEL],
    ) -> &'b [f32] {
        let Some((scales, rows)) = self.task.epilogue.input_scales else {
            return sums;
        };
        let w = self.task.w;
        let row_scale = s.splat(scales[row / rows]);
        let columns = self.panel * w.width..self.panel * w.width + sums.len();
        let (scales, offsets) = (&w.scales[columns.clone()], &w.offsets[columns]);
        for i in (0..sums.len()).step_by(S::LANES) {
            let sum = s.sub_int_to_f32(s.read(sums, i), s.read(offsets, i));
            s.write(f32s, i, s.mul(sum, s.mul(row_scale, s.read(scales, i))));
        }
        &f32s[..sums.len()]
    }

    #[inline(always)]
    fn write_activated<S: Simd>(&self, s: S, columns: Range<usize>, count: usize) {
        // One loop for each activation, so that it is not chosen for every vector.
        match self.task.epilogue.activation {
            Activation::None => self.write(s, columns, count, Activation::None),
            Activation::Silu => self.write(s, columns, count, Activation::Silu),
            Activation::Gelu => self.write(s, columns, count, Activation::Gelu),
            Activation::QuickGelu => self.write(s, columns, count, Activation::QuickGelu),
        }
    }

    #[inline(always)]
    fn write<S: Simd>(&self, s: S, columns: Range<usize>, count: usize, activation: Activation) {
        let epilogue = self.task.epilogue;
        let outputs = self.task.outputs;
        let width = self.task.w.panel_vectors(self.panel) * S::LANES;
        // The biases of the panel; those of samples are added to it when they change.
        let mut bias = [0f32; MAX_PANEL];
        let mut sample = usize::MAX;
        if let Some(b) = epilogue.bias {
            bias[..count].copy_from_slice(&b[columns.clone()]);
        }
        for (row, sums) in self.rows.clone().zip(self.sums.chunks_exact(width)) {
            let row = epilogue.output_row(row);
            if let Some((b, rows)) = epilogue.sample_bias
                && row / rows != sample
            {
                sample = row / rows;
                let b = &b[sample * outputs..][columns.clone()];
                for (i, bias) in bias.iter_mut().enumerate().take(count) {
                    *bias = epilogue.bias.map_or(0.0, |b| b[columns.start + i]) + b[i];
                }
            }
            let mut f32s = [0f32; MAX_PANEL];
            let sums = self.dequantised(s, row, sums, &mut f32s);
            let out = &mut self.out(row, &columns)[..count];
            let residual = epilogue
                .residual
                .map(|x| &x[row * outputs + columns.start..][..count]);
            for i in (0..count).step_by(S::LANES) {
                let y = s.add(s.read(sums, i), s.read(&bias, i));
                let mut y = activation.apply(s, y, E::IS_BF16);
                if let Some(residual) = residual {
                    y = s.add(y, s.read(residual, i));
                }
                s.write(out, i, y);
            }
        }
    }

    #[inline(always)]
    fn write_geglu<S: Simd>(&self, s: S, columns: Range<usize>, count: usize) {
        let half = S::LANES * S::PANEL_VECTORS / 2;
        let mut bias = [0f32; MAX_PANEL];
        if let Some(b) = self.task.epilogue.bias {
            let (hidden, gate) = b.split_at(self.task.outputs);
            bias[..count].copy_from_slice(&hidden[columns.clone()]);
            bias[half..half + count].copy_from_slice(&gate[columns.clone()]);
        }
        for (row, sums) in self.rows.clone().zip(self.sums.chunks_exact(2 * half)) {
            let row = self.task.epilogue.output_row(row);
            let mut f32s = [0f32; MAX_PANEL];
            let sums = self.dequantised(s, row, sums, &mut f32s);
            let out = &mut self.out(row, &columns)[..count];
            for i in (0..count).step_by(S::LANES) {
                let hidden = s.add(s.read(sums, i), s.read(&bias, i));
                let gate = s.add(s.read(sums, half + i), s.read(&bias, half + i));
                s.write(out, i, s.mul(hidden, gelu(s, gate, E::IS_BF16)));
            }
        }
    }
}
