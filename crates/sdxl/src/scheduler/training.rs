//! The parts that all schedulers for discretely trained models share: the noise schedule of
//! training, and the choice of a run's noise levels from it.

use super::info::{OptionInfo, option};
use super::{SchedulerConfig, SchedulerError};
use crate::noise_schedule::{self, BetaSchedule, SigmaCurve, Spacing};

/// The options of the noise schedule, with the defaults of most classes.
pub(super) const NOISE: &[OptionInfo] = &[
    option("num_train_timesteps", "1000"),
    option("beta_start", "0.0001"),
    option("beta_end", "0.02"),
    option("beta_schedule", r#""linear""#),
    option("trained_betas", "null"),
];

/// The same with the betas of Stable Diffusion, which some classes have for defaults.
pub(super) const LATENT_NOISE: &[OptionInfo] = &[
    option("num_train_timesteps", "1000"),
    option("beta_start", "0.00085"),
    option("beta_end", "0.012"),
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

/// The treatment of the last timestep of a model trained down to pure noise (zero terminal SNR), at
/// which the noise level is infinite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroSnr {
    /// The class has no such option.
    No,
    /// It stays infinite: the class works with alphas, of which zero is fine.
    Exact,
    /// The cumulative alpha is made 2^-24 instead of zero, and so sigma 4096.
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
                return Err(config.bad_option("trained_betas", expected));
            }
            betas
        }
        None => {
            let (start, end) = (
                config.number_in("beta_start", 1e-9, 0.999)?,
                config.number_in("beta_end", 1e-9, 0.999)?,
            );
            noise_schedule::betas(
                config.choice("beta_schedule", schedules)?,
                start,
                end,
                count,
            )
        }
    };
    let rescale = zero_snr != ZeroSnr::No && config.flag("rescale_betas_zero_snr")?;
    if rescale {
        betas = noise_schedule::rescale_zero_terminal_snr(&betas);
    }
    let mut alphas = noise_schedule::alphas_cumprod(&betas);
    let adds_noise = alphas.windows(2).all(|pair| pair[0] > pair[1]);
    if !adds_noise || alphas[0] >= 1.0 || alphas[count - 1] <= 0.0 && !rescale {
        return Err(config.unsupported(
            "with these betas some timesteps add no noise, or nothing is left of the image; \
             check beta_start, beta_end, beta_schedule and trained_betas",
        ));
    }
    if rescale && zero_snr == ZeroSnr::NearlyZero {
        alphas[count - 1] = noise_schedule::NEARLY_ZERO_ALPHA;
    }
    Ok(alphas)
}

/// Reads the spacing of the timesteps.
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

/// Reads the shift of leading timesteps. It may not move them beyond those of training.
pub(super) fn steps_offset(config: &SchedulerConfig) -> Result<i64, SchedulerError> {
    let (offset, last) = (
        config.integer("steps_offset")?,
        config.trained()? as i64 - 1,
    );
    if (0..=last).contains(&offset) {
        Ok(offset)
    } else {
        Err(config.bad_option("steps_offset", format!("a whole number from 0 to {last}")))
    }
}

/// The sigma curve that is switched on.
pub(super) fn sigma_curve(config: &SchedulerConfig) -> Result<Option<SigmaCurve>, SchedulerError> {
    config.one_of(&[
        ("use_karras_sigmas", SigmaCurve::Karras),
        ("use_exponential_sigmas", SigmaCurve::Exponential),
        ("use_beta_sigmas", SigmaCurve::Beta),
    ])
}

/// Reads `final_sigmas_type`: the noise level of the result is zero, or the lowest of training.
pub(super) fn final_sigma(config: &SchedulerConfig, lowest: f32) -> Result<f32, SchedulerError> {
    config.choice("final_sigmas_type", &[("zero", 0.0), ("sigma_min", lowest)])
}

/// The ends of sigma curves, where options fix them: lowest and highest.
pub(super) fn sigma_range(
    config: &SchedulerConfig,
) -> Result<(Option<f64>, Option<f64>), SchedulerError> {
    let end = |option| {
        let sigma = config.optional_number(option)?;
        if sigma.is_some_and(|s| s <= 0.0) {
            return Err(config.bad_option(option, "a number above 0"));
        }
        Ok(sigma)
    };
    Ok((end("sigma_min")?, end("sigma_max")?))
}
