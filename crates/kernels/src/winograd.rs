//! 3x3 convolution with fewer multiplications (Winograd, "Arithmetic complexity of
//! computations", 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks",
//! 2015).
//!
//! A tile of `OUT` x `OUT` outputs depends on `IN` x `IN` inputs, two more in each direction. Both
//! are seen as polynomials, which are multiplied by their values at `IN` points in each direction:
//! `IN²` products of channel vectors instead of `9 OUT²`. At each of these points the product is
//! one of matrices, the tiles times the kernels, and is computed in the tiles of `tile.rs`, whose
//! rows are then the convolution's tiles: a *group* of them.
//!
//! There are two algorithms: F(4 x 4, 3 x 3) for `f32` images (`f32.rs`), and F(2 x 2, 3 x 3) for
//! bf16 images (`bf16.rs`), whose few digits would not bear the first one's rounding errors. They
//! differ in their points, in how they get at transformed inputs and weights, and in the sizes
//! that suit their elements. This file has all the rest: the tiles' positions, the products and
//! the outputs.

#![allow(unsafe_code)]

use bytemuck::Pod;
use rayon::prelude::*;

use crate::disjoint::DisjointOut;
use crate::dispatch::dispatch;
use crate::element::Element;
use crate::gemm::Epilogue;
use crate::geometry::ConvGeometry;
use crate::norm::GroupNorm;
use crate::pack::ConvLayout;
use crate::panels::PanelLayout;
use crate::scratch::Scratch;
use crate::simd::{MAX_ROWS, Op, Simd, prefetch_read, prefetch_read_l2, prefetch_write};
use crate::stop::StopFlag;
use crate::tile::{Kernel, tile};
use crate::workspace::Workspace;

pub(crate) mod bf16;
pub(crate) mod f32;
pub(crate) mod points;

/// One of the algorithms F(`OUT` x `OUT`, 3 x 3).
trait Algorithm<const IN: usize, const OUT: usize>: Sized {
    /// Elements of the images.
    type E: Element + Pod;
    /// The multiplication of transformed inputs with transformed weights.
    type Kernel: Kernel<A = Self::E>;
    /// Groups of a task: the sums of a panel with them stay in the L2 cache.
    const TASK_GROUPS: usize;
    /// Elements of transformed input at a time: what a cache holds.
    const INPUT: usize;
    /// Most channels that are summed before the sum is added to that of the channels before: whole
    /// steps of the kernel.
    const LONGEST: usize;
    /// Whether the weights of the next panel are asked for when this panel's come to their end.
    const PREFETCH_NEXT_PANEL: bool;

    /// Points in both directions.
    const POINTS: usize = IN * IN;
    /// Elements of a cache line.
    const LINE: usize = 64 / size_of::<Self::E>();

    /// Transforms the input of a group of tiles.
    fn transform_input<S: Simd>(s: S, task: TransformInput<'_, Self, IN, OUT>);

    /// Computes the outputs from the products at the points, in one direction (Aᵀ in the
    /// literature).
    fn outputs<S: Simd>(s: S, products: [S::V; IN]) -> [S::V; OUT];
}

/// The weights of an algorithm's kernel.
type Weight<A, const IN: usize, const OUT: usize> =
    <<A as Algorithm<IN, OUT>>::Kernel as Kernel>::W;

/// Gives the memory that [`conv`] works in.
fn workspace<A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize>(
    g: &ConvGeometry,
    w: &ConvLayout,
) -> Workspace {
    let tiling = Tiling::new::<A, IN>(g, w);
    let at_once = tiling.at_once;
    let tasks = w.panel_layout.count() * at_once.div_ceil(A::TASK_GROUPS);
    let sums = A::POINTS * A::TASK_GROUPS.min(at_once) * tiling.rows * w.panel_layout.width;
    let sums = std::iter::repeat_n(sums, tasks.min(rayon::current_num_threads()));
    let f32s = std::iter::once(f32s_in::<A::E>(at_once * tiling.group_len)).chain(sums);
    Workspace {
        temporary: 0,
        scratch: f32s.map(|n| n * size_of::<f32>()).collect(),
    }
}

/// Returns how many `f32` have the memory of `len` elements.
fn f32s_in<E>(len: usize) -> usize {
    (len * size_of::<E>()).div_ceil(size_of::<f32>())
}

/// Computes the convolution of `x`, or of `norm` of `x`; lengths have been checked.
/// `weights(panel)` points to the transformed weights of a panel.
///
/// # Safety
/// For each point, one after the other, these must be weights for `c_in` values of `k` as [`tile`]
/// takes them, padded to whole steps, each step as wide as the panel.
unsafe fn conv<A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize>(
    x: &[A::E],
    norm: Option<&GroupNorm>,
    g: &ConvGeometry,
    w: &ConvLayout,
    weights: &(impl Fn(usize) -> *const Weight<A, IN, OUT> + Sync),
    epilogue: &Epilogue<A::E>,
    out: &mut [A::E],
) {
    let panels = &w.panel_layout;
    let tiling = Tiling::new::<A, IN>(g, w);
    let (group_len, groups, at_once) = (tiling.group_len, tiling.groups(), tiling.at_once);
    let mut input = Scratch::new(f32s_in::<A::E>(at_once * group_len));
    let input: &mut [A::E] = bytemuck::cast_slice_mut(&mut input);
    let shared = DisjointOut::new(out);
    let stop = StopFlag::current();
    for first in (0..groups).step_by(at_once) {
        if stop.is_raised() {
            return;
        }
        let here = at_once.min(groups - first);
        (input.par_chunks_mut(group_len).take(here).enumerate()).for_each(|(group, out)| {
            let transform = TransformInput::<A, IN, OUT> {
                tiling: &tiling,
                x,
                norm,
                first: (first + group) * tiling.rows,
                out,
            };
            dispatch(panels.isa, transform);
        });
        let parts = here.div_ceil(A::TASK_GROUPS);
        let tasks = panels.count() * parts;
        (0..tasks).into_par_iter().for_each(|task| {
            if stop.is_raised() {
                return;
            }
            let (panel, part) = (task / parts, task % parts);
            let groups = part * A::TASK_GROUPS..here.min((part + 1) * A::TASK_GROUPS);
            let task = MultiplyPanel::<A, IN, OUT> {
                tiling: &tiling,
                panels,
                panel,
                weights: weights(panel),
                input: &input[groups.start * group_len..groups.end * group_len],
                first: (first + groups.start) * tiling.rows,
                epilogue,
                out: &shared,
            };
            dispatch(panels.isa, task);
        });
    }
}

/// The positions of the tiles and the layout of the transformed input.
struct Tiling<'a, const OUT: usize> {
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
    /// Elements of transformed input of a group of tiles: for each point, for each tile,
    /// the channels.
    group_len: usize,
    /// Groups whose input is transformed before any is multiplied.
    at_once: usize,
}

impl<'a, const OUT: usize> Tiling<'a, OUT> {
    fn new<A: Algorithm<IN, OUT>, const IN: usize>(
        g: &'a ConvGeometry,
        w: &ConvLayout,
    ) -> Tiling<'a, OUT> {
        assert!(
            w.kh == 3 && w.kw == 3 && g.stride == 1,
            "a 3x3 convolution of stride 1"
        );
        let (height, width) = g.output_size(w.kh, w.kw);
        let rows = w.panel_layout.tile_rows;
        let stride = w.c_in.next_multiple_of(A::LINE) + A::LINE;
        let mut tiling = Tiling {
            g,
            c_in: w.c_in,
            c_out: w.c_out,
            height,
            width,
            rows,
            stride,
            group_len: A::POINTS * rows * stride,
            at_once: 0,
        };
        tiling.at_once = (A::INPUT / tiling.group_len)
            .next_multiple_of(A::TASK_GROUPS)
            .min(tiling.groups());
        tiling
    }

    fn tiles(&self) -> usize {
        self.g.batch * self.height.div_ceil(OUT) * self.width.div_ceil(OUT)
    }

    fn groups(&self) -> usize {
        self.tiles().div_ceil(self.rows)
    }

    /// Returns the image of a tile, and the row and column of its first output.
    fn position(&self, tile: usize) -> (usize, usize, usize) {
        let across = self.width.div_ceil(OUT);
        let down = self.height.div_ceil(OUT);
        (
            tile / (across * down),
            tile / across % down * OUT,
            tile % across * OUT,
        )
    }

    /// Returns the channels of a pixel of `x`, at a row and a column of the padded image; none
    /// where that is padding.
    #[inline(always)]
    fn pixel<'x, E>(&self, x: &'x [E], image: usize, row: usize, column: usize) -> &'x [E] {
        let g = self.g;
        let shift = u32::from(g.upsample);
        // Above and left of the image these wrap around to huge numbers.
        let row = row.wrapping_sub(g.pad_top);
        let column = column.wrapping_sub(g.pad_left);
        if row < g.height << shift && column < g.width << shift {
            let at = (image * g.height + (row >> shift)) * g.width + (column >> shift);
            &x[at * self.c_in..(at + 1) * self.c_in]
        } else {
            &[]
        }
    }
}

/// Transposes a matrix.
#[inline(always)]
fn transposed<V: Copy, const M: usize, const N: usize>(rows: [[V; N]; M]) -> [[V; M]; N] {
    let mut columns = [[rows[0][0]; M]; N];
    for (y, row) in rows.into_iter().enumerate() {
        for (x, value) in row.into_iter().enumerate() {
            columns[x][y] = value;
        }
    }
    columns
}

/// Transforms the input of a group of tiles.
struct TransformInput<'a, A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize> {
    tiling: &'a Tiling<'a, OUT>,
    x: &'a [A::E],
    norm: Option<&'a GroupNorm>,
    /// The first tile. The group may be incomplete: the places of tiles that are not there keep
    /// what was in them, and their sums are never read.
    first: usize,
    out: &'a mut [A::E],
}

impl<A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize> Op
    for TransformInput<'_, A, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        A::transform_input(s, self);
    }
}

/// Multiplies some groups of tiles with one panel and writes their outputs.
struct MultiplyPanel<'a, A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize> {
    tiling: &'a Tiling<'a, OUT>,
    panels: &'a PanelLayout,
    panel: usize,
    /// The panel's transformed weights: see [`conv`].
    weights: *const Weight<A, IN, OUT>,
    input: &'a [A::E],
    first: usize,
    epilogue: &'a Epilogue<'a, A::E>,
    out: &'a DisjointOut<'a, A::E>,
}

impl<A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize> Op
    for MultiplyPanel<'_, A, IN, OUT>
{
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

impl<A: Algorithm<IN, OUT>, const IN: usize, const OUT: usize> MultiplyPanel<'_, A, IN, OUT> {
    #[inline(always)]
    fn multiply<S: Simd, const NV: usize>(&self, s: S) {
        let tiling = self.tiling;
        let width = NV * S::LANES;
        let group_len = tiling.group_len;
        let groups = self.input.len() / group_len;
        let mut sums = Scratch::new(A::POINTS * groups * S::ROWS * width);
        for (point, sums) in sums.chunks_exact_mut(groups * S::ROWS * width).enumerate() {
            let weights = self.weights(point, width);
            for first in (0..tiling.c_in).step_by(A::LONGEST) {
                let len = A::LONGEST.min(tiling.c_in - first);
                let w = weights.wrapping_add(first * width);
                for (group, sums) in sums.chunks_exact_mut(S::ROWS * width).enumerate() {
                    let input = &self.input[group * group_len..][..group_len];
                    let mut rows = [std::ptr::null(); MAX_ROWS];
                    let rows = &mut rows[..S::ROWS];
                    for (r, row) in rows.iter_mut().enumerate() {
                        let at = (point * S::ROWS + r) * tiling.stride;
                        *row = input[at..][..tiling.c_in].as_ptr();
                    }
                    self.prefetch(point, group, width);
                    // Known to the compiler where there is nothing to add to.
                    let add = A::LONGEST < usize::MAX && first > 0;
                    // SAFETY: each row has c_in elements, and a point's weights are as many
                    // steps of this width.
                    unsafe {
                        tile::<S, A::Kernel, NV>(s, rows, first, len, w, add, sums, width);
                    }
                }
            }
        }
        for t in 0..groups * S::ROWS {
            if self.first + t < tiling.tiles() {
                self.prefetch_out(self.first + t + 1);
                self.finish(s, self.first + t, &sums[t * width..], width);
            }
        }
    }

    /// Returns the panel's weights of a point, or of the point after the last, where they end.
    #[inline(always)]
    fn weights(&self, point: usize, width: usize) -> *const Weight<A, IN, OUT> {
        self.weights
            .wrapping_add(point * self.weights_of_point(width))
    }

    /// Returns the number of a point's weights, with padding.
    #[inline(always)]
    fn weights_of_point(&self, width: usize) -> usize {
        self.tiling.c_in.next_multiple_of(A::Kernel::DEPTH) * width
    }

    /// Asks for what is needed after this group: the input of the next one, which is too
    /// short a piece for the machine to foresee, and a part of the next point's weights.
    #[inline(always)]
    fn prefetch(&self, point: usize, group: usize, width: usize) {
        let tiling = self.tiling;
        let groups = self.input.len() / tiling.group_len;
        let (next_point, next_group) = if group + 1 < groups {
            (point, group + 1)
        } else {
            (point + 1, 0)
        };
        let rows = next_group * tiling.group_len + next_point * tiling.rows * tiling.stride;
        for i in (0..tiling.rows * tiling.stride).step_by(A::LINE) {
            prefetch_read(self.input.as_ptr().wrapping_add(rows + i));
        }
        if A::PREFETCH_NEXT_PANEL || point + 1 < A::POINTS {
            let weights = self.weights_of_point(width);
            let part = weights.div_ceil(groups);
            let next = self.weights(point + 1, width);
            for i in (group * part..weights.min((group + 1) * part)).step_by(A::LINE) {
                prefetch_read_l2(next.wrapping_add(i));
            }
        }
    }

    /// Asks for the outputs of a tile, to be written soon, and for what is added to them.
    #[inline(always)]
    fn prefetch_out(&self, tile: usize) {
        let tiling = self.tiling;
        let (image, top, left) = tiling.position(tile);
        for y in top..tiling.height.min(top + OUT) {
            for x in left..tiling.width.min(left + OUT) {
                let pixel = (image * tiling.height + y) * tiling.width + x;
                let at = pixel * tiling.c_out + self.panel * self.panels.width;
                for i in (0..self.panels.width).step_by(A::LINE) {
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
        let tiling = self.tiling;
        let points = self.input.len() / tiling.group_len * tiling.rows * width;
        let first = self.panel * self.panels.width;
        let columns = first..tiling.c_out.min(first + self.panels.width);
        let (image, top, left) = tiling.position(tile);
        let bias = self.epilogue.bias.map(|b| &b[columns.clone()]);
        let sample_bias = self
            .epilogue
            .sample_bias
            .map(|(b, _)| &b[image * tiling.c_out..][columns.clone()]);
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
                let mut products = [s.zero(); IN];
                for (x, product) in products.iter_mut().enumerate() {
                    *product = s.read(sums, (y * IN + x) * points + i);
                }
                *row = A::outputs(s, products);
            }
            for (x, products) in transposed(rows).into_iter().enumerate() {
                if left + x >= tiling.width {
                    break;
                }
                for (y, value) in A::outputs(s, products).into_iter().enumerate() {
                    if top + y >= tiling.height {
                        break;
                    }
                    let pixel = (image * tiling.height + top + y) * tiling.width + left + x;
                    let at = pixel * tiling.c_out + columns.start;
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
