//! F(4 x 4, 3 x 3) of `winograd.rs`, for `f32` images: a quarter of the multiplications.
//!
//! A tile of 4 x 4 outputs depends on 6 x 6 inputs; the points are 0, 1, -1, 2, -1/2 and infinity
//! in each direction: 36 products of channel vectors instead of 144.
//!
//! The relative error is 1.5e-6, against 3e-7 for the plain sum; points 2 and -2 or 1/2 and -1/2,
//! which are more usual, would make it 2.3e-6.
//!
//! The transformed weights are four times the weights, so they are not kept: transforming
//! them again takes a hundredth of the time of the convolutions this is used for.
//!
//! The optimisations, each with the time after it (one Zen 4 core, 512 channels at 64 x 64 /
//! 128 channels at 512 x 512; the plain sum takes 174 / 728 ms):
//! 1. Transform, multiply, transform back, a few tiles at a time: 76 / 448 ms.
//! 2. The pieces of transformed input, too short for the machine to foresee, are prefetched:
//!    70 / 381 ms.
//! 3. Fewer tiles at a time, and what will be written is prefetched: 73 / 332 ms.

#![allow(unsafe_code)]

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Algorithm, TransformInput, transposed};
use crate::dispatch::dispatch;
use crate::gemm::Epilogue;
use crate::geometry::ConvGeometry;
use crate::norm::GroupNorm;
use crate::pack::{ConvLayout, ConvPacking, PackedConv};
use crate::panels::Panels;
use crate::scratch::Scratch;
use crate::simd::{MAX_PANEL, Op, Simd, prefetch_write};
use crate::stop::StopFlag;
use crate::tile::F32;
use crate::weights::WeightFormat;
use crate::workspace::Workspace;

/// Outputs of a tile in each direction.
const OUT: usize = 4;
/// Inputs of a tile in each direction.
const IN: usize = 6;
/// Points in both directions.
const POINTS: usize = IN * IN;
/// Most elements of transformed weights.
const WEIGHTS: usize = 16 << 20;

/// Whether this convolution is one of those that are faster this way. The number of images does
/// not matter: an image's numbers must not depend on what else is in its batch.
pub(crate) fn is_profitable(g: &ConvGeometry, w: &ConvLayout) -> bool {
    let (height, width) = g.output_size(w.kh, w.kw);
    is_possible(g, w)
        && w.c_in.min(w.c_out) >= 32
        && w.c_in * w.c_out * POINTS <= WEIGHTS
        && height * width >= 512
}

/// Whether this convolution can be computed this way.
fn is_possible(g: &ConvGeometry, w: &ConvLayout) -> bool {
    w.packing == ConvPacking::Direct
        && w.kh == 3
        && w.kw == 3
        && g.stride == 1
        && w.panel_layout.format != WeightFormat::Int8
}

/// Gives the memory that [`conv`] works in.
pub(crate) fn workspace(g: &ConvGeometry, w: &ConvLayout) -> Workspace {
    let mut workspace = super::workspace::<F4x4, IN, OUT>(g, w);
    let weights = w.panel_layout.count() * panel_len(w) * size_of::<f32>();
    workspace.scratch.insert(0, weights);
    workspace
}

/// Returns the number of transformed weights of a panel: for each point, for each input channel,
/// the outputs.
fn panel_len(w: &ConvLayout) -> usize {
    POINTS * w.c_in * MAX_PANEL
}

/// Computes the convolution of `x`, or of `norm` of `x`; lengths have been checked.
pub(crate) fn conv(
    x: &[f32],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &PackedConv,
    epilogue: &Epilogue<f32>,
    out: &mut [f32],
) {
    assert!(is_possible(g, w), "not a 3x3 convolution of stride 1");
    let (panels, panel_len) = (w.direct_panels(), panel_len(w));
    let stop = StopFlag::current();
    if stop.is_raised() {
        return;
    }

    let mut weights = Scratch::new(panels.count() * panel_len);
    weights
        .par_chunks_mut(panel_len)
        .enumerate()
        .for_each(|(panel, out)| {
            if stop.is_raised() {
                return;
            }
            dispatch(panels.isa, TransformWeights { panels, panel, out });
        });
    let of_panel = |panel: usize| weights[panel * panel_len..][..panel_len].as_ptr();
    // SAFETY: for each point c_in steps, of as many vectors as the panel has.
    unsafe { super::conv::<F4x4, IN, OUT>(x, norm, g, w, &of_panel, epilogue, out) }
}

/// The algorithm of this file.
struct F4x4;

impl Algorithm<IN, OUT> for F4x4 {
    type E = f32;
    type Kernel = F32<f32>;
    const TASK_GROUPS: usize = 8;
    // What the caches of each thread hold.
    const INPUT: usize = 256 << 10;
    // As in `gemm.rs`: bounds the rounding error.
    const LONGEST: usize = 512;
    // So little input at a time is often a single task for each panel: the thread goes on with the
    // next panel.
    const PREFETCH_NEXT_PANEL: bool = true;

    #[inline(always)]
    fn transform_input<S: Simd>(s: S, task: TransformInput<'_, F4x4, IN, OUT>) {
        let tiling = task.tiling;
        let none: &[f32] = &[];
        for r in 0..S::ROWS {
            if task.first + r >= tiling.tiles() {
                break;
            }
            let (image, top, left) = tiling.position(task.first + r);
            let mut pixels = [[none; IN]; IN];
            for (y, row) in pixels.iter_mut().enumerate() {
                for (x, pixel) in row.iter_mut().enumerate() {
                    *pixel = tiling.pixel(task.x, image, top + y, left + x);
                }
            }
            for c in (0..tiling.c_in).step_by(S::LANES) {
                // These are too many places at once for the machine to foresee: without
                // prefetching, writing would wait for each.
                for point in 0..POINTS {
                    let at = (point * S::ROWS + r) * tiling.stride + c + 2 * Self::LINE;
                    prefetch_write(task.out.as_ptr().wrapping_add(at));
                }
                let mut rows = [[s.zero(); IN]; IN];
                for (row, pixels) in rows.iter_mut().zip(&pixels) {
                    let mut d = [s.zero(); IN];
                    for (d, pixel) in d.iter_mut().zip(pixels) {
                        if !pixel.is_empty() {
                            *d = s.read(pixel, c);
                            if let Some(norm) = task.norm {
                                *d = norm.apply_at(s, image, c, *d);
                            }
                        }
                    }
                    *row = input_points(s, d);
                }
                for (x, column) in transposed(rows).into_iter().enumerate() {
                    for (y, value) in input_points(s, column).into_iter().enumerate() {
                        let at = ((y * IN + x) * S::ROWS + r) * tiling.stride + c;
                        s.write(task.out, at, value);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn outputs<S: Simd>(s: S, m: [S::V; IN]) -> [S::V; OUT] {
        let sum = s.add(m[1], m[2]);
        let difference = s.sub(m[1], m[2]);
        let y0 = s.add(s.add(m[0], sum), s.add(m[3], m[4]));
        let y1 = s.fma(s.splat(2.0), m[3], s.fma(s.splat(-0.5), m[4], difference));
        let y2 = s.fma(s.splat(4.0), m[3], s.fma(s.splat(0.25), m[4], sum));
        let y3 = s.fma(s.splat(8.0), m[3], s.fma(s.splat(-0.125), m[4], difference));
        [y0, y1, y2, s.add(y3, m[5])]
    }
}

/// Computes the values at the points of the polynomial that is the transpose of multiplying by a
/// kernel (Bᵀ in the literature).
#[inline(always)]
fn input_points<S: Simd>(s: S, d: [S::V; IN]) -> [S::V; IN] {
    let half = s.splat(0.5);
    let three_halves = s.splat(1.5);
    let p = s.sub(d[1], d[3]);
    let q = s.sub(d[4], d[2]);
    let v0 = s.fma(three_halves, p, s.add(s.sub(d[0], d[2]), q));
    let v1 = s.fma(s.splat(-1.5), d[2], s.sub(q, d[1]));
    let v1 = s.fma(s.splat(-0.5), d[3], v1);
    let v2 = s.fma(three_halves, d[2], s.add(q, d[1]));
    let v2 = s.fma(s.splat(-2.5), d[3], v2);
    let v3 = s.sub(q, s.mul(half, p));
    let v4 = s.fma(s.splat(2.0), p, q);
    let v5 = s.fma(s.splat(-1.5), q, s.add(p, s.sub(d[5], d[3])));
    [v0, v1, v2, v3, v4, v5]
}

/// Computes the values of a kernel at the points, divided as interpolation needs (G).
#[inline(always)]
fn kernel_points<S: Simd>(s: S, g: [S::V; 3]) -> [S::V; IN] {
    let ends = s.add(g[0], g[2]);
    let third = s.splat(1.0 / 3.0);
    let v1 = s.mul(s.add(ends, g[1]), s.splat(-1.0 / 3.0));
    let v2 = s.mul(s.sub(ends, g[1]), third);
    let v3 = s.fma(s.splat(2.0), g[1], s.fma(s.splat(4.0), g[2], g[0]));
    let v3 = s.mul(v3, s.splat(1.0 / 15.0));
    let v4 = s.fma(s.splat(-2.0), g[1], s.fma(s.splat(4.0), g[0], g[2]));
    let v4 = s.mul(v4, s.splat(-4.0 / 15.0));
    [g[0], v1, v2, v3, v4, g[2]]
}

/// Transforms the weights of a panel.
struct TransformWeights<'a> {
    panels: &'a Panels,
    panel: usize,
    out: &'a mut [f32],
}

impl Op for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let panels = self.panels;
        let (c_in, format) = (panels.segment_len, panels.format);
        let vectors = panels.panel_vectors(self.panel);
        let width = vectors * S::LANES;
        for c in 0..c_in {
            for v in 0..vectors {
                let mut rows = [[s.zero(); IN]; 3];
                for (ky, row) in rows.iter_mut().enumerate() {
                    let mut taps = [s.zero(); 3];
                    for (kx, tap) in taps.iter_mut().enumerate() {
                        let depth = format.depth();
                        let segment = (ky * 3 + kx) * c_in.next_multiple_of(depth);
                        let step = panels.panel(self.panel, segment + c / depth * depth);
                        // SAFETY: within the panel: a step of the segment, and one of the
                        // vectors of that.
                        *tap = unsafe {
                            match format {
                                WeightFormat::F32 => s.load(step.cast::<f32>().add(v * S::LANES)),
                                WeightFormat::F16 => {
                                    s.load_f16(step.cast::<f16>().add(v * S::LANES))
                                }
                                WeightFormat::Bf16 => {
                                    let pairs = step.cast::<bf16>().add(2 * v * S::LANES);
                                    let pairs = s.load(pairs.cast());
                                    if c % 2 == 0 {
                                        s.even(pairs)
                                    } else {
                                        s.odd(pairs)
                                    }
                                }
                                WeightFormat::Int8 => unreachable!("`is_possible` excludes it"),
                            }
                        };
                    }
                    *row = kernel_points(s, taps);
                }
                for (x, taps) in transposed(rows).into_iter().enumerate() {
                    let column = kernel_points(s, taps);
                    for (y, value) in column.into_iter().enumerate() {
                        let at = ((y * IN + x) * c_in + c) * width + v * S::LANES;
                        s.write(self.out, at, value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::tests::{epilogue, reference};
    use crate::isa::Isa;
    use crate::test::{assert_close, noise};
    use crate::weights::Weights;

    #[test]
    fn every_geometry_agrees_with_the_reference() {
        let same = ConvGeometry::same(2, 5, 7);
        let cases = [
            (same, [5, 3, 3, 3]),
            (same, [70, 33, 3, 3]),
            (same, [3, 600, 3, 3]),
            (
                ConvGeometry {
                    upsample: true,
                    ..same
                },
                [16, 6, 3, 3],
            ),
            (
                ConvGeometry {
                    height: 31,
                    width: 34,
                    ..same
                },
                [48, 16, 3, 3],
            ),
            (
                ConvGeometry {
                    pad_top: 0,
                    pad_left: 2,
                    pad_right: 0,
                    ..same
                },
                [17, 8, 3, 3],
            ),
            (
                ConvGeometry {
                    height: 1,
                    width: 1,
                    ..same
                },
                [64, 8, 3, 3],
            ),
        ];
        for isa in Isa::available() {
            for (g, shape) in &cases {
                let [c_out, c_in, kh, kw] = *shape;
                let x = noise(1, g.batch * g.height * g.width * c_in);
                for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16] {
                    let w: Vec<f32> = noise(2, c_out * c_in * kh * kw)
                        .iter()
                        .map(|v| bf16::from_f32(*v).to_f32())
                        .collect();
                    let packed = PackedConv::pack_for(isa, Weights::F32(&w), *shape, format);
                    let mut want = reference(&x, g, &w, *shape);
                    let mut out = vec![0f32; want.len()];
                    let (bias, sample_bias) = (noise(3, c_out), noise(4, g.batch * c_out));
                    let residual = noise(5, want.len());
                    let (height, width) = g.output_size(kh, kw);
                    epilogue(&mut want, height * width, &bias, &sample_bias, &residual);
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        sample_bias: Some((&sample_bias, height * width)),
                        residual: Some(&residual),
                        ..Epilogue::default()
                    };
                    conv(&x, None, g, &packed, &epilogue, &mut out);
                    assert_close(
                        &out,
                        &want,
                        3e-6,
                        &format!("{isa} {g:?} {shape:?} {format:?}"),
                    );
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let g = ConvGeometry::same(1, 50, 50);
        let (x, w) = (noise(1, 50 * 50 * 40), noise(2, 72 * 40 * 9));
        let packed = PackedConv::pack(Weights::F32(&w), 72, 40, 3, 3, WeightFormat::F32);
        assert!(is_profitable(&g, &packed));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0f32; 50 * 50 * 72];
            pool.unwrap()
                .install(|| crate::conv2d(&x, &g, &packed, None, None, None, &mut out));
            out
        };
        assert_eq!(run(1), run(3));
    }
}
