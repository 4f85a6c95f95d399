//! 3x3 convolution of bf16 images with 4/9 of the multiplications (see `winograd.rs` for what is
//! behind it, and where it was found).
//!
//! A tile of 2 x 2 outputs depends on 4 x 4 inputs; the points are 0, 1, -1 and infinity: 16 products
//! of channel vectors instead of 36. Larger tiles save more and cost digits: bf16 has none to lose.
//!
//! Rounding error: input and weights are each rounded once, as they are for the plain sum, but
//! after they are transformed, and the transforms let through 25/9 of the variance of independent
//! errors: so the sum's error is 1.67 times the one that rounded factors alone cause. That includes
//! a norm before the convolution, which is computed in `f32` on the way. The output is rounded as
//! ever.
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
use rayon::prelude::*;

use crate::disjoint::DisjointOut;
use crate::gemm::Epilogue;
use crate::geometry::ConvGeometry;
use crate::norm::GroupNorm;
use crate::pack::{ConvLayout, PackedConv};
use crate::panels::Panels;
use crate::scratch::Scratch;
use crate::simd::{MAX_ROWS, Op, Simd, dispatch, prefetch_read, prefetch_read_l2, prefetch_write};
use crate::stop::Stop;
use crate::tile::{Dot, tile};
use crate::winograd::points::{IN, POINTS};
use crate::winograd::transposed;
use crate::workspace::Workspace;

/// Outputs of a tile in each direction.
const OUT: usize = 2;
/// Elements of a cache line.
const LINE: usize = 32;
/// Tiles of a task, in groups of [`Simd::ROWS`]: their sums for one panel and the weights of one
/// point stay in the L2 cache.
const TASK_GROUPS: usize = 32;
/// Elements of transformed input at a time: what the L3 cache holds beside the weights of a panel.
const INPUT: usize = 2 << 20;

/// The values at the points of the polynomial that is the transpose of multiplying by a kernel.
#[inline(always)]
fn input_points<S: Simd>(s: S, d: [S::V; IN]) -> [S::V; IN] {
    [
        s.sub(d[0], d[2]),
        s.add(d[1], d[2]),
        s.sub(d[2], d[1]),
        s.sub(d[1], d[3]),
    ]
}

/// The outputs from the products at the points.
#[inline(always)]
fn outputs<S: Simd>(s: S, m: [S::V; IN]) -> [S::V; OUT] {
    [
        s.add(m[0], s.add(m[1], m[2])),
        s.sub(s.sub(m[1], m[2]), m[3]),
    ]
}

/// Gives the memory that [`conv`] needs while it works.
pub(crate) fn workspace(g: &ConvGeometry, w: &ConvLayout) -> Workspace {
    let plan = Plan::new(g, w);
    let at_once = plan.at_once();
    let tasks = w.panel_layout.count() * at_once.div_ceil(TASK_GROUPS);
    let sums = POINTS * TASK_GROUPS.min(at_once) * plan.rows * w.panel_layout.width;
    let sums = std::iter::repeat_n(sums, tasks.min(rayon::current_num_threads()));
    let floats = std::iter::once((at_once * plan.group_len()).div_ceil(2)).chain(sums);
    Workspace {
        temporary: 0,
        scratch: floats.map(|n| n * size_of::<f32>()).collect(),
    }
}

/// The convolution, of `x` or of what `norm` makes of it; lengths have been checked, and that `w`
/// was packed for this.
pub(crate) fn conv(
    x: &[bf16],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &PackedConv,
    epilogue: &Epilogue<bf16>,
    out: &mut [bf16],
) {
    let panels = w.points();
    let isa = panels.isa;
    let plan = Plan::new(g, w);
    let group_len = plan.group_len();
    let groups = plan.groups();
    let at_once = plan.at_once();
    let mut input = Scratch::new((at_once * group_len).div_ceil(2));
    let input: &mut [bf16] = bytemuck::cast_slice_mut(&mut input);
    let shared = DisjointOut::new(out);
    let stop = Stop::here();
    for first in (0..groups).step_by(at_once) {
        if stop.raised() {
            return;
        }
        let here = at_once.min(groups - first);
        (input.par_chunks_mut(group_len).take(here).enumerate()).for_each(|(group, out)| {
            let transform = TransformInput {
                plan: &plan,
                x,
                norm,
                first: (first + group) * plan.rows,
                out,
            };
            dispatch(isa, transform);
        });
        let parts = here.div_ceil(TASK_GROUPS);
        (0..panels.count() * parts)
            .into_par_iter()
            .for_each(|task| {
                if stop.raised() {
                    return;
                }
                let (panel, part) = (task / parts, task % parts);
                let groups = part * TASK_GROUPS..here.min((part + 1) * TASK_GROUPS);
                let task = Multiply {
                    plan: &plan,
                    panels,
                    panel,
                    input: &input[groups.start * group_len..groups.end * group_len],
                    first: (first + groups.start) * plan.rows,
                    epilogue,
                    out: &shared,
                };
                dispatch(isa, task);
            });
    }
}

/// The positions of the tiles and the layout of the transformed data.
struct Plan<'a> {
    g: &'a ConvGeometry,
    c_in: usize,
    c_out: usize,
    height: usize,
    width: usize,
    /// Tiles of a group: rows of a kernel's tile.
    rows: usize,
    /// Elements between the transformed inputs of two tiles: the channels and a line more,
    /// because powers of two would compete for the same lines of a cache.
    stride: usize,
}

impl<'a> Plan<'a> {
    fn new(g: &'a ConvGeometry, w: &ConvLayout) -> Plan<'a> {
        assert!(
            w.kh == 3 && w.kw == 3 && g.stride == 1,
            "a 3x3 convolution of stride 1"
        );
        let (height, width) = g.output_size(w.kh, w.kw);
        Plan {
            g,
            c_in: w.c_in,
            c_out: w.c_out,
            height,
            width,
            rows: w.panel_layout.tile_rows,
            stride: w.c_in.next_multiple_of(LINE) + LINE,
        }
    }

    fn tiles(&self) -> usize {
        self.g.batch * self.height.div_ceil(OUT) * self.width.div_ceil(OUT)
    }

    /// Groups of tiles.
    fn groups(&self) -> usize {
        self.tiles().div_ceil(self.rows)
    }

    /// Elements of transformed input of a group of tiles: for each point, for each tile,
    /// the channels.
    fn group_len(&self) -> usize {
        POINTS * self.rows * self.stride
    }

    /// Groups whose input is transformed before any is multiplied.
    fn at_once(&self) -> usize {
        (INPUT / self.group_len())
            .next_multiple_of(TASK_GROUPS)
            .min(self.groups())
    }

    /// Image, and row and column of the first output of a tile.
    fn position(&self, tile: usize) -> (usize, usize, usize) {
        let across = self.width.div_ceil(OUT);
        let down = self.height.div_ceil(OUT);
        (
            tile / (across * down),
            tile / across % down * OUT,
            tile % across * OUT,
        )
    }
}

/// Transforms the input of a group of tiles.
struct TransformInput<'a> {
    plan: &'a Plan<'a>,
    x: &'a [bf16],
    norm: Option<&'a GroupNorm>,
    first: usize,
    out: &'a mut [bf16],
}

impl Op for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (plan, g) = (self.plan, self.plan.g);
        let shift = u32::from(g.upsample);
        let none: &[bf16] = &[];
        // By tile, then by column. The group may be incomplete: what was there before stays, and
        // nobody looks at the sums.
        let tiles = S::ROWS.min(plan.tiles() - self.first);
        let mut pixels = [[[none; IN]; IN]; MAX_ROWS];
        let mut images = [0; MAX_ROWS];
        // Whether the left half of a tile is the right half of the one before.
        let mut continued = [false; MAX_ROWS];
        for r in 0..tiles {
            let (image, top, left) = plan.position(self.first + r);
            images[r] = image;
            continued[r] = r > 0 && left > 0;
            for (x, column) in pixels[r].iter_mut().enumerate() {
                for (y, pixel) in column.iter_mut().enumerate() {
                    // Above and left of the image these wrap around to huge numbers.
                    let y = (top + y).wrapping_sub(g.pad_top);
                    let x = (left + x).wrapping_sub(g.pad_left);
                    if y < g.height << shift && x < g.width << shift {
                        let at = (image * g.height + (y >> shift)) * g.width + (x >> shift);
                        *pixel = &self.x[at * plan.c_in..(at + 1) * plan.c_in];
                    }
                }
            }
        }
        for line in (0..plan.c_in).step_by(LINE) {
            // So many places at once are waited for, each by itself, if not announced.
            for r in 0..tiles {
                for column in &pixels[r][if continued[r] { 2 } else { 0 }..] {
                    for pixel in column {
                        prefetch_read(pixel.as_ptr().wrapping_add(line + LINE));
                    }
                }
                for point in 0..POINTS {
                    let at = (point * S::ROWS + r) * plan.stride + line + LINE;
                    prefetch_write(self.out.as_ptr().wrapping_add(at));
                }
            }
            for c in (line..plan.c_in.min(line + LINE)).step_by(S::LANES) {
                let mut columns = [[s.zero(); IN]; IN];
                for r in 0..tiles {
                    let factors = self.norm.map(|norm| norm.factors(s, images[r], c));
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
                                if let (Some(norm), Some(factors)) = (self.norm, factors) {
                                    *d = norm.with(s, factors, *d, true);
                                }
                            }
                        }
                        columns[x] = input_points(s, d);
                    }
                    for (y, row) in transposed(columns).into_iter().enumerate() {
                        for (x, value) in input_points(s, row).into_iter().enumerate() {
                            let at = ((y * IN + x) * S::ROWS + r) * plan.stride + c;
                            s.write(self.out, at, value);
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies some groups of tiles with one panel and writes their outputs.
struct Multiply<'a> {
    plan: &'a Plan<'a>,
    panels: &'a Panels,
    panel: usize,
    input: &'a [bf16],
    first: usize,
    epilogue: &'a Epilogue<'a, bf16>,
    out: &'a DisjointOut<'a, bf16>,
}

impl Op for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let vectors = self.panels.panel_vectors(self.panel);
        if S::PANEL_VECTORS == 4 {
            match vectors {
                1 => self.multiply::<S, 1>(s),
                2 => self.multiply::<S, 2>(s),
                3 => self.multiply::<S, 3>(s),
                _ => self.multiply::<S, 4>(s),
            }
        } else {
            match vectors {
                1 => self.multiply::<S, 1>(s),
                _ => self.multiply::<S, 2>(s),
            }
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const NV: usize>(&self, s: S) {
        let plan = self.plan;
        let width = NV * S::LANES;
        let group_len = plan.group_len();
        let groups = self.input.len() / group_len;
        let mut sums = Scratch::new(POINTS * groups * S::ROWS * width);
        for (point, sums) in sums.chunks_exact_mut(groups * S::ROWS * width).enumerate() {
            let w = self.weights(point);
            for (group, sums) in sums.chunks_exact_mut(S::ROWS * width).enumerate() {
                let input = &self.input[group * group_len..][..group_len];
                let mut rows = [std::ptr::null(); MAX_ROWS];
                let rows = &mut rows[..S::ROWS];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = input[(point * S::ROWS + r) * plan.stride..][..plan.c_in].as_ptr();
                }
                self.prefetch(point, group, width);
                // SAFETY: each row has c_in elements, and a point's segment of the panel as many
                // steps of this width.
                unsafe { tile::<S, Dot, NV>(s, rows, 0, plan.c_in, w, false, sums, width) }
            }
        }
        for t in 0..groups * S::ROWS {
            if self.first + t < plan.tiles() {
                self.prefetch_out(self.first + t + 1);
                self.finish(s, self.first + t, &sums[t * width..], width);
            }
        }
    }

    /// The panel's weights of a point.
    #[inline(always)]
    fn weights(&self, point: usize) -> *const bf16 {
        let k = point * self.plan.c_in.next_multiple_of(2);
        self.panels.panel(self.panel, k).cast()
    }

    /// Asks for what is needed after this group: the input of the next one, which is too
    /// short a piece for the machine to foresee, and a part of the next point's weights.
    #[inline(always)]
    fn prefetch(&self, point: usize, group: usize, width: usize) {
        let plan = self.plan;
        let groups = self.input.len() / plan.group_len();
        let (next_point, next_group) = if group + 1 < groups {
            (point, group + 1)
        } else {
            (point + 1, 0)
        };
        let rows = next_group * plan.group_len() + next_point * plan.rows * plan.stride;
        for i in (0..plan.rows * plan.stride).step_by(LINE) {
            prefetch_read(self.input.as_ptr().wrapping_add(rows + i));
        }
        if point + 1 < POINTS {
            let weights = plan.c_in.next_multiple_of(2) * width;
            let part = weights.div_ceil(groups);
            let next = self.weights(point + 1);
            for i in (group * part..weights.min((group + 1) * part)).step_by(LINE) {
                prefetch_read_l2(next.wrapping_add(i));
            }
        }
    }

    /// Asks for the outputs of a tile, to be written soon, and for what is added to them.
    #[inline(always)]
    fn prefetch_out(&self, tile: usize) {
        let plan = self.plan;
        let (image, top, left) = plan.position(tile);
        for y in top..plan.height.min(top + OUT) {
            for x in left..plan.width.min(left + OUT) {
                let pixel = (image * plan.height + y) * plan.width + x;
                let at = pixel * plan.c_out + self.panel * self.panels.width;
                for i in (0..self.panels.width).step_by(LINE) {
                    prefetch_write(self.out.address(at + i));
                    if let Some(residual) = self.epilogue.residual {
                        prefetch_read(residual.as_ptr().wrapping_add(at + i));
                    }
                }
            }
        }
    }

    /// Writes the outputs of a tile; `sums` are those of the first point, the other points'
    /// follow at the distance of all tiles.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, tile: usize, sums: &[f32], width: usize) {
        let plan = self.plan;
        let points = self.input.len() / plan.group_len() * plan.rows * width;
        let first = self.panel * self.panels.width;
        let columns = first..plan.c_out.min(first + self.panels.width);
        let (image, top, left) = plan.position(tile);
        let bias = self.epilogue.bias.map(|b| &b[columns.clone()]);
        let sample_bias = self
            .epilogue
            .sample_bias
            .map(|(b, _)| &b[image * plan.c_out..][columns.clone()]);
        for i in (0..columns.len()).step_by(S::LANES) {
            let mut shift = s.zero();
            if let Some(bias) = bias {
                shift = s.read(bias, i);
            }
            if let Some(bias) = sample_bias {
                shift = s.add(shift, s.read(bias, i));
            }
            let mut rows = [[s.zero(); OUT]; IN];
            for (y, row) in rows.iter_mut().enumerate() {
                let mut m = [s.zero(); IN];
                for (x, m) in m.iter_mut().enumerate() {
                    *m = s.read(sums, (y * IN + x) * points + i);
                }
                *row = outputs(s, m);
            }
            for (x, m) in transposed(rows).into_iter().enumerate() {
                if left + x >= plan.width {
                    break;
                }
                for (y, value) in outputs(s, m).into_iter().enumerate() {
                    if top + y >= plan.height {
                        break;
                    }
                    let pixel = (image * plan.height + top + y) * plan.width + left + x;
                    let at = pixel * plan.c_out + columns.start;
                    // SAFETY: these channels of this pixel, inside the output, belong to
                    // this task alone.
                    let out = unsafe { self.out.part(at, columns.len()) };
                    let mut value = s.add(value, shift);
                    if let Some(residual) = self.epilogue.residual {
                        value = s.add(value, s.read(&residual[at..at + columns.len()], i));
                    }
                    s.write(out, i, value);
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
    use crate::test::{assert_close, noise, rounded};
    use crate::weights::{WeightFormat, Weights};

    fn same(batch: usize, height: usize, width: usize) -> ConvGeometry {
        ConvGeometry {
            batch,
            height,
            width,
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            pad_bottom: 1,
            pad_right: 1,
            upsample: false,
        }
    }

    fn values(x: &[bf16]) -> Vec<f32> {
        x.iter().map(|v| v.to_f32()).collect()
    }

    #[test]
    fn every_geometry_agrees_with_the_reference() {
        let cases = [
            (same(2, 5, 7), [5, 3]),
            (same(2, 5, 7), [70, 33]),
            (same(1, 1, 1), [16, 40]),
            (same(1, 4, 6), [3, 600]),
            (same(2, 31, 34), [130, 64]),
            (
                ConvGeometry {
                    upsample: true,
                    ..same(2, 5, 7)
                },
                [16, 6],
            ),
            (
                ConvGeometry {
                    pad_top: 0,
                    pad_left: 2,
                    pad_right: 0,
                    ..same(2, 5, 9)
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
        let (g, [c_out, c_in]) = (same(1, 24, 24), [64, 96]);
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
        let (g, [c_out, c_in]) = (same(2, 13, 9), [40, 48]);
        let pixels = g.height * g.width;
        let x: Vec<bf16> = rounded(&noise(1, g.batch * pixels * c_in));
        let w: Vec<bf16> = rounded(&noise(2, c_out * c_in * 9));
        let (gamma, beta) = (noise(3, c_in), noise(4, c_in));
        for isa in Isa::available() {
            let packed = PackedConv::pack_winograd_for(isa, Weights::Bf16(&w), [c_out, c_in]);
            for silu in [false, true] {
                let shape = [g.batch, pixels, c_in, 4];
                let norm = GroupNorm::on(isa, &x, shape, 1e-5, &gamma, &beta, silu);
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
        let (g, [c_out, c_in]) = (same(2, 50, 50), [72, 40]);
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
