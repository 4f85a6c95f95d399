//! Vectors as arrays, for the compiler to map to whatever the target has.

use std::array::from_fn;

use half::{bf16, f16};

use super::{Simd, WithRows};

const LANES: usize = 8;

/// Vectors as arrays, for tiles of so many rows.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const ROWS: usize>;

impl<const ROWS: usize> Simd for Portable<ROWS> {
    type V = [f32; LANES];
    const LANES: usize = LANES;
    const PANEL_VECTORS: usize = 2;
    const ROWS: usize = ROWS;

    #[inline(always)]
    fn with_rows<F: WithRows<Self>>(self, run: F) -> F::Output {
        run.run::<ROWS>(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn approx_recip(self, a: Self::V) -> Self::V {
        from_fn(|i| 1.0 / a[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // `mul_add` is a library call on x86-64 without FMA, an instruction on aarch64.
        if cfg!(target_arch = "aarch64") {
            from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        from_fn(|i| a[i].abs())
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no bits for a fraction, and rounds as the machine does.
        const SHIFT: f32 = 12_582_912.0;
        from_fn(|i| (a[i] + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V {
        from_fn(|i| {
            let n = n[i] as i32;
            let half = n >> 1;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            a[i] * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn scale2_flush(self, a: Self::V, n: Self::V) -> Self::V {
        // An exponent field of zero makes the factor zero.
        from_fn(|i| {
            let n = if n[i] < -127.0 { -127.0 } else { n[i] };
            a[i] * f32::from_bits(((n as i32 + 127) as u32) << 23)
        })
    }
    #[inline(always)]
    fn if_negative(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| if x[i] < 0.0 { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn reduce_sum(self, a: Self::V) -> f32 {
        let b: [f32; 4] = from_fn(|i| a[i] + a[i + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
    #[inline(always)]
    fn reduce_max(self, a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    // SAFETY (all below): the caller promises the elements; reads and writes are unaligned.
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: Self::V) {
        // SAFETY: see above.
        unsafe { to.cast::<Self::V>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::V {
        // SAFETY: see above.
        let raw = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        from_fn(|i| f16::from_bits(raw[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V {
        // SAFETY: see above.
        let raw = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        from_fn(|i| f32::from_bits(u32::from(raw[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, a: Self::V) {
        let raw: [u16; LANES] = from_fn(|i| bf16::from_f32(a[i]).to_bits());
        // SAFETY: see above.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(raw) }
    }
    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Self::V {
        [f32::from_bits(pair); LANES]
    }
    #[inline(always)]
    fn even(self, pairs: Self::V) -> Self::V {
        from_fn(|i| f32::from_bits(pairs[i].to_bits() << 16))
    }
    #[inline(always)]
    fn odd(self, pairs: Self::V) -> Self::V {
        from_fn(|i| f32::from_bits(pairs[i].to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn dot_u8i8(self, acc: Self::V, bytes: u32, weights: Self::V) -> Self::V {
        let bytes = bytes.to_le_bytes();
        from_fn(|i| {
            let weights = weights[i].to_bits().to_ne_bytes();
            let products = (0..4).map(|j| i32::from(bytes[j]) * i32::from(weights[j] as i8));
            let sum = acc[i].to_bits() as i32 + products.sum::<i32>();
            f32::from_bits(sum as u32)
        })
    }
    #[inline(always)]
    fn add_int(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| f32::from_bits(a[i].to_bits().wrapping_add(b[i].to_bits())))
    }
    #[inline(always)]
    fn sub_int_to_f32(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i].to_bits().wrapping_sub(b[i].to_bits()) as i32 as f32)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, a: Self::V) {
        let bytes: [u8; LANES] = from_fn(|i| a[i] as u8);
        // SAFETY: see above.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(bytes) }
    }
}
