//! The state that a scheduler keeps between evaluations.

use serde::{Deserialize, Serialize};

use super::SchedulerError;
use crate::latents::Latents;

/// The state that a scheduler keeps between evaluations. If it is saved after any evaluation and
/// given to [`Scheduler::restore`](super::Scheduler::restore) of a scheduler built the same way,
/// together with the latents and the noise source, the run goes on bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulerState {
    /// The class it belongs to.
    pub class: String,
    /// Evaluations done.
    pub index: usize,
    /// Earlier model outputs or derivatives, newest last.
    pub history: Vec<Latents>,
    /// The sample from which the step in progress, or the last step, started.
    pub anchor: Option<Latents>,
    /// The weighted sum of the model outputs of a step in progress, or the noise that the last step
    /// added.
    pub partial: Option<Latents>,
    /// Seeds of noise that is a function of time and not of the order of draws.
    pub seeds: Vec<u64>,
}

impl SchedulerState {
    /// Adds a model output to the history, which keeps the newest `order`.
    pub(super) fn remember(&mut self, output: Latents, order: usize) {
        self.history.push(output);
        if self.history.len() > order {
            self.history.remove(0);
        }
    }

    /// The model output of `back` evaluations ago, 0 for the newest.
    pub(super) fn past(&self, back: usize) -> Result<&Latents, SchedulerError> {
        let place = self.history.len().checked_sub(back + 1);
        place
            .map(|i| &self.history[i])
            .ok_or_else(|| self.lacks("a model output"))
    }

    /// The newest `count` model outputs, newest first.
    pub(super) fn newest(&self, count: usize) -> Result<Vec<&Latents>, SchedulerError> {
        (0..count).map(|back| self.past(back)).collect()
    }

    /// Gives the sample from which the step in progress started and forgets it: the step ends with
    /// this evaluation.
    pub(super) fn take_anchor(&mut self) -> Result<Latents, SchedulerError> {
        self.anchor.take().ok_or_else(|| self.lacks_anchor())
    }

    /// The sample from which the step in progress started.
    pub(super) fn anchor(&self) -> Result<&Latents, SchedulerError> {
        self.anchor.as_ref().ok_or_else(|| self.lacks_anchor())
    }

    /// Gives the sum or noise in `partial` and forgets it.
    pub(super) fn take_partial(&mut self) -> Result<Latents, SchedulerError> {
        let partial = self.partial.take();
        partial.ok_or_else(|| self.lacks("the sum or the noise of the step"))
    }

    /// All latents that the state holds.
    pub(super) fn latents(&self) -> impl Iterator<Item = &Latents> {
        let history = self.history.iter();
        history.chain(&self.anchor).chain(&self.partial)
    }

    fn lacks_anchor(&self) -> SchedulerError {
        self.lacks("the sample at the start of the step")
    }

    /// The error for a saved state without something that it must have after so many evaluations.
    fn lacks(&self, missing: &str) -> SchedulerError {
        let reason = format!("after {} evaluations it lacks {missing}", self.index);
        SchedulerError::ForeignState(reason)
    }
}
