//! The helpers that the kernels' tests share: numbers to compute with, a comparison of results.

use crate::element::Element;

/// Reproducible numbers, roughly normal with variance 1.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt())
        .collect()
}

/// Rounded to an element type.
pub(crate) fn rounded<E: Element>(x: &[f32]) -> Vec<E> {
    x.iter().map(|v| E::from_f32(*v)).collect()
}

/// Asserts that the relative L2 distance is at most `tolerance`, and that no element is
/// off by more than 30 times that share of the largest.
pub(crate) fn assert_close<E: Element>(got: &[E], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let (mut distance, mut norm, mut worst, mut largest) = (0.0, 0.0, 0.0f64, 0.0f64);
    for (got, want) in got.iter().zip(want) {
        let error = f64::from(got.to_f32()) - want;
        assert!(error.is_finite(), "{what}: {} for {want}", got.to_f32());
        distance += error * error;
        norm += want * want;
        worst = worst.max(error.abs());
        largest = largest.max(want.abs());
    }
    let relative = (distance / norm.max(1e-30)).sqrt();
    assert!(
        relative <= tolerance,
        "{what}: relative L2 error {relative:e}"
    );
    assert!(
        worst <= 30.0 * tolerance * largest,
        "{what}: an element is off by {worst:e}"
    );
}
