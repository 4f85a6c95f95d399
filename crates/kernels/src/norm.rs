//! Group and layer normalisation.
//!
//! Statistics are taken in parts small enough for a cache, each with its own mean and its
//! sum of squared differences from it, and combined in `f64` (Chan, Golub and LeVeque,
//! "Updating formulae and a pairwise algorithm for computing sample variances", 1979): no
//! cancellation, one pass over memory, and an order that threads do not change.

use std::ops::Range;

use rayon::prelude::*;

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::isa::Isa;
use crate::math;
use crate::simd::{Op, Simd};
use crate::stop::StopFlag;

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

/// A group norm with the statistics of some images: for each channel of each image
/// `x * scale + shift`, then SiLU if it was asked for.
pub struct GroupNorm {
    isa: Isa,
    /// For each image, for each channel.
    scale: Vec<f32>,
    /// As `scale`.
    shift: Vec<f32>,
    c: usize,
    silu: bool,
}

impl GroupNorm {
    /// Computes the statistics of `x`, `[b, hw, c]`, for a group norm: in each image it brings each
    /// group of `c / groups` channels to mean 0 and variance 1 over its channels and all `hw`
    /// pixels, then scales by `gamma` and shifts by `beta`, both `[c]`; with `silu`, SiLU follows.
    ///
    /// # Panics
    /// If a slice has not the length its shape says, or `groups` does not divide `c`.
    pub fn new<E: Element>(
        x: &[E],
        [b, hw, c, groups]: [usize; 4],
        eps: f32,
        gamma: &[f32],
        beta: &[f32],
        silu: bool,
    ) -> GroupNorm {
        let isa = Isa::current();
        GroupNorm::new_for(isa, x, [b, hw, c, groups], eps, gamma, beta, silu)
    }

    pub(crate) fn new_for<E: Element>(
        isa: Isa,
        x: &[E],
        [b, hw, c, groups]: [usize; 4],
        eps: f32,
        gamma: &[f32],
        beta: &[f32],
        silu: bool,
    ) -> GroupNorm {
        assert_eq!(x.len(), b * hw * c, "length of the input");
        assert!(
            gamma.len() == c && beta.len() == c,
            "length of scale or shift"
        );
        assert!(
            groups > 0 && c % groups == 0,
            "{groups} groups of {c} channels"
        );
        let parts = hw.div_ceil(pixels_of_part(c));
        let stop = StopFlag::current();
        let moments: Vec<Vec<Moments>> = (0..b * parts)
            .into_par_iter()
            .map(|i| {
                if stop.is_raised() {
                    return vec![Moments::default(); groups];
                }
                let x = &x[part(i / parts, i % parts, hw, c)];
                dispatch(isa, GroupMoments { x, c, groups })
            })
            .collect();
        let mut scale = Vec::with_capacity(b * c);
        let mut shift = Vec::with_capacity(b * c);
        for image in 0..b {
            for group in 0..groups {
                let total = moments[image * parts..(image + 1) * parts]
                    .iter()
                    .fold(Moments::default(), |sum, m| sum.merge(m[group]));
                let factor = 1.0 / (total.squares / total.count + f64::from(eps)).sqrt();
                let size = c / groups;
                for i in group * size..(group + 1) * size {
                    let gain = factor * f64::from(gamma[i]);
                    scale.push(gain as f32);
                    shift.push((f64::from(beta[i]) - total.mean * gain) as f32);
                }
            }
        }
        GroupNorm {
            isa,
            scale,
            shift,
            c,
            silu,
        }
    }

    /// Gives the bytes that [`Self::new`] works in, and those of its result, for a shape
    /// `[b, hw, c, groups]`.
    pub fn workspace([b, hw, c, groups]: [usize; 4]) -> usize {
        let parts = b * hw.div_ceil(pixels_of_part(c));
        let moments = size_of::<Vec<Moments>>() + groups * size_of::<Moments>();
        parts * moments + b * c * size_of::<[f32; 2]>()
    }

    /// Applies it to `x`, of the shape whose statistics it has.
    ///
    /// # Panics
    /// If the slices have not the same length, or it is not one of whole images.
    pub fn apply<E: Element>(&self, x: &[E], out: &mut [E]) {
        assert_eq!(out.len(), x.len(), "length of the output");
        if x.is_empty() {
            return;
        }
        let images = self.scale.len() / self.c;
        let hw = x.len() / self.scale.len();
        assert_eq!(x.len(), images * hw * self.c, "length of the input");
        let pixels = pixels_of_part(self.c);
        let stop = StopFlag::current();
        out.par_chunks_mut(hw * self.c)
            .enumerate()
            .for_each(|(image, out)| {
                let (scale, shift) = self.of_image(image);
                out.par_chunks_mut(pixels * self.c)
                    .enumerate()
                    .for_each(|(i, out)| {
                        if stop.is_raised() {
                            return;
                        }
                        let x = &x[part(image, i, hw, self.c)];
                        let silu = self.silu;
                        let affine = Affine {
                            x,
                            scale,
                            shift,
                            silu,
                            out,
                        };
                        dispatch(self.isa, affine);
                    });
            });
    }

    /// Returns the scale and shift of the channels of an image.
    fn of_image(&self, image: usize) -> (&[f32], &[f32]) {
        let channels = image * self.c..(image + 1) * self.c;
        (&self.scale[channels.clone()], &self.shift[channels])
    }

    /// Applies it to the channels from `i` on of a pixel of an image, as [`Self::apply`] does.
    #[inline(always)]
    pub(crate) fn apply_at<S: Simd>(&self, s: S, image: usize, i: usize, x: S::V) -> S::V {
        self.apply_factors(s, self.factors(s, image, i), x, false)
    }

    /// Returns the scale and shift of the channels from `i` on.
    #[inline(always)]
    pub(crate) fn factors<S: Simd>(&self, s: S, image: usize, i: usize) -> [S::V; 2] {
        let (scale, shift) = self.of_image(image);
        [s.read(scale, i), s.read(shift, i)]
    }

    /// Applies it to channels with these [`Self::factors`]; with `approx`, as exact as bf16 needs.
    #[inline(always)]
    pub(crate) fn apply_factors<S: Simd>(
        &self,
        s: S,
        [scale, shift]: [S::V; 2],
        x: S::V,
        approx: bool,
    ) -> S::V {
        let y = s.fma(x, scale, shift);
        if self.silu {
            return math::silu(s, y, approx);
        }
        y
    }

    /// Returns the number of images and of channels.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.scale.len() / self.c, self.c]
    }
}

/// Returns the number of pixels of a part.
fn pixels_of_part(c: usize) -> usize {
    (PART / c).max(1)
}

/// Gives the range of the elements of a part of an image.
fn part(image: usize, part: usize, hw: usize, c: usize) -> Range<usize> {
    let first = part * pixels_of_part(c);
    let end = hw.min(first + pixels_of_part(c));
    (image * hw + first) * c..(image * hw + end) * c
}

/// Computes the [`GroupNorm`] of `x`, `[b, hw, c]`, and applies it to `x`.
///
/// # Panics
/// As [`GroupNorm::new`], or if `out` has not the length of `x`.
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
    GroupNorm::new(x, [b, hw, c, groups], eps, gamma, beta, silu).apply(x, out);
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
        self.sums(s, None, &mut per_channel);
        let group_sum = |per_channel: &[f32], group: usize| -> f64 {
            let channels = &per_channel[group * size..(group + 1) * size];
            channels.iter().map(|v| f64::from(*v)).sum()
        };
        let means: Vec<f32> = (0..self.groups)
            .map(|group| (group_sum(&per_channel, group) / count as f64) as f32)
            .collect();
        let mean_of: Vec<f32> = (0..self.c).map(|i| means[i / size]).collect();
        self.sums(s, Some(&mean_of), &mut per_channel);
        (0..self.groups)
            .map(|group| Moments {
                count: count as f64,
                mean: f64::from(means[group]),
                squares: group_sum(&per_channel, group),
            })
            .collect()
    }
}

impl<E: Element> GroupMoments<'_, E> {
    /// Sums, for each channel, its values, or their squared differences from `mean`.
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, mean: Option<&[f32]>, out: &mut [f32]) {
        // Some vectors of channels at a time, whose sums stay in registers.
        const VECTORS: usize = 4;
        let block = VECTORS * S::LANES;
        for first in (0..self.c).step_by(block) {
            let channels = first..self.c.min(first + block);
            if channels.len() == block {
                let mut means = [s.zero(); VECTORS];
                for (v, value) in means.iter_mut().enumerate() {
                    if let Some(mean) = mean {
                        *value = s.read(mean, first + v * S::LANES);
                    }
                }
                let mut sums = [s.zero(); VECTORS];
                for pixel in self.x.chunks_exact(self.c) {
                    let pixel = &pixel[first..first + block];
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let x = s.read(pixel, v * S::LANES);
                        *sum = if mean.is_some() {
                            let d = s.sub(x, means[v]);
                            s.fma(d, d, *sum)
                        } else {
                            s.add(*sum, x)
                        };
                    }
                }
                for (v, sum) in sums.into_iter().enumerate() {
                    s.write(out, first + v * S::LANES, sum);
                }
                continue;
            }
            for i in channels.step_by(S::LANES) {
                let mut sum = s.zero();
                for pixel in self.x.chunks_exact(self.c) {
                    let mut d = s.read(pixel, i);
                    if let Some(mean) = mean {
                        d = s.sub(d, s.read(mean, i));
                        d = s.mul(d, d);
                    }
                    sum = s.add(sum, d);
                }
                s.write(out, i, sum);
            }
        }
    }
}

/// `out = x * scale + shift` per channel, then SiLU if it was asked for.
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
        if self.silu {
            self.apply::<S, true>(s);
        } else {
            self.apply::<S, false>(s);
        }
    }
}

impl<E: Element> Affine<'_, E> {
    #[inline(always)]
    fn apply<S: Simd, const SILU: bool>(self, s: S) {
        let c = self.scale.len();
        for (x, out) in self.x.chunks_exact(c).zip(self.out.chunks_exact_mut(c)) {
            for i in (0..c).step_by(S::LANES) {
                let mut y = s.fma(s.read(x, i), s.read(self.scale, i), s.read(self.shift, i));
                if SILU {
                    y = math::silu(s, y, E::IS_BF16);
                }
                s.write(out, i, y);
            }
        }
    }
}

/// Normalises each of the rows of `x`, `[rows, c]`, to mean 0 and variance 1 (layer norm),
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
    layer_norm_for(Isa::current(), x, [rows, c], eps, gamma, beta, out);
}

fn layer_norm_for<E: Element>(
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

/// Norms some rows.
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
        /// Partial sums that are taken side by side, so that an addition need not wait for the
        /// one before.
        const SUMS: usize = 4;
        let whole = c - c % S::LANES;
        let unrolled = c - c % (SUMS * S::LANES);
        for (x, out) in self.x.chunks_exact(c).zip(self.out.chunks_exact_mut(c)) {
            let mut sum = [s.zero(); SUMS];
            for part in x[..unrolled].chunks_exact(SUMS * S::LANES) {
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = s.add(*sum, s.read(part, v * S::LANES));
                }
            }
            for i in (unrolled..c).step_by(S::LANES) {
                sum[0] = s.add(sum[0], s.read(x, i));
            }
            let sum = s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3]));
            let mean = s.reduce_sum(sum) / c as f32;
            let mut squares = [s.zero(); SUMS];
            for part in x[..unrolled].chunks_exact(SUMS * S::LANES) {
                for (v, squares) in squares.iter_mut().enumerate() {
                    let d = s.sub(s.read(part, v * S::LANES), s.splat(mean));
                    *squares = s.fma(d, d, *squares);
                }
            }
            for i in (unrolled..whole).step_by(S::LANES) {
                let d = s.sub(s.read(x, i), s.splat(mean));
                squares[0] = s.fma(d, d, squares[0]);
            }
            let squares = s.add(s.add(squares[0], squares[1]), s.add(squares[2], squares[3]));
            let rest: f32 = x[whole..].iter().map(|v| (v.to_f32() - mean).powi(2)).sum();
            let variance = (s.reduce_sum(squares) + rest) / c as f32;
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
        GroupNorm::new_for(isa, &x, shape, 1e-5, &gamma, &beta, silu).apply(&x, &mut out);
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
        layer_norm_for(isa, &x, [rows, c], 1e-5, &gamma, &beta, &mut out);
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

    #[test]
    fn threads_do_not_change_the_result() {
        let (pixels, c) = (3000, 64);
        let (x, gamma, beta) = (noise(1, pixels * c), noise(2, c), noise(3, c));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0f32; x.len()];
            pool.unwrap().install(|| {
                group_norm(&x, 1, pixels, c, 32, 1e-5, &gamma, &beta, true, &mut out);
            });
            out
        };
        assert_eq!(run(1), run(3));
    }
}
