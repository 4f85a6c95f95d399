//! Weights in the order the kernels read them.
//!
//! A matrix `[n, k]` becomes panels of as many output columns as a kernel's tile has (64
//! for AVX-512, 16 otherwise); a panel lists, for each step along `k`, the weights of its
//! columns. A step is one `k` for `f32` and `f16`, a pair of them for `bf16` and four for
//! `int8`, because that is what the dot products take. The last panel is only as many vectors wide
//! as it needs.
//! A convolution is a matrix whose `k` runs over the taps (kernel positions) and within a
//! tap over the input channels: each tap is a *segment*, padded to whole steps.

#![allow(unsafe_code)]

use std::ops::Deref;

use half::{bf16, f16};
use memmap2::MmapMut;
use rayon::prelude::*;

use crate::dispatch::{TileShape, dispatch, tile_shape};
use crate::int8::ZERO_POINT;
use crate::isa::Isa;
use crate::simd::{Op, Simd};
use crate::weights::{WeightFormat, Weights};
use crate::winograd::points::{POINTS, kernel_points};

/// Sizes of packed weights: everything about [`Panels`] but the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelLayout {
    pub(crate) isa: Isa,
    pub(crate) format: WeightFormat,
    /// Output columns; for GEGLU those of hidden and gate together.
    pub(crate) n: usize,
    pub(crate) segments: usize,
    /// Length of a segment before padding.
    pub(crate) segment_len: usize,
    /// Rows of the tiles that its kernels multiply with a panel.
    pub(crate) tile_rows: usize,
    /// Columns of a full panel.
    pub(crate) width: usize,
    lanes: usize,
}

/// Packed weights: see the head of this file.
pub(crate) struct Panels {
    layout: PanelLayout,
    data: MmapMut,
    /// For int8, by column as packed: the scale of the weights.
    pub(crate) scales: Vec<f32>,
    /// For int8, by column as packed: what the activations' offset of 128 adds to the sum,
    /// the bits of an integer.
    pub(crate) offsets: Vec<f32>,
}

impl PanelLayout {
    pub(crate) fn new(
        isa: Isa,
        format: WeightFormat,
        n: usize,
        segments: usize,
        segment_len: usize,
    ) -> PanelLayout {
        let TileShape {
            rows: tile_rows,
            columns: width,
            lanes,
        } = tile_shape(isa);
        PanelLayout {
            isa,
            format,
            n,
            segments,
            segment_len,
            tile_rows,
            width,
            lanes,
        }
    }

    /// Returns the layout of the `n` kernels of a 3 x 3 convolution, transformed for
    /// `winograd/bf16.rs`: a segment for each point.
    pub(crate) fn winograd(isa: Isa, n: usize, c_in: usize) -> PanelLayout {
        PanelLayout::new(isa, WeightFormat::Bf16, n, POINTS, c_in)
    }

    /// Returns the length of `k` with every segment padded to whole steps.
    fn padded_k(&self) -> usize {
        self.segments * self.segment_len.next_multiple_of(self.format.depth())
    }

    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }

    /// Returns the columns of a panel, with padding to whole vectors.
    fn panel_width(&self, panel: usize) -> usize {
        let left = self.n - panel * self.width;
        left.min(self.width).next_multiple_of(self.lanes)
    }

    /// Returns the number of vectors side by side in a panel.
    pub(crate) fn panel_vectors(&self, panel: usize) -> usize {
        self.panel_width(panel) / self.lanes
    }

    /// Returns the bytes of a full panel.
    fn panel_bytes(&self) -> usize {
        self.padded_k() * self.width * self.format.bytes()
    }

    /// Returns the bytes of all panels; the last is as wide as it needs.
    fn data_bytes(&self) -> usize {
        let last = self.padded_k() * self.panel_width(self.count() - 1) * self.format.bytes();
        (self.count() - 1) * self.panel_bytes() + last
    }

    /// Returns the bytes of the packed weights, with their scales.
    pub(crate) fn bytes(&self) -> usize {
        let scales = match self.format {
            WeightFormat::Int8 => self.count() * self.width * size_of::<[f32; 2]>(),
            _ => 0,
        };
        self.data_bytes() + scales
    }
}

impl Deref for Panels {
    type Target = PanelLayout;
    fn deref(&self) -> &PanelLayout {
        &self.layout
    }
}

impl Panels {
    /// Packs a matrix whose rows have `segment_len` times `segments` weights: the segment is
    /// the faster index, as the taps of torch's convolutions are. `row_of` tells which row
    /// becomes a column; columns without one are zero.
    pub(crate) fn pack(
        layout: PanelLayout,
        row_of: impl Fn(usize) -> Option<usize> + Sync,
        w: Weights,
    ) -> Panels {
        Panels::pack_segments(layout, layout.segments, row_of, w)
    }

    /// Transforms and packs the kernels of a 3 x 3 convolution, by a layout that is
    /// [`PanelLayout::winograd`].
    pub(crate) fn pack_winograd(layout: PanelLayout, w: Weights) -> Panels {
        let row_of = |column| (column < layout.n).then_some(column);
        Panels::pack_segments(layout, 9, row_of, w)
    }

    /// Packs like [`Panels::pack`] rows of `given` segments, which are transformed if the layout
    /// has another number of them.
    fn pack_segments(
        layout: PanelLayout,
        given: usize,
        row_of: impl Fn(usize) -> Option<usize> + Sync,
        w: Weights,
    ) -> Panels {
        let width = layout.width;
        // Fresh pages of the system: zero, aligned, and given back when dropped. Huge ones
        // where it has them are faster to get.
        let bytes = layout.data_bytes();
        let mut data = MmapMut::map_anon(bytes).expect("memory for packed weights");
        #[cfg(target_os = "linux")]
        let _ = data.advise(memmap2::Advice::HugePage);
        let mut int8_columns = vec![Int8Column::default(); layout.count() * width];
        data.par_chunks_mut(layout.panel_bytes())
            .zip(int8_columns.par_chunks_mut(width))
            .enumerate()
            .for_each(|(panel, (out, int8_columns))| {
                let columns = 0..layout.panel_width(panel);
                let pack = PackPanel {
                    layout: &layout,
                    given,
                    rows: columns.map(|c| row_of(panel * width + c)).collect(),
                    w,
                    int8_columns,
                    out,
                };
                dispatch(layout.isa, pack);
            });
        let (mut scales, mut offsets) = (Vec::new(), Vec::new());
        if layout.format == WeightFormat::Int8 {
            scales = int8_columns.iter().map(|c| c.scale).collect();
            offsets = int8_columns.iter().map(|c| c.offset()).collect();
        }
        Panels {
            layout,
            data,
            scales,
            offsets,
        }
    }

    /// Returns the weights of a panel from padded `k` on.
    pub(crate) fn panel(&self, panel: usize, k: usize) -> *const u8 {
        let at = panel * self.padded_k() * self.width + k * self.panel_width(panel);
        let at = at * self.format.bytes();
        assert!(panel < self.count() && at < self.data().len());
        self.data().as_ptr().wrapping_add(at)
    }

    fn data(&self) -> &[u8] {
        &self.data
    }
}

/// The scale of a column of int8 weights and the sum of its bytes.
#[derive(Clone, Copy, Default)]
struct Int8Column {
    scale: f32,
    sum: i32,
}

impl Int8Column {
    /// Gives the integer that the activations' offset adds to the sum, as the bits of an `f32`.
    fn offset(self) -> f32 {
        f32::from_bits((i32::from(ZERO_POINT) * self.sum) as u32)
    }
}

/// Packs a panel: blocks of each row are converted with vectors, then transposed.
struct PackPanel<'a> {
    layout: &'a PanelLayout,
    /// Segments of a row: as many as the panel has, or the nine taps that are transformed.
    given: usize,
    /// The rows that become columns.
    rows: Vec<Option<usize>>,
    w: Weights<'a>,
    int8_columns: &'a mut [Int8Column],
    out: &'a mut [u8],
}

/// Weights of a row that are transposed at a time: long enough to be read at speed.
const BLOCK: usize = 256;

impl Op for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let panels = self.layout;
        if panels.format == WeightFormat::Int8 {
            self.find_scales(s);
        }
        let (segments, depth) = (panels.segments, panels.format.depth());
        let columns = self.rows.len();
        let steps = panels.segment_len.div_ceil(depth);
        let step_bytes = depth * panels.format.bytes();
        // Positions of each segment in a block, whole steps.
        let positions = (BLOCK / segments).next_multiple_of(16).max(16);
        let given = self.given;
        let mut wide = vec![0f32; positions * given];
        let mut points = vec![0f32; positions * segments];
        let mut values = [0f32; BLOCK];
        // For each segment, for each column, a block of bytes as they will be.
        let mut block = vec![0u8; segments * columns * positions * panels.format.bytes()];
        for first in (0..panels.segment_len).step_by(positions) {
            let len = positions.min(panels.segment_len - first);
            let block_steps = len.div_ceil(depth);
            let block_bytes = block_steps * step_bytes;
            for (column, row) in self.rows.iter().enumerate() {
                let Some(row) = row else { continue };
                let from = (row * panels.segment_len + first) * given;
                if segments == 1 {
                    let values = &mut values[..block_steps * depth];
                    self.w.widen_into(s, from, &mut values[..len]);
                    values[len..].fill(0.0);
                    let to = &mut block[column * block_bytes..][..block_bytes];
                    encode(s, panels.format, values, &mut self.int8_columns[column], to);
                    continue;
                }
                self.w.widen_into(s, from, &mut wide[..len * given]);
                let wide = if given == segments {
                    &wide
                } else {
                    let taps = wide[..len * given].as_chunks().0;
                    for (points, taps) in points.as_chunks_mut().0.iter_mut().zip(taps) {
                        *points = kernel_points(taps);
                    }
                    &points
                };
                for segment in 0..segments {
                    let values = &mut values[..block_steps * depth];
                    values.fill(0.0);
                    let of_segment = wide[..len * segments]
                        .iter()
                        .skip(segment)
                        .step_by(segments);
                    for (value, from) in values.iter_mut().zip(of_segment) {
                        *value = *from;
                    }
                    let at = (segment * columns + column) * block_bytes;
                    let to = &mut block[at..at + block_bytes];
                    encode(s, panels.format, values, &mut self.int8_columns[column], to);
                }
            }
            for segment in 0..segments {
                let from = &block[segment * columns * block_bytes..][..columns * block_bytes];
                let to = (segment * steps + first / depth) * columns * step_bytes;
                let to = &mut self.out[to..to + block_steps * columns * step_bytes];
                if step_bytes == 4 {
                    transpose::<4>(from, block_steps, to);
                } else {
                    transpose::<2>(from, block_steps, to);
                }
            }
        }
    }
}

impl PackPanel<'_> {
    /// Finds the scales that make the largest weight of each column 127.
    #[inline(always)]
    fn find_scales<S: Simd>(&mut self, s: S) {
        const PIECE: usize = 512;
        let k = self.layout.segments * self.layout.segment_len;
        let mut wide = [0f32; PIECE];
        for (row, column) in self.rows.iter().zip(self.int8_columns.iter_mut()) {
            let Some(row) = row else { continue };
            if let Weights::Int8 { scales, .. } = self.w {
                // These weights bring their scales; computed again, one could differ in its last
                // bit.
                column.scale = scales[*row].clamp(f32::MIN_POSITIVE, f32::MAX);
                continue;
            }
            let mut largest = s.zero();
            for first in (0..k).step_by(PIECE) {
                let wide = &mut wide[..PIECE.min(k - first)];
                self.w.widen_into(s, row * k + first, wide);
                for i in (0..wide.len()).step_by(S::LANES) {
                    largest = s.max(largest, s.abs(s.read(wide, i)));
                }
            }
            // A scale that is zero or not finite would make every sum so.
            column.scale = (s.reduce_max(largest) / 127.0).clamp(f32::MIN_POSITIVE, f32::MAX);
        }
    }
}

/// Writes values to `to` in the format of the panel.
#[inline(always)]
fn encode<S: Simd>(
    s: S,
    format: WeightFormat,
    values: &[f32],
    column: &mut Int8Column,
    to: &mut [u8],
) {
    match format {
        WeightFormat::F32 => {
            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
                *to = value.to_ne_bytes();
            }
        }
        WeightFormat::F16 => {
            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
                *to = f16::from_f32(*value).to_ne_bytes();
            }
        }
        WeightFormat::Bf16 => {
            let mut rounded = [bf16::ZERO; BLOCK];
            for i in (0..values.len()).step_by(S::LANES) {
                s.write(&mut rounded, i, s.read(values, i));
            }
            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(rounded) {
                *to = value.to_ne_bytes();
            }
        }
        WeightFormat::Int8 => {
            let factor = s.splat(1.0 / column.scale);
            let mut bytes = [0u8; BLOCK];
            for i in (0..values.len()).step_by(S::LANES) {
                let y = s.round(s.mul(s.read(values, i), factor));
                let y = s.min(s.max(y, s.splat(-127.0)), s.splat(127.0));
                s.write_bytes(&mut bytes, i, s.add(y, s.splat(f32::from(ZERO_POINT))));
            }
            for (to, byte) in to.iter_mut().zip(bytes) {
                // The offset only serves to write an unsigned byte; it is taken back.
                *to = byte.wrapping_sub(ZERO_POINT);
                column.sum += i32::from(*to as i8);
            }
        }
    }
}

/// Transposes `[columns, steps]` elements of `N` bytes to `[steps, columns]`.
#[inline(always)]
fn transpose<const N: usize>(from: &[u8], steps: usize, to: &mut [u8]) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    // So many steps at a time are a cache line of each column. One step at a time would read lines
    // that are a power of two apart, of which the cache holds few.
    const STEPS: usize = 16;
    let columns = to.len() / steps;
    for (i, to) in to.chunks_mut(STEPS * columns).enumerate() {
        let first = i * STEPS;
        for column in 0..columns {
            let from = &from[column * steps + first..];
            for (to, from) in to[column..].iter_mut().step_by(columns).zip(from) {
                *to = *from;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::noise;

    /// Bytes that were made of weights are packed as the weights themselves would be.
    #[test]
    fn bytes_stay_the_bytes_they_are() {
        for isa in Isa::available() {
            for (n, k) in [(1, 1), (70, 67), (130, 640), (33, 1000)] {
                let w = noise(3, n * k);
                let row_of = |column| (column < n).then_some(column);
                let layout = PanelLayout::new(isa, WeightFormat::Int8, n, 1, k);
                let pack = |w| Panels::pack(layout, row_of, w);
                let floats = pack(Weights::F32(&w));
                let (bytes, scales) = crate::int8::quantise_rows(Weights::F32(&w), n);
                let packed = pack(Weights::Int8 {
                    bytes: &bytes,
                    scales: &scales,
                });
                assert!(floats.data() == packed.data(), "{isa} {n} {k}");
                assert_eq!(floats.scales, packed.scales);
                assert_eq!(
                    bits(&floats.offsets),
                    bits(&packed.offsets),
                    "{isa} {n} {k}"
                );
            }
        }
    }

    #[test]
    fn a_layout_knows_its_bytes() {
        let formats = [
            WeightFormat::F32,
            WeightFormat::F16,
            WeightFormat::Bf16,
            WeightFormat::Int8,
        ];
        for isa in Isa::available() {
            for (n, segments, len) in [(1, 1, 1), (70, 1, 67), (65, 9, 5), (130, 4, 64)] {
                let w = noise(1, n * segments * len);
                for format in formats {
                    let row_of = |column| (column < n).then_some(column);
                    let layout = PanelLayout::new(isa, format, n, segments, len);
                    let packed = Panels::pack(layout, row_of, Weights::F32(&w));
                    let scales = (packed.scales.len() + packed.offsets.len()) * size_of::<f32>();
                    assert_eq!(layout.bytes(), packed.data().len() + scales);
                }
            }
        }
    }

    /// Weights of 16 bits are packed as the same weights of 32 are, bit for bit.
    #[test]
    fn half_the_bits_are_packed_alike() {
        for isa in Isa::available() {
            for (n, segments, len) in [(3, 1, 1), (70, 1, 667), (65, 9, 35), (130, 4, 64)] {
                let w = noise(2, n * segments * len);
                let f16s: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
                let wide: Vec<f32> = f16s.iter().map(|v| v.to_f32()).collect();
                for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16] {
                    let row_of = |column| (column < n).then_some(column);
                    let layout = PanelLayout::new(isa, format, n, segments, len);
                    let pack = |w| Panels::pack(layout, row_of, w);
                    let (a, b) = (pack(Weights::F16(&f16s)), pack(Weights::F32(&wide)));
                    assert!(a.data() == b.data(), "{isa} {n} {segments} {len}");
                }
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// Every weight is where the layout says, whatever the format and the sizes.
    #[test]
    fn weights_are_where_the_layout_says() {
        for isa in Isa::available() {
            for (n, segments, len) in [
                (1, 1, 1),
                (70, 1, 67),
                (65, 9, 5),
                (130, 4, 64),
                (70, 1, 600),
            ] {
                let w = noise(1, n * segments * len);
                for format in [
                    WeightFormat::F32,
                    WeightFormat::F16,
                    WeightFormat::Bf16,
                    WeightFormat::Int8,
                ] {
                    let row_of = |column| (column < n).then_some(column);
                    let layout = PanelLayout::new(isa, format, n, segments, len);
                    let panels = Panels::pack(layout, row_of, Weights::F32(&w));
                    let data = panels.data();
                    let depth = format.depth();
                    for row in 0..n {
                        let (panel, column) = (row / panels.width, row % panels.width);
                        let columns = panels.panel_width(panel);
                        let largest = w[row * segments * len..(row + 1) * segments * len]
                            .iter()
                            .fold(0f32, |m, v| m.max(v.abs()));
                        for segment in 0..segments {
                            for at in 0..len {
                                let step = segment * len.div_ceil(depth) + at / depth;
                                let index = panel * panels.padded_k() * panels.width
                                    + (step * columns + column) * depth
                                    + at % depth;
                                let bytes = &data[index * format.bytes()..][..format.bytes()];
                                let got = match format {
                                    WeightFormat::F32 => {
                                        f32::from_ne_bytes(bytes.try_into().unwrap())
                                    }
                                    WeightFormat::F16 => {
                                        f16::from_ne_bytes(bytes.try_into().unwrap()).to_f32()
                                    }
                                    WeightFormat::Bf16 => {
                                        bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f32()
                                    }
                                    WeightFormat::Int8 => {
                                        f32::from(bytes[0] as i8) * panels.scales[row]
                                    }
                                };
                                let want = w[(row * len + at) * segments + segment];
                                let tolerance = match format {
                                    WeightFormat::F32 => 0.0,
                                    WeightFormat::F16 => want.abs() / 2048.0 + 1e-7,
                                    WeightFormat::Bf16 => want.abs() / 256.0,
                                    WeightFormat::Int8 => largest / 127.0 * 0.5001,
                                };
                                assert!((got - want).abs() <= tolerance, "{isa} {format:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
