//! The steps that a run makes: how many or at which timesteps, and which of them are left out.

use serde::{Deserialize, Serialize};

use super::SchedulerError;
use super::info::Info;

/// The steps of a run: their number, timesteps or noise levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steps {
    /// So many, placed by the scheduler.
    Count(usize),
    /// At these timesteps, highest first.
    Timesteps(Vec<f64>),
    /// At these noise levels, highest first; for Euler the last one is that of the result (0 for a
    /// finished image).
    Sigmas(Vec<f64>),
}

/// The steps that a run makes: the arguments of diffusers' `set_timesteps`, and the part of its
/// timesteps that a pipeline goes through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceSteps {
    /// The steps: their number, timesteps or noise levels.
    pub steps: Steps,
    /// Image to image: run only this share of the steps, the last ones. 0 to 1.
    pub strength: Option<f64>,
    /// Leave out what lies before this share of the training timesteps (for a refiner), which makes
    /// `strength` meaningless. Between 0 and 1.
    pub denoising_start: Option<f64>,
    /// Stop at this share of the training timesteps and leave the rest to a refiner. Between 0 and
    /// 1.
    pub denoising_end: Option<f64>,
    /// Noise of DDIM and TCD, 0 (none) to 1.
    pub eta: f64,
}

impl InferenceSteps {
    /// A whole run of so many steps (`num_inference_steps`).
    pub fn count(count: usize) -> Self {
        Self::new(Steps::Count(count))
    }

    /// A whole run.
    pub fn new(steps: Steps) -> Self {
        Self {
            steps,
            strength: None,
            denoising_start: None,
            denoising_end: None,
            eta: 0.0,
        }
    }

    /// Number of steps, or of the custom values given for them.
    pub(super) fn len(&self) -> usize {
        match &self.steps {
            Steps::Count(count) => *count,
            Steps::Timesteps(values) | Steps::Sigmas(values) => values.len(),
        }
    }

    /// Checks everything that does not need the schedule. `trained` is the number of training
    /// timesteps.
    pub(super) fn check(&self, trained: usize) -> Result<(), SchedulerError> {
        match &self.steps {
            Steps::Count(0) => return Err(SchedulerError::NoSteps),
            Steps::Count(steps) if *steps > trained => {
                return Err(SchedulerError::TooManySteps {
                    steps: *steps,
                    trained,
                });
            }
            Steps::Count(_) => {}
            Steps::Timesteps(timesteps) => {
                check_descending("timesteps", timesteps, 1)?;
                for &value in timesteps {
                    if value.fract() != 0.0 || value < 0.0 || value >= trained as f64 {
                        let expected = format!("a whole number from 0 to {}", trained - 1);
                        return Err(SchedulerError::BadValue {
                            what: "timesteps",
                            value,
                            expected,
                        });
                    }
                }
            }
            Steps::Sigmas(sigmas) => {
                check_descending("sigmas", sigmas, 2)?;
                let lowest = sigmas[sigmas.len() - 1];
                if lowest < 0.0 || !sigmas[0].is_finite() {
                    let value = if lowest < 0.0 { lowest } else { sigmas[0] };
                    let expected = "a noise level: finite and not negative".to_owned();
                    return Err(SchedulerError::BadValue {
                        what: "sigmas",
                        value,
                        expected,
                    });
                }
            }
        }
        if !(0.0..=1.0).contains(&self.eta) {
            let expected = "from 0 to 1".to_owned();
            return Err(SchedulerError::BadValue {
                what: "eta",
                value: self.eta,
                expected,
            });
        }
        if let Some(value) = self.strength.filter(|s| !(0.0..=1.0).contains(s)) {
            let expected = "from 0 to 1".to_owned();
            return Err(SchedulerError::BadValue {
                what: "strength",
                value,
                expected,
            });
        }
        for (what, share) in [
            ("denoising_start", self.denoising_start),
            ("denoising_end", self.denoising_end),
        ] {
            if let Some(value) = share.filter(|&s| !(s > 0.0 && s < 1.0)) {
                let expected = "between 0 and 1".to_owned();
                return Err(SchedulerError::BadValue {
                    what,
                    value,
                    expected,
                });
            }
        }
        if let (Some(start), Some(value)) = (self.denoising_start, self.denoising_end)
            && start >= value
        {
            let expected = format!("above denoising_start, {start}");
            return Err(SchedulerError::BadValue {
                what: "denoising_end",
                value,
                expected,
            });
        }
        Ok(())
    }

    /// Gives the evaluations of a schedule that are made, cut as the pipelines of diffusers cut.
    pub(super) fn range(
        &self,
        info: &Info,
        trained: usize,
        timesteps: &[f64],
    ) -> Result<std::ops::Range<usize>, SchedulerError> {
        let evaluations = timesteps.len();
        let per_step = info.evaluations_per_step;
        let trained = trained as f64;
        let cutoff = |share: f64| (trained - share * trained).round_ties_even();
        let start = if let Some(share) = self.denoising_start {
            let below = timesteps.iter().filter(|&&t| t < cutoff(share)).count();
            // A second-order step is two evaluations, and all but the first share a timestep with a
            // neighbour: an even count would begin in the middle of a step.
            let kept = if per_step == 2 && below % 2 == 0 {
                below + 1
            } else {
                below
            };
            evaluations.saturating_sub(kept)
        } else if let Some(strength) = self.strength {
            let steps = match &self.steps {
                Steps::Count(count) => *count,
                // With its own timesteps or sigmas the reference counts evaluations.
                Steps::Timesteps(_) | Steps::Sigmas(_) => evaluations,
            };
            let kept = ((steps as f64 * strength) as usize).min(steps);
            if kept == 0 {
                return Err(SchedulerError::NothingLeft {
                    field: "strength",
                    what: format!("strength {strength} of {steps} steps"),
                    evaluations,
                    remedy: "raise strength or the number of steps",
                });
            }
            ((steps - kept) * per_step).min(evaluations)
        } else {
            0
        };
        let end = match self.denoising_end {
            Some(share) => {
                start
                    + timesteps[start..]
                        .iter()
                        .filter(|&&t| t >= cutoff(share))
                        .count()
            }
            None => evaluations,
        };
        if start >= end {
            let strength = self.strength.filter(|_| self.denoising_start.is_none());
            let cuts: Vec<(&str, f64)> = [
                ("strength", strength),
                ("denoising_start", self.denoising_start),
                ("denoising_end", self.denoising_end),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
            let told: Vec<String> = (cuts.iter().map(|(name, v)| format!("{name} {v}"))).collect();
            return Err(SchedulerError::NothingLeft {
                field: cuts.last().map_or("steps", |(name, _)| name),
                what: told.join(" with "),
                evaluations,
                remedy: "use more steps or cut less",
            });
        }
        Ok(start..end)
    }
}

fn check_descending(
    what: &'static str,
    values: &[f64],
    least: usize,
) -> Result<(), SchedulerError> {
    if values.len() < least {
        return Err(SchedulerError::NoSteps);
    }
    for pair in values.windows(2) {
        if pair[0].partial_cmp(&pair[1]) != Some(std::cmp::Ordering::Greater) {
            return Err(SchedulerError::NotDescending {
                what,
                before: pair[0],
                after: pair[1],
            });
        }
    }
    Ok(())
}
