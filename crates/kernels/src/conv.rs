//! Two-dimensional convolution over channel-last images.
//!
//! A convolution is a matrix product whose rows are output pixels. Each tap (kernel position) reads
//! all channels of one input pixel, which lie side by side, so no copy of the input is made: for
//! each row and tap the product gets a pointer to a pixel, or to zeros where the tap falls on the
//! padding.

#![allow(unsafe_code)]

use crate::element::Element;
use crate::elementwise::{convert, to_f32};
use crate::gemm::{self, Epilogue};
use crate::geometry::ConvGeometry;
use crate::int8::{Quantised, ZERO_POINT};
use crate::linear::computes_in_f32;
use crate::norm::GroupNorm;
use crate::pack::{ConvLayout, ConvPacking, PackedConv};
use crate::tile::Operand;
use crate::weights::WeightFormat;
use crate::winograd;
use crate::workspace::Workspace;

/// Computes the convolution of `x`, `[batch, height, width, c_in]`, to `out`,
/// `[batch, out_height, out_width, c_out]`. `bias` is `[c_out]`; `sample_bias`,
/// `[batch, c_out]`, is added to every pixel of its image (a time embedding); `residual`
/// has the shape of `out` and is added.
///
/// # Panics
/// If a slice has not the length its shape says, or `w` was packed for bf16 and `x` is not that
/// ([`PackedConv::pack_winograd`]).
pub fn conv2d<E: Element>(
    x: &[E],
    g: &ConvGeometry,
    w: &PackedConv,
    bias: Option<&[f32]>,
    sample_bias: Option<&[f32]>,
    residual: Option<&[E]>,
    out: &mut [E],
) {
    conv2d_with_norm(x, None, g, w, bias, sample_bias, residual, out);
}

/// Gives the memory that [`conv2d`] and [`normed_conv2d`] work in on elements `E`.
pub fn conv2d_workspace<E: Element>(g: &ConvGeometry, w: &ConvLayout) -> Workspace {
    if w.packing == ConvPacking::Winograd {
        return winograd::bf16::workspace(g, w);
    }
    let format = w.panel_layout.format;
    if format == WeightFormat::Int8 {
        return Quantised::workspace(g.batch * g.height * g.width, w.c_in, g.height * g.width);
    }
    if computes_in_f32::<E>(format) {
        let (height, width) = g.output_size(w.kh, w.kw);
        let values = g.height * g.width * w.c_in + height * width * w.c_out;
        let narrow = conv2d_workspace::<f32>(g, w);
        return Workspace {
            temporary: narrow.temporary + g.batch * values * size_of::<f32>(),
            ..narrow
        };
    }
    match !E::IS_BF16 && winograd::f32::is_profitable(g, w) {
        true => winograd::f32::workspace(g, w),
        false => Workspace::default(),
    }
}

/// Tells whether [`normed_conv2d`] can compute this convolution for elements of this type.
pub fn can_fuse_norm<E: Element>(g: &ConvGeometry, w: &ConvLayout) -> bool {
    match E::IS_BF16 {
        true => w.packing == ConvPacking::Winograd,
        false => winograd::f32::is_profitable(g, w),
    }
}

/// Computes [`conv2d`] of `norm` of `x`. The normed images are computed piece by piece as they are
/// needed, and are never in memory as a whole. In `f32` every number is the same as that of the
/// norm followed by [`conv2d`]; in bf16 the norm's output is not rounded.
///
/// # Panics
/// As [`conv2d`]; if `norm` is not of such images, or [`can_fuse_norm`] is false.
#[allow(clippy::too_many_arguments)]
pub fn normed_conv2d<E: Element>(
    x: &[E],
    norm: &GroupNorm,
    g: &ConvGeometry,
    w: &PackedConv,
    bias: Option<&[f32]>,
    sample_bias: Option<&[f32]>,
    residual: Option<&[E]>,
    out: &mut [E],
) {
    assert!(
        can_fuse_norm::<E>(g, w),
        "a convolution that can compute its norm"
    );
    assert_eq!(norm.shape(), [g.batch, w.c_in], "images of the norm");
    conv2d_with_norm(x, Some(norm), g, w, bias, sample_bias, residual, out);
}

#[allow(clippy::too_many_arguments)]
fn conv2d_with_norm<E: Element>(
    x: &[E],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &PackedConv,
    bias: Option<&[f32]>,
    sample_bias: Option<&[f32]>,
    residual: Option<&[E]>,
    out: &mut [E],
) {
    let (height, width) = g.output_size(w.kh, w.kw);
    let outputs = g.batch * height * width * w.c_out;
    assert_eq!(
        x.len(),
        g.batch * g.height * g.width * w.c_in,
        "length of the input"
    );
    assert_eq!(out.len(), outputs, "length of the output");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), w.c_out, "length of the bias");
    }
    if let Some(bias) = sample_bias {
        assert_eq!(bias.len(), g.batch * w.c_out, "length of the sample bias");
    }
    if let Some(residual) = residual {
        assert_eq!(residual.len(), outputs, "length of the residual");
    }
    let epilogue = Epilogue {
        bias,
        sample_bias: sample_bias.map(|b| (b, height * width)),
        residual,
        ..Epilogue::default()
    };
    let format = w.panels[0].format;
    if w.packing == ConvPacking::Winograd {
        let (Some(x), Some(out)) = (E::as_bf16(x), E::as_bf16_mut(out)) else {
            panic!("weights that are packed for bf16 images alone");
        };
        let epilogue = epilogue.with_residual(residual.and_then(E::as_bf16));
        winograd::bf16::conv(x, norm, g, w, &epilogue, out);
    } else if format == WeightFormat::Int8 {
        let x = Quantised::new(w.panels[0].isa, x, w.c_in, g.height * g.width);
        let zeros = vec![ZERO_POINT; x.stride];
        let epilogue = Epilogue {
            input_scales: Some((&x.scales, height * width)),
            ..epilogue
        };
        multiply_taps(x.bytes(), x.stride, &zeros, g, w, &epilogue, out);
    } else if computes_in_f32::<E>(format) {
        let residual = residual.map(to_f32);
        let residual = residual.as_deref();
        let mut y = vec![0f32; out.len()];
        conv2d(&to_f32(x), g, w, bias, sample_bias, residual, &mut y);
        convert(&y, out);
    } else if winograd::f32::is_profitable(g, w)
        && let (Some(x), Some(out)) = (E::as_f32(x), E::as_f32_mut(out))
    {
        let epilogue = epilogue.with_residual(residual.and_then(E::as_f32));
        winograd::f32::conv(x, norm, g, w, &epilogue, out);
    } else {
        let zeros = vec![E::default(); w.c_in];
        multiply_taps(x, w.c_in, &zeros, g, w, &epilogue, out);
    }
}

/// Computes the convolution as a product, or as four for weights packed as
/// [`ConvPacking::Doubled`]. The pixels of `x` are `stride` elements apart; `zeros` is a pixel of
/// the padding.
fn multiply_taps<A: Operand, E: Element>(
    x: &[A],
    stride: usize,
    zeros: &[A],
    g: &ConvGeometry,
    w: &PackedConv,
    epilogue: &Epilogue<E>,
    out: &mut [E],
) {
    assert!(zeros.len() >= stride, "a pixel of zeros");
    if w.packing == ConvPacking::Direct {
        let panels = w.direct_panels();
        let (height, width) = g.output_size(w.kh, w.kw);
        let source = tap_pointers(x, stride, zeros, g, [w.kh, w.kw]);
        let rows = g.batch * height * width;
        // SAFETY: each pointer is the start of a pixel or of as many zeros.
        unsafe { gemm::product(rows, panels, &source, epilogue, w.c_out, out) }
        return;
    }
    let same = [g.stride, g.pad_top, g.pad_left, g.pad_bottom, g.pad_right] == [1; 5];
    assert!(g.upsample && same, "weights packed for an enlarged input");
    for (phase, panels) in w.panels.iter().enumerate() {
        let (py, px) = (phase / 2, phase % 2);
        // For even rows and columns of the output the kernel of 2 x 2 begins a pixel before the
        // input's pixel, for odd ones on it.
        let of_phase = ConvGeometry {
            pad_top: 1 - py,
            pad_left: 1 - px,
            pad_bottom: py,
            pad_right: px,
            upsample: false,
            ..*g
        };
        let output_row = |row: usize| {
            let (line, x) = (row / g.width, row % g.width);
            (2 * line + py) * 2 * g.width + 2 * x + px
        };
        let epilogue = Epilogue {
            output_row: Some(&output_row),
            ..*epilogue
        };
        let source = tap_pointers(x, stride, zeros, &of_phase, [2, 2]);
        let rows = g.batch * g.height * g.width;
        assert_eq!(out.len(), 4 * rows * w.c_out, "length of the output");
        // SAFETY: each pointer is the start of a pixel or of as many zeros; `output_row` sends
        // each row to one pixel of its phase.
        unsafe { gemm::product(rows, panels, &source, &epilogue, w.c_out, out) }
    }
}

/// Makes the function that gives, for an output pixel, pointers to the input pixels of the taps.
/// The pixels of `x` are `stride` elements apart; `zeros` is a pixel of the padding.
fn tap_pointers<'a, A: Operand>(
    x: &'a [A],
    stride: usize,
    zeros: &'a [A],
    g: &'a ConvGeometry,
    [kh, kw]: [usize; 2],
) -> impl Fn(usize, &mut [*const A]) + Sync + 'a {
    let (height, width) = g.output_size(kh, kw);
    let (in_height, in_width) = g.enlarged();
    let shift = u32::from(g.upsample);
    move |row, pointers| {
        let (image, pixel) = (row / (height * width), row % (height * width));
        let (top, left) = (pixel / width * g.stride, pixel % width * g.stride);
        for ky in 0..kh {
            for kx in 0..kw {
                // Coordinates in the padded input; above and left of the image they
                // wrap around to huge ones.
                let y = (top + ky).wrapping_sub(g.pad_top);
                let x_ = (left + kx).wrapping_sub(g.pad_left);
                pointers[ky * kw + kx] = if y < in_height && x_ < in_width {
                    let pixel = (image * g.height + (y >> shift)) * g.width + (x_ >> shift);
                    x[pixel * stride..(pixel + 1) * stride].as_ptr()
                } else {
                    zeros.as_ptr()
                };
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use half::bf16;

    use super::*;
    use crate::isa::Isa;
    use crate::test::{assert_close, noise, rounded};
    use crate::weights::Weights;

    /// The convolution in f64, straight from its definition.
    pub(crate) fn reference(x: &[f32], g: &ConvGeometry, w: &[f32], shape: [usize; 4]) -> Vec<f64> {
        let [c_out, c_in, kh, kw] = shape;
        let (ho, wo) = g.output_size(kh, kw);
        let factor = if g.upsample { 2 } else { 1 };
        let pixel = |b: usize, y: isize, x_: isize, c: usize| -> f64 {
            let inside = |v: isize, n: usize| v >= 0 && v < (n * factor) as isize;
            if !inside(y, g.height) || !inside(x_, g.width) {
                return 0.0;
            }
            let (y, x_) = (y as usize / factor, x_ as usize / factor);
            f64::from(x[((b * g.height + y) * g.width + x_) * c_in + c])
        };
        let mut out = vec![0.0; g.batch * ho * wo * c_out];
        for (i, out) in out.iter_mut().enumerate() {
            let (o, i) = (i % c_out, i / c_out);
            let (ox, i) = (i % wo, i / wo);
            let (oy, b) = (i % ho, i / ho);
            for c in 0..c_in {
                for ky in 0..kh {
                    for kx in 0..kw {
                        let y = (oy * g.stride + ky) as isize - g.pad_top as isize;
                        let x_ = (ox * g.stride + kx) as isize - g.pad_left as isize;
                        let weight = w[((o * c_in + c) * kh + ky) * kw + kx];
                        *out += pixel(b, y, x_, c) * f64::from(weight);
                    }
                }
            }
        }
        out
    }

    /// Adds the biases and the residual to the convolution `want`.
    pub(crate) fn epilogue(
        want: &mut [f64],
        pixels: usize,
        bias: &[f32],
        sample_bias: &[f32],
        residual: &[f32],
    ) {
        let c_out = bias.len();
        for (i, want) in want.iter_mut().enumerate() {
            let (o, b) = (i % c_out, i / (pixels * c_out));
            *want += f64::from(bias[o]) + f64::from(sample_bias[b * c_out + o]);
            *want += f64::from(residual[i]);
        }
    }

    fn check<E: Element>(isa: Isa, g: &ConvGeometry, shape: [usize; 4], format: WeightFormat) {
        let [c_out, c_in, kh, kw] = shape;
        let x: Vec<E> = rounded(&noise(1, g.batch * g.height * g.width * c_in));
        let x32: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let w: Vec<bf16> = rounded(&noise(2, c_out * c_in * kh * kw));
        let w32: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
        let (ho, wo) = g.output_size(kh, kw);
        let bias = noise(3, c_out);
        let sample_bias = noise(4, g.batch * c_out);
        let residual: Vec<E> = rounded(&noise(5, g.batch * ho * wo * c_out));
        let packed = PackedConv::pack_for(isa, Weights::Bf16(&w), shape, format);
        let mut want = reference(&x32, g, &w32, shape);
        let tolerance = if E::IS_BF16 { 4e-3 } else { 1e-6 };
        let what = format!("{isa} {g:?} {shape:?} {format:?}");

        let mut out = vec![E::default(); want.len()];
        conv2d(&x, g, &packed, None, None, None, &mut out);
        assert_close(&out, &want, tolerance, &what);
        conv2d(
            &x,
            g,
            &packed,
            Some(&bias),
            Some(&sample_bias),
            Some(&residual),
            &mut out,
        );
        let residual: Vec<f32> = residual.iter().map(|v| v.to_f32()).collect();
        epilogue(&mut want, ho * wo, &bias, &sample_bias, &residual);
        assert_close(
            &out,
            &want,
            tolerance,
            &format!("{what} with biases and residual"),
        );
    }

    #[test]
    fn phases_agree_with_the_enlarged_input() {
        let g = ConvGeometry {
            upsample: true,
            ..ConvGeometry::same(2, 5, 6)
        };
        for isa in Isa::available() {
            for shape in [[5, 3, 3, 3], [70, 33, 3, 3]] {
                let [c_out, c_in, ..] = shape;
                let x = noise(1, g.batch * g.height * g.width * c_in);
                // Weights whose sums are exact in bf16.
                let w: Vec<f32> = noise(2, c_out * c_in * 9)
                    .iter()
                    .map(|v| (v * 8.0).round())
                    .collect();
                let mut want = reference(&x, &g, &w, shape);
                let residual = noise(3, want.len());
                let (bias, sample_bias) = (noise(4, c_out), noise(5, g.batch * c_out));
                let pixels = 4 * g.height * g.width;
                epilogue(&mut want, pixels, &bias, &sample_bias, &residual);
                for (format, tolerance) in [
                    (WeightFormat::Bf16, 1e-6),
                    (WeightFormat::Int8, 0.03),
                    (WeightFormat::F16, 1e-6),
                ] {
                    let w = Weights::F32(&w);
                    let packed = PackedConv::pack_upsampled_for(isa, w, [c_out, c_in], format);
                    let mut out = vec![0f32; want.len()];
                    let (bias, sample_bias) = (Some(&bias[..]), Some(&sample_bias[..]));
                    conv2d(
                        &x,
                        &g,
                        &packed,
                        bias,
                        sample_bias,
                        Some(&residual),
                        &mut out,
                    );
                    assert_close(
                        &out,
                        &want,
                        tolerance,
                        &format!("{isa} {shape:?} {format:?}"),
                    );
                }
            }
        }
    }

    #[test]
    fn a_norm_on_the_way_changes_no_number() {
        let g = ConvGeometry::same(2, 27, 30);
        let (c_out, c_in, pixels) = (37, 36, g.height * g.width);
        let x = noise(1, g.batch * pixels * c_in);
        let w = noise(2, c_out * c_in * 9);
        let (gamma, beta) = (noise(3, c_in), noise(4, c_in));
        for isa in Isa::available() {
            let shape = [c_out, c_in, 3, 3];
            let packed = PackedConv::pack_for(isa, Weights::F32(&w), shape, WeightFormat::F32);
            assert!(can_fuse_norm::<f32>(&g, &packed));
            assert!(!can_fuse_norm::<bf16>(&g, &packed));
            for silu in [false, true] {
                let shape = [g.batch, pixels, c_in, 4];
                let norm = GroupNorm::new_for(isa, &x, shape, 1e-5, &gamma, &beta, silu);
                let mut normed = vec![0f32; x.len()];
                norm.apply(&x, &mut normed);
                let mut want = vec![0f32; g.batch * pixels * c_out];
                let mut out = want.clone();
                conv2d(&normed, &g, &packed, None, None, None, &mut want);
                normed_conv2d(&x, &norm, &g, &packed, None, None, None, &mut out);
                assert_eq!(out, want, "{isa}, silu: {silu}");
            }
        }
    }

    #[test]
    fn int8_is_close() {
        let g = ConvGeometry::same(2, 5, 6);
        for isa in Isa::available() {
            for shape in [[5, 3, 3, 3], [70, 33, 3, 3], [64, 96, 1, 1]] {
                let [c_out, c_in, kh, kw] = shape;
                let x = noise(1, g.batch * g.height * g.width * c_in);
                let w = noise(2, c_out * c_in * kh * kw);
                let packed = PackedConv::pack_for(isa, Weights::F32(&w), shape, WeightFormat::Int8);
                let want = reference(&x, &g, &w, shape);
                let mut out = vec![0f32; want.len()];
                conv2d(&x, &g, &packed, None, None, None, &mut out);
                assert_close(&out, &want, 0.03, &format!("{isa} {shape:?} int8"));
            }
        }
    }

    #[test]
    fn every_geometry_agrees_with_the_reference() {
        let same = ConvGeometry::same(2, 5, 7);
        let cases = [
            (same, [5, 3, 3, 3]),
            (same, [64, 4, 3, 3]),
            (same, [70, 33, 3, 3]),
            (same, [3, 600, 3, 3]),
            (
                ConvGeometry {
                    upsample: true,
                    ..same
                },
                [16, 6, 3, 3],
            ),
            (ConvGeometry { stride: 2, ..same }, [17, 8, 3, 3]),
            // The VAE encoder's downsampler pads below and to the right only.
            (
                ConvGeometry {
                    stride: 2,
                    pad_top: 0,
                    pad_left: 0,
                    height: 6,
                    width: 8,
                    ..same
                },
                [6, 5, 3, 3],
            ),
            (
                ConvGeometry {
                    pad_top: 0,
                    pad_left: 0,
                    pad_bottom: 0,
                    pad_right: 0,
                    ..same
                },
                [66, 9, 1, 1],
            ),
            (
                ConvGeometry {
                    pad_left: 2,
                    pad_right: 0,
                    height: 40,
                    width: 9,
                    batch: 1,
                    ..same
                },
                [4, 2, 2, 3],
            ),
        ];
        for isa in Isa::available() {
            for (g, shape) in &cases {
                for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16] {
                    check::<f32>(isa, g, *shape, format);
                }
                check::<bf16>(isa, g, *shape, WeightFormat::Bf16);
                check::<bf16>(isa, g, *shape, WeightFormat::F32);
            }
        }
    }
}
