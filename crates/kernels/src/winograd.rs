//! 3x3 convolution with a quarter of the multiplications (Winograd, "Arithmetic complexity
//! of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional neural
//! networks", 2015).
//!
//! A tile of 4 x 4 outputs depends on 6 x 6 inputs. Both are seen as polynomials, which are
//! multiplied by their values at the points 0, 1, -1, 2, -1/2 and infinity in each
//! direction: 36 products of channel vectors instead of 144. Each of the 36 is a matrix
//! product over the tiles, in tiles of as many rows as the instruction set's have.
//!
//! In `f32` the relative error is 1.5e-6, against 3e-7 for the plain sum; points 2 and -2
//! or 1/2 and -1/2, which are more usual, would make it 2.3e-6. In bf16 these points cost too
//! many digits: `winograd_bf16.rs` has less daring ones.
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

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::disjoint::DisjointOut;
use crate::gemm::Epilogue;
use crate::geometry::ConvGeometry;
use crate::norm::GroupNorm;
use crate::pack::{ConvLayout, Form, PackedConv};
use crate::panels::Panels;
use crate::scratch::Scratch;
use crate::simd::{
    MAX_LANES, MAX_PANEL, MAX_ROWS, Op, Simd, dispatch, prefetch_read, prefetch_read_l2,
    prefetch_write,
};
use crate::stop::Stop;
use crate::tile::{Single, tile};
use crate::weights::WeightFormat;
use crate::workspace::Workspace;

pub(crate) mod points;

/// Outputs of a tile in each direction.
const OUT: usize = 4;
/// Inputs of a tile in each direction.
const IN: usize = 6;
/// Elements of a cache line.
const LINE: usize = 16;
/// Points at which the polynomials are taken.
const POINTS: usize = IN * IN;
/// Tiles of a task, in groups of [`Simd::ROWS`]: their sums for one panel stay in the L2 cache.
const TASK_GROUPS: usize = 8;
/// Elements of transformed input at a time for each thread: what its caches hold.
const INPUT: usize = 256 << 10;
/// Most elements of transformed weights.
const WEIGHTS: usize = 16 << 20;

/// Whether this convolution is one of those that are faster this way. The number of images does
/// not matter: an image's numbers must not depend on what else is in its batch.
pub(crate) fn suits(g: &ConvGeometry, w: &ConvLayout) -> bool {
    let (height, width) = g.output_size(w.kh, w.kw);
    fits(g, w)
        && w.c_in.min(w.c_out) >= 32
        && w.c_in * w.c_out * POINTS <= WEIGHTS
        && height * width >= 512
}

/// Whether this convolution can be computed this way.
fn fits(g: &ConvGeometry, w: &ConvLayout) -> bool {
    w.form == Form::Taps
        && w.kh == 3
        && w.kw == 3
        && g.stride == 1
        && w.panel_layout.format != WeightFormat::Int8
}

/// Gives the memory that [`conv`] works in.
pub(crate) fn workspace(g: &ConvGeometry, w: &ConvLayout) -> Workspace {
    let plan = Plan::new(g, w);
    let tasks = w.panel_layout.count() * plan.at_once().div_ceil(TASK_GROUPS);
    let sums = POINTS * TASK_GROUPS.min(plan.at_once()) * plan.rows * w.panel_layout.width;
    let floats = [
        w.panel_layout.count() * plan.panel_len(),
        plan.at_once() * plan.group_len(),
    ];
    let sums = std::iter::repeat_n(sums, tasks.min(rayon::current_num_threads()));
    Workspace {
        temporary: 0,
        scratch: floats
            .into_iter()
            .chain(sums)
            .map(|n| n * size_of::<f32>())
            .collect(),
    }
}

/// The convolution, of `x` or of what `norm` makes of it; lengths have been checked.
pub(crate) fn conv(
    x: &[f32],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &PackedConv,
    epilogue: &Epilogue<f32>,
    out: &mut [f32],
) {
    assert!(fits(g, w), "not a 3x3 convolution of stride 1");
    let isa = w.plain().isa;
    let plan = Plan::new(g, w);
    let stop = Stop::here();
    if stop.raised() {
        return;
    }

    let mut weights = Scratch::new(w.plain().count() * plan.panel_len());
    weights
        .par_chunks_mut(plan.panel_len())
        .enumerate()
        .for_each(|(panel, out)| {
            if stop.raised() {
                return;
            }
            let panels = w.plain();
            dispatch(isa, TransformWeights { panels, panel, out });
        });

    let (group_len, groups, at_once) = (plan.group_len(), plan.groups(), plan.at_once());
    let mut input = Scratch::new(at_once * group_len);
    let shared = DisjointOut::new(out);
    for first in (0..groups).step_by(at_once) {
        if stop.raised() {
            return;
        }
        let here = at_once.min(groups - first);
        input
            .par_chunks_mut(group_len)
            .take(here)
            .enumerate()
            .for_each(|(group, out)| {
                let plan = &plan;
                let first = (first + group) * plan.rows;
                dispatch(
                    isa,
                    TransformInput {
                        plan,
                        x,
                        norm,
                        first,
                        out,
                    },
                );
            });
        let parts = here.div_ceil(TASK_GROUPS);
        let tasks = w.plain().count() * parts;
        (0..tasks).into_par_iter().for_each(|task| {
            if stop.raised() {
                return;
            }
            let (panel, part) = (task / parts, task % parts);
            let groups = part * TASK_GROUPS..here.min((part + 1) * TASK_GROUPS);
            let task = Multiply {
                plan: &plan,
                panels: w.plain(),
                panel,
                weights: &weights[panel * plan.panel_len()..],
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
        let (height, width) = g.output_size(w.kh, w.kw);
        Plan {
            g,
            c_in: w.c_in,
            c_out: w.c_out,
            height,
            width,
            rows: w.panel_layout.tile_rows,
            stride: w.c_in.next_multiple_of(MAX_LANES) + MAX_LANES,
        }
    }

    fn tiles(&self) -> usize {
        self.g.batch * self.height.div_ceil(OUT) * self.width.div_ceil(OUT)
    }

    /// Groups of tiles.
    fn groups(&self) -> usize {
        self.tiles().div_ceil(self.rows)
    }

    /// Groups whose input is transformed before any is multiplied.
    fn at_once(&self) -> usize {
        (INPUT / self.group_len())
            .next_multiple_of(TASK_GROUPS)
            .min(self.groups())
    }

    /// Elements of transformed weights of a panel: for each point, for each input channel,
    /// the outputs.
    fn panel_len(&self) -> usize {
        POINTS * self.c_in * MAX_PANEL
    }

    /// Elements of transformed input of a group of tiles: for each point, for each tile,
    /// the channels.
    fn group_len(&self) -> usize {
        POINTS * self.rows * self.stride
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

/// The values at the points of the polynomial that is the transpose of multiplying by a
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

/// The values of a kernel at the points, divided as interpolation needs (G).
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

/// The outputs from the products at the points (Aᵀ).
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

/// Rows as columns.
#[inline(always)]
pub(crate) fn transposed<V: Copy, const M: usize, const N: usize>(
    rows: [[V; N]; M],
) -> [[V; M]; N] {
    let mut columns = [[rows[0][0]; M]; N];
    for (y, row) in rows.into_iter().enumerate() {
        for (x, value) in row.into_iter().enumerate() {
            columns[x][y] = value;
        }
    }
    columns
}

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
                                WeightFormat::Int8 => unreachable!("`fits` excludes it"),
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

/// Transforms the input of a group of tiles.
struct TransformInput<'a> {
    plan: &'a Plan<'a>,
    x: &'a [f32],
    norm: Option<&'a GroupNorm>,
    first: usize,
    out: &'a mut [f32],
}

impl Op for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (plan, g) = (self.plan, self.plan.g);
        let shift = u32::from(g.upsample);
        let none: &[f32] = &[];
        for r in 0..S::ROWS {
            if self.first + r >= plan.tiles() {
                // The group is full with what was there before; nobody looks at the sums.
                break;
            }
            let (image, top, left) = plan.position(self.first + r);
            let mut pixels = [[none; IN]; IN];
            for (y, row) in pixels.iter_mut().enumerate() {
                for (x, pixel) in row.iter_mut().enumerate() {
                    // Above and left of the image these wrap around to huge numbers.
                    let y = (top + y).wrapping_sub(g.pad_top);
                    let x = (left + x).wrapping_sub(g.pad_left);
                    if y < g.height << shift && x < g.width << shift {
                        let at = (image * g.height + (y >> shift)) * g.width + (x >> shift);
                        *pixel = &self.x[at * plan.c_in..(at + 1) * plan.c_in];
                    }
                }
            }
            for c in (0..plan.c_in).step_by(S::LANES) {
                // Writing to so many places at once waits for each, if not announced.
                for point in 0..POINTS {
                    let at = (point * S::ROWS + r) * plan.stride + c + 2 * LINE;
                    prefetch_write(self.out.as_ptr().wrapping_add(at));
                }
                let mut rows = [[s.zero(); IN]; IN];
                for (row, pixels) in rows.iter_mut().zip(&pixels) {
                    let mut d = [s.zero(); IN];
                    for (d, pixel) in d.iter_mut().zip(pixels) {
                        if !pixel.is_empty() {
                            *d = s.read(pixel, c);
                            if let Some(norm) = self.norm {
                                *d = norm.at(s, image, c, *d);
                            }
                        }
                    }
                    *row = input_points(s, d);
                }
                for (x, column) in transposed(rows).into_iter().enumerate() {
                    for (y, value) in input_points(s, column).into_iter().enumerate() {
                        let at = ((y * IN + x) * S::ROWS + r) * plan.stride + c;
                        s.write(self.out, at, value);
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
    weights: &'a [f32],
    input: &'a [f32],
    first: usize,
    epilogue: &'a Epilogue<'a, f32>,
    out: &'a DisjointOut<'a, f32>,
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
        /// As in `gemm`: bounds the rounding error.
        const LONGEST: usize = 512;
        let plan = self.plan;
        let width = NV * S::LANES;
        let group_len = plan.group_len();
        let groups = self.input.len() / group_len;
        let mut sums = Scratch::new(POINTS * groups * S::ROWS * width);
        for (point, sums) in sums.chunks_exact_mut(groups * S::ROWS * width).enumerate() {
            let weights = &self.weights[point * plan.c_in * width..][..plan.c_in * width];
            for first in (0..plan.c_in).step_by(LONGEST) {
                let len = LONGEST.min(plan.c_in - first);
                let w = weights[first * width..].as_ptr();
                for (group, sums) in sums.chunks_exact_mut(S::ROWS * width).enumerate() {
                    let input = &self.input[group * group_len..][..group_len];
                    let mut rows = [std::ptr::null(); MAX_ROWS];
                    let rows = &mut rows[..S::ROWS];
                    for (r, row) in rows.iter_mut().enumerate() {
                        *row = input[(point * S::ROWS + r) * plan.stride..][..plan.c_in].as_ptr();
                    }
                    self.prefetch(point, group, width);
                    // SAFETY: each row has c_in elements, and the weights c_in steps of
                    // this width.
                    unsafe {
                        let add = first > 0;
                        tile::<S, Single<f32>, NV>(s, rows, first, len, w, add, sums, width);
                    }
                }
            }
        }
        for t in 0..groups * S::ROWS {
            if self.first + t < plan.tiles() {
                self.prefetch_out(self.first + t + 1);
                self.finish(s, self.first + t, &sums[t * width..], width);
            }
        }
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
        let weights = plan.c_in * width;
        let part = weights.div_ceil(groups);
        let first = (point + 1) * weights + group * part;
        for i in (first..first + part).step_by(LINE) {
            prefetch_read_l2(self.weights.as_ptr().wrapping_add(i));
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
        let columns: Range<usize> =
            self.panel * self.panels.width..plan.c_out.min((self.panel + 1) * self.panels.width);
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
                let column = outputs(s, m);
                for (y, value) in column.into_iter().enumerate() {
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
    use crate::test::{assert_close, noise};
    use crate::weights::Weights;

    #[test]
    fn every_geometry_agrees_with_the_reference() {
        let same = ConvGeometry {
            batch: 2,
            height: 5,
            width: 7,
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            pad_bottom: 1,
            pad_right: 1,
            upsample: false,
        };
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
                        input_scales: None,
                        bias: Some(&bias),
                        sample_bias: Some((&sample_bias, height * width)),
                        activation: crate::math::Activation::None,
                        residual: Some(&residual),
                        geglu: false,
                        place: None,
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
        let g = ConvGeometry {
            batch: 1,
            height: 50,
            width: 50,
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            pad_bottom: 1,
            pad_right: 1,
            upsample: false,
        };
        let (x, w) = (noise(1, 50 * 50 * 40), noise(2, 72 * 40 * 9));
        let packed = PackedConv::pack(Weights::F32(&w), 72, 40, 3, 3, WeightFormat::F32);
        assert!(suits(&g, &packed));
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
