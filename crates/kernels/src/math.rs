//! Exponential, error function and the activations built on them, on vectors of `f32`.
//!
//! Largest errors against `f64`, over a grid of the whole range (see the tests):
//! `exp` 1.1 ULP (4 ULP without FMA); `silu` 1e-6 relative for |x| <= 8; `erfc` 2e-6 relative
//! for z <= 3, where it is 2e-5; `gelu` 3e-7 of |x| everywhere.

use crate::element::Element;
use crate::simd::{Op, Simd};

/// Computes `e^x`. Zero below -104, infinite above 88.73; NaN is not preserved.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2. ln 2 in two parts keeps r
    // exact. e^r = 1 + r + r^2 q(r), q of degree 4 fitted at Chebyshev nodes: 1e-8.
    let x = s.min(s.max(x, s.splat(-104.0)), s.splat(89.0));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut q = s.splat(1.392_625_1e-3);
    for c in [8.363_233e-3, 4.166_655_4e-2, 0.166_665_77, 0.5] {
        q = s.fma(q, r, s.splat(c));
    }
    let e = s.add(s.fma(s.mul(r, r), q, r), s.splat(1.0));
    s.scale2(e, n)
}

/// Computes `2^x` for any `x <= 1`; results below the normal numbers may be zero. With
/// `approx`, right to 4e-6 only.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(s: S, x: S::V, approx: bool) -> S::V {
    // 2^x = 2^n 2^r, |r| <= 1/2; polynomials fitted at Chebyshev nodes.
    let n = s.round(x);
    let r = s.sub(x, n);
    let mut p;
    if approx {
        p = s.splat(9.666_369e-3);
        for c in [0.055_921_976, 0.240_223_5, 0.693_121_1, 1.0] {
            p = s.fma(p, r, s.splat(c));
        }
    } else {
        p = s.splat(1.546_144_5e-4);
        for c in [
            1.340_042_8e-3,
            9.618_057e-3,
            0.055_503_27,
            0.240_226_5,
            std::f32::consts::LN_2,
            1.0,
        ] {
            p = s.fma(p, r, s.splat(c));
        }
    }
    s.scale2_flush(p, n)
}

/// Computes `x / (1 + 2^-t)`, right to 1e-4. SiLU and GELU are of this form, each with its own `t`.
#[inline(always)]
fn approx_gate<S: Simd>(s: S, x: S::V, t: S::V) -> S::V {
    let e = exp2(s, s.min(s.sub(s.zero(), t), s.splat(126.0)), true);
    s.mul(x, s.approx_recip(s.add(s.splat(1.0), e)))
}

/// Computes `x / (1 + e^-x)`; with `approx`, right to 1e-4 only, which is enough for bf16.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V, approx: bool) -> S::V {
    if approx {
        return approx_gate(s, x, s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    }
    let e = exp(s, s.sub(s.zero(), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// Computes `x / (1 + e^(-1.702 x))`, the activation of OpenAI's CLIP.
#[inline(always)]
fn quick_gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.mul(x, s.splat(-1.702)));
    s.div(x, s.add(s.splat(1.0), e))
}

/// Computes `1 - erf(z)` for `z >= 0`.
#[inline(always)]
fn erfc<S: Simd>(s: S, z: S::V) -> S::V {
    // erfc(z) = t exp(-z^2 + p(t)) with t = 1 / (1 + 0.4 z), p of degree 9 fitted at
    // Chebyshev nodes for z in 0..14: 8e-8.
    let one = s.splat(1.0);
    let t = s.div(one, s.fma(z, s.splat(0.4), one));
    let mut p = s.splat(0.020_630_857);
    for c in [
        -0.318_694_66,
        1.183_737_2,
        -1.827_715,
        1.279_615_4,
        -0.591_636_5,
        0.350_681_63,
        0.389_211_24,
        1.002_943_8,
        -1.488_774,
    ] {
        p = s.fma(p, t, s.splat(c));
    }
    let e = exp(s, s.sub(p, s.mul(z, z)));
    s.mul(t, e)
}

/// Computes `x (1 + erf(x / sqrt 2)) / 2`. Written with `erfc`, so that negative `x` lose nothing
/// to cancellation. With `approx`, off by up to 1e-4 of the value or 1e-5, whichever is more,
/// which is enough for bf16.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V, approx: bool) -> S::V {
    if approx {
        // The logit of the normal distribution, in powers of two, is x times a polynomial
        // in x^2, fitted for |x| <= 4.5 with errors weighted as they count in the end.
        let square = s.min(s.mul(x, x), s.splat(4.5 * 4.5));
        let mut p = s.splat(2.233_414_5e-6);
        for c in [-6.688_826e-5, -4.961_821e-4, 0.105_509_4, 2.301_905] {
            p = s.fma(p, square, s.splat(c));
        }
        return approx_gate(s, x, s.mul(x, p));
    }
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let tail = s.mul(s.splat(0.5), erfc(s, z));
    let phi = s.if_negative(x, tail, s.sub(s.splat(1.0), tail));
    s.mul(x, phi)
}

/// An elementwise function applied after a linear layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x Φ(x)` by the error function, not by the tanh approximation.
    Gelu,
    /// `x / (1 + e^(-1.702 x))`.
    QuickGelu,
}

impl Activation {
    /// Applies it; with `approx`, as exactly as bf16 needs.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::V, approx: bool) -> S::V {
        match self {
            Activation::None => x,
            Activation::Silu => silu(s, x, approx),
            Activation::Gelu => gelu(s, x, approx),
            Activation::QuickGelu => quick_gelu(s, x),
        }
    }

    /// Computes the definition in `f64`.
    #[cfg(test)]
    pub(crate) fn reference(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => {
                0.5 * x * tests::erfc_reference(-x * std::f64::consts::FRAC_1_SQRT_2)
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }
}

/// Applies an activation to a slice.
pub(crate) struct Map<'a, E> {
    pub(crate) x: &'a [E],
    pub(crate) activation: Activation,
    pub(crate) out: &'a mut [E],
}

impl<E: Element> Op for Map<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.x.len()).step_by(S::LANES) {
            let y = self.activation.apply(s, s.read(self.x, i), E::IS_BF16);
            s.write(self.out, i, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::dispatch;
    use crate::isa::Isa;

    /// erfc in f64: the Taylor series of erf near zero, a continued fraction beyond.
    pub(super) fn erfc_reference(x: f64) -> f64 {
        if x < 0.0 {
            return 2.0 - erfc_reference(-x);
        }
        if x < 2.5 {
            let (mut term, mut sum) = (x, x);
            for n in 1..100 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
        }
        let mut fraction = x;
        for n in (1..200).rev() {
            fraction = x + n as f64 / 2.0 / fraction;
        }
        (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
    }

    struct Eval<'a, F>(F, &'a [f32]);
    trait Function {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V;
    }
    impl<F: Function> Op for Eval<'_, F> {
        type Output = Vec<f32>;
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.1.len()];
            for i in (0..out.len()).step_by(S::LANES) {
                s.write(&mut out, i, self.0.call(s, s.read(self.1, i)));
            }
            out
        }
    }
    struct Exp;
    impl Function for Exp {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V {
            exp(s, x)
        }
    }
    struct Exp2 {
        approx: bool,
    }
    impl Function for Exp2 {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V {
            exp2(s, x, self.approx)
        }
    }
    struct Erfc;
    impl Function for Erfc {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V {
            erfc(s, x)
        }
    }
    impl Function for Activation {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V {
            self.apply(s, x, false)
        }
    }
    struct Approx(Activation);
    impl Function for Approx {
        fn call<S: Simd>(&self, s: S, x: S::V) -> S::V {
            self.0.apply(s, x, true)
        }
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        let n = 200_003;
        (0..n)
            .map(|i| from + (to - from) * (i as f32 / (n - 1) as f32))
            .collect()
    }

    /// The largest |got - want| / scale(x, want) over the grid.
    fn worst(
        isa: Isa,
        f: impl Function,
        x: &[f32],
        want: impl Fn(f64) -> f64,
        scale: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        let got = dispatch(isa, Eval(f, x));
        let mut worst = 0.0;
        for (x, got) in x.iter().zip(got) {
            let (x, got) = (f64::from(*x), f64::from(got));
            let error = (got - want(x)).abs() / scale(x, want(x));
            assert!(error.is_finite(), "f({x}) = {got}");
            worst = f64::max(worst, error);
        }
        worst
    }

    #[test]
    fn exp_is_within_its_ulp() {
        let ulp = |_, y: f64| (y.log2().floor() - 23.0).max(-149.0).exp2();
        for isa in Isa::available() {
            let bound = if isa.fuses_multiply_add() { 1.1 } else { 4.0 };
            let worst = worst(isa, Exp, &grid(-103.0, 88.7), f64::exp, ulp);
            assert!(worst <= bound, "{isa}: {worst} ULP");
            let ends = dispatch(isa, Eval(Exp, &[-1e9, -105.0, 0.0, 89.0, 1e9]));
            assert_eq!(ends, [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        }
    }

    #[test]
    fn exp2_is_within_its_bound() {
        for isa in Isa::available() {
            for (approx, bound) in [(false, 2e-7), (true, 4e-6)] {
                let x = grid(-125.0, 1.0);
                let e = worst(isa, Exp2 { approx }, &x, f64::exp2, |_, y| y);
                assert!(e <= bound, "{isa}: approx {approx}: {e}");
                let ends = dispatch(isa, Eval(Exp2 { approx }, &[-1e30, -200.0, 0.0, 1.0]));
                assert_eq!(ends, [0.0, 0.0, 1.0, 2.0]);
            }
        }
    }

    #[test]
    fn erfc_and_activations_are_within_their_bounds() {
        let relative = |_: f64, y: f64| y.abs().max(1e-37);
        for isa in Isa::available() {
            let e = worst(isa, Erfc, &grid(0.0, 3.0), erfc_reference, relative);
            assert!(e <= 2e-6, "{isa}: erfc {e}");
            for activation in [Activation::Silu, Activation::QuickGelu] {
                let f = |x| activation.reference(x);
                let e = worst(isa, activation, &grid(-80.0, 80.0), f, |x, y: f64| {
                    y.abs().max(x.abs() * 1e-30).max(1e-37)
                });
                assert!(e <= 6e-7 * 16.0, "{isa}: {activation:?} {e}");
                let e = worst(isa, activation, &grid(-8.0, 8.0), f, relative);
                assert!(e <= 1e-6, "{isa}: {activation:?} {e}");
            }
            let f = |x| Activation::Gelu.reference(x);
            let e = worst(isa, Activation::Gelu, &grid(-20.0, 20.0), f, |x, _| {
                x.abs().max(1e-30)
            });
            assert!(e <= 3e-7, "{isa}: gelu {e}");
            // Enough for bf16, whose rounding is off by up to 4e-3.
            for activation in [Activation::Silu, Activation::Gelu] {
                let f = |x| activation.reference(x);
                let e = worst(isa, Approx(activation), &grid(-200.0, 200.0), f, |_, y| {
                    y.abs().max(0.1)
                });
                assert!(e <= 1.5e-4, "{isa}: approx {activation:?} {e}");
            }
        }
    }
}
