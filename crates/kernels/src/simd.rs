//! Vectors of `f32`, one implementation per instruction set.
//!
//! A value of a type that implements [`Simd`] is the proof that the machine has the
//! instructions; [`dispatch`](crate::dispatch::dispatch) is the only place that makes one.

#![allow(unsafe_code)]

use half::{bf16, f16};

use crate::element::Element;

pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// Columns of the widest weight panel: four AVX-512 vectors.
pub(crate) const MAX_PANEL: usize = 64;

/// Lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// Rows of the tallest tile.
pub(crate) const MAX_ROWS: usize = 6;

/// Arithmetic on one vector of `f32`.
///
/// The methods that take pointers are unsafe because they read or write [`Self::LANES`]
/// elements from there, of any alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    /// Elements in a vector.
    const LANES: usize;
    /// Vectors side by side in a panel of packed weights.
    const PANEL_VECTORS: usize;
    /// Rows of a tile: as many as leave registers for a panel's vectors and an activation beside
    /// the sums. At most [`MAX_ROWS`].
    const ROWS: usize;

    /// Runs code that needs [`Self::ROWS`] as a constant, which only a type's own code can name to
    /// the compiler.
    fn with_rows<F: WithRows<Self>>(self, run: F) -> F::Output;

    fn splat(self, value: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// Computes `1 / a` to 1e-4.
    fn approx_recip(self, a: Self::V) -> Self::V;
    /// Computes `a * b + c`, rounded once where the machine can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// Rounds to the nearest integer, ties to even; `|a| < 2^22`.
    fn round(self, a: Self::V) -> Self::V;
    /// Computes `a * 2^n` for integral `n` in -252..=254.
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// Computes `a * 2^n` for any `n` up to 127; where `n` is below -126 the result may be zero.
    fn scale2_flush(self, a: Self::V, n: Self::V) -> Self::V;
    /// Selects `a` where `x` is below zero, else `b`.
    fn if_negative(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    fn reduce_sum(self, a: Self::V) -> f32;
    fn reduce_max(self, a: Self::V) -> f32;

    unsafe fn load(self, from: *const f32) -> Self::V;
    unsafe fn store(self, to: *mut f32, a: Self::V);
    unsafe fn load_f16(self, from: *const f16) -> Self::V;
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;
    unsafe fn store_bf16(self, to: *mut bf16, a: Self::V);

    // The vectors of the next four hold LANES pairs of bf16, the first of a pair in the low half.
    /// Puts the same pair in every lane.
    fn splat_pair(self, pair: u32) -> Self::V;
    /// Returns the first of each pair.
    fn even(self, pairs: Self::V) -> Self::V;
    /// Returns the second of each pair.
    fn odd(self, pairs: Self::V) -> Self::V;
    /// Computes `acc + a.even * b.even + a.odd * b.odd` of two vectors of pairs.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let acc = self.fma(self.even(a), self.even(b), acc);
        self.fma(self.odd(a), self.odd(b), acc)
    }

    // The vectors of the next three hold LANES 32-bit integers, or as many groups of four bytes.
    /// Computes `acc + b₀c₀ + b₁c₁ + b₂c₂ + b₃c₃` in integers, of the unsigned bytes of `bytes`
    /// (the same four in every lane) and the signed bytes of `weights`.
    fn dot_u8i8(self, acc: Self::V, bytes: u32, weights: Self::V) -> Self::V;
    /// Computes `a + b` in integers.
    fn add_int(self, a: Self::V, b: Self::V) -> Self::V;
    /// Computes `a - b` in integers, as floats.
    fn sub_int_to_f32(self, a: Self::V, b: Self::V) -> Self::V;
    /// Writes integral numbers in 0..=255 as bytes.
    unsafe fn store_bytes(self, to: *mut u8, a: Self::V);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// Returns the elements of `x` from index `at` on; lanes past the end of `x` are zero.
    #[inline(always)]
    fn read<E: Element>(self, x: &[E], at: usize) -> Self::V {
        let left = x.len() - at;
        if left >= Self::LANES {
            let from = x[at..].as_ptr();
            // SAFETY: LANES elements are left in the slice; the cast is to E's own type.
            return unsafe {
                if E::IS_BF16 {
                    self.load_bf16(from.cast())
                } else {
                    self.load(from.cast())
                }
            };
        }
        let mut lanes = [0.0; MAX_LANES];
        for (lane, value) in lanes.iter_mut().zip(&x[at..]) {
            *lane = value.to_f32();
        }
        // SAFETY: the array holds MAX_LANES >= LANES elements.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// Writes to `out` from index `at` on; lanes past the end of `out` are dropped.
    #[inline(always)]
    fn write<E: Element>(self, out: &mut [E], at: usize, a: Self::V) {
        let left = out.len() - at;
        if left >= Self::LANES {
            let to = out[at..].as_mut_ptr();
            // SAFETY: LANES elements are left in the slice; the cast is to E's own type.
            unsafe {
                if E::IS_BF16 {
                    self.store_bf16(to.cast(), a);
                } else {
                    self.store(to.cast(), a);
                }
            }
            return;
        }
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: the array holds MAX_LANES >= LANES elements.
        unsafe { self.store(lanes.as_mut_ptr(), a) }
        for (value, lane) in out[at..].iter_mut().zip(lanes) {
            *value = E::from_f32(lane);
        }
    }

    /// Writes integral numbers in 0..=255 to `out` from index `at` on; lanes past the end
    /// of `out` are dropped.
    #[inline(always)]
    fn write_bytes(self, out: &mut [u8], at: usize, a: Self::V) {
        if out.len() - at >= Self::LANES {
            // SAFETY: LANES elements are left in the slice.
            unsafe { self.store_bytes(out[at..].as_mut_ptr(), a) }
            return;
        }
        let mut bytes = [0; MAX_LANES];
        // SAFETY: the array holds MAX_LANES >= LANES elements.
        unsafe { self.store_bytes(bytes.as_mut_ptr(), a) }
        let left = out.len() - at;
        out[at..].copy_from_slice(&bytes[..left]);
    }
}

/// A computation compiled for the height of an instruction set's tiles: see [`Simd::with_rows`].
///
/// `run` must be `#[inline(always)]`, as [`Op::run`].
pub(crate) trait WithRows<S> {
    type Output;
    fn run<const ROWS: usize>(self, s: S) -> Self::Output;
}

/// A computation written once for every instruction set.
///
/// `run` and all that it calls on vectors must be `#[inline(always)]`: only then are they
/// compiled with the instructions of the function that
/// [`dispatch`](crate::dispatch::dispatch) enters. Closures cannot be, so none of them may take a
/// vector.
pub(crate) trait Op {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Prefetches the cache line at `from`, to be read soon.
#[inline(always)]
pub(crate) fn prefetch_read<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Prefetches the cache line at `from` into the L2 cache, to be read later.
#[inline(always)]
pub(crate) fn prefetch_read_l2<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Prefetches the cache line at `to`, to be written soon.
#[inline(always)]
pub(crate) fn prefetch_write<T>(to: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(to.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = to;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::dispatch;
    use crate::isa::Isa;

    struct Check;
    impl Op for Check {
        type Output = ();
        fn run<S: Simd>(self, s: S) {
            let n = S::LANES;
            let get = |v: S::V| {
                let mut out = vec![0f32; n];
                s.write(&mut out, 0, v);
                out
            };
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 3.3) * 1.37).collect();
            let y: Vec<f32> = (0..n).map(|i| i as f32 * -0.77 + 2.1).collect();
            let (vx, vy) = (s.read(&x, 0), s.read(&y, 0));
            let map = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
                x.iter().zip(&y).map(|(a, b)| f(*a, *b)).collect()
            };
            assert_eq!(get(s.add(vx, vy)), map(&|a, b| a + b));
            assert_eq!(get(s.sub(vx, vy)), map(&|a, b| a - b));
            assert_eq!(get(s.mul(vx, vy)), map(&|a, b| a * b));
            assert_eq!(get(s.div(vx, vy)), map(&|a, b| a / b));
            for (got, x) in get(s.approx_recip(vx)).iter().zip(&x) {
                assert!((got * x - 1.0).abs() <= 1e-4);
            }
            assert_eq!(get(s.max(vx, vy)), map(&f32::max));
            assert_eq!(get(s.min(vx, vy)), map(&f32::min));
            assert_eq!(get(s.abs(vx)), map(&|a, _| a.abs()));
            assert_eq!(get(s.round(vx)), map(&|a, _| a.round_ties_even()));
            assert_eq!(
                get(s.scale2(vx, s.round(vy))),
                map(&|a, b| a * b.round_ties_even().exp2())
            );
            for n in [-1e30, -200.0, -127.0, -126.0, -3.0, 0.0, 127.0f32] {
                let got = get(s.scale2_flush(s.splat(1.5), s.splat(n)))[0];
                let want = 1.5 * n.exp2();
                assert!(got == want || (got == 0.0 && n < -126.0), "2^{n}: {got}");
            }
            assert_eq!(
                get(s.if_negative(vx, vy, vx)),
                map(&|a, b| if a < 0.0 { b } else { a })
            );
            for (got, want) in get(s.fma(vx, vy, vx)).iter().zip(map(&|a, b| a * b + a)) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0));
            }
            let sum: f32 = x.iter().sum();
            assert!((s.reduce_sum(vx) - sum).abs() < 1e-4);
            assert_eq!(s.reduce_max(vx), x.iter().copied().fold(f32::MIN, f32::max));

            let f16s: Vec<f16> = x.iter().map(|v| f16::from_f32(*v)).collect();
            // SAFETY: `half` holds LANES elements.
            let widened = unsafe { s.load_f16(f16s.as_ptr()) };
            assert_eq!(
                get(widened),
                f16s.iter().map(|v| v.to_f32()).collect::<Vec<_>>()
            );
            let wide: Vec<f32> = (0..2 * n).map(|i| (i as f32 * 0.7).sin()).collect();
            let bf16s: Vec<bf16> = wide.iter().map(|v| bf16::from_f32(*v)).collect();
            let back: Vec<f32> = bf16s.iter().map(|v| v.to_f32()).collect();
            // SAFETY: `bf16s` holds 2 * LANES elements.
            let pairs = unsafe { s.load(bf16s.as_ptr().cast()) };
            let (even, odd) = (s.even(pairs), s.odd(pairs));
            let dot = get(s.dot_bf16(vx, pairs, pairs));
            for (i, got) in dot.into_iter().enumerate() {
                let want = x[i] + back[2 * i].powi(2) + back[2 * i + 1].powi(2);
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0));
            }
            let same = s.splat_pair(0x4040_3f80);
            assert_eq!(get(s.even(same)), vec![1.0; n]);
            assert_eq!(get(s.odd(same)), vec![3.0; n]);
            assert_eq!(
                get(even),
                back.iter().copied().step_by(2).collect::<Vec<_>>()
            );
            assert_eq!(
                get(odd),
                back.iter().copied().skip(1).step_by(2).collect::<Vec<_>>()
            );
            assert_eq!(get(s.read(&bf16s, 1)), back[1..=n]);
            let mut out = vec![bf16::ZERO; n + 1];
            s.write(&mut out, 1, s.read(&wide, 0));
            assert_eq!(out[1..], bf16s[..n]);
            // Rounding: ties to even, overflow to infinity, NaN stays NaN.
            for value in [
                1.003_906_3,
                1.011_718_8,
                f32::MAX,
                -f32::MAX,
                f32::NAN,
                0.0,
                -0.0,
            ] {
                s.write(&mut out, 0, s.splat(value));
                let want = bf16::from_f32(value);
                assert!(
                    out[0] == want || (out[0].is_nan() && want.is_nan()),
                    "{value}"
                );
            }
            // Integers.
            let quads: Vec<i8> = (0..4 * n).map(|i| (i * 37 % 255) as u8 as i8).collect();
            let bits: Vec<f32> = (0..n as u32).map(|i| f32::from_bits(i * 1000)).collect();
            // SAFETY: `quads` holds LANES groups of four bytes.
            let weights = unsafe { s.load(quads.as_ptr().cast()) };
            let bytes = [255u8, 3, 128, 200];
            let sums = s.dot_u8i8(s.read(&bits, 0), u32::from_le_bytes(bytes), weights);
            let sums = s.sub_int_to_f32(s.add_int(sums, s.read(&bits, 0)), s.read(&bits, 0));
            for (i, got) in get(sums).into_iter().enumerate() {
                let products = (0..4).map(|j| i32::from(bytes[j]) * i32::from(quads[4 * i + j]));
                assert_eq!(got, (products.sum::<i32>() + i as i32 * 1000) as f32);
            }
            let mut bytes = vec![0u8; n];
            let integral: Vec<f32> = (0..n).map(|i| (255 - 17 * (i % 16)) as f32).collect();
            // SAFETY: `bytes` holds LANES bytes.
            unsafe { s.store_bytes(bytes.as_mut_ptr(), s.read(&integral, 0)) }
            assert!(
                bytes
                    .iter()
                    .zip(&integral)
                    .all(|(a, b)| f32::from(*a) == *b)
            );
            // Partial vectors.
            let got = get(s.read(&x[..n - 1], n - 2));
            assert_eq!((got[0], got[1]), (x[n - 2], 0.0));
            let mut short = vec![7f32; 3];
            s.write(&mut short, 1, vx);
            assert_eq!(short, [7.0, x[0], x[1]]);
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        for isa in Isa::available() {
            dispatch(isa, Check);
        }
    }
}
