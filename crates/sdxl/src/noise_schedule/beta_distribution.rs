//! Quantiles of the symmetric beta distribution, for the beta sigma curve.

/// The value below which a beta-distributed number with both parameters `shape` stays with
/// probability `p`.
///
/// The distribution function is inverted by bisection, to the last bits of `f64`; its continued
/// fraction is that of Press et al., "Numerical Recipes", 6.4.
pub fn beta_quantile(p: f64, shape: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    // The distribution is symmetric; in its lower half the quantile keeps its relative precision.
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p, shape);
    }
    let (mut low, mut high) = (0.0, 0.5);
    while high - low > f64::EPSILON * low {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if beta_cdf(middle, shape) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function `I_x(a, a)` for `x` up to a half.
fn beta_cdf(x: f64, a: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let gamma = libm::tgamma(a);
    let factor = libm::pow(x * (1.0 - x), a) * libm::tgamma(2.0 * a) / (gamma * gamma * a);
    factor * continued_fraction(x, a)
}

/// Lentz's evaluation of the continued fraction of `I_x(a, a)`.
fn continued_fraction(x: f64, a: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let guard = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - 2.0 * a * x / (a + 1.0));
    let mut value = d;
    for m in 1..300 {
        let m = f64::from(m);
        let even = m * (a - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (2.0 * a + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for numerator in [even, odd] {
            d = 1.0 / guard(1.0 + numerator * d);
            c = guard(1.0 + numerator / c);
            change = d * c;
            value *= change;
        }
        if (change - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `scipy.stats.beta.ppf(p, 0.6, 0.6)` of SciPy 1.17.
    #[test]
    fn agrees_with_scipy() {
        for (p, x) in SCIPY {
            let error = (beta_quantile(p, 0.6) - x).abs();
            assert!(error < 1e-13, "{p}: {error:e}");
        }
    }

    const SCIPY: [(f64, f64); 6] = [
        (0.001, 1.855873851745199e-05),
        (0.04, 0.00866376938478334),
        (0.25, 0.17568037865269498),
        (0.5, 0.5000000000000001),
        (0.77, 0.8461624142323502),
        (0.999, 0.9999814412614826),
    ];
}
