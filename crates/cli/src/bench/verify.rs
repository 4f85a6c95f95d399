//! The operators against the plain definition in `f64`, before anything is timed.
//!
//! Both sides start from the same random weights. Of large results a few hundred values, spread
//! over the whole, are computed.

use std::fmt;

use anyhow::bail;
use sdxl::noise::Generator;
use sdxl::ops::{self, Activation, ConvExtras};
use sdxl::tensor::Tensor;
use sdxl::weights::TensorSet;
use sdxl::weights::{Loader, random};
use sdxl::{Precision, Rng};
use sdxl_kernels::WeightFormat;

/// Relative L2 distances, operator by operator.
pub(super) struct Errors {
    each: Vec<(&'static str, f64)>,
    bar: f64,
}

impl Errors {
    /// The largest.
    pub(super) fn worst(&self) -> f64 {
        self.each.iter().map(|(_, e)| *e).fold(0.0, f64::max)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operators within a relative L2 of {:.1e} of f64 (bar {:.0e})",
            self.each.len(),
            self.worst(),
            self.bar
        )
    }
}

/// Compares the operators that take the time.
///
/// # Errors
/// One that is wrong, by name.
pub(super) fn operators(precision: Precision) -> anyhow::Result<Errors> {
    let bar = match precision.weight_format() {
        WeightFormat::F32 | WeightFormat::F16 => 1e-5,
        // Results are rounded to 8 bits.
        WeightFormat::Bf16 => 5e-3,
        WeightFormat::Int8 => 3e-2,
    };
    let tensors = TensorSet::random();
    let check = Check {
        loader: Loader::new(&tensors, precision),
        precision,
    };
    let each = vec![
        ("linear", check.linear()?),
        ("geglu", check.geglu()?),
        ("conv2d", check.conv2d(Kind::Plain)?),
        ("conv2d of a block", check.conv2d(Kind::OfBlock)?),
        ("conv2d of stride 2", check.conv2d(Kind::Halving)?),
        ("conv2d of an enlarged map", check.conv2d(Kind::Doubling)?),
        ("group_norm", check.group_norm()?),
        ("self_attention", check.self_attention()?),
    ];
    for (name, error) in &each {
        if error.is_nan() || *error > bar {
            bail!(
                "{name} is wrong in {precision} on this machine: {error:.1e} from its definition, \
                 where {bar:.0e} is allowed; please report this"
            );
        }
    }
    Ok(Errors { each, bar })
}

/// Values of a result to compare, about this many.
const SAMPLES: usize = 300;

/// Convolutions that networks pack each in its own way.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    OfBlock,
    Halving,
    Doubling,
}

struct Check<'a> {
    loader: Loader<'a>,
    precision: Precision,
}

impl Check<'_> {
    /// Standard normal values, as the precision holds them.
    fn input(&self, seed: u64, shape: &[usize]) -> Tensor {
        let values = Generator::new(Rng::TorchCpu, seed).randn(shape.iter().product());
        Tensor::from_f32(shape, values).to_dtype(self.precision.activations())
    }

    fn linear(&self) -> anyhow::Result<f64> {
        let (rows, k, n) = (333, 640, 1280);
        let layer = self.loader.linear("linear", k, n)?;
        let (x, residual) = (self.input(1, &[rows, k]), self.input(2, &[rows, n]));
        let ours = ops::linear(&x, &layer, Activation::None, Some(&residual));
        let (w, b) = (
            weights("linear.weight", &[n, k]),
            weights("linear.bias", &[n]),
        );
        let (x, residual) = (x.to_f32_vec(), residual.to_f32_vec());
        Ok(distance(&ours, |i| {
            let (row, column) = (i / n, i % n);
            let sum = dot(&x[row * k..][..k], &w[column * k..][..k]);
            sum + f64::from(b[column]) + f64::from(residual[i])
        }))
    }

    fn geglu(&self) -> anyhow::Result<f64> {
        let (rows, k, inner) = (200, 640, 2560);
        let layer = self.loader.geglu("geglu", k, inner)?;
        let x = self.input(3, &[rows, k]);
        let ours = ops::geglu(&x, &layer);
        let w = weights("geglu.weight", &[2 * inner, k]);
        let b = weights("geglu.bias", &[2 * inner]);
        let x = x.to_f32_vec();
        Ok(distance(&ours, |i| {
            let (row, column) = (i / inner, i % inner);
            let of = |out: usize| dot(&x[row * k..][..k], &w[out * k..][..k]) + f64::from(b[out]);
            let gate = of(inner + column);
            // Half of the error function of z / sqrt(2), by Simpson's rule on the density.
            let intervals = 2000;
            let step = gate / f64::from(intervals);
            let density = |i: i32| (-0.5 * (f64::from(i) * step).powi(2)).exp();
            let inside: f64 = (1..intervals)
                .map(|i| density(i) * if i % 2 == 1 { 4.0 } else { 2.0 })
                .sum();
            let area = (density(0) + density(intervals) + inside) * step / 3.0;
            of(column) * gate * (0.5 + area / std::f64::consts::TAU.sqrt())
        }))
    }

    fn conv2d(&self, kind: Kind) -> anyhow::Result<f64> {
        let (batch, side, c_in, c_out) = (2, 24, 320, 320);
        let enlarged = kind == Kind::Doubling;
        let stride = if kind == Kind::Halving { 2 } else { 1 };
        let name = if enlarged { "conv_enlarged" } else { "conv" };
        let plain = || self.loader.conv2d(name, c_in, c_out, 3, stride, [1; 4]);
        let layer = match kind {
            Kind::Doubling => match self.loader.conv_doubled(name, c_in, c_out)? {
                Some(doubled) => doubled,
                None => plain()?,
            },
            Kind::OfBlock => self.loader.conv_winograd(name, c_in, c_out)?,
            _ => plain()?,
        };
        let x = self.input(4, &[batch, side, side, c_in]);
        let factor = if enlarged { 2 } else { 1 };
        let extras = ConvExtras {
            upsample_to: enlarged.then_some((2 * side, 2 * side)),
            ..ConvExtras::default()
        };
        let ours = ops::conv2d(&x, &layer, extras);
        let w = weights(&format!("{name}.weight"), &[c_out, c_in, 3, 3]);
        let b = weights(&format!("{name}.bias"), &[c_out]);
        let x = x.to_f32_vec();
        let out_side = factor * side / stride;
        Ok(distance(&ours, |i| {
            let (pixel, channel) = (i / c_out, i % c_out);
            let image = pixel / (out_side * out_side);
            let (row, column) = (pixel / out_side % out_side, pixel % out_side);
            let mut sum = f64::from(b[channel]);
            for tap in 0..9 {
                let (y, x_) = (row * stride + tap / 3, column * stride + tap % 3);
                let inside = 1..=factor * side;
                if !inside.contains(&y) || !inside.contains(&x_) {
                    continue;
                }
                let (y, x_) = ((y - 1) / factor, (x_ - 1) / factor);
                let at = ((image * side + y) * side + x_) * c_in;
                for (c, value) in x[at..at + c_in].iter().enumerate() {
                    sum += f64::from(*value) * f64::from(w[(channel * c_in + c) * 9 + tap]);
                }
            }
            sum
        }))
    }

    fn group_norm(&self) -> anyhow::Result<f64> {
        let (batch, pixels, channels, groups) = (2, 500, 640, 32);
        let norm = self.loader.norm("norm", channels, groups, 1e-5)?;
        let x = self.input(5, &[batch, pixels, channels]);
        let ours = ops::group_norm(&x, &norm, true);
        let gamma = weights("norm.weight", &[channels]);
        let beta = weights("norm.bias", &[channels]);
        let x = x.to_f32_vec();
        let width = channels / groups;
        Ok(distance(&ours, |i| {
            let (image, channel) = (i / (pixels * channels), i % channels);
            let group = (0..pixels).flat_map(|pixel| {
                let at = (image * pixels + pixel) * channels + channel / width * width;
                x[at..at + width].iter().map(|v| f64::from(*v))
            });
            let count = (pixels * width) as f64;
            let mean = group.clone().sum::<f64>() / count;
            let variance = group.map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            let z = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
            let y = z * f64::from(gamma[channel]) + f64::from(beta[channel]);
            y / (1.0 + (-y).exp())
        }))
    }

    fn self_attention(&self) -> anyhow::Result<f64> {
        let (batch, tokens, heads, head) = (2, 700, 5, 64);
        let channels = heads * head;
        let qkv = self.input(6, &[batch, tokens, 3 * channels]);
        let ours = ops::self_attention(&qkv, heads, false);
        let qkv = qkv.to_f32_vec();
        Ok(distance(&ours, |i| {
            let (image, channel) = (i / (tokens * channels), i % channels);
            let at = |token: usize, part: usize| {
                (image * tokens + token) * 3 * channels + part * channels
            };
            let first = channel / head * head;
            let q = &qkv[at(i / channels % tokens, 0) + first..][..head];
            let (mut total, mut sum) = (0.0, 0.0);
            for token in 0..tokens {
                let k = &qkv[at(token, 1) + first..][..head];
                let weight = (dot(q, k) / (head as f64).sqrt()).exp();
                total += weight;
                sum += weight * f64::from(qkv[at(token, 2) + channel]);
            }
            sum / total
        }))
    }
}

/// Gives the random weights of a tensor that the loader packed, widened to `f32`.
fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = random::values(name, shape);
    values.into_iter().map(f32::from).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

/// |ours - definition| / |definition| over values of a result, picked by their index.
fn distance(ours: &Tensor, definition: impl Fn(usize) -> f64) -> f64 {
    let ours = ours.to_f32_vec();
    // An odd step meets every column of layers whose widths are even.
    let step = (ours.len() / SAMPLES).max(1) | 1;
    let (mut difference, mut norm) = (0.0, 0.0);
    for i in (0..ours.len()).step_by(step) {
        let exact = definition(i);
        difference += (f64::from(ours[i]) - exact).powi(2);
        norm += exact.powi(2);
    }
    (difference / norm).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_right_in_every_precision() {
        for precision in ["f32", "bf16", "f16", "int8"] {
            let errors = operators(precision.parse().unwrap()).unwrap();
            assert_eq!(errors.each.len(), 8);
            assert!(errors.worst() > 0.0, "nothing was rounded in {precision}");
        }
    }

    #[test]
    fn a_wrong_value_shows() {
        let x = Tensor::from_f32([2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let right = |i: usize| (i + 1) as f64;
        assert_eq!(distance(&x, right), 0.0);
        assert!(distance(&x, |i| right(i) + 0.01) > 1e-3);
        assert!(distance(&x, |_| f64::NAN).is_nan());
    }
}
