//! Everything that was decided about a run before it starts. Nothing here changes while it goes on.

use std::sync::Arc;

use super::canvas::Canvas;
use super::conditioning::{self, PromptPair, Prompts};
use super::model::Model;
use super::plan::Plan;
use super::stages::{Network, Stage, StageProgress};
use crate::error::Result;
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::noise::BatchSlice;
use crate::profile;
use crate::request::Request;
use crate::warning::Warning;

/// A run as it was decided.
pub(super) struct Job {
    /// The request with nothing left open.
    pub request: Arc<Request>,
    /// Pictures, latents and encoded prompts.
    pub inputs: Inputs,
    /// The input picture, ready for the run.
    pub canvas: Option<Canvas>,
    /// The mask on the grid of the latents, `[1, H, W, 1]`.
    pub mask: Option<Latents>,
    /// The prompts, as they were read.
    pub prompts: Prompts,
    /// One for a plain run, more with a refiner or a second pass.
    pub stages: Vec<Stage>,
    /// The place of each stage in the run.
    pub progress: Vec<StageProgress>,
    /// The arrangement in memory.
    pub plan: Plan,
    /// Everything the user should know before the run starts.
    pub warnings: Vec<Warning>,
    /// The checkpoint.
    pub base: Model,
    /// The refiner, where there is one.
    pub refiner: Option<Model>,
}

impl Job {
    /// The checkpoint of a stage.
    pub(super) fn model(&self, stage: usize) -> &Model {
        match (self.stages[stage].network, &self.refiner) {
            (Network::Refiner, Some(refiner)) => refiner,
            _ => &self.base,
        }
    }

    /// The checkpoint of the last stage, whose VAE decodes.
    pub(super) fn last_model(&self) -> &Model {
        self.model(self.stages.len() - 1)
    }

    /// All checkpoints.
    pub(super) fn models(&self) -> impl Iterator<Item = &Model> {
        std::iter::once(&self.base).chain(&self.refiner)
    }

    /// The prompts of a stage, encoded; what another stage or run has encoded is remembered.
    ///
    /// # Errors
    /// Weights that cannot be read; [`crate::Error::Cancelled`].
    pub(super) fn encode(&self, stage: usize) -> Result<Arc<[PromptPair]>> {
        let (model, embeds) = (self.model(stage), self.inputs.embeds.as_ref());
        let (request, steps) = (&self.request, self.progress[stage].steps_total);
        let text = model.networks.text.get()?;
        let encoders = (&model.checkpoint, &*text);
        let pairs = profile::scope("text_encoders", || {
            // What there is to warn of was said when the run was planned.
            conditioning::encode(encoders, request, &self.prompts, embeds, steps, &mut |_| {})
        })??;
        Ok(pairs.into())
    }

    /// Evaluations of one group of pictures.
    pub(super) fn evaluations_of_group(&self) -> usize {
        self.stages.iter().map(|stage| stage.evaluations).sum()
    }

    /// Number of groups, one after the other from noise to pictures.
    pub(super) fn groups(&self) -> usize {
        self.request.images().div_ceil(self.plan.group)
    }

    /// The images of a group.
    pub(super) fn part(&self, group: usize) -> BatchSlice {
        let (size, of) = (self.plan.group, self.request.images());
        let first = group * size;
        BatchSlice {
            first,
            count: size.min(of - first),
            of,
        }
    }

    /// The seed of an image: one generator for all, or one an image.
    pub(super) fn seed_of(&self, image: usize) -> u64 {
        let seeds = &self.request.seed;
        seeds[image.min(seeds.len() - 1)]
    }
}
