//! What all schedulers for discretely trained models share: the noise schedule of training, and how
//! a run's noise levels are chosen from it.

use super::registry::OptionInfo;
use super::{SchedulerConfig, SchedulerError};
use crate::schedule::{self, BetaSchedule, SigmaCurve, SigmaTable, Spacing};

/// Shorthand for the tables of options.
pub(super) const fn option(name: &'static str, default: &'static str) -> OptionInfo {
    OptionInfo { name, default }
}

/// The options of the noise schedule, with the defaults of most classes.
pub(super) const NOISE: &[OptionInfo] = &[
    option("num_train_timesteps", "1000"),
    option("beta_start", "0.0001"),
    option("beta_end", "0.02"),
    option("beta_schedule", r#""linear""#),
    option("trained_betas", "null"),
];

/// The option for models trained down to pure noise.
pub(super) const ZERO_SNR: &[OptionInfo] = &[option("rescale_betas_zero_snr", "false")];

/// The options for where the steps are, with the defaults of most classes.
pub(super) const SPACING: &[OptionInfo] = &[
    option("timestep_spacing", r#""linspace""#),
    option("steps_offset", "0"),
];

/// The switches for sigma curves.
pub(super) const CURVES: &[OptionInfo] = &[
    option("use_karras_sigmas", "false"),
    option("use_exponential_sigmas", "false"),
    option("use_beta_sigmas", "false"),
];

/// Beta schedules that most classes know.
pub(super) const BETA_SCHEDULES: &[(&str, BetaSchedule)] = &[
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredCosCapV2),
];

/// What is done about the last timestep of a model trained down to pure noise, where the noise
/// level is infinite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroSnr {
    /// The class has no such option.
    No,
    /// Nothing: the class works with alphas, and zero is fine.
    Exact,
    /// Its alpha is made 2^-24, its sigma 4096.
    NearlyZero,
}

/// The cumulative alphas of training.
pub(super) fn alphas_cumprod(
    config: &SchedulerConfig,
    schedules: &[(&'static str, BetaSchedule)],
    zero_snr: ZeroSnr,
) -> Result<Vec<f32>, SchedulerError> {
    let count = config.trained()?;
    let mut betas = match config.numbers("trained_betas")? {
        Some(betas) => {
            let betas: Vec<f32> = betas.into_iter().map(|b| b as f32).collect();
            if betas.len() != count || betas.iter().any(|&b| !(b > 0.0 && b < 1.0)) {
                let expected = format!(
                    "a list of {count} numbers between 0 and 1 (num_train_timesteps of them)"
                );
                return Err(config.bad("trained_betas", expected));
            }
            betas
        }
        None => {
            let (start, end) = (
                config.number_in("beta_start", 1e-9, 0.999)?,
                config.number_in("beta_end", 1e-9, 0.999)?,
            );
            schedule::betas(
                config.choice("beta_schedule", schedules)?,
                start,
                end,
                count,
            )
        }
    };
    let rescale = zero_snr != ZeroSnr::No && config.flag("rescale_betas_zero_snr")?;
    if rescale {
        betas = schedule::rescale_zero_terminal_snr(&betas);
    }
    let mut alphas = schedule::alphas_cumprod(&betas);
    if rescale && zero_snr == ZeroSnr::NearlyZero {
        alphas[count - 1] = schedule::NEARLY_ZERO_ALPHA;
    }
    Ok(alphas)
}

/// Where the steps are.
pub(super) fn spacing(config: &SchedulerConfig) -> Result<Spacing, SchedulerError> {
    config.choice(
        "timestep_spacing",
        &[
            ("linspace", Spacing::Linspace),
            ("leading", Spacing::Leading),
            ("trailing", Spacing::Trailing),
        ],
    )
}

/// The shift of leading timesteps. It may not push them out of the table.
pub(super) fn steps_offset(config: &SchedulerConfig) -> Result<i64, SchedulerError> {
    let (offset, last) = (
        config.integer("steps_offset")?,
        config.trained()? as i64 - 1,
    );
    if (0..=last).contains(&offset) {
        Ok(offset)
    } else {
        Err(config.bad("steps_offset", format!("a whole number from 0 to {last}")))
    }
}

/// The sigma curve that is switched on.
pub(super) fn curve(config: &SchedulerConfig) -> Result<Option<SigmaCurve>, SchedulerError> {
    config.one_of(&[
        ("use_karras_sigmas", SigmaCurve::Karras),
        ("use_exponential_sigmas", SigmaCurve::Exponential),
        ("use_beta_sigmas", SigmaCurve::Beta),
    ])
}

/// Evaluations of the Euler family before the final sigma: timesteps and noise levels, highest
/// first. A curve is laid between the levels of the first and the last of the spaced timesteps, and
/// its timesteps are fractional.
pub(super) fn spaced_sigmas(
    curve: Option<SigmaCurve>,
    range: (Option<f64>, Option<f64>),
    table: &SigmaTable,
    timesteps: Vec<f64>,
    steps: usize,
) -> (Vec<f64>, Vec<f64>) {
    let sigmas: Vec<f64> = timesteps.iter().map(|&t| table.sigma_at(t)).collect();
    let Some(curve) = curve else {
        return (timesteps, sigmas);
    };
    let min = range.0.unwrap_or(sigmas[sigmas.len() - 1]);
    let max = range.1.unwrap_or(sigmas[0]);
    let sigmas = schedule::sigma_curve(curve, min, max, steps);
    (
        sigmas.iter().map(|&s| table.timestep_of(s)).collect(),
        sigmas,
    )
}

/// `init_noise_sigma` of the Euler family: leading timesteps do not reach the highest noise level,
/// so that the latents' own variance is added.
pub(super) fn init_noise_sigma(spacing: Spacing, sigmas: &[f32]) -> f32 {
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    if spacing == Spacing::Leading {
        (max * max + 1.0).sqrt()
    } else {
        max
    }
}
