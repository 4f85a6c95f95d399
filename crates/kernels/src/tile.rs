//! Products of some rows with one panel of weights, the inner loop of everything heavy.
//!
//! The sums stay in registers: with AVX-512 6 x 64 of them are 24, and four vectors of
//! weights and a broadcast activation fill the 32; with AVX2 6 x 16 take 12 of 16. So the
//! number of rows is the instruction set's ([`Simd::ROWS`]). The activations are broadcast
//! straight from where they lie, which needs no packing.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::simd::{Simd, WithRows};

/// A value that is multiplied with weights: an [`Element`], or bytes made from one.
pub(crate) trait Operand: Copy + Default + Send + Sync + 'static {}
impl<T: Copy + Default + Send + Sync + 'static> Operand for T {}

/// One kind of multiplication: what activations and weights are.
pub(crate) trait Kernel {
    /// Activations.
    type A: Operand;
    /// Weights.
    type W;
    /// Values of `k` in a step.
    const DEPTH: usize;
    /// Whether the sums are integers.
    const INTEGER: bool = false;

    /// Adds the products of a step, `k..k + DEPTH`, to the sums.
    ///
    /// # Safety
    /// Each row must have these elements, and `w` a step of `NV` vectors.
    unsafe fn step<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const Self::A; ROWS],
        k: usize,
        w: *const Self::W,
    );

    /// As `step`, when only `k` is left of a step of two.
    ///
    /// # Safety
    /// As for `step`, with one element in each row.
    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize, const ROWS: usize>(
        _: S,
        _: &mut [[S::V; NV]; ROWS],
        _: &[*const Self::A; ROWS],
        _: usize,
        _: *const Self::W,
    ) {
        unreachable!("kernels of two values a step have their own");
    }
}

/// `f32` activations with weights that are widened one by one: `f32` or `f16`.
pub(crate) struct F32<W>(PhantomData<W>);

/// `f32` activations with pairs of `bf16`.
pub(crate) struct F32Bf16;

/// Pairs of `bf16` on both sides.
pub(crate) struct Bf16Bf16;

pub(crate) trait LoadAsF32: Copy {
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
    const DEPTH: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const W,
    ) {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { W::load(s, w.add(v * S::LANES)) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat(unsafe { *rows[r].add(k) });
            for v in 0..NV {
                sums[r][v] = s.fma(a, weights[v], sums[r][v]);
            }
        }
    }
}

impl Kernel for F32Bf16 {
    type A = f32;
    type W = bf16;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for half in 0..2 {
            let mut weights = [s.zero(); NV];
            for (v, weight) in weights.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pairs = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *weight = if half == 0 {
                    s.even(pairs)
                } else {
                    s.odd(pairs)
                };
            }
            for r in 0..ROWS {
                // SAFETY: the caller's promise.
                let a = s.splat(unsafe { *rows[r].add(k + half) });
                for v in 0..NV {
                    sums[r][v] = s.fma(a, weights[v], sums[r][v]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const f32; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat(unsafe { *rows[r].add(k) });
            for (v, sum) in sums[r].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pairs = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *sum = s.fma(a, s.even(pairs), *sum);
            }
        }
    }
}

impl Kernel for Bf16Bf16 {
    type A = bf16;
    type W = bf16;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const bf16; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let pair = unsafe { rows[r].add(k).cast::<u32>().read_unaligned() };
            let a = s.splat_pair(u32::from_le(pair));
            for v in 0..NV {
                sums[r][v] = s.dot_bf16(sums[r][v], a, weights[v]);
            }
        }
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const bf16; ROWS],
        k: usize,
        w: *const bf16,
    ) {
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let a = s.splat_pair(u32::from(unsafe { (*rows[r].add(k)).to_bits() }));
            for (v, sum) in sums[r].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let weights = unsafe { s.load(w.add(2 * v * S::LANES).cast()) };
                *sum = s.dot_bf16(*sum, a, weights);
            }
        }
    }
}

/// Unsigned bytes with signed ones, to integers.
pub(crate) struct U8I8;

impl Kernel for U8I8 {
    type A = u8;
    type W = i8;
    const DEPTH: usize = 4;
    const INTEGER: bool = true;

    #[inline(always)]
    unsafe fn step<S: Simd, const NV: usize, const ROWS: usize>(
        s: S,
        sums: &mut [[S::V; NV]; ROWS],
        rows: &[*const u8; ROWS],
        k: usize,
        w: *const i8,
    ) {
        let mut weights = [s.zero(); NV];
        for (v, weight) in weights.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *weight = unsafe { s.load(w.add(4 * v * S::LANES).cast()) };
        }
        for r in 0..ROWS {
            // SAFETY: the caller's promise.
            let bytes = unsafe { rows[r].add(k).cast::<u32>().read_unaligned() };
            for v in 0..NV {
                sums[r][v] = s.dot_u8i8(sums[r][v], u32::from_le(bytes), weights[v]);
            }
        }
    }
}

/// Sums of one tile of [`Simd::ROWS`] rows over one block of `k`: `out = rows · panel`, or
/// `out += ...`.
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
                    K::step::<S, NV, ROWS>(s, &mut sums, &a, k, w);
                    w = w.add(K::DEPTH * width);
                }
                k += K::DEPTH;
            }
            if k < len {
                // SAFETY: one element is left, and the panel is padded to a whole step.
                unsafe {
                    K::last::<S, NV, ROWS>(s, &mut sums, &a, k, w);
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
