//! Samples of the form `alpha * x0 + sigma * noise` at noise levels, as DPM-Solver holds them, and
//! the placing of the multistep solvers' steps.

use super::info::{OptionInfo, option};
use super::math::ln;
use super::prediction::Prediction;
use super::schedule::{Levels, Position, Schedule, with_final};
use super::training;
use super::{InferenceSteps, SchedulerConfig, SchedulerError, Steps};
use crate::latents::Latents;
use crate::noise_schedule::{self, SigmaCurve, SigmaTable, linspace, spaced_without_last};

/// The options for flow matching, where a level is the share of noise.
pub(super) const FLOW_OPTIONS: &[OptionInfo] = &[
    option("use_flow_sigmas", "false"),
    option("flow_shift", "1.0"),
];

/// The option for a shift by the size of the picture, which flow models of other families have.
pub(super) const DYNAMIC: &[OptionInfo] = &[option("use_dynamic_shifting", "false")];

/// The option for models that predict a variance beside the noise, which no UNet here does.
pub(super) const VARIANCE: &[OptionInfo] = &[option("variance_type", "null")];

/// Refuses what would change the numbers and is not implemented: see [`DYNAMIC`] and [`VARIANCE`].
pub(super) fn refuse_other_families(config: &SchedulerConfig) -> Result<(), SchedulerError> {
    let has = |option| config.info().option(option).is_some();
    if has("use_dynamic_shifting") && config.flag("use_dynamic_shifting")? {
        let expected = "false: shifts by the size of the picture are for other families of models";
        return Err(config.bad_option("use_dynamic_shifting", expected));
    }
    let variance = config.get("variance_type").and_then(|v| v.as_str());
    if has("variance_type") && matches!(variance, Some("learned" | "learned_range")) {
        let expected = "null: the UNet answers with no variance";
        return Err(config.bad_option("variance_type", expected));
    }
    Ok(())
}

/// The options of all solvers here.
pub(super) const SOLVER: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("lower_order_final", "true"),
];

/// The option that cuts the noisiest timesteps off.
pub(super) const CLIPPED: &[OptionInfo] = &[option("lambda_min_clipped", r#""-inf""#)];

/// The relation between the factors of the clean image (`alpha`) and the noise (`sigma`) in a
/// sample, by which a noise level fixes both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Space {
    /// `alpha^2 + sigma^2 = 1`: diffusion as DDPM has it.
    VariancePreserving,
    /// `alpha + sigma = 1`: rectified flow.
    Flow,
    /// `alpha = 1`: diffusion as Karras et al. 2022 have it.
    VarianceExploding,
}

/// A noise level as the two factors of a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    /// The factor of the clean image.
    pub(super) alpha: f32,
    /// The factor of the noise.
    pub(super) sigma: f32,
    /// Half the logarithm of the signal-to-noise ratio.
    pub(super) lambda: f32,
}

impl Space {
    /// Reads `use_flow_sigmas`.
    pub(super) fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        Ok(if config.flag("use_flow_sigmas")? {
            Self::Flow
        } else {
            Self::VariancePreserving
        })
    }

    /// The factors at the noise level `sigma`, relative to the image.
    pub(super) fn level(self, sigma: f32) -> Level {
        let (alpha, sigma) = match self {
            Self::VariancePreserving => {
                let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
                (alpha, sigma * alpha)
            }
            Self::Flow => (1.0 - sigma, sigma),
            Self::VarianceExploding => (1.0, sigma),
        };
        Level {
            alpha,
            sigma,
            lambda: ln(alpha) - ln(sigma),
        }
    }

    /// The clean image that a model's output means.
    pub(super) fn clean(
        self,
        prediction: Prediction,
        output: &Latents,
        sample: &Latents,
        sigma: f32,
    ) -> Latents {
        let level = self.level(sigma);
        // A flow prediction is relative to the level itself, in every space.
        let noise = if prediction == Prediction::Flow {
            sigma
        } else {
            level.sigma
        };
        prediction.clean(output, sample, level.alpha, noise)
    }

    /// A clean image with the noise of an evaluation's sample.
    pub(super) fn add_noise(
        self,
        position: Position<'_>,
        original: &Latents,
        noise: &Latents,
    ) -> Latents {
        let Level { alpha, sigma, .. } = self.level(position.sigma());
        Latents::zip_with([original, noise], |[x, n]| alpha * x + sigma * n)
    }
}

/// A curve on which a solver's levels are put.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum LevelCurve {
    Sigma(SigmaCurve),
    /// Even steps in the logarithm of the signal-to-noise ratio (Lu et al. 2022).
    Lu,
    /// Even steps in the share of noise, shifted by `flow_shift`.
    Flow,
}

/// Reads which curve is switched on; none where timesteps are spaced.
pub(super) fn level_curve(config: &SchedulerConfig) -> Result<Option<LevelCurve>, SchedulerError> {
    let all = [
        ("use_karras_sigmas", LevelCurve::Sigma(SigmaCurve::Karras)),
        (
            "use_exponential_sigmas",
            LevelCurve::Sigma(SigmaCurve::Exponential),
        ),
        ("use_beta_sigmas", LevelCurve::Sigma(SigmaCurve::Beta)),
        ("use_lu_lambdas", LevelCurve::Lu),
        ("use_flow_sigmas", LevelCurve::Flow),
    ];
    let has = |switch: &&(&'static str, LevelCurve)| config.info().option(switch.0).is_some();
    config.one_of(&all.iter().filter(has).copied().collect::<Vec<_>>())
}

/// Places the steps of a run; without a curve at `spaced` timesteps. Curves run over the whole
/// table, and the timesteps of their levels become whole numbers: rounded on the curve of Karras
/// (but not for the cosine schedule where `keep_cosine`), cut off on the others.
pub(super) fn levels(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
    table: &SigmaTable,
    keep_cosine: bool,
    spaced: impl Fn(usize) -> Result<Vec<f64>, SchedulerError>,
) -> Result<Levels, SchedulerError> {
    let curve = level_curve(config)?;
    let steps = match (&inference.steps, curve) {
        (Steps::Count(steps), _) => *steps,
        (Steps::Timesteps(timesteps) | Steps::Sigmas(timesteps), None) => {
            let sigmas = timesteps.iter().map(|&t| table.sigma_at(t)).collect();
            return Ok(Levels {
                timesteps: timesteps.clone(),
                sigmas,
            });
        }
        (Steps::Timesteps(_) | Steps::Sigmas(_), Some(_)) => {
            return Err(
                config.unsupported("custom timesteps exclude sigma curves; switch them off")
            );
        }
    };
    let cosine = keep_cosine
        && config.get("beta_schedule").and_then(|v| v.as_str()) == Some("squaredcos_cap_v2");
    let (timesteps, sigmas): (Vec<f64>, Vec<f64>) = match curve {
        None => {
            let timesteps = spaced(steps)?;
            let sigmas = timesteps.iter().map(|&t| table.sigma_at(t)).collect();
            (timesteps, sigmas)
        }
        Some(LevelCurve::Flow) => {
            let trained = config.trained()? as f64;
            let shift = config.number("flow_shift")?;
            let alphas = linspace(1.0, 1.0 / trained, steps + 1);
            let shifted = alphas.into_iter().map(|alpha| {
                let sigma = 1.0 - alpha;
                shift * sigma / (1.0 + (shift - 1.0) * sigma)
            });
            let sigmas: Vec<f64> = shifted
                .skip(1)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            (sigmas.iter().map(|s| s * trained).collect(), sigmas)
        }
        Some(LevelCurve::Lu) => {
            let (low, high) = table.log_range();
            let logs = noise_schedule::karras(low, high, 1.0, &linspace(0.0, 1.0, steps));
            let sigmas: Vec<f64> = logs.into_iter().map(libm::exp).collect();
            let timesteps = sigmas.iter().map(|&s| table.timestep_of(s));
            let round = |t: f64| if cosine { t } else { t.round_ties_even() };
            (timesteps.map(round).collect(), sigmas)
        }
        Some(LevelCurve::Sigma(curve)) => {
            let range = sigma_range(config)?;
            let min = range.0.unwrap_or_else(|| table.min().into());
            let max = range.1.unwrap_or_else(|| table.max().into());
            let sigmas = noise_schedule::sigma_curve(curve, min, max, steps);
            let timesteps = sigmas.iter().map(|&s| table.timestep_of(s));
            let rounded = curve == SigmaCurve::Karras && !cosine;
            let round = |t: f64| if rounded { t.round_ties_even() } else { t };
            (timesteps.map(round).collect(), sigmas)
        }
    };
    Ok(Levels {
        timesteps: timesteps.into_iter().map(f64::trunc).collect(),
        sigmas,
    })
}

/// The ends of sigma curves, where the class has options for them.
fn sigma_range(config: &SchedulerConfig) -> Result<(Option<f64>, Option<f64>), SchedulerError> {
    if config.info().option("sigma_min").is_some() {
        training::sigma_range(config)
    } else {
        Ok((None, None))
    }
}

/// Timesteps spaced as the configuration says, the noisiest `clipped` left out.
pub(super) fn spaced(
    config: &SchedulerConfig,
    clipped: usize,
    steps: usize,
) -> Result<Vec<f64>, SchedulerError> {
    let (spacing, trained) = (training::spacing(config)?, config.trained()?);
    let offset = training::steps_offset(config)?;
    let last = trained - clipped;
    let timesteps = spaced_without_last(spacing, trained, last, steps, offset);
    let distinct = timesteps.windows(2).all(|pair| pair[0] > pair[1]);
    if !distinct || timesteps.iter().any(|&t| t >= trained as f64) {
        return Err(config.unsupported(format!(
            "{steps} steps do not fit into {last} timesteps, of which this solver leaves one out; \
             ask for fewer"
        )));
    }
    Ok(timesteps)
}

/// Counts the noisiest timesteps that `lambda_min_clipped` cuts off.
pub(super) fn clipped(config: &SchedulerConfig, alphas: &[f32]) -> Result<usize, SchedulerError> {
    let lowest = config.extended_number("lambda_min_clipped")? as f32;
    let lambda = |a: f32| ln(a.sqrt()) - ln((1.0 - a).sqrt());
    let clipped = alphas
        .iter()
        .rev()
        .take_while(|&&a| lambda(a) < lowest)
        .count();
    if clipped + 1 >= alphas.len() {
        return Err(config.bad_option("lambda_min_clipped", "low enough to leave timesteps"));
    }
    Ok(clipped)
}

/// The schedule of levels and a final one; these samples start with unit variance.
pub(super) fn schedule(levels: Levels, last: f32) -> Schedule {
    Schedule {
        sigmas: with_final(&levels.sigmas, last),
        timesteps: levels.timesteps,
        init_noise_sigma: 1.0,
    }
}

/// The rule for the number of model outputs that a multistep solver of an order uses at an
/// evaluation.
pub(super) struct Orders {
    pub(super) order: usize,
    /// Whether schedules of less than 15 evaluations end with lower orders.
    pub(super) lower_order_final: bool,
    /// Whether every schedule ends with a step of first order (Euler's).
    pub(super) euler_at_final: bool,
}

impl Orders {
    /// Gives the number of model outputs to use at an evaluation, the `index`th of its run.
    pub(super) fn at(&self, position: Position<'_>, index: usize) -> usize {
        let left = position.remaining();
        let at_end = match left {
            1 if self.euler_at_final => 1,
            _ if self.lower_order_final && position.evaluations() < 15 => left,
            _ => self.order,
        };
        // A run has no outputs from before its start.
        self.order.min(at_end).min(index + 1)
    }
}
