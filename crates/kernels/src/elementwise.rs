//! Functions of each element alone.

use rayon::prelude::*;

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::isa::Isa;
use crate::math::{Activation, Map};
use crate::simd::{Op, Simd};

/// Elements a task handles: enough to pay for starting it.
const CHUNK: usize = 1 << 14;

/// Computes `out = a + b`.
///
/// # Panics
/// If the lengths differ.
pub fn add<E: Element>(a: &[E], b: &[E], out: &mut [E]) {
    assert!(
        a.len() == out.len() && b.len() == out.len(),
        "lengths differ"
    );
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
        let range = i * CHUNK..i * CHUNK + out.len();
        let sum = Add(&a[range.clone()], &b[range], out);
        dispatch(Isa::current(), sum);
    });
}

struct Add<'a, E>(&'a [E], &'a [E], &'a mut [E]);

impl<E: Element> Op for Add<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.2.len()).step_by(S::LANES) {
            let sum = s.add(s.read(self.0, i), s.read(self.1, i));
            s.write(self.2, i, sum);
        }
    }
}

/// Computes `out = act(x)`.
///
/// # Panics
/// If the lengths differ.
fn activate<E: Element>(x: &[E], act: Activation, out: &mut [E]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
        let x = &x[i * CHUNK..i * CHUNK + out.len()];
        let activation = act;
        dispatch(Isa::current(), Map { x, activation, out });
    });
}

/// Computes `out = x / (1 + e^-x)`.
///
/// # Panics
/// If the lengths differ.
pub fn silu<E: Element>(x: &[E], out: &mut [E]) {
    activate(x, Activation::Silu, out);
}

/// Converts `x` to the type of `out`, rounding to the nearest where that is the narrower.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn convert<A: Element, B: Element>(x: &[A], out: &mut [B]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
        let x = &x[i * CHUNK..i * CHUNK + out.len()];
        dispatch(Isa::current(), Convert(x, out));
    });
}

struct Convert<'a, A, B>(&'a [A], &'a mut [B]);

impl<A: Element, B: Element> Op for Convert<'_, A, B> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.1.len()).step_by(S::LANES) {
            s.write(self.1, i, s.read(self.0, i));
        }
    }
}

/// Converts `x` to `f32`.
pub(crate) fn to_f32<E: Element>(x: &[E]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    convert(x, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::test::{noise, rounded};

    #[test]
    fn slices_of_any_length() {
        for n in [0, 1, 7, 16, 33, CHUNK - 1, CHUNK + 5] {
            let (a, b) = (noise(1, n), noise(2, n));
            let mut out = vec![0.0; n];
            add(&a, &b, &mut out);
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(out, want);
            silu(&a, &mut out);
            for (x, y) in a.iter().zip(&out) {
                let want = Activation::Silu.reference(f64::from(*x));
                assert!((f64::from(*y) - want).abs() <= 1e-6 * want.abs());
            }
            let mut narrow = vec![bf16::ZERO; n];
            convert(&a, &mut narrow);
            assert_eq!(narrow, rounded::<bf16>(&a));
            let back = to_f32(&narrow);
            assert_eq!(
                back,
                rounded::<bf16>(&a)
                    .iter()
                    .map(|v| v.to_f32())
                    .collect::<Vec<_>>()
            );
        }
    }
}
