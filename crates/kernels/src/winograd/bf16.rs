//! F(2 x 2, 3 x 3) of `winograd.rs`, for bf16 images: 4/9 of the multiplications.
//!
//! A tile of 2 x 2 outputs depends on 4 x 4 inputs; the points are 0, 1, -1 and infinity: 16
//! products of channel vectors instead of 36. Larger tiles save more and cost digits: bf16 has none
//! to lose.
//!
//! Rounding error: input and weights are each rounded once, as they are for the plain sum, but
//! after they are transformed, and the transforms let through 25/9 of the variance of independent
//! errors: so the sum's error is 1.67 times the one that rounded factors alone cause. That includes
//! a norm before the convolution, whose output stays `f32` until it is transformed. The output is
//! rounded as in the plain sum.
//!
//! The weights are transformed when they are packed: 16/9 of the memory, and small maps would not
//! pay for doing it at every call.
//!
//! Speed (two Zen 4 cores, with norm and SiLU, 640 channels at 64 x 64 / 1280 at 32 x 32; the plain
//! sum alone takes 34 / 138 ms): 18 / 71 ms, where the multiplications by themselves would take
//! 15 / 58. Columns that two tiles share are normed once (the norm is a tenth of the time at 320
//! channels).

#![allow(unsafe_code)]

use half::bf16;

use super::points::IN;
use super::{Algorithm, TransformInput, transposed};
use crate::gemm::Epilogue;
use crate::geometry::ConvGeometry;
use crate::norm::GroupNorm;
use crate::pack::{ConvLayout, PackedConv};
use crate::simd::{MAX_ROWS, Simd, prefetch_read, prefetch_write};
use crate::tile::Bf16Bf16;
use crate::workspace::Workspace;

/// Outputs of a tile in each direction.
const OUT: usize = 2;

/// Gives the memory that [`conv`] works in.
pub(crate) fn workspace(g: &ConvGeometry, w: &ConvLayout) -> Workspace {
    super::workspace::<F2x2, IN, OUT>(g, w)
}

/// Computes the convolution of `x`, or of `norm` of `x`; lengths have been checked, and
/// that `w` was packed for this.
pub(crate) fn conv(
    x: &[bf16],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &PackedConv,
    epilogue: &Epilogue<bf16>,
    out: &mut [bf16],
) {
    let panels = w.winograd_panels();
    let of_panel = |panel: usize| panels.panel(panel, 0).cast();
    // SAFETY: the segments of these panels are the points.
    unsafe { super::conv::<F2x2, IN, OUT>(x, norm, g, w, &of_panel, epilogue, out) }
}

/// The algorithm of this file.
struct F2x2;

impl Algorithm<IN, OUT> for F2x2 {
    type E = bf16;
    type Kernel = Bf16Bf16;
    // The weights of one point have room in the L2 cache, too.
    const TASK_GROUPS: usize = 32;
    // What the L3 cache holds beside the weights of a panel.
    const INPUT: usize = 2 << 20;
    // Rounded factors cost more digits than the longest sum.
    const LONGEST: usize = usize::MAX;
    // A panel's groups are several tasks: what follows is mostly the same panel's weights again.
    const PREFETCH_NEXT_PANEL: bool = false;

    #[inline(always)]
    fn transform_input<S: Simd>(s: S, task: TransformInput<'_, F2x2, IN, OUT>) {
        let tiling = task.tiling;
        let none: &[bf16] = &[];
        // By tile, then by column.
        let tiles = S::ROWS.min(tiling.tiles() - task.first);
        let mut pixels = [[[none; IN]; IN]; MAX_ROWS];
        let mut images = [0; MAX_ROWS];
        // Whether the left half of a tile is the right half of the one before.
        let mut continued = [false; MAX_ROWS];
        for r in 0..tiles {
            let (image, top, left) = tiling.position(task.first + r);
            images[r] = image;
            continued[r] = r > 0 && left > 0;
            for (x, column) in pixels[r].iter_mut().enumerate() {
                for (y, pixel) in column.iter_mut().enumerate() {
                    *pixel = tiling.pixel(task.x, image, top + y, left + x);
                }
            }
        }
        for line in (0..tiling.c_in).step_by(Self::LINE) {
            // These are too many places at once for the machine to foresee: without prefetching
            // it would wait for each.
            for r in 0..tiles {
                for column in &pixels[r][if continued[r] { 2 } else { 0 }..] {
                    for pixel in column {
                        prefetch_read(pixel.as_ptr().wrapping_add(line + Self::LINE));
                    }
                }
                for point in 0..Self::POINTS {
                    let at = (point * S::ROWS + r) * tiling.stride + line + Self::LINE;
                    prefetch_write(task.out.as_ptr().wrapping_add(at));
                }
            }
            for c in (line..tiling.c_in.min(line + Self::LINE)).step_by(S::LANES) {
                let mut columns = [[s.zero(); IN]; IN];
                for r in 0..tiles {
                    let factors = task.norm.map(|norm| norm.factors(s, images[r], c));
                    let mut begin = 0;
                    if continued[r] {
                        columns[0] = columns[2];
                        columns[1] = columns[3];
                        begin = 2;
                    }
                    for x in begin..IN {
                        let mut d = [s.zero(); IN];
                        for (d, pixel) in d.iter_mut().zip(&pixels[r][x]) {
                            if !pixel.is_empty() {
                                *d = s.read(pixel, c);
                                if let (Some(norm), Some(factors)) = (task.norm, factors) {
                                    *d = norm.apply_factors(s, factors, *d, true);
                                }
                            }
                        }
                        columns[x] = input_points(s, d);
                    }
                    for (y, row) in transposed(columns).into_iter().enumerate() {
                        for (x, value) in input_points(s, row).into_iter().enumerate() {
                            let at = ((y * IN + x) * S::ROWS + r) * tiling.stride + c;
                            s.write(task.out, at, value);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn outputs<S: Simd>(s: S, m: [S::V; IN]) -> [S::V; OUT] {
        [
            s.add(m[0], s.add(m[1], m[2])),
            s.sub(s.sub(m[1], m[2]), m[3]),
        ]
    }
}

/// Computes the values at the points of the polynomial that is the transpose of multiplying by a
/// kernel.
#[inline(always)]
fn input_points<S: Simd>(s: S, d: [S::V; IN]) -> [S::V; IN] {
    [
        s.sub(d[0], d[2]),
        s.add(d[1], d[2]),
        s.sub(d[2], d[1]),
        s.sub(d[1], d[3]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::tests::{epilogue, reference};
    use crate::isa::Isa;
    use crate::test::{assert_close, noise, rounded};
    use crate::weights::{WeightFormat, Weights};

    fn values(x: &[bf16]) -> Vec<f32> {
        x.iter().map(|v| v.to_f32()).collect()
    }

    #[test]
    fn every_geometry_agrees_with_the_reference() {
        let cases = [
            (ConvGeometry::same(2, 5, 7), [5, 3]),
            (ConvGeometry::same(2, 5, 7), [70, 33]),
            (ConvGeometry::same(1, 1, 1), [16, 40]),
            (ConvGeometry::same(1, 4, 6), [3, 600]),
            (ConvGeometry::same(2, 31, 34), [130, 64]),
            (
                ConvGeometry {
                    upsample: true,
                    ..ConvGeometry::same(2, 5, 7)
                },
                [16, 6],
            ),
            (
                ConvGeometry {
                    pad_top: 0,
                    pad_left: 2,
                    pad_right: 0,
                    ..ConvGeometry::same(2, 5, 9)
                },
                [64, 8],
            ),
        ];
        for isa in Isa::available() {
            for (g, [c_out, c_in]) in &cases {
                let x: Vec<bf16> = rounded(&noise(1, g.batch * g.height * g.width * c_in));
                let w: Vec<bf16> = rounded(&noise(2, c_out * c_in * 9));
                let packed = PackedConv::pack_winograd_for(isa, Weights::Bf16(&w), [*c_out, *c_in]);
                let shape = [*c_out, *c_in, 3, 3];
                let mut want = reference(&values(&x), g, &values(&w), shape);
                let mut out = vec![bf16::ZERO; want.len()];
                let (bias, sample_bias) = (noise(3, *c_out), noise(4, g.batch * c_out));
                let residual: Vec<bf16> = rounded(&noise(5, want.len()));
                let (height, width) = g.output_size(3, 3);
                epilogue(
                    &mut want,
                    height * width,
                    &bias,
                    &sample_bias,
                    &values(&residual),
                );
                crate::conv2d(
                    &x,
                    g,
                    &packed,
                    Some(&bias),
                    Some(&sample_bias),
                    Some(&residual),
                    &mut out,
                );
                assert_close(&out, &want, 5e-3, &format!("{isa} {g:?} {shape:?}"));
            }
        }
    }

    /// The head of this file says by how much an error grows; more would be a mistake.
    #[test]
    fn rounding_costs_what_it_must() {
        let (g, [c_out, c_in]) = (ConvGeometry::same(1, 24, 24), [64, 96]);
        let x: Vec<bf16> = rounded(&noise(1, g.height * g.width * c_in));
        let w: Vec<bf16> = rounded(&noise(2, c_out * c_in * 9));
        let want = reference(&values(&x), &g, &values(&w), [c_out, c_in, 3, 3]);
        let error = |packed: &PackedConv| {
            let mut out = vec![bf16::ZERO; want.len()];
            crate::conv2d(&x, &g, packed, None, None, None, &mut out);
            let squares = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>();
            let off = squares(
                &mut out
                    .iter()
                    .zip(&want)
                    .map(|(a, b)| f64::from(a.to_f32()) - b),
            );
            off / squares(&mut want.iter().copied())
        };
        let plain = error(&PackedConv::pack(
            Weights::Bf16(&w),
            c_out,
            c_in,
            3,
            3,
            WeightFormat::Bf16,
        ));
        // Only the output is rounded in the plain sum, factors too in this one.
        let fast = error(&PackedConv::pack_winograd(
            Weights::Bf16(&w),
            c_out,
            c_in,
            WeightFormat::Bf16,
        ));
        let factors = (fast - plain) / plain;
        assert!(
            factors < 2.0 * 25.0 / 9.0 * 1.1,
            "{factors}: {plain:e}, {fast:e}"
        );
        assert!(factors > 1.0, "{factors}: it cannot be that good");
    }

    #[test]
    fn a_norm_on_the_way_is_the_norm() {
        let (g, [c_out, c_in]) = (ConvGeometry::same(2, 13, 9), [40, 48]);
        let pixels = g.height * g.width;
        let x: Vec<bf16> = rounded(&noise(1, g.batch * pixels * c_in));
        let w: Vec<bf16> = rounded(&noise(2, c_out * c_in * 9));
        let (gamma, beta) = (noise(3, c_in), noise(4, c_in));
        for isa in Isa::available() {
            let packed = PackedConv::pack_winograd_for(isa, Weights::Bf16(&w), [c_out, c_in]);
            for silu in [false, true] {
                let shape = [g.batch, pixels, c_in, 4];
                let norm = GroupNorm::new_for(isa, &x, shape, 1e-5, &gamma, &beta, silu);
                let mut normed = vec![0f32; x.len()];
                norm.apply(&values(&x), &mut normed);
                let want = reference(&normed, &g, &values(&w), [c_out, c_in, 3, 3]);
                let mut out = vec![bf16::ZERO; want.len()];
                crate::normed_conv2d(&x, &norm, &g, &packed, None, None, None, &mut out);
                assert_close(&out, &want, 5e-3, &format!("{isa}, silu: {silu}"));
            }
        }
    }

    #[test]
    fn threads_and_batches_do_not_change_the_result() {
        let (g, [c_out, c_in]) = (ConvGeometry::same(2, 50, 50), [72, 40]);
        let x: Vec<bf16> = rounded(&noise(1, 2 * 2500 * c_in));
        let w = noise(2, c_out * c_in * 9);
        let packed = PackedConv::pack_winograd(Weights::F32(&w), c_out, c_in, WeightFormat::Bf16);
        let run = |threads, g: ConvGeometry| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![bf16::ZERO; g.batch * 2500 * c_out];
            let x = &x[..g.batch * 2500 * c_in];
            pool.unwrap()
                .install(|| crate::conv2d(x, &g, &packed, None, None, None, &mut out));
            out
        };
        let both = run(1, g);
        assert_eq!(both, run(3, g));
        let first = ConvGeometry { batch: 1, ..g };
        assert_eq!(both[..2500 * c_out], run(2, first));
    }
}
