//! Weights as they are stored and as the layers keep them.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::isa::Isa;
use crate::meter::Meter;
use crate::panels::Panels;
use crate::simd::tile_shape;

/// Weights as they are stored in a file.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [bf16]),
    /// Signed bytes and, for each row, what a unit is worth: packed as [`WeightFormat::Int8`] they
    /// stay the bytes they are.
    Int8 {
        /// Rows of bytes, -127 to 127.
        bytes: &'a [i8],
        /// As many as there are rows, finite and not negative.
        scales: &'a [f32],
    },
    /// Weights of which only the number is known: packed, they have their size, which `meter`
    /// counts, and no values.
    Unread {
        /// How many.
        len: usize,
        /// Who counts.
        meter: &'a Meter,
    },
}

impl Weights<'_> {
    /// Number of weights.
    pub fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::Bf16(w) => w.len(),
            Weights::Int8 { bytes, .. } => bytes.len(),
            Weights::Unread { len, .. } => *len,
        }
    }

    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            Weights::F32(w) => w[i],
            Weights::F16(w) => w[i].to_f32(),
            Weights::Bf16(w) => w[i].to_f32(),
            Weights::Int8 { bytes, scales } => {
                f32::from(bytes[i]) * scales[i / (bytes.len() / scales.len())]
            }
            Weights::Unread { .. } => panic!("weights that were not read"),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How packed weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Bytes of a weight.
    pub(crate) fn bytes(self) -> usize {
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
        let panels = Panels::pack(isa, format, n, 1, k, row_of, w);
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
        let width = tile_shape(isa).columns;
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
        let panels = Panels::pack(isa, format, columns, 1, k, row_of, w);
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

    /// Who counts these weights, where they have no values.
    pub fn meter(&self) -> Option<&Meter> {
        self.panels.meter()
    }
}

/// What the segments of a convolution's panels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its taps.
    Taps,
    /// The four taps of each phase of an enlarged input: see [`PackedConv::pack_upsampled`].
    Phases,
    /// What the taps are at the points of `winograd_bf16.rs`.
    Points,
}

/// The weights of a convolution, packed for [`conv2d`](crate::conv2d).
pub struct PackedConv {
    pub(crate) form: Form,
    /// One, or one for each phase.
    pub(crate) panels: Vec<Panels>,
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
        let panels = Panels::pack(isa, format, c_out, taps, c_in, row_of, w);
        PackedConv {
            form: Form::Taps,
            panels: vec![panels],
            c_out,
            c_in,
            kh,
            kw,
        }
    }

    /// Packs `w`, `[c_out, c_in, 3, 3]` in row-major order, for a convolution with a stride of 1 of
    /// bf16 images by 4/9 of the multiplications (see `winograd_bf16.rs`), for 16/9 of the memory.
    /// In another format than [`WeightFormat::Bf16`] this is the same as [`PackedConv::pack`].
    ///
    /// # Panics
    /// If `w` has not as many elements, or none.
    pub fn pack_winograd(
        w: Weights,
        c_out: usize,
        c_in: usize,
        format: WeightFormat,
    ) -> PackedConv {
        if format != WeightFormat::Bf16 {
            return PackedConv::pack(w, c_out, c_in, 3, 3, format);
        }
        PackedConv::pack_winograd_for(Isa::current(), w, [c_out, c_in])
    }

    pub(crate) fn pack_winograd_for(isa: Isa, w: Weights, [c_out, c_in]: [usize; 2]) -> PackedConv {
        assert_eq!(w.len(), c_out * c_in * 9, "weights of a convolution");
        assert!(!w.is_empty(), "an empty convolution");
        PackedConv {
            form: Form::Points,
            panels: vec![Panels::pack_points(isa, c_out, c_in, w)],
            c_out,
            c_in,
            kh: 3,
            kw: 3,
        }
    }

    /// Packs `w`, `[c_out, c_in, 3, 3]` in row-major order, for a convolution that follows
    /// an enlargement ([`ConvGeometry::upsample`](crate::ConvGeometry)), with a stride of 1
    /// and a padding of 1 on all sides.
    ///
    /// Nine taps on repeated pixels are four on the pixels themselves, whose weights are
    /// sums: other ones for even and odd rows and columns of the output. So 4/9 of the
    /// operations remain, for 16/9 of the memory. Where [`conv2d`](crate::conv2d) has a
    /// still shorter way, for `f32` and `f16` weights, this is the same as
    /// [`PackedConv::pack`].
    ///
    /// # Panics
    /// If `w` has not as many elements, or none.
    pub fn pack_upsampled(
        w: Weights,
        c_out: usize,
        c_in: usize,
        format: WeightFormat,
    ) -> PackedConv {
        PackedConv::pack_upsampled_for(Isa::current(), w, [c_out, c_in], format)
    }

    pub(crate) fn pack_upsampled_for(
        isa: Isa,
        w: Weights,
        [c_out, c_in]: [usize; 2],
        format: WeightFormat,
    ) -> PackedConv {
        if matches!(format, WeightFormat::F32 | WeightFormat::F16) {
            return PackedConv::pack_for(isa, w, [c_out, c_in, 3, 3], format);
        }
        assert_eq!(w.len(), c_out * c_in * 9, "weights of a convolution");
        assert!(!w.is_empty(), "an empty convolution");
        let row_of = |column| (column < c_out).then_some(column);
        // The taps that fall on the first and on the second pixel of an even and an odd row.
        const TAPS: [[Range<usize>; 2]; 2] = [[0..1, 1..3], [0..2, 2..3]];
        let phases = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(py, px)| {
            let len = c_out * c_in * 4;
            if let Weights::Unread { meter, .. } = w {
                let w = Weights::Unread { len, meter };
                let panels = Panels::pack(isa, format, c_out, 4, c_in, row_of, w);
                meter.passing(len * size_of::<f32>());
                return panels;
            }
            let mut sums = vec![0f32; len];
            sums.par_chunks_mut(4).enumerate().for_each(|(i, sums)| {
                for (tap, sum) in sums.iter_mut().enumerate() {
                    for y in TAPS[py][tap / 2].clone() {
                        for x in TAPS[px][tap % 2].clone() {
                            *sum += w.get(i * 9 + y * 3 + x);
                        }
                    }
                }
            });
            Panels::pack(isa, format, c_out, 4, c_in, row_of, Weights::F32(&sums))
        });
        PackedConv {
            form: Form::Phases,
            panels: phases.into(),
            c_out,
            c_in,
            kh: 3,
            kw: 3,
        }
    }

    /// The panels of a convolution whose segments are its taps.
    pub(crate) fn plain(&self) -> &Panels {
        assert_eq!(self.form, Form::Taps, "what the weights were packed for");
        &self.panels[0]
    }

    /// The panels of a convolution whose segments are points.
    pub(crate) fn points(&self) -> &Panels {
        assert_eq!(self.form, Form::Points, "what the weights were packed for");
        &self.panels[0]
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
        self.panels.iter().map(Panels::bytes).sum()
    }

    /// Who counts these weights, where they have no values.
    pub fn meter(&self) -> Option<&Meter> {
        self.panels[0].meter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::noise;

    #[test]
    fn unread_convolutions_have_the_size_of_others() {
        let (c_out, c_in) = (70, 33);
        let w = noise(1, c_out * c_in * 9);
        let (read, len) = (Weights::F32(&w), w.len());
        let meter = Meter::default();
        let unread = Weights::Unread { len, meter: &meter };
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let plain = |w| PackedConv::pack(w, c_out, c_in, 3, 3, format);
            let doubled = |w| PackedConv::pack_upsampled(w, c_out, c_in, format);
            assert_eq!(plain(unread).bytes(), plain(read).bytes());
            assert_eq!(doubled(unread).bytes(), doubled(read).bytes());
            let winograd = |w| PackedConv::pack_winograd(w, c_out, c_in, format);
            assert_eq!(winograd(unread).bytes(), winograd(read).bytes());
            assert!(plain(unread).meter().is_some() && plain(read).meter().is_none());
        }
        assert_eq!(meter.weights(), 0);
    }
}
