//! The weights of whole layers, packed for the kernels, and the layouts that they are packed by.

use std::ops::{Deref, Range};

use rayon::prelude::*;

use crate::dispatch::tile_shape;
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::panels::{PanelLayout, Panels};
use crate::weights::{WeightFormat, Weights};

/// Order and sizes of a packed matrix: everything about a [`PackedMatrix`] but its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixLayout {
    pub(crate) panel_layout: PanelLayout,
    pub(crate) geglu: bool,
    n: usize,
}

impl MatrixLayout {
    /// Returns the layout that [`PackedMatrix::pack`] gives `n` rows of `k` weights.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(n: usize, k: usize, format: WeightFormat) -> MatrixLayout {
        MatrixLayout::new_for(Isa::current(), n, k, format)
    }

    /// Returns the layout that [`PackedMatrix::pack_geglu`] gives two times `inner` rows of `k`
    /// weights.
    ///
    /// # Panics
    /// If there are none.
    pub fn geglu(inner: usize, k: usize, format: WeightFormat) -> MatrixLayout {
        MatrixLayout::geglu_for(Isa::current(), inner, k, format)
    }

    fn new_for(isa: Isa, n: usize, k: usize, format: WeightFormat) -> MatrixLayout {
        assert!(n > 0 && k > 0, "an empty matrix");
        MatrixLayout {
            panel_layout: PanelLayout::new(isa, format, n, 1, k),
            geglu: false,
            n,
        }
    }

    fn geglu_for(isa: Isa, inner: usize, k: usize, format: WeightFormat) -> MatrixLayout {
        assert!(inner > 0 && k > 0, "an empty matrix");
        // The left half of each panel is hidden, the right half the gate of the same
        // outputs, so that one tile holds both.
        let width = tile_shape(isa).columns;
        let columns = inner.div_ceil(width / 2) * width;
        MatrixLayout {
            panel_layout: PanelLayout::new(isa, format, columns, 1, k),
            geglu: true,
            n: 2 * inner,
        }
    }

    /// Returns the rows of the matrix as given: outputs, or for GEGLU twice the outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Returns the length of an input row.
    pub fn k(&self) -> usize {
        self.panel_layout.segment_len
    }

    /// Returns the bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.panel_layout.bytes()
    }
}

/// A matrix `[n, k]` of a linear layer (torch's order: outputs first), packed for
/// [`linear`](fn@crate::linear) or, by [`PackedMatrix::pack_geglu`], for
/// [`linear_geglu`](crate::linear_geglu).
pub struct PackedMatrix {
    layout: MatrixLayout,
    pub(crate) panels: Panels,
}

impl Deref for PackedMatrix {
    type Target = MatrixLayout;
    fn deref(&self) -> &MatrixLayout {
        &self.layout
    }
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
        let layout = MatrixLayout::new_for(isa, n, k, format);
        let row_of = |column| (column < n).then_some(column);
        PackedMatrix {
            layout,
            panels: Panels::pack(layout.panel_layout, row_of, w),
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
        let layout = MatrixLayout::geglu_for(isa, inner, k, format);
        let width = layout.panel_layout.width;
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
        PackedMatrix {
            layout,
            panels: Panels::pack(layout.panel_layout, row_of, w),
        }
    }
}

/// A way to pack the weights of a convolution: the meaning of the segments of its panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConvPacking {
    /// A segment for each tap of the kernel.
    Direct,
    /// For an input of doubled size, four sets of panels (phases: even and odd rows and columns of
    /// the output), each with a segment for each of four taps: see [`PackedConv::pack_upsampled`].
    Doubled,
    /// A segment for each point of `winograd/bf16.rs`: the transformed weights.
    Winograd,
}

/// Order and sizes of the packed weights of a convolution: everything about a [`PackedConv`] but
/// their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvLayout {
    pub(crate) packing: ConvPacking,
    /// The layout of its panels: of one set of them, or of each phase's.
    pub(crate) panel_layout: PanelLayout,
    pub(crate) c_out: usize,
    pub(crate) c_in: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
}

impl ConvLayout {
    /// Returns the layout that [`PackedConv::pack`] gives weights `[c_out, c_in, kh, kw]`.
    pub fn new(shape: [usize; 4], format: WeightFormat) -> ConvLayout {
        ConvLayout::new_for(Isa::current(), shape, format)
    }

    /// Returns the layout that [`PackedConv::pack_winograd`] gives weights `[c_out, c_in, 3, 3]`.
    pub fn winograd(c_out: usize, c_in: usize, format: WeightFormat) -> ConvLayout {
        match format {
            WeightFormat::Bf16 => ConvLayout::winograd_for(Isa::current(), [c_out, c_in]),
            _ => ConvLayout::new([c_out, c_in, 3, 3], format),
        }
    }

    /// Returns the layout that [`PackedConv::pack_upsampled`] gives weights `[c_out, c_in, 3, 3]`.
    pub fn upsampled(c_out: usize, c_in: usize, format: WeightFormat) -> ConvLayout {
        ConvLayout::upsampled_for(Isa::current(), [c_out, c_in], format)
    }

    fn new_for(isa: Isa, [c_out, c_in, kh, kw]: [usize; 4], format: WeightFormat) -> ConvLayout {
        ConvLayout {
            packing: ConvPacking::Direct,
            panel_layout: PanelLayout::new(isa, format, c_out, kh * kw, c_in),
            c_out,
            c_in,
            kh,
            kw,
        }
    }

    fn winograd_for(isa: Isa, [c_out, c_in]: [usize; 2]) -> ConvLayout {
        ConvLayout {
            packing: ConvPacking::Winograd,
            panel_layout: PanelLayout::winograd(isa, c_out, c_in),
            c_out,
            c_in,
            kh: 3,
            kw: 3,
        }
    }

    fn upsampled_for(isa: Isa, [c_out, c_in]: [usize; 2], format: WeightFormat) -> ConvLayout {
        if matches!(format, WeightFormat::F32 | WeightFormat::F16) {
            return ConvLayout::new_for(isa, [c_out, c_in, 3, 3], format);
        }
        ConvLayout {
            packing: ConvPacking::Doubled,
            panel_layout: PanelLayout::new(isa, format, c_out, 4, c_in),
            c_out,
            c_in,
            kh: 3,
            kw: 3,
        }
    }

    /// Returns the number of output channels.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    /// Returns the number of input channels.
    pub fn c_in(&self) -> usize {
        self.c_in
    }

    /// Returns the height and width of the output.
    ///
    /// # Panics
    /// As [`ConvGeometry::output_size`].
    pub fn output_size(&self, g: &ConvGeometry) -> (usize, usize) {
        g.output_size(self.kh, self.kw)
    }

    /// Returns the bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        let phases = if self.packing == ConvPacking::Doubled {
            4
        } else {
            1
        };
        phases * self.panel_layout.bytes()
    }

    /// Returns the bytes that packing works in, beside the weights that are given and those that
    /// are packed.
    pub fn packing_bytes(&self) -> usize {
        match self.packing {
            // The weights of a phase.
            ConvPacking::Doubled => self.c_out * self.c_in * 4 * size_of::<f32>(),
            ConvPacking::Direct | ConvPacking::Winograd => 0,
        }
    }
}

/// The weights of a convolution, packed for [`conv2d`](crate::conv2d).
pub struct PackedConv {
    layout: ConvLayout,
    /// One set; of [`ConvPacking::Doubled`] one for each phase.
    pub(crate) panels: Vec<Panels>,
}

impl Deref for PackedConv {
    type Target = ConvLayout;
    fn deref(&self) -> &ConvLayout {
        &self.layout
    }
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
        let layout = ConvLayout::new_for(isa, [c_out, c_in, kh, kw], format);
        let row_of = |column| (column < c_out).then_some(column);
        PackedConv {
            layout,
            panels: vec![Panels::pack(layout.panel_layout, row_of, w)],
        }
    }

    /// Packs `w`, `[c_out, c_in, 3, 3]` in row-major order, for a convolution with a stride of 1 of
    /// bf16 images by 4/9 of the multiplications (see `winograd/bf16.rs`), for 16/9 of the memory.
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
        let layout = ConvLayout::winograd_for(isa, [c_out, c_in]);
        PackedConv {
            layout,
            panels: vec![Panels::pack_winograd(layout.panel_layout, w)],
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
        let layout = ConvLayout::upsampled_for(isa, [c_out, c_in], format);
        if layout.packing != ConvPacking::Doubled {
            return PackedConv::pack_for(isa, w, [c_out, c_in, 3, 3], format);
        }
        assert_eq!(w.len(), c_out * c_in * 9, "weights of a convolution");
        assert!(!w.is_empty(), "an empty convolution");
        let row_of = |column| (column < c_out).then_some(column);
        // The taps that fall on the first and on the second pixel of an even and an odd row.
        const TAPS: [[Range<usize>; 2]; 2] = [[0..1, 1..3], [0..2, 2..3]];
        let phases = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(py, px)| {
            let mut sums = vec![0f32; c_out * c_in * 4];
            sums.par_chunks_mut(4).enumerate().for_each(|(i, sums)| {
                for (tap, sum) in sums.iter_mut().enumerate() {
                    for y in TAPS[py][tap / 2].clone() {
                        for x in TAPS[px][tap % 2].clone() {
                            *sum += w.get(i * 9 + y * 3 + x);
                        }
                    }
                }
            });
            Panels::pack(layout.panel_layout, row_of, Weights::F32(&sums))
        });
        PackedConv {
            layout,
            panels: phases.into(),
        }
    }

    /// Returns the panels of [`ConvPacking::Direct`].
    pub(crate) fn direct_panels(&self) -> &Panels {
        assert_eq!(
            self.packing,
            ConvPacking::Direct,
            "the way that the weights are packed"
        );
        &self.panels[0]
    }

    /// Returns the panels of [`ConvPacking::Winograd`].
    pub(crate) fn winograd_panels(&self) -> &Panels {
        assert_eq!(
            self.packing,
            ConvPacking::Winograd,
            "the way that the weights are packed"
        );
        &self.panels[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::noise;

    #[test]
    fn layouts_are_those_of_packed_weights() {
        let (c_out, c_in) = (70, 33);
        let w = noise(1, c_out * c_in * 9);
        let bytes = |w: &PackedConv| w.panels.iter().map(|p| p.bytes()).sum::<usize>();
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let w = Weights::F32(&w);
            for (packed, layout) in [
                (
                    PackedConv::pack(w, c_out, c_in, 3, 3, format),
                    ConvLayout::new([c_out, c_in, 3, 3], format),
                ),
                (
                    PackedConv::pack_upsampled(w, c_out, c_in, format),
                    ConvLayout::upsampled(c_out, c_in, format),
                ),
                (
                    PackedConv::pack_winograd(w, c_out, c_in, format),
                    ConvLayout::winograd(c_out, c_in, format),
                ),
            ] {
                assert_eq!(*packed, layout);
                assert_eq!(bytes(&packed), layout.bytes());
            }
            let (n, k) = (66, c_out * c_in * 9 / 66);
            let w = noise(2, n * k);
            let packed = PackedMatrix::pack(Weights::F32(&w), n, k, format);
            assert_eq!(*packed, MatrixLayout::new(n, k, format));
            assert_eq!(packed.panels.bytes(), packed.bytes());
            let packed = PackedMatrix::pack_geglu(Weights::F32(&w), n / 2, k, format);
            assert_eq!(*packed, MatrixLayout::geglu(n / 2, k, format));
            assert_eq!(packed.panels.bytes(), packed.bytes());
        }
    }
}
