//! The points of Winograd's convolution of bf16 images, at which the kernels are taken when their
//! weights are packed.

/// Inputs of a tile in each direction.
pub(crate) const IN: usize = 4;
/// Points at which the polynomials of both directions are taken.
pub(crate) const POINTS: usize = IN * IN;

/// Computes the values of a kernel at the points, divided as interpolation needs: of taps `[y, x]`,
/// points `[y, x]`.
pub(crate) fn kernel_points(g: &[f32; 9]) -> [f32; POINTS] {
    let line = |a: f32, b: f32, c: f32| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    let rows = [0, 3, 6].map(|i| line(g[i], g[i + 1], g[i + 2]));
    let mut points = [0.0; POINTS];
    for x in 0..IN {
        for (y, value) in line(rows[0][x], rows[1][x], rows[2][x])
            .into_iter()
            .enumerate()
        {
            points[y * IN + x] = value;
        }
    }
    points
}
