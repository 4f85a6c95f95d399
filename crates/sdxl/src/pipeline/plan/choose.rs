//! The choice among the arrangements of a run.

use super::planner::Planner;
use super::{Plan, PlanInputs};
use crate::error::{Error, Result};
use crate::pipeline::offload::Offload;
use crate::warning::Warning;

impl Plan {
    /// The arrangement that costs least among those that fit.
    ///
    /// # Errors
    /// If no arrangement fits, an error that says the least memory that would do:
    /// [`Error::Request`] for a budget that was given, else [`Error::Machine`]. Also every error in
    /// the checkpoint's files.
    pub(in crate::pipeline) fn new(
        asked: &PlanInputs<'_>,
        warn: &mut dyn FnMut(Warning),
    ) -> Result<Plan> {
        let planner = Planner::new(asked, warn)?;
        let limit = asked.limit();
        let mut smallest: Option<Plan> = None;
        for (i, offload) in asked.offloads.iter().enumerate() {
            let choice = asked.offloads.len() > 1;
            if choice && *offload == Offload::None && !planner.has_groups() {
                // One group needs each network once.
                continue;
            }
            let last = i + 1 == asked.offloads.len();
            let plan = planner.arrange(*offload, last)?;
            if limit.is_none_or(|limit| plan.peak() <= limit) {
                return Ok(plan);
            }
            if smallest.as_ref().is_none_or(|s| plan.peak() < s.peak()) {
                smallest = Some(plan);
            }
        }
        match smallest {
            Some(plan) => Err(plan.refusal(asked)),
            None => Err(Error::request(
                "offload",
                "no way to have networks in memory was allowed",
            )),
        }
    }
}
