//! The interface of the scheduler classes: one evaluation's update.

use super::schedule::{Position, Schedule};
use super::{InferenceSteps, SchedulerConfig, SchedulerError, SchedulerState};
use crate::latents::Latents;
use crate::noise::{NoiseError, NoiseSource};

/// The result of a class's `build` function: the schedule of the evaluations, and the update rule.
pub(super) type Built = Result<(Schedule, Box<dyn UpdateRule>), SchedulerError>;

/// A class's `build` function.
pub(super) type Build = fn(&SchedulerConfig, &InferenceSteps) -> Built;

/// The update rule of one scheduler class. It holds the options; what changes from step to step is
/// in the state.
pub(super) trait UpdateRule: Send {
    /// Gives the UNet's input for a sample: the sample itself, unless the class scales it.
    fn scale_model_input(&self, _position: Position<'_>, sample: &Latents) -> Latents {
        sample.clone()
    }

    /// The next sample.
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError>;

    /// A clean image with the noise of an evaluation's sample.
    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents;

    /// Refuses options that do not go with so many images.
    fn check_images(&self, _images: usize) -> Result<(), SchedulerError> {
        Ok(())
    }
}

/// All that an update may look at.
pub(super) struct Step<'a> {
    pub(super) position: Position<'a>,
    /// The UNet's answer, with guidance applied.
    pub(super) model_output: &'a Latents,
    /// The latents that the UNet answered for, before they were scaled for it.
    pub(super) sample: &'a Latents,
    pub(super) state: &'a mut SchedulerState,
    pub(super) noise: &'a mut NoiseSource,
}

impl Step<'_> {
    /// Draws fresh noise in the shape of the sample.
    pub(super) fn draw(&mut self) -> Result<Latents, NoiseError> {
        self.noise.draw(self.sample.shape())
    }
}
