//! Group and layer normalisation.
//!
//! Statistics are taken in parts small enough for a cache, each with its own mean and its
//! sum of squared differences from it, and combined in `f64` (Chan, Golub and LeVeque,
//! "Updating formulae and a pairwise algorithm for computing sample variances", 1979): no
//! cancellation, one pass over memory, and an order that threads do not change.

use rayon::prelude::*;

use crate::element::Element;
use crate::isa::Isa;
use crate::math;
use crate::simd::{Op, Simd, dispatch};

/// Elements of a part.
const PART: usize = 1 << 15;

/// Count, mean and sum of squared differences from the mean.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn merge(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let delta = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + delta * other.count / count,
            squares: self.squares
                + other.squares
                + delta * delta * self.count * other.count / count,
        }
    }
}

/// Group normalisation of `x`, `[b, hw, c]`: in each image, each group of `c / groups`
/// channels is brought to mean 0 and variance 1 over its channels and all `hw` pixels,
/// then scaled by `gamma` and shifted by `beta`, both `[c]`; with `silu`, followed by that.
///
/// # Panics
/// If a slice has not the length its shape says, or `groups` does not divide `c`.
#[allow(clippy::too_many_arguments)]
pub fn group_norm<E: Element>(
    x: &[E],
    b: usize,
    hw: usize,
    c: usize,
    groups: usize,
    eps: f32,
    gamma: &[f32],
    beta: &[f32],
    silu: bool,
    out: &mut [E],
) {
    group_norm_on(
        Isa::current(),
        x,
        [b, hw, c, groups],
        eps,
        gamma,
        beta,
        silu,
        out,
    );
}

#[allow(clippy::too_many_arguments)]
fn group_norm_on<E: Element>(
    isa: Isa,
    x: &[E],
    [b, hw, c, groups]: [usize; 4],
    eps: f32,
    gamma: &[f32],
    beta: &[f32],
    silu: bool,
    out: &mut [E],
) {
    assert_eq!(x.len(), b * hw * c, "length of the input");
    assert_eq!(out.len(), x.len(), "length of the output");
    assert!(
        gamma.len() == c && beta.len() == c,
        "length of scale or shift"
    );
    assert!(
        groups > 0 && c % groups == 0,
        "{groups} groups of {c} channels"
    );
    if x.is_empty() {
        return;
    }
    let pixels = (PART / c).max(1);
    let parts = hw.div_ceil(pixels);
    let part = |image: usize, part: usize| {
        let first = part * pixels;
        (image * hw + first) * c..(image * hw + hw.min(first + pixels)) * c
    };
    let moments: Vec<Vec<Moments>> = (0..b * parts)
        .into_par_iter()
        .map(|i| {
            let x = &x[part(i / parts, i % parts)];
            dispatch(isa, GroupMoments { x, c, groups })
        })
        .collect();
    // y = x * scale + shift, per image and channel.
    let mut affine = vec![(vec![0f32; c], vec![0f32; c]); b];
    for (image, (scale, shift)) in affine.iter_mut().enumerate() {
        for group in 0..groups {
            let total = moments[image * parts..(image + 1) * parts]
                .iter()
                .fold(Moments::default(), |sum, m| sum.merge(m[group]));
            let factor = 1.0 / (total.squares / total.count + f64::from(eps)).sqrt();
            let size = c / groups;
            for i in group * size..(group + 1) * size {
                let gain = factor * f64::from(gamma[i]);
                scale[i] = gain as f32;
                shift[i] = (f64::from(beta[i]) - total.mean * gain) as f32;
            }
        }
    }
    out.par_chunks_mut(hw * c)
        .zip(&affine)
        .enumerate()
        .for_each(|(image, (out, affine))| {
            let (scale, shift) = (&affine.0, &affine.1);
            out.par_chunks_mut(pixels * c)
                .enumerate()
                .for_each(|(i, out)| {
                    let x = &x[part(image, i)];
                    dispatch(
                        isa,
                        Affine {
                            x,
                            scale,
                            shift,
                            silu,
                            out,
                        },
                    );
                });
        });
}

/// Moments of each group over some pixels.
struct GroupMoments<'a, E> {
    x: &'a [E],
    c: usize,
    groups: usize,
}

impl<E: Element> Op for GroupMoments<'_, E> {
    type Output = Vec<Moments>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Moments> {
        let size = self.c / self.groups;
        let count = self.x.len() / self.groups;
        let mut per_channel = vec![0f32; self.c];
        for pixel in self.x.chunks_exact(self.c) {
            for i in (0..self.c).step_by(S::LANES) {
                let sum = s.add(s.read(&per_channel, i), s.read(pixel, i));
                s.write(&mut per_channel, i, sum);
            }
        }
        let group_sum = |per_channel: &[f32], group: usize| -> f64 {
            let channels = &per_channel[group * size..(group + 1) * size];
            channels.iter().map(|v| f64::from(*v)).sum()
        };
        let means: Vec<f32> = (0..self.groups)
            .map(|group| (group_sum(&per_channel, group) / count as f64) as f32)
            .collect();
        let mean_of: Vec<f32> = (0..self.c).map(|i| means[i / size]).collect();
        per_channel.fill(0.0);
        for pixel in self.x.chunks_exact(self.c) {
            for i in (0..self.c).step_by(S::LANES) {
                let d = s.sub(s.read(pixel, i), s.read(&mean_of, i));
                let sum = s.fma(d, d, s.read(&per_channel, i));
                s.write(&mut per_channel, i, sum);
            }
        }
        (0..self.groups)
            .map(|group| Moments {
                count: count as f64,
                mean: f64::from(means[group]),
                squares: group_sum(&per_channel, group),
            })
            .collect()
    }
}

/// `out = x * scale + shift` per channel, then perhaps silu.
struct Affine<'a, E> {
    x: &'a [E],
    scale: &'a [f32],
    shift: &'a [f32],
    silu: bool,
    out: &'a mut [E],
}

impl<E: Element> Op for Affine<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.scale.len();
        for (x, out) in self.x.chunks_exact(c).zip(self.out.chunks_exact_mut(c)) {
            for i in (0..c).step_by(S::LANES) {
                let y = s.fma(s.read(x, i), s.read(self.scale, i), s.read(self.shift, i));
                let y = if self.silu { math::silu(s, y) } else { y };
                s.write(out, i, y);
            }
        }
    }
}

/// Layer normalisation of each of the rows of `x`, `[rows, c]`, to mean 0 and variance 1,
/// then scaled by `gamma` and shifted by `beta`, both `[c]`.
///
/// # Panics
/// If a slice has not the length its shape says.
pub fn layer_norm<E: Element>(
    x: &[E],
    rows: usize,
    c: usize,
    eps: f32,
    gamma: &[f32],
    beta: &[f32],
    out: &mut [E],
) {
    layer_norm_on(Isa::current(), x, [rows, c], eps, gamma, beta, out);
}

fn layer_norm_on<E: Element>(
    isa: Isa,
    x: &[E],
    [rows, c]: [usize; 2],
    eps: f32,
    gamma: &[f32],
    beta: &[f32],
    out: &mut [E],
) {
    assert_eq!(x.len(), rows * c, "length of the input");
    assert_eq!(out.len(), x.len(), "length of the output");
    assert!(
        gamma.len() == c && beta.len() == c,
        "length of scale or shift"
    );
    if x.is_empty() {
        return;
    }
    let chunk = (PART / c).max(1) * c;
    out.par_chunks_mut(chunk).enumerate().for_each(|(i, out)| {
        let x = &x[i * chunk..i * chunk + out.len()];
        dispatch(
            isa,
            LayerNorm {
                x,
                eps,
                gamma,
                beta,
                out,
            },
        );
    });
}

struct LayerNorm<'a, E> {
    x: &'a [E],
    eps: f32,
    gamma: &'a [f32],
    beta: &'a [f32],
    out: &'a mut [E],
}

impl<E: Element> Op for LayerNorm<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.gamma.len();
        let whole = c - c % S::LANES;
        for (x, out) in self.x.chunks_exact(c).zip(self.out.chunks_exact_mut(c)) {
            let mut sum = s.zero();
            for i in (0..c).step_by(S::LANES) {
                sum = s.add(sum, s.read(x, i));
            }
            let mean = s.sum(sum) / c as f32;
            let mut squares = s.zero();
            for i in (0..whole).step_by(S::LANES) {
                let d = s.sub(s.read(x, i), s.splat(mean));
                squares = s.fma(d, d, squares);
            }
            let rest: f32 = x[whole..].iter().map(|v| (v.to_f32() - mean).powi(2)).sum();
            let variance = (s.sum(squares) + rest) / c as f32;
            let factor = s.splat(1.0 / (variance + self.eps).sqrt());
            for i in (0..c).step_by(S::LANES) {
                let d = s.mul(s.sub(s.read(x, i), s.splat(mean)), factor);
                s.write(
                    out,
                    i,
                    s.fma(d, s.read(self.gamma, i), s.read(self.beta, i)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::test::{assert_close, noise, rounded};

    /// Normalises `values` in f64.
    fn normalised(values: &[f64], eps: f32) -> Vec<f64> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        values.iter().map(|v| (v - mean) * factor).collect()
    }

    fn check_group<E: Element>(isa: Isa, shape: [usize; 4], offset: f32, silu: bool) {
        let [b, hw, c, groups] = shape;
        let x: Vec<f32> = noise(1, b * hw * c)
            .iter()
            .map(|v| v * 3.0 + offset)
            .collect();
        let x: Vec<E> = rounded(&x);
        let (gamma, beta) = (noise(2, c), noise(3, c));
        let size = c / groups;
        let mut want = vec![0.0; x.len()];
        for image in 0..b {
            for group in 0..groups {
                let index = |i: usize| (image * hw + i / size) * c + group * size + i % size;
                let values: Vec<f64> = (0..hw * size)
                    .map(|i| f64::from(x[index(i)].to_f32()))
                    .collect();
                for (i, y) in normalised(&values, 1e-5).into_iter().enumerate() {
                    let channel = group * size + i % size;
                    let y = y * f64::from(gamma[channel]) + f64::from(beta[channel]);
                    want[index(i)] = if silu {
                        math::Activation::Silu.reference(y)
                    } else {
                        y
                    };
                }
            }
        }
        let mut out = vec![E::default(); x.len()];
        group_norm_on(isa, &x, shape, 1e-5, &gamma, &beta, silu, &mut out);
        // Subtracting a mean larger than the spread costs f32 its share of digits.
        let tolerance = if E::IS_BF16 {
            4e-3
        } else {
            1e-6 * (1.0 + f64::from(offset))
        };
        assert_close(&out, &want, tolerance, &format!("{isa} {shape:?} {offset}"));
    }

    #[test]
    fn group_norm_agrees_with_the_reference() {
        for isa in Isa::available() {
            for shape in [
                [1, 1, 8, 2],
                [2, 5, 12, 4],
                [1, 35, 320, 32],
                [2, 300, 140, 7],
                [1, 3, 66, 1],
            ] {
                for silu in [false, true] {
                    check_group::<f32>(isa, shape, 0.0, silu);
                    check_group::<bf16>(isa, shape, 0.0, silu);
                }
                check_group::<f32>(isa, shape, 30.0, false);
            }
        }
    }

    fn check_layer<E: Element>(isa: Isa, rows: usize, c: usize) {
        let x: Vec<E> = rounded(
            &noise(1, rows * c)
                .iter()
                .map(|v| v + 0.5)
                .collect::<Vec<_>>(),
        );
        let (gamma, beta) = (noise(2, c), noise(3, c));
        let mut want = Vec::new();
        for row in x.chunks_exact(c) {
            let values: Vec<f64> = row.iter().map(|v| f64::from(v.to_f32())).collect();
            let row = normalised(&values, 1e-5).into_iter().enumerate();
            want.extend(row.map(|(i, y)| y * f64::from(gamma[i]) + f64::from(beta[i])));
        }
        let mut out = vec![E::default(); x.len()];
        layer_norm_on(isa, &x, [rows, c], 1e-5, &gamma, &beta, &mut out);
        let tolerance = if E::IS_BF16 { 4e-3 } else { 1e-6 };
        assert_close(&out, &want, tolerance, &format!("{isa} {rows}x{c}"));
    }

    #[test]
    fn layer_norm_agrees_with_the_reference() {
        for isa in Isa::available() {
            for (rows, c) in [(1, 2), (3, 7), (5, 16), (4, 33), (77, 768), (40, 1280)] {
                check_layer::<f32>(isa, rows, c);
                check_layer::<bf16>(isa, rows, c);
            }
        }
    }
}
