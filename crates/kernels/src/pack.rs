//! Weights in the order the kernels read them.
//!
//! A matrix `[n, k]` becomes panels of as many output columns as a kernel's tile has (64
//! for AVX-512, 16 otherwise); a panel lists, for each step along `k`, the weights of its
//! columns. A step is one `k` for `f32` and `f16`, a pair of them for `bf16` and four for
//! `int8`, because that is what the dot products take. The last panel is as many vectors wide as it needs.
//! A convolution is a matrix whose `k` runs over the taps (kernel positions) and within a
//! tap over the input channels: each tap is a *segment*, padded to whole steps.

#![allow(unsafe_code)]

use half::{bf16, f16};
use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::panel_shape;

/// Weights as they are stored in a file.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [bf16]),
}

impl Weights<'_> {
    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::Bf16(w) => w.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            Weights::F32(w) => w[i],
            Weights::F16(w) => w[i].to_f32(),
            Weights::Bf16(w) => w[i].to_f32(),
        }
    }
}

/// How packed weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision, widened as it is read.
    F16,
    /// The upper halves of 32-bit floats; what the bf16 dot product reads.
    Bf16,
    /// Signed bytes, for each output a scale that makes the largest weight 127. Activations
    /// are rounded to bytes too (see `int8.rs`), so this is for layers that bear it.
    Int8,
}

impl WeightFormat {
    fn bytes(self) -> usize {
        match self {
            WeightFormat::F32 => 4,
            WeightFormat::F16 | WeightFormat::Bf16 => 2,
            WeightFormat::Int8 => 1,
        }
    }

    /// Values of `k` in a step.
    pub(crate) fn depth(self) -> usize {
        match self {
            WeightFormat::F32 | WeightFormat::F16 => 1,
            WeightFormat::Bf16 => 2,
            WeightFormat::Int8 => 4,
        }
    }
}

/// A cache line, so that vectors of weights never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Packed weights: see the head of this file.
pub(crate) struct Panels {
    pub(crate) isa: Isa,
    pub(crate) format: WeightFormat,
    /// Output columns; for GEGLU those of hidden and gate together.
    pub(crate) n: usize,
    pub(crate) segments: usize,
    /// Length of a segment before padding.
    pub(crate) segment_len: usize,
    /// Columns of a full panel.
    pub(crate) width: usize,
    lanes: usize,
    data: Vec<Line>,
    /// For int8, by column as packed: the scale of the weights.
    pub(crate) scales: Vec<f32>,
    /// For int8, by column as packed: what the activations' offset of 128 adds to the sum,
    /// the bits of an integer.
    pub(crate) offsets: Vec<f32>,
}

impl Panels {
    /// Packs the matrix whose element for output `row`, segment and position within the
    /// segment is `w(row, segment, position)`; `row_of(column)` orders the rows.
    pub(crate) fn pack(
        isa: Isa,
        format: WeightFormat,
        n: usize,
        segments: usize,
        segment_len: usize,
        row_of: impl Fn(usize) -> Option<usize> + Sync,
        w: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Panels {
        let (width, lanes) = panel_shape(isa);
        let mut panels = Panels {
            isa,
            format,
            n,
            segments,
            segment_len,
            width,
            lanes,
            data: Vec::new(),
            scales: Vec::new(),
            offsets: Vec::new(),
        };
        let panel_bytes = panels.padded_k() * width * format.bytes();
        let last = panels.padded_k() * panels.panel_width(panels.count() - 1) * format.bytes();
        let bytes = (panels.count() - 1) * panel_bytes + last;
        let mut data = vec![Line([0; 64]); bytes.div_ceil(64)];
        // SAFETY: a line is 64 plain bytes.
        let all: &mut [u8] =
            unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len() * 64) };
        let quantised = match format {
            WeightFormat::Int8 => panels.count() * width,
            _ => 0,
        };
        let (mut scales, mut offsets) = (vec![0f32; quantised], vec![0f32; quantised]);
        // As many pieces as panels, empty ones if there is nothing to keep.
        let mut of_panel: Vec<_> = scales
            .chunks_mut(width)
            .zip(offsets.chunks_mut(width))
            .collect();
        of_panel.resize_with(panels.count(), Default::default);
        let shape = &panels;
        all.par_chunks_mut(panel_bytes)
            .zip(of_panel)
            .enumerate()
            .for_each(|(panel, (out, (scales, offsets)))| {
                let columns = shape.panel_width(panel);
                for column in 0..columns {
                    let Some(row) = row_of(panel * width + column) else {
                        continue;
                    };
                    let w = |segment, at| w(row, segment, at);
                    match format {
                        WeightFormat::F32 => shape.column(out, columns, column, |segment, at| {
                            w(segment, at).to_ne_bytes()
                        }),
                        WeightFormat::F16 => shape.column(out, columns, column, |segment, at| {
                            f16::from_f32(w(segment, at)).to_ne_bytes()
                        }),
                        WeightFormat::Bf16 => shape.column(out, columns, column, |segment, at| {
                            bf16::from_f32(w(segment, at)).to_ne_bytes()
                        }),
                        WeightFormat::Int8 => {
                            let mut largest = 0f32;
                            for segment in 0..segments {
                                for at in 0..segment_len {
                                    largest = largest.max(w(segment, at).abs());
                                }
                            }
                            // A scale that is zero or not finite would make every sum so.
                            let scale = (largest / 127.0).clamp(f32::MIN_POSITIVE, f32::MAX);
                            let mut sum = 0;
                            shape.column(out, columns, column, |segment, at| {
                                let byte = (w(segment, at) / scale).round_ties_even() as i8;
                                sum += i32::from(byte);
                                byte.to_ne_bytes()
                            });
                            scales[column] = scale;
                            offsets[column] = f32::from_bits((128 * sum) as u32);
                        }
                    }
                }
            });
        (panels.scales, panels.offsets) = (scales, offsets);
        panels.data = data;
        panels
    }

    /// Fills a column of a panel of `columns`; `bytes` are those of a weight.
    #[inline(always)]
    fn column<const N: usize>(
        &self,
        out: &mut [u8],
        columns: usize,
        column: usize,
        mut bytes: impl FnMut(usize, usize) -> [u8; N],
    ) {
        let depth = self.format.depth();
        let (out, _) = out.as_chunks_mut::<N>();
        let steps = self.segment_len.div_ceil(depth);
        for segment in 0..self.segments {
            for step in 0..steps {
                let to = &mut out[((segment * steps + step) * columns + column) * depth..][..depth];
                for (i, to) in to.iter_mut().enumerate() {
                    let at = step * depth + i;
                    if at < self.segment_len {
                        *to = bytes(segment, at);
                    }
                }
            }
        }
    }

    /// Length of `k` with every segment padded to whole steps.
    fn padded_k(&self) -> usize {
        self.segments * self.segment_len.next_multiple_of(self.format.depth())
    }

    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }

    /// Columns of a panel, a multiple of the vector.
    fn panel_width(&self, panel: usize) -> usize {
        let left = self.n - panel * self.width;
        left.min(self.width).next_multiple_of(self.lanes)
    }

    /// Vectors side by side in a panel.
    pub(crate) fn panel_vectors(&self, panel: usize) -> usize {
        self.panel_width(panel) / self.lanes
    }

    /// The weights of a panel from padded `k` on.
    pub(crate) fn panel(&self, panel: usize, k: usize) -> *const u8 {
        let at = panel * self.padded_k() * self.width + k * self.panel_width(panel);
        let at = at * self.format.bytes();
        assert!(panel < self.count() && at < self.data.len() * 64);
        self.data.as_ptr().cast::<u8>().wrapping_add(at)
    }

    fn bytes(&self) -> usize {
        self.data.len() * 64 + (self.scales.len() + self.offsets.len()) * 4
    }
}

/// A matrix `[n, k]` of a linear layer (torch's order: outputs first), packed for
/// [`linear`](crate::linear) or, by [`PackedMatrix::pack_geglu`], for
/// [`linear_geglu`](crate::linear_geglu).
pub struct PackedMatrix {
    pub(crate) panels: Panels,
    pub(crate) geglu: bool,
    n: usize,
}

impl PackedMatrix {
    /// Packs `w`, `[n, k]` in row-major order.
    ///
    /// # Panics
    /// If `w` has not `n * k` elements, or none.
    pub fn pack(w: Weights, n: usize, k: usize, format: WeightFormat) -> PackedMatrix {
        PackedMatrix::pack_for(Isa::current(), w, n, k, format)
    }

    /// Packs the matrix of a GEGLU layer, `[2 * inner, k]` in row-major order: first the
    /// rows of the hidden half, then those of the gate.
    ///
    /// # Panics
    /// If `w` has not `2 * inner * k` elements, or none.
    pub fn pack_geglu(w: Weights, inner: usize, k: usize, format: WeightFormat) -> PackedMatrix {
        PackedMatrix::pack_geglu_for(Isa::current(), w, inner, k, format)
    }

    pub(crate) fn pack_for(
        isa: Isa,
        w: Weights,
        n: usize,
        k: usize,
        format: WeightFormat,
    ) -> PackedMatrix {
        assert_eq!(w.len(), n * k, "weights of a {n} x {k} matrix");
        assert!(n > 0 && k > 0, "an empty matrix");
        let row_of = |column| (column < n).then_some(column);
        let panels = Panels::pack(isa, format, n, 1, k, row_of, |row, _, at| {
            w.get(row * k + at)
        });
        PackedMatrix {
            panels,
            geglu: false,
            n,
        }
    }

    pub(crate) fn pack_geglu_for(
        isa: Isa,
        w: Weights,
        inner: usize,
        k: usize,
        format: WeightFormat,
    ) -> PackedMatrix {
        assert_eq!(w.len(), 2 * inner * k, "weights of a GEGLU layer");
        assert!(inner > 0 && k > 0, "an empty matrix");
        // The left half of each panel is hidden, the right half the gate of the same
        // outputs, so that one tile holds both.
        let (width, _) = panel_shape(isa);
        let half = width / 2;
        let row_of = |column: usize| {
            let (panel, column) = (column / width, column % width);
            let output = panel * half + column % half;
            (output < inner).then_some(if column < half {
                output
            } else {
                inner + output
            })
        };
        let columns = inner.div_ceil(half) * width;
        let panels = Panels::pack(isa, format, columns, 1, k, row_of, |row, _, at| {
            w.get(row * k + at)
        });
        PackedMatrix {
            panels,
            geglu: true,
            n: 2 * inner,
        }
    }

    /// Rows of the matrix as given: outputs, or for GEGLU twice the outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Length of an input row.
    pub fn k(&self) -> usize {
        self.panels.segment_len
    }

    /// Memory the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

/// The weights of a convolution, packed for [`conv2d`](crate::conv2d).
pub struct PackedConv {
    pub(crate) panels: Panels,
    pub(crate) c_out: usize,
    pub(crate) c_in: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
}

impl PackedConv {
    /// Packs `w`, `[c_out, c_in, kh, kw]` in row-major order (torch's).
    ///
    /// # Panics
    /// If `w` has not as many elements, or none.
    pub fn pack(
        w: Weights,
        c_out: usize,
        c_in: usize,
        kh: usize,
        kw: usize,
        format: WeightFormat,
    ) -> PackedConv {
        PackedConv::pack_for(Isa::current(), w, [c_out, c_in, kh, kw], format)
    }

    pub(crate) fn pack_for(
        isa: Isa,
        w: Weights,
        [c_out, c_in, kh, kw]: [usize; 4],
        format: WeightFormat,
    ) -> PackedConv {
        assert_eq!(w.len(), c_out * c_in * kh * kw, "weights of a convolution");
        assert!(!w.is_empty(), "an empty convolution");
        let taps = kh * kw;
        let row_of = |column| (column < c_out).then_some(column);
        let panels = Panels::pack(isa, format, c_out, taps, c_in, row_of, |row, tap, at| {
            w.get((row * c_in + at) * taps + tap)
        });
        PackedConv {
            panels,
            c_out,
            c_in,
            kh,
            kw,
        }
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    /// Input channels.
    pub fn c_in(&self) -> usize {
        self.c_in
    }

    /// Memory the packed weights take.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}
