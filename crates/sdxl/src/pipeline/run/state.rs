//! A run that stopped, small enough to be stored, from which it goes on bit for bit.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fingerprint::{MadeBy, of_checkpoint, of_inputs};
use super::{ActiveStage, Phase, Run};
use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::noise::NoiseSource;
use crate::pipeline::Pipeline;
use crate::pipeline::prepare::Arrangement;
use crate::pipeline::start::WorkingLatents;
use crate::pipeline::vae::latent_grid;
use crate::request::Request;
use crate::scheduler::SchedulerState;

/// The format of [`RunState::to_bytes`]; another one is refused.
const FORMAT: u32 = 1;

/// The state of a run between two steps: the request, the latents, the position of the schedulers and
/// of the noise. It holds no weights and no pictures, and refers to the input pictures by their
/// hashes. A picture of 1024x1024 takes some hundreds of kilobytes, a few times that with schedulers
/// that remember earlier steps.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    format: u32,
    request: Request,
    made_by: MadeBy,
    /// SHA-256 of the inputs.
    inputs: String,
    arrangement: Arrangement,
    group: usize,
    given_out: usize,
    /// The stage under way or, without a scheduler's state, the one that begins; after the last one
    /// the group's pictures are decoded.
    stage: usize,
    scheduler: Option<SchedulerState>,
    noise: NoiseSource,
    work: Option<WorkingLatents>,
    finished: Vec<Latents>,
}

impl RunState {
    /// The request with nothing left open.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The pictures that were given out before the state was saved.
    pub fn pictures_given_out(&self) -> usize {
        self.given_out
    }

    /// The state as bytes (MessagePack), to be stored.
    ///
    /// # Errors
    /// A path in the request that is no Unicode.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        rmp_serde::to_vec_named(self)
            .map_err(|error| Error::request("state", format!("it cannot be stored: {error}")))
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Request`] for bytes that are no state, or one of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<RunState> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let unusable = |why: String| Error::request("state", format!("it cannot be used: {why}"));
        let Versioned { format } =
            rmp_serde::from_slice(bytes).map_err(|e| unusable(e.to_string()))?;
        if format != FORMAT {
            return Err(unusable(format!(
                "it has format {format} and this program reads {FORMAT}; finish it with the version \
                 that wrote it"
            )));
        }
        rmp_serde::from_slice(bytes).map_err(|e| unusable(e.to_string()))
    }
}

impl Run {
    /// The state between two steps, from which [`Pipeline::resume`] goes on, in this process or in
    /// another.
    ///
    /// # Errors
    /// A weights file that cannot be read any more.
    pub fn save(&self) -> Result<RunState> {
        let job = &self.job;
        let (stage, scheduler, work) = match (&self.stage, self.phase) {
            (Some(active), phase) => {
                let stage = match phase {
                    Phase::Start { stage, .. } | Phase::Denoise { stage } => stage,
                    _ => self.next_stage,
                };
                let state = active.scheduler.state().clone();
                (stage, Some(state), Some(active.work.clone()))
            }
            (None, Phase::Start { stage, .. }) => (stage, None, self.work.clone()),
            (None, Phase::Begin | Phase::Encode) => (self.next_stage, None, self.work.clone()),
            (None, _) => (job.stages.len(), None, self.work.clone()),
        };
        Ok(RunState {
            format: FORMAT,
            request: Request::clone(&job.request),
            made_by: self.made_by()?,
            inputs: of_inputs(&job.inputs),
            arrangement: Arrangement {
                tile: job.plan.tile,
                short: job.plan.short,
                group: job.plan.group,
            },
            group: self.group,
            given_out: self.given_out,
            stage,
            scheduler,
            noise: self.noise.clone(),
            work,
            finished: self.finished.clone(),
        })
    }

    fn made_by(&self) -> Result<MadeBy> {
        if let Some(known) = self.made_by.get() {
            return Ok(known.clone());
        }
        let job = &self.job;
        let weights = job.models().map(|model| of_checkpoint(&model.checkpoint));
        let schedules = job.stages.iter().map(|stage| -> Result<_> {
            let timesteps = stage.scheduler()?.timesteps().to_vec();
            Ok((stage.info.class.to_string(), timesteps))
        });
        let made_by = MadeBy {
            version: env!("CARGO_PKG_VERSION").to_string(),
            precision: job.base.precision,
            isa: sdxl_kernels::Isa::current().to_string(),
            weights: weights.collect::<Result<_>>()?,
            schedules: schedules.collect::<Result<_>>()?,
        };
        Ok(self.made_by.get_or_init(|| made_by).clone())
    }
}

impl Pipeline {
    /// Goes on with a run that was saved: the same numbers, bit for bit, as if it had not stopped.
    /// `inputs` are those that the run was prepared with.
    ///
    /// # Errors
    /// [`Error::Request`] for a state that is of other weights, another precision or instruction set,
    /// or other inputs; whatever [`Self::prepare`] refuses.
    pub fn resume(&self, state: RunState, inputs: Inputs) -> Result<Run> {
        let no = |what: &str| {
            let error = Error::request("state", format!("the run was begun with {what}"));
            Err(error.with_hint("go on with the same, or begin anew without the state"))
        };
        if of_inputs(&inputs) != state.inputs {
            return no("other input pictures, latents or encoded prompts");
        }
        let Arrangement { tile, group, .. } = state.arrangement;
        if group == 0 || tile.is_some_and(|tile| tile < LEAST_TILE) {
            return Err(contradiction());
        }
        let job = self.decide(&state.request, inputs, Some(state.arrangement))?;
        let run = Run::new(job, Arc::clone(&self.projector))?;
        let (now, was) = (run.made_by()?, &state.made_by);
        if now.version != was.version {
            return no(&format!("version {} of this program", was.version));
        }
        if now.precision != was.precision {
            return no(&format!("precision {}", was.precision));
        }
        if now.isa != was.isa {
            return no(&format!(
                "{} instructions, and this is {}",
                was.isa, now.isa
            ));
        }
        if now.weights != was.weights {
            return no("other weights");
        }
        if now.schedules != was.schedules {
            return no("another schedule");
        }
        run.go_on_from(state)
    }
}

/// The least side of tiles that the VAE works with, in latents.
const LEAST_TILE: usize = 8;

/// A state that no run has left: a damaged file, or somebody's work.
fn contradiction() -> Error {
    Error::request("state", "it contradicts itself").with_hint("begin anew without it")
}

impl Run {
    /// Takes up a state that was made by the same request and weights.
    fn go_on_from(mut self, state: RunState) -> Result<Run> {
        let job = Arc::clone(&self.job);
        if state.group >= job.groups() || state.stage > job.stages.len() {
            return Err(contradiction());
        }
        self.group = state.group;
        self.check(&state)?;
        let part = self.part();
        let work = state.work.map(|work| self.with_mask(work));
        self.given_out = state.given_out;
        self.finished = state.finished;
        self.noise = state.noise;
        self.next_stage = state.stage;
        if state.stage == job.stages.len() {
            let first = state.given_out - part.first;
            self.phase = match &work {
                None => Phase::Finished,
                Some(_) if first == part.count => Phase::GiveOut,
                Some(_) => Phase::Decode { first, said: false },
            };
            self.work = work;
            return Ok(self);
        }
        match (state.scheduler, work) {
            (Some(scheduler_state), Some(work)) => {
                let mut scheduler = job.stages[state.stage].scheduler()?;
                scheduler.restore(scheduler_state)?;
                self.stage = Some(ActiveStage {
                    scheduler,
                    work,
                    denoiser: None,
                });
            }
            (_, work) => self.work = work,
        }
        Ok(self)
    }

    /// Refuses a state whose parts do not go together. The group is set.
    fn check(&self, state: &RunState) -> Result<()> {
        let (job, part) = (&self.job, self.part());
        let end = job.stages.len();
        let over = state.stage == end && state.work.is_none();
        let pictures = match state.stage == end {
            true => part.first..=part.first + part.count,
            false => part.first..=part.first,
        };
        let of_group = |group| self.shape(end - 1, job.part(group).count);
        let finished = state.finished.iter().map(Latents::shape);
        let is_whole = pictures.contains(&state.given_out)
            && state.noise.part(part.count) == part
            && state.finished.len() == state.group + usize::from(over)
            && finished.eq((0..state.finished.len()).map(of_group))
            && match (&state.work, &state.scheduler) {
                (None, None) if over => state.given_out == job.request.images(),
                (None, None) => state.stage == 0,
                (None, Some(_)) => false,
                // Of the stage before, until a stage has begun.
                (Some(work), None) => state.stage > 0 && self.fits(work, state.stage - 1),
                (Some(work), Some(scheduler)) => {
                    state.stage < end
                        && scheduler.index < job.stages[state.stage].evaluations
                        && self.fits(work, state.stage)
                }
            };
        match is_whole {
            true => Ok(()),
            false => Err(contradiction()),
        }
    }

    /// The shape of a stage's latents.
    fn shape(&self, stage: usize, images: usize) -> [usize; 4] {
        let size = self.job.stages[stage].size;
        let channels = self.job.base.latent_channels();
        let [height, width] = latent_grid(size);
        [images, height, width, channels]
    }

    /// Whether latents are a stage's, with what its inpainting takes.
    fn fits(&self, work: &WorkingLatents, stage: usize) -> bool {
        let job = &self.job;
        let shape = self.shape(stage, self.part().count);
        let sees_mask = job.base.unet_channels() != job.base.latent_channels();
        work.latents.shape() == shape
            && work.inpainting.is_some() == job.mask.is_some()
            && (work.inpainting.as_ref()).is_none_or(|i| i.fits(shape, sees_mask))
    }

    /// The mask is not stored, since it follows from the request.
    fn with_mask(&self, work: WorkingLatents) -> WorkingLatents {
        let inpainting = work.inpainting.zip(self.job.mask.clone());
        WorkingLatents {
            inpainting: inpainting.map(|(inpainting, mask)| inpainting.with_mask(mask)),
            ..work
        }
    }
}
