//! AVX2 and AVX-512 vectors.
//!
//! SAFETY of every block here: a value of `Avx2` or `Avx512` exists only inside `run_avx2`
//! or `run_avx512`, which require the instructions; pointers are the caller's promise.

use std::arch::x86_64::*;
use std::mem;

use half::{bf16, f16};

use super::{Op, Simd, WithRows};

#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Rows of a tile: the sums take 24 of 32 registers.
const AVX512_ROWS: usize = 6;

/// With `BF16`, also the instructions for bf16 and the int8 dot product.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run_avx2<O: Op>(op: O) -> O::Output {
    op.run(Avx2(()))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn run_avx512<O: Op>(op: O) -> O::Output {
    op.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[target_feature(enable = "avx512bf16,avx512vnni")]
pub(crate) fn run_avx512_bf16<O: Op>(op: O) -> O::Output {
    op.run(Avx512::<true>(()))
}

/// Methods whose bodies are expressions of intrinsics.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty $body:block)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) -> $out {
                // SAFETY: see the head of this file.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
        )*
    };
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const PANEL_VECTORS: usize = 2;
    // The sums take 12 of 16 registers.
    const ROWS: usize = 6;

    #[inline(always)]
    fn with_rows<F: WithRows<Self>>(self, run: F) -> F::Output {
        run.run::<{ Self::ROWS }>(self)
    }

    methods! {
        fn splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn approx_recip(a: __m256) -> __m256 {
            // Right to 3e-4; a step of Newton's method doubles the digits.
            let r = _mm256_rcp_ps(a);
            _mm256_mul_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(2.0)))
        }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn round(a: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn scale2(a: __m256, n: __m256) -> __m256 {
            // Two factors, so that neither leaves the exponents a float has.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let power = |e| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(e, bias)));
            _mm256_mul_ps(
                _mm256_mul_ps(a, power(half)),
                power(_mm256_sub_epi32(n, half)),
            )
        }
        fn scale2_flush(a: __m256, n: __m256) -> __m256 {
            // An exponent field of zero makes the factor zero.
            let n = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-127.0)));
            let bits = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
            _mm256_mul_ps(a, _mm256_castsi256_ps(bits))
        }
        fn if_negative(x: __m256, a: __m256, b: __m256) -> __m256 {
            _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps()))
        }
        fn reduce_sum(a: __m256) -> f32 {
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
        fn splat_pair(pair: u32) -> __m256 { _mm256_castsi256_ps(_mm256_set1_epi32(pair as i32)) }
        fn even(pairs: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs)))
        }
        fn odd(pairs: __m256) -> __m256 {
            let high = _mm256_set1_epi32(-65536);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), high))
        }
        fn dot_u8i8(acc: __m256, bytes: u32, weights: __m256) -> __m256 {
            // Products of bytes need 16 bits, sums of two of them 32.
            let (acc, weights) = (_mm256_castps_si256(acc), _mm256_castps_si256(weights));
            let even = _mm256_set1_epi32((bytes & 0x00ff_00ff) as i32);
            let odd = _mm256_set1_epi32((bytes >> 8 & 0x00ff_00ff) as i32);
            let even_weights = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights));
            let odd_weights = _mm256_srai_epi16::<8>(weights);
            let sum = _mm256_add_epi32(acc, _mm256_madd_epi16(even, even_weights));
            _mm256_castsi256_ps(_mm256_add_epi32(sum, _mm256_madd_epi16(odd, odd_weights)))
        }
        fn add_int(a: __m256, b: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)))
        }
        fn sub_int_to_f32(a: __m256, b: __m256) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)))
        }
        fn reduce_max(a: __m256) -> f32 {
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: see the head of this file.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m256) {
        // SAFETY: see the head of this file.
        unsafe { _mm256_storeu_ps(to, a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: see the head of this file.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: see the head of this file.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, a: __m256) {
        // SAFETY: see the head of this file.
        unsafe {
            let a = _mm256_cvtps_epi32(a);
            let (low, high) = (_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let words = _mm_packus_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, a: __m256) {
        // SAFETY: see the head of this file.
        unsafe {
            // Round to nearest even by adding half a unit, or one less when the kept part
            // is even; a NaN keeps its top bits and gets its quiet bit.
            let bits = _mm256_castps_si256(a);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let bits = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm_packus_epi32(
                _mm256_castsi256_si128(bits),
                _mm256_extracti128_si256::<1>(bits),
            );
            _mm_storeu_si128(to.cast(), packed);
        }
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = 16;
    const PANEL_VECTORS: usize = 4;
    const ROWS: usize = AVX512_ROWS;

    #[inline(always)]
    fn with_rows<F: WithRows<Self>>(self, run: F) -> F::Output {
        run.run::<AVX512_ROWS>(self)
    }

    methods! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn approx_recip(a: __m512) -> __m512 { _mm512_rcp14_ps(a) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn scale2(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
        fn scale2_flush(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
        fn if_negative(x: __m512, a: __m512, b: __m512) -> __m512 {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
            _mm512_mask_blend_ps(below, b, a)
        }
        fn reduce_sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
        fn splat_pair(pair: u32) -> __m512 { _mm512_castsi512_ps(_mm512_set1_epi32(pair as i32)) }
        fn even(pairs: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs)))
        }
        fn odd(pairs: __m512) -> __m512 {
            let high = _mm512_set1_epi32(-65536);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), high))
        }
        fn dot_u8i8(acc: __m512, bytes: u32, weights: __m512) -> __m512 {
            if BF16 {
                let bytes = _mm512_set1_epi32(bytes as i32);
                let (acc, weights) = (_mm512_castps_si512(acc), _mm512_castps_si512(weights));
                return _mm512_castsi512_ps(_mm512_dpbusd_epi32(acc, bytes, weights));
            }
            // Products of bytes need 16 bits, sums of two of them 32.
            let (acc, weights) = (_mm512_castps_si512(acc), _mm512_castps_si512(weights));
            let even = _mm512_set1_epi32((bytes & 0x00ff_00ff) as i32);
            let odd = _mm512_set1_epi32((bytes >> 8 & 0x00ff_00ff) as i32);
            let even_weights = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(weights));
            let odd_weights = _mm512_srai_epi16::<8>(weights);
            let sum = _mm512_add_epi32(acc, _mm512_madd_epi16(even, even_weights));
            _mm512_castsi512_ps(_mm512_add_epi32(sum, _mm512_madd_epi16(odd, odd_weights)))
        }
        fn add_int(a: __m512, b: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
        }
        fn sub_int_to_f32(a: __m512, b: __m512) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
        }
        fn reduce_max(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: see the head of this file.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m512) {
        // SAFETY: see the head of this file.
        unsafe { _mm512_storeu_ps(to, a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        // SAFETY: see the head of this file.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: see the head of this file.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, a: __m512) {
        // SAFETY: see the head of this file.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, a: __m512) {
        // SAFETY: see the head of this file.
        unsafe {
            if BF16 {
                let packed = _mm512_cvtneps_pbh(a);
                _mm256_storeu_si256(to.cast(), mem::transmute::<__m256bh, __m256i>(packed));
                return;
            }
            // As for AVX2: round to nearest even in integers, a NaN stays one.
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if !BF16 {
            let acc = self.fma(self.even(a), self.even(b), acc);
            return self.fma(self.odd(a), self.odd(b), acc);
        }
        // SAFETY: see the head of this file; the transmutes only rename the bits.
        unsafe {
            let a = mem::transmute::<__m512, __m512bh>(a);
            let b = mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(acc, a, b)
        }
    }
}
