//! The schedule of a run, and a position in it.

/// The timesteps and noise levels of a run's evaluations.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Schedule {
    /// The timesteps given to the UNet, one for each evaluation.
    pub(super) timesteps: Vec<f64>,
    /// The noise level of each evaluation's sample, and that of the result.
    pub(super) sigmas: Vec<f32>,
    /// The factor by which standard normal latents are multiplied to start from noise.
    pub(super) init_noise_sigma: f32,
}

/// The timesteps and noise levels of steps before they become a schedule: in `f64`, and without the
/// level of the result.
pub(super) struct Levels {
    /// The timestep of each level, highest first.
    pub(super) timesteps: Vec<f64>,
    /// The noise levels, highest first.
    pub(super) sigmas: Vec<f64>,
}

/// Gives noise levels in `f32` with `last`, the level of the result.
pub(super) fn with_final(sigmas: &[f64], last: f32) -> Vec<f32> {
    sigmas.iter().map(|&s| s as f32).chain([last]).collect()
}

/// The position of an evaluation in its schedule.
#[derive(Clone, Copy)]
pub(super) struct Position<'a> {
    pub(super) schedule: &'a Schedule,
    /// The evaluation, counted from the start of the schedule. A run that leaves out the first steps
    /// begins above 0.
    pub(super) index: usize,
}

impl Position<'_> {
    /// The timestep.
    pub(super) fn timestep(self) -> f64 {
        self.schedule.timesteps[self.index]
    }

    /// The timestep of the next evaluation; none after the last one.
    pub(super) fn timestep_next(self) -> Option<f64> {
        self.schedule.timesteps.get(self.index + 1).copied()
    }

    /// The noise level of the sample.
    pub(super) fn sigma(self) -> f32 {
        self.schedule.sigmas[self.index]
    }

    /// The noise level of the result.
    pub(super) fn sigma_next(self) -> f32 {
        self.schedule.sigmas[self.index + 1]
    }

    /// The noise level of the sample `back` evaluations ago.
    pub(super) fn sigma_past(self, back: usize) -> f32 {
        self.schedule.sigmas[self.index - back]
    }

    /// The position of the evaluation before. There must be one.
    pub(super) fn previous(self) -> Self {
        Self {
            index: self.index - 1,
            ..self
        }
    }

    /// The number of evaluations of the whole schedule.
    pub(super) fn evaluations(self) -> usize {
        self.schedule.timesteps.len()
    }

    /// The number of evaluations from this one to the end of the schedule, this one included.
    pub(super) fn remaining(self) -> usize {
        self.evaluations() - self.index
    }

    /// Whether this is the second evaluation of a two-evaluation step. Runs begin and end between
    /// steps.
    pub(super) fn is_second(self) -> bool {
        self.index % 2 == 1
    }
}
