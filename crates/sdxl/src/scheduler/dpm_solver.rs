//! The updates of DPM-Solver and DPM-Solver++ (Lu et al., "DPM-Solver" and "DPM-Solver++", 2022),
//! with which the singlestep and the multistep solver work: they differ only in the evaluations from
//! which they take the derivatives.

use super::math::exp;
use super::multistep::{Level, Space};
use super::schedule::Position;
use super::{SchedulerConfig, SchedulerError};
use crate::latents::Latents;

/// The quantity that a solver integrates, and whether the solver adds noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Algorithm {
    /// The noise (DPM-Solver).
    Noise,
    /// The clean image (DPM-Solver++).
    Clean,
    /// The noise, as a stochastic equation.
    SdeNoise,
    /// The clean image, as a stochastic equation.
    SdeClean,
}

pub(super) const DPM: (&str, Algorithm) = ("dpmsolver", Algorithm::Noise);
pub(super) const DPM_PP: (&str, Algorithm) = ("dpmsolver++", Algorithm::Clean);
pub(super) const SDE_DPM: (&str, Algorithm) = ("sde-dpmsolver", Algorithm::SdeNoise);
pub(super) const SDE_DPM_PP: (&str, Algorithm) = ("sde-dpmsolver++", Algorithm::SdeClean);
/// The algorithm used here for an `algorithm_type` from a configuration of another class.
pub(super) const DEIS: (&str, Algorithm) = ("deis", Algorithm::Clean);
pub(super) const SA: (&str, Algorithm) = ("data_prediction", Algorithm::Clean);

impl Algorithm {
    /// Whether the history holds clean images rather than noise.
    pub(super) fn is_clean(self) -> bool {
        matches!(self, Self::Clean | Self::SdeClean)
    }

    /// Whether steps add noise.
    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeNoise | Self::SdeClean)
    }
}

/// The way in which the first derivative enters a second-order update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum SolverType {
    Midpoint,
    Heun,
}

/// Reads `solver_type`; the types of other classes mean the midpoint.
pub(super) fn solver_type(config: &SchedulerConfig) -> Result<SolverType, SchedulerError> {
    config.choice(
        "solver_type",
        &[
            ("midpoint", SolverType::Midpoint),
            ("heun", SolverType::Heun),
            ("logrho", SolverType::Midpoint),
            ("bh1", SolverType::Midpoint),
            ("bh2", SolverType::Midpoint),
        ],
    )
}

/// The factors of an update from one level to another: the next sample is their sum of products
/// with the sample, the model output, its first and second derivative by lambda, and noise.
pub(super) struct SolverUpdate {
    sample: f32,
    output: f32,
    midpoint: f32,
    heun: f32,
    second: f32,
    noise: f32,
}

impl SolverUpdate {
    pub(super) fn new(algorithm: Algorithm, from: Level, to: Level) -> Self {
        let h = to.lambda - from.lambda;
        match algorithm {
            Algorithm::Clean => {
                let e = exp(-h);
                let output = -(to.alpha * (e - 1.0));
                Self {
                    sample: to.sigma / from.sigma,
                    output,
                    midpoint: 0.5 * output,
                    heun: to.alpha * ((e - 1.0) / h + 1.0),
                    second: -(to.alpha * ((e - 1.0 + h) / (h * h) - 0.5)),
                    noise: 0.0,
                }
            }
            Algorithm::Noise => {
                let e = exp(h);
                let output = -(to.sigma * (e - 1.0));
                Self {
                    sample: to.alpha / from.alpha,
                    output,
                    midpoint: 0.5 * output,
                    heun: -(to.sigma * ((e - 1.0) / h - 1.0)),
                    second: -(to.sigma * ((e - 1.0 - h) / (h * h) - 0.5)),
                    noise: 0.0,
                }
            }
            Algorithm::SdeClean => {
                let (h2, e2) = (-2.0 * h, exp(-2.0 * h));
                let output = to.alpha * (1.0 - e2);
                Self {
                    sample: to.sigma / from.sigma * exp(-h),
                    output,
                    midpoint: 0.5 * output,
                    heun: to.alpha * ((1.0 - e2) / h2 + 1.0),
                    second: to.alpha * ((1.0 - e2 + h2) / (h2 * h2) - 0.5),
                    noise: to.sigma * (1.0 - e2).sqrt(),
                }
            }
            Algorithm::SdeNoise => {
                let e = exp(h);
                Self {
                    sample: to.alpha / from.alpha,
                    output: -(2.0 * (to.sigma * (e - 1.0))),
                    midpoint: -(to.sigma * (e - 1.0)),
                    heun: -(2.0 * (to.sigma * ((e - 1.0) / h - 1.0))),
                    second: f32::NAN,
                    noise: to.sigma * (exp(2.0 * h) - 1.0).sqrt(),
                }
            }
        }
    }

    /// The first-order update.
    pub(super) fn first(
        &self,
        sample: &Latents,
        output: &Latents,
        noise: Option<&Latents>,
    ) -> Latents {
        let next = Latents::zip_with([sample, output], |[x, d0]| {
            self.sample * x + self.output * d0
        });
        self.with_noise(next, noise)
    }

    /// The second-order update, with the first derivative.
    pub(super) fn second(
        &self,
        solver: SolverType,
        sample: &Latents,
        [output, first]: [&Latents; 2],
        noise: Option<&Latents>,
    ) -> Latents {
        let factor = if solver == SolverType::Heun {
            self.heun
        } else {
            self.midpoint
        };
        let next = Latents::zip_with([sample, output, first], |[x, d0, d1]| {
            self.sample * x + self.output * d0 + factor * d1
        });
        self.with_noise(next, noise)
    }

    /// The third-order update, with the first and second derivative.
    pub(super) fn third(
        &self,
        sample: &Latents,
        [output, first, second]: [&Latents; 3],
        noise: Option<&Latents>,
    ) -> Latents {
        let next = Latents::zip_with([sample, output, first, second], |[x, d0, d1, d2]| {
            self.sample * x + self.output * d0 + self.heun * d1 + self.second * d2
        });
        self.with_noise(next, noise)
    }

    fn with_noise(&self, next: Latents, noise: Option<&Latents>) -> Latents {
        match noise {
            Some(noise) => Latents::zip_with([&next, noise], |[x, n]| x + self.noise * n),
            None => next,
        }
    }
}

/// A multistep solver: the quantity that is integrated, and the way.
#[derive(Clone, Copy)]
pub(super) struct Multistep {
    pub(super) algorithm: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) space: Space,
}

impl Multistep {
    /// The next sample, from the newest `outputs`, newest first: as many as the order of the
    /// update.
    pub(super) fn update(
        self,
        position: Position<'_>,
        outputs: &[&Latents],
        sample: &Latents,
        noise: Option<&Latents>,
    ) -> Latents {
        let level = |back: usize| self.space.level(position.sigma_past(back));
        let (from, to) = (level(0), self.space.level(position.sigma_next()));
        let update = SolverUpdate::new(self.algorithm, from, to);
        let h = to.lambda - from.lambda;
        // The derivative by lambda between two neighbouring outputs, times the length of this step.
        let ratio = |back: usize| (level(back).lambda - level(back + 1).lambda) / h;
        let slope = |back: usize| {
            let factor = 1.0 / ratio(back);
            Latents::zip_with([outputs[back], outputs[back + 1]], |[a, b]| {
                factor * (a - b)
            })
        };
        // A step without length, as at the end of a curve whose last level comes twice, would divide
        // by zero.
        let order = if h == 0.0 { 1 } else { outputs.len() };
        match order {
            1 => update.first(sample, outputs[0], noise),
            2 => update.second(self.solver_type, sample, [outputs[0], &slope(0)], noise),
            _ => {
                let (r0, r1) = (ratio(0), ratio(1));
                let (near, far) = (slope(0), slope(1));
                let (share, inverse) = (r0 / (r0 + r1), 1.0 / (r0 + r1));
                let first = Latents::zip_with([&near, &far], |[a, b]| a + share * (a - b));
                let second = Latents::zip_with([&near, &far], |[a, b]| inverse * (a - b));
                update.third(sample, [outputs[0], &first, &second], noise)
            }
        }
    }
}
