//! Noise schedules: betas, cumulative alphas, spaced timesteps and sigma curves. No tensors.
//!
//! Each function works at the precision of the reference: what diffusers computes with PyTorch is
//! `f32` here (with the `f64` accumulators that PyTorch uses), what it computes with NumPy is
//! `f64`. Where a timestep is rounded or cut to a whole number, the last bit decides which one it
//! is.

mod beta_distribution;
mod numpy_log;

use std::f64::consts::FRAC_PI_2;

pub use beta_distribution::beta_quantile;
pub use numpy_log::numpy_log;

/// The ten timesteps of "Align Your Steps" (Sabour, Fidler & Kreis, 2024) for SDXL.
pub const AYS_SDXL_TIMESTEPS: [f64; 10] = [
    999.0, 845.0, 730.0, 587.0, 443.0, 310.0, 193.0, 116.0, 53.0, 13.0,
];

/// The sigmas of "Align Your Steps" for SDXL, with the final zero.
pub const AYS_SDXL_SIGMAS: [f64; 11] = [
    14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0,
];

/// The growth of the noise of the training process from timestep to timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly spaced betas.
    Linear,
    /// Evenly spaced square roots of betas: Stable Diffusion and SDXL.
    ScaledLinear,
    /// Betas of a cosine for the cumulative alphas (Nichol & Dhariwal 2021).
    SquaredCosCapV2,
    /// Betas of an exponential for the cumulative alphas.
    Exp,
    /// Betas of a Laplace distribution of log-SNR (Hang & Gu 2024).
    Laplace,
    /// Betas along a logistic curve.
    Sigmoid,
}

/// The betas of `count` training timesteps.
pub fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => linspace_f32(start, end, count),
        BetaSchedule::ScaledLinear => linspace_f32(start.sqrt(), end.sqrt(), count)
            .into_iter()
            .map(|x| x * x)
            .collect(),
        BetaSchedule::SquaredCosCapV2 => betas_for_alpha_bar(count, |t| {
            let c = libm::cos((t + 0.008) / 1.008 * FRAC_PI_2);
            c * c
        }),
        BetaSchedule::Exp => betas_for_alpha_bar(count, |t| libm::exp(-12.0 * t)),
        BetaSchedule::Laplace => betas_for_alpha_bar(count, |t| {
            let lambda =
                -0.5 * 1f64.copysign(0.5 - t) * libm::log(1.0 - 2.0 * (0.5 - t).abs() + 1e-6);
            let snr = libm::exp(lambda);
            (snr / (1.0 + snr)).sqrt()
        }),
        BetaSchedule::Sigmoid => linspace_f32(-6.0, 6.0, count)
            .into_iter()
            .map(|x| {
                let logistic = (1.0 / (1.0 + libm::exp(f64::from(-x)))) as f32;
                logistic * (end - start) as f32 + start as f32
            })
            .collect(),
    }
}

/// The betas that give the cumulative alphas `alpha_bar(t)`, `t` from 0 to 1, capped at 0.999.
fn betas_for_alpha_bar(count: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| alpha_bar(i as f64 / count as f64);
    (0..count)
        .map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32)
        .collect()
}

/// The cumulative products of `1 - beta`.
pub fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    betas
        .iter()
        .map(|beta| {
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect()
}

/// Betas whose last timestep carries no signal (Lin et al., "Common Diffusion Noise Schedules and
/// Sample Steps are Flawed", 2023, algorithm 1).
pub fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * scale;
    }
    let bars: Vec<f32> = roots.iter().map(|x| x * x).collect();
    let mut before = 1.0;
    bars.iter()
        .map(|&bar| {
            let alpha = bar / before;
            before = bar;
            1.0 - alpha
        })
        .collect()
}

/// The cumulative alpha that stands for zero in schedules down to pure noise: the least positive
/// number of `f16`.
pub const NEARLY_ZERO_ALPHA: f32 = 1.0 / 16_777_216.0;

/// The noise level `sqrt((1 - a) / a)` of a cumulative alpha.
pub fn sigma_of_alpha(alpha_cumprod: f32) -> f32 {
    if alpha_cumprod == NEARLY_ZERO_ALPHA {
        // The root lies almost exactly between two numbers, and the reference takes the upper one.
        // A first step from there magnifies the difference to 5e-5 of the sample.
        return 4096.0;
    }
    ((1.0 - alpha_cumprod) / alpha_cumprod).sqrt()
}

/// The spacing of a run's timesteps over those of training (table 2 of Lin et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly from the first to the last training timestep.
    Linspace,
    /// Multiples of a whole step from zero up, shifted by `steps_offset`; never reaches the last
    /// timestep.
    Leading,
    /// From the last training timestep down.
    Trailing,
}

/// `count` timesteps, highest first, for schedulers that place each of them themselves (Euler,
/// Heun, DDIM, ...). With [`Spacing::Linspace`] they may be fractional. [`Spacing::Trailing`] can
/// give one more than asked for where `trained / count` is not exact; so does the reference.
pub fn spaced(spacing: Spacing, trained: usize, count: usize, offset: i64) -> Vec<f64> {
    match spacing {
        Spacing::Linspace => reversed(linspace(0.0, trained as f64 - 1.0, count)),
        Spacing::Leading => {
            let ratio = (trained / count) as f64;
            (0..count)
                .rev()
                .map(|i| i as f64 * ratio + offset as f64)
                .collect()
        }
        Spacing::Trailing => trailing(trained, trained, count),
    }
}

/// `count` timesteps, highest first, for multistep solvers: `count + 1` are placed from `last` down
/// to zero and the lowest is left out. `last` is `trained` unless `lambda_min_clipped` cuts the
/// noisiest timesteps off.
pub fn spaced_without_last(
    spacing: Spacing,
    trained: usize,
    last: usize,
    count: usize,
    offset: i64,
) -> Vec<f64> {
    let mut timesteps = match spacing {
        Spacing::Linspace => {
            let all = linspace(0.0, last as f64 - 1.0, count + 1);
            reversed(all.into_iter().map(f64::round_ties_even).collect())
        }
        Spacing::Leading => {
            let ratio = (last / (count + 1)) as f64;
            (0..=count)
                .rev()
                .map(|i| i as f64 * ratio + offset as f64)
                .collect()
        }
        Spacing::Trailing => return trailing(trained, last, count),
    };
    timesteps.truncate(count);
    timesteps
}

/// Steps of `trained / count` from `last` down, less one.
fn trailing(trained: usize, last: usize, count: usize) -> Vec<f64> {
    let ratio = trained as f64 / count as f64;
    arange(last as f64, 0.0, -ratio)
        .into_iter()
        .map(|t| t.round_ties_even() - 1.0)
        .collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

/// `numpy.linspace(start, stop, count)`.
pub fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    if count <= 1 {
        return vec![start; count];
    }
    let step = (stop - start) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step + start).collect();
    values[count - 1] = stop;
    values
}

/// `numpy.arange(start, stop, step)`, whose increment is rounded where it is first added.
fn arange(start: f64, stop: f64, step: f64) -> Vec<f64> {
    let count = ((stop - start) / step).ceil().max(0.0) as usize;
    let delta = (start + step) - start;
    (0..count).map(|i| start + i as f64 * delta).collect()
}

/// `torch.linspace(start, stop, count)` in `f32`: it counts from both ends towards the middle.
pub fn linspace_f32(start: f64, stop: f64, count: usize) -> Vec<f32> {
    let (start, stop) = (start as f32, stop as f32);
    if count <= 1 {
        return vec![start; count];
    }
    let step = f64::from((stop - start) / (count - 1) as f32);
    (0..count)
        .map(|i| {
            // The reference fuses the product into the sum.
            let value = if i < count / 2 {
                f64::from(start) + step * i as f64
            } else {
                f64::from(stop) - step * (count - 1 - i) as f64
            };
            value as f32
        })
        .collect()
}

/// The noise levels of all training timesteps, lowest first, and the conversion between levels
/// and timesteps.
#[derive(Clone, Debug)]
pub struct SigmaTable {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl SigmaTable {
    /// The table for the cumulative alphas of training.
    ///
    /// # Panics
    /// On less than two of them.
    pub fn new(alphas_cumprod: &[f32]) -> Self {
        assert!(
            alphas_cumprod.len() >= 2,
            "training has two timesteps at least"
        );
        let sigmas: Vec<f32> = alphas_cumprod.iter().map(|&a| sigma_of_alpha(a)).collect();
        let logs = sigmas.iter().map(|&s| numpy_log(s)).collect();
        Self { sigmas, logs }
    }

    /// The noise level of every training timestep.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The lowest noise level.
    pub fn min(&self) -> f32 {
        self.sigmas[0]
    }

    /// The highest noise level.
    pub fn max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// The natural logarithms of the lowest and the highest noise level.
    pub fn log_range(&self) -> (f64, f64) {
        let (low, high) = (self.logs[0], self.logs[self.logs.len() - 1]);
        (low.into(), high.into())
    }

    /// The noise level of a timestep, interpolated between whole timesteps and kept inside the
    /// table.
    pub fn sigma_at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let timestep = timestep.clamp(0.0, last as f64);
        let low = (timestep.floor() as usize).min(last);
        let (start, fraction) = (f64::from(self.sigmas[low]), timestep - low as f64);
        if fraction == 0.0 {
            return start;
        }
        (f64::from(self.sigmas[low + 1]) - start) * fraction + start
    }

    /// The timestep of a noise level, interpolated in the logarithm and kept inside the table.
    pub fn timestep_of(&self, sigma: f64) -> f64 {
        let log = libm::log(sigma.max(1e-10));
        let low = self.below(|l| f64::from(l) <= log);
        let (below, above) = (self.logs[low], self.logs[low + 1]);
        let weight = ((f64::from(below) - log) / f64::from(below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }

    /// The same in `f32`, as the reference computes it where it holds the level in a tensor.
    pub fn timestep_of_f32(&self, sigma: f32) -> f32 {
        let log = numpy_log(sigma.max(1e-10));
        let low = self.below(|l| l <= log);
        let (below, above) = (self.logs[low], self.logs[low + 1]);
        let weight = ((below - log) / (below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f32 + weight * (low + 1) as f32
    }

    /// Gives the last timestep whose logarithm is not above, and at most the last but one: the one
    /// after it is the other end of an interpolation.
    fn below(&self, is_not_above: impl Fn(f32) -> bool) -> usize {
        let count = self.logs.partition_point(|&l| is_not_above(l));
        count.saturating_sub(1).min(self.logs.len() - 2)
    }
}

/// A curve on which the noise levels of a run are put, between the highest and the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaCurve {
    /// Even steps in the seventh root (Karras et al. 2022, equation 5).
    Karras,
    /// Even steps in the logarithm.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6 (Lee et al., "Beta Sampling is
    /// All You Need", 2024).
    Beta,
}

/// `count` noise levels from `max` down to `min`.
pub fn sigma_curve(curve: SigmaCurve, min: f64, max: f64, count: usize) -> Vec<f64> {
    match curve {
        SigmaCurve::Karras => karras(min, max, 7.0, &linspace(0.0, 1.0, count)),
        SigmaCurve::Exponential => linspace(libm::log(max), libm::log(min), count)
            .into_iter()
            .map(libm::exp)
            .collect(),
        SigmaCurve::Beta => linspace(0.0, 1.0, count)
            .into_iter()
            .map(|x| min + beta_quantile(1.0 - x, 0.6) * (max - min))
            .collect(),
    }
}

/// The curve of Karras et al. at the places `ramp`, 0 for `max` and 1 for `min`.
pub fn karras(min: f64, max: f64, rho: f64, ramp: &[f64]) -> Vec<f64> {
    let (low, high) = (libm::pow(min, 1.0 / rho), libm::pow(max, 1.0 / rho));
    ramp.iter()
        .map(|x| libm::pow(high + x * (low - high), rho))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdxl() -> Vec<f32> {
        alphas_cumprod(&betas(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000))
    }

    #[test]
    fn the_range_of_sdxl() {
        let table = SigmaTable::new(&sdxl());
        assert_eq!((table.min(), table.max()), (0.029_167_533, 14.614_647));
        assert_eq!(table.sigma_at(999.5), f64::from(table.max()));
        let middle = table.sigma_at(500.5);
        assert!((table.timestep_of(middle) - 500.5).abs() < 1e-3);
    }

    #[test]
    fn spacings_of_four_steps() {
        assert_eq!(
            spaced(Spacing::Leading, 1000, 4, 1),
            [751.0, 501.0, 251.0, 1.0]
        );
        assert_eq!(
            spaced(Spacing::Linspace, 1000, 4, 1),
            [999.0, 666.0, 333.0, 0.0]
        );
        assert_eq!(
            spaced(Spacing::Trailing, 1000, 4, 1),
            [999.0, 749.0, 499.0, 249.0]
        );
        assert_eq!(
            spaced_without_last(Spacing::Leading, 1000, 1000, 4, 1),
            [801.0, 601.0, 401.0, 201.0]
        );
        assert_eq!(
            spaced_without_last(Spacing::Linspace, 1000, 1000, 4, 0),
            [999.0, 749.0, 500.0, 250.0]
        );
    }

    #[test]
    fn zero_terminal_snr_ends_at_zero() {
        let betas =
            rescale_zero_terminal_snr(&betas(BetaSchedule::ScaledLinear, 0.00085, 0.012, 1000));
        assert_eq!(alphas_cumprod(&betas).last(), Some(&0.0));
        assert!((alphas_cumprod(&betas)[0] - sdxl()[0]).abs() < 1e-6);
    }

    #[test]
    fn curves_keep_their_ends() {
        for curve in [
            SigmaCurve::Karras,
            SigmaCurve::Exponential,
            SigmaCurve::Beta,
        ] {
            let sigmas = sigma_curve(curve, 0.03, 14.6, 10);
            assert!(
                (sigmas[0] - 14.6).abs() < 1e-12 && (sigmas[9] - 0.03).abs() < 1e-12,
                "{curve:?} {sigmas:?}"
            );
            assert!(sigmas.is_sorted_by(|a, b| a > b), "{curve:?}");
        }
    }
}
