//! Products of some rows with one panel of weights: the inner loop of all heavy kernels.
//!
//! The sums stay in registers: with AVX-512 6 x 64 of them are 24, and four vectors of
//! weights and a broadcast activation fill the 32; with AVX2 6 x 16 take 12 of 16. So the
//! number of rows is the instruction set's ([`Simd::ROWS`]). The activations are broadcast
//! straight from where they lie, which needs no packing.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::simd::{Simd, WithRows};

/// A value that is multiplied with weights: an [`Element`](crate::Element), or bytes made from one.
pub(crate) trait Operand: Copy + Default + Send + Sync + 'static {}
impl<T: Copy + Default + Send + Sync + 'static> Operand for T {}

/// A kind of multiplication, named after the types of its activations and its weights.
///
/// All functions must be `#[inline(always)]`, as [`Op::run`](crate::simd::Op::run).
pub(crate) trait Kernel {
    /// Activations.
    type A: Operand;
    /// Weights.
    type W;
    /// An activation, or as many as are multiplied at once, in every lane.
    type Broadcast<S: Simd>: Copy;
    /// Values of `k` in a step of the panel.
    const DEPTH: usize;
    /// Multiplications that a step takes, of as many values of `k` each.
    const PARTS: usize = 1;
    /// Whether the sums are integers.
    const INTEGER: bool = false;

    /// Loads vector `v` of a part of the step of weights at `step`.
    ///
    /// # Safety
    /// The step must have this vector.
    unsafe fn load_weights<S: Simd>(s: S, step: *const Self::W, v: usize, part: usize) -> S::V;

    /// Loads the activations of a part of a step; with `last`, the one that is left where a row
    /// ends in the middle of a step of two.
    ///
    /// # Safety
    /// `DEPTH / PARTS` activations must be there; with `last`, one.
    unsafe fn broadcast<S: Simd>(s: S, from: *const Self::A, last: bool) -> Self::Broadcast<S>;

    /// Computes `sum + a * w`, or the sum of as many products as are multiplied at once.
    fn multiply_add<S: Simd>(s: S, sum: S::V, a: Self::Broadcast<S>, w: S::V) -> S::V;
}

/// `f32` activations with weights that are widened one by one: `f32` or `f16`.
pub(crate) struct F32<W>(PhantomData<W>);

/// Weights that are loaded as vectors of `f32`.
trait LoadAsF32: Copy {
    /// Loads a vector.
    ///
    /// # Safety
    /// As for [`Simd::load`].
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;
}

impl LoadAsF32 for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }
}

impl LoadAsF32 for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

impl<W: LoadAsF32> Kernel for F32<W> {
    type A = f32;
    type W = W;
    type Broadcast<S: Simd> = S::V;
    const DEPTH: usize = 1;

    #[inline(always)]
    unsafe fn load_weights<S: Simd>(s: S, step: *const W, v: usize, _: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { W::load(s, step.add(v * S::LANES)) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Simd>(s: S, from: *const f32, _: bool) -> S::V {
        // SAFETY: the caller's promise.
        s.splat(unsafe { *from })
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::V, a: S::V, w: S::V) -> S::V {
        s.fma(a, w, sum)
    }
}

/// `f32` activations with pairs of `bf16` weights, which are widened: first the first of each
/// pair, then the second.
pub(crate) struct F32Bf16;

impl Kernel for F32Bf16 {
    type A = f32;
    type W = bf16;
    type Broadcast<S: Simd> = S::V;
    const DEPTH: usize = 2;
    const PARTS: usize = 2;

    #[inline(always)]
    unsafe fn load_weights<S: Simd>(s: S, step: *const bf16, v: usize, part: usize) -> S::V {
        // SAFETY: the caller's promise.
        let pairs = unsafe { s.load(step.add(2 * v * S::LANES).cast()) };
        if part == 0 {
            s.even(pairs)
        } else {
            s.odd(pairs)
        }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Simd>(s: S, from: *const f32, _: bool) -> S::V {
        // SAFETY: the caller's promise.
        s.splat(unsafe { *from })
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::V, a: S::V, w: S::V) -> S::V {
        s.fma(a, w, sum)
    }
}

/// Pairs of `bf16` activations with pairs of `bf16` weights.
pub(crate) struct Bf16Bf16;

impl Kernel for Bf16Bf16 {
    type A = bf16;
    type W = bf16;
    type Broadcast<S: Simd> = S::V;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn load_weights<S: Simd>(s: S, step: *const bf16, v: usize, _: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(step.add(2 * v * S::LANES).cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Simd>(s: S, from: *const bf16, last: bool) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            s.splat_pair(if last {
                // With a second that is zero.
                u32::from((*from).to_bits())
            } else {
                u32::from_le(from.cast::<u32>().read_unaligned())
            })
        }
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::V, a: S::V, w: S::V) -> S::V {
        s.dot_bf16(sum, a, w)
    }
}

/// Groups of four unsigned bytes with groups of four signed ones, to integers.
pub(crate) struct U8I8;

impl Kernel for U8I8 {
    type A = u8;
    type W = i8;
    type Broadcast<S: Simd> = u32;
    const DEPTH: usize = 4;
    const INTEGER: bool = true;

    #[inline(always)]
    unsafe fn load_weights<S: Simd>(s: S, step: *const i8, v: usize, _: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(step.add(4 * v * S::LANES).cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast<S: Simd>(_: S, from: *const u8, _: bool) -> u32 {
        // SAFETY: the caller's promise.
        u32::from_le(unsafe { from.cast::<u32>().read_unaligned() })
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, sum: S::V, a: u32, w: S::V) -> S::V {
        s.dot_u8i8(sum, a, w)
    }
}

/// Adds the products of a step of weights and of the activations at `k` to the sums; with `LAST`,
/// when of a step of two only the value at `k` is left.
///
/// # Safety
/// Each row must have these elements, and `w` a step of `NV` vectors.
#[inline(always)]
unsafe fn add_step<S: Simd, K: Kernel, const NV: usize, const ROWS: usize, const LAST: bool>(
    s: S,
    sums: &mut [[S::V; NV]; ROWS],
    rows: &[*const K::A; ROWS],
    k: usize,
    w: *const K::W,
) {
    for part in 0..if LAST { 1 } else { K::PARTS } {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { K::load_weights(s, w, v, part) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = unsafe { K::broadcast(s, rows[r].add(k + part), LAST) };
            for v in 0..NV {
                sums[r][v] = K::multiply_add(s, sums[r][v], a, weights[v]);
            }
        }
    }
}

/// Computes the sums of one tile of [`Simd::ROWS`] rows over one block of `k`: `out = rows ·
/// panel`, or `out += ...`.
///
/// `rows` lists as many pointers for each segment; of each row the elements
/// `offset..offset + len` are taken. The sum starts from zero in either case. The rows of
/// `out` are `stride` apart.
///
/// # Safety
/// All rows must have these elements. `w` must have `rows.len() / ROWS` segments of `len`
/// padded to whole steps, each step `NV` vectors wide.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn tile<S: Simd, K: Kernel, const NV: usize>(
    s: S,
    rows: &[*const K::A],
    offset: usize,
    len: usize,
    w: *const K::W,
    add: bool,
    out: &mut [f32],
    stride: usize,
) {
    s.with_rows(TileArgs::<K, NV> {
        rows,
        offset,
        len,
        w,
        add,
        out,
        stride,
    });
}

/// The arguments of [`tile`], which alone makes it: its caller keeps the promises.
struct TileArgs<'a, K: Kernel, const NV: usize> {
    rows: &'a [*const K::A],
    offset: usize,
    len: usize,
    w: *const K::W,
    add: bool,
    out: &'a mut [f32],
    stride: usize,
}

impl<S: Simd, K: Kernel, const NV: usize> WithRows<S> for TileArgs<'_, K, NV> {
    type Output = ();

    #[inline(always)]
    fn run<const ROWS: usize>(self, s: S) {
        let TileArgs {
            rows,
            offset,
            len,
            mut w,
            add,
            out,
            stride,
        } = self;
        let width = NV * S::LANES;
        let mut sums = [[s.zero(); NV]; ROWS];
        for segment in rows.chunks_exact(ROWS) {
            let mut a = [std::ptr::null(); ROWS];
            for r in 0..ROWS {
                a[r] = segment[r].wrapping_add(offset);
            }
            let mut k = 0;
            while k + K::DEPTH <= len {
                // SAFETY: k + DEPTH <= len, and the caller promises len elements.
                unsafe {
                    add_step::<S, K, NV, ROWS, false>(s, &mut sums, &a, k, w);
                    w = w.add(K::DEPTH * width);
                }
                k += K::DEPTH;
            }
            if k < len {
                assert!(
                    K::DEPTH == 2,
                    "rows end with a whole step, or in the middle of a pair"
                );
                // SAFETY: one element is left, and the panel is padded to a whole step.
                unsafe {
                    add_step::<S, K, NV, ROWS, true>(s, &mut sums, &a, k, w);
                    w = w.add(K::DEPTH * width);
                }
            }
        }
        assert!(out.len() >= (ROWS - 1) * stride + width && stride >= width);
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, mut sum) in sums.into_iter().enumerate() {
                // SAFETY: within `out`, by the assertion.
                unsafe {
                    let at = out.as_mut_ptr().add(r * stride + v * S::LANES);
                    if add && K::INTEGER {
                        sum = s.add_int(s.load(at), sum);
                    } else if add {
                        sum = s.add(s.load(at), sum);
                    }
                    s.store(at, sum);
                }
            }
        }
    }
}
