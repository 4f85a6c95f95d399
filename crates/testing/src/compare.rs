//! Distances between results and references.

/// Fails where the relative L2 distance of `ours` from `reference` is above `bar`.
pub fn assert_close(what: &str, ours: &[f32], reference: &[f32], bar: f64) {
    let error = relative_l2(what, ours, reference);
    assert!(error <= bar, "{what}: relative L2 {error:e} above {bar:e}");
}

/// The relative L2 distance |ours - reference| / |reference|, in `f64`. A distance from a reference of
/// zeros only would say nothing, and fails.
pub fn relative_l2(what: &str, ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len(), "{what}: number of values");
    let square = |v: f64| v * v;
    let difference: f64 = (ours.iter().zip(reference))
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let norm: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
    assert!(norm > 0.0, "{what}: the reference is all zeros");
    (difference / norm).sqrt()
}

/// The peak signal-to-noise ratio of two pictures of the same size, in dB.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "pictures of one size");
    let squares: f64 = (a.iter().zip(b))
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    10.0 * (255f64.powi(2) * a.len() as f64 / squares.max(1e-9)).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_known_pairs() {
        assert_eq!(relative_l2("", &[3.0, 4.0], &[3.0, 0.0]), 4.0 / 3.0);
        assert_close("", &[1.0, 1.0], &[1.0, 1.0], 0.0);
        // One step of 255 in every value.
        assert!((psnr(&[9; 12], &[10; 12]) - 48.1308).abs() < 1e-4);
    }

    #[test]
    #[should_panic(expected = "above 1e-1")]
    fn a_distance_above_the_bar_fails() {
        assert_close("", &[1.2], &[1.0], 0.1);
    }
}
