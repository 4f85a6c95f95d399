//! The natural logarithm of `f32` as NumPy computes it.

/// The bits of `numpy.log` for a positive, finite, normal `f32`, as NumPy 2 computes it on every
/// x86 processor since 2013: a rational approximation with fused products, up to 4 ulp off.
///
/// The last bit matters: when differences of logarithms are divided by differences of logarithms
/// (DEIS of third order), another last bit changes the result by 1e-4, and when a timestep is cut
/// to a whole number, it can change the number.
pub fn numpy_log(x: f32) -> f32 {
    if x <= 0.0 || !x.is_finite() {
        return libm::log(x.into()) as f32;
    }
    // Coefficients of NumPy's approximation of log(1 + z), lowest power first.
    const NUMERATOR: [f32; 6] = [
        0.0,
        1.0,
        2.112_677_6,
        1.480_000_6,
        0.380_883_78,
        0.025_899_792,
    ];
    const DENOMINATOR: [f32; 6] = [
        1.0,
        2.612_677_6,
        2.453_006,
        0.986_494_3,
        0.154_647_63,
        0.005_875_095_3,
    ];
    let (mut mantissa, mut exponent) = libm::frexpf(x);
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    let z = mantissa - 1.0;
    let polynomial = |c: &[f32]| {
        c.iter()
            .rev()
            .copied()
            .reduce(|sum, c| sum.mul_add(z, c))
            .expect("a polynomial has coefficients")
    };
    let fraction = polynomial(&NUMERATOR) / polynomial(&DENOMINATOR);
    (exponent as f32).mul_add(std::f32::consts::LN_2, fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of `numpy.log(numpy.float32(x))` of NumPy 2.4, of which some are not the nearest.
    #[test]
    fn bits_are_numpys() {
        for (x, bits) in NUMPY {
            assert_eq!(numpy_log(x).to_bits(), bits, "{x}");
        }
    }

    const NUMPY: [(f32, u32); 12] = [
        (4.8373213, 0x3fc9c634),
        (6.7071123, 0x3ff39b06),
        (8.939037, 0x400c2ff8),
        (14.313706, 0x402a5164),
        (10.861368, 0x4018a752),
        (0.7992554, 0xbe6573da),
        (5.564254, 0x3fdbb1c8),
        (14.33418, 0x402a68cf),
        (14.614647, 0x402ba649),
        (0.029167533, 0xc0623882),
        (1.0, 0x00000000),
        (0.5, 0xbf317218),
    ];
}
