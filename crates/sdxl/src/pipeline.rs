//! A checkpoint that is ready to make pictures.
//!
//! [`Pipeline::open`] opens one, [`Pipeline::prepare`] decides a [`Run`] and refuses what cannot be done, and
//! [`Run::start`] makes the pictures (`pipeline/run.rs`: **read this first**).

mod canvas;
mod check;
mod conditioning;
mod denoiser;
mod effect;
mod event;
mod guidance;
mod inpaint;
mod job;
mod lazy;
mod loras;
mod model;
mod networks;
mod offload;
mod open;
mod plan;
mod prepare;
mod preview;
mod refine;
mod run;
mod stages;
mod start;
mod vae;

pub use event::{Event, Output, PictureEvent, StepEvent};
pub use offload::Offload;
pub use open::{CheckpointSource, PipelineBuilder, default_precision};
pub use plan::{Plan, PlannedPhase};
pub use prepare::fresh_seed;
pub use refine::Refiner;
pub use run::{Run, RunState};

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::Result;
use crate::inputs::Inputs;
use crate::memory::Budget;
use crate::precision::Precision;
use crate::request::Request;
use crate::text::TextEncoders;
use crate::weights::Checkpoint;
use model::Model;
use networks::{Holding, Networks};
use preview::Projector;

/// An opened checkpoint, with a refiner or without. Immutable: one can serve many runs at once. Clones
/// share the networks.
#[derive(Clone)]
pub struct Pipeline {
    checkpoint: Checkpoint,
    precision: Precision,
    /// `None`: as it is best for each run.
    offload: Option<Offload>,
    /// `None`: what is free when a run is prepared.
    budget: Option<Budget>,
    /// Networks whose weights are packed when they are loaded.
    networks: Networks,
    /// Networks whose layers are packed as they work ([`Offload::Sequential`]).
    streamed: Networks,
    projector: Arc<Projector>,
    refiner: Option<Refiner>,
}

impl Pipeline {
    /// The networks of `checkpoint`, of which none is loaded yet. Those that `base` has too are in
    /// memory once.
    fn of(
        checkpoint: Checkpoint,
        precision: Precision,
        (offload, budget): (Option<Offload>, Option<Budget>),
        base: Option<&Pipeline>,
    ) -> Pipeline {
        let holding = |streamed| Holding {
            precision,
            pinned: offload == Some(Offload::None),
            streamed,
        };
        let whole = base.map(|base| (&base.checkpoint, &base.networks));
        let networks = Networks::new(&checkpoint, holding(false), whole);
        let streamed = base.map(|base| (&base.checkpoint, &base.streamed));
        let streamed = Networks::new(&checkpoint, holding(true), streamed);
        let small = match offload {
            Some(Offload::Sequential) => &streamed.vae,
            _ => &networks.vae,
        };
        Pipeline {
            projector: Arc::new(Projector::new(&checkpoint.vae, Arc::clone(small))),
            checkpoint,
            precision,
            offload,
            budget,
            networks,
            streamed,
            refiner: None,
        }
    }

    /// The checkpoint with its networks, in memory as `offload` says.
    fn model(&self, offload: Offload) -> Model {
        let networks = match offload {
            Offload::Sequential => &self.streamed,
            Offload::None | Offload::Model => &self.networks,
        };
        Model {
            checkpoint: self.checkpoint.clone(),
            precision: self.precision,
            networks: networks.clone(),
        }
    }

    /// Whether networks stay in memory between runs.
    fn is_pinned(&self) -> bool {
        self.offload == Some(Offload::None)
    }

    /// The refiner.
    pub fn refiner(&self) -> Option<&Refiner> {
        self.refiner.as_ref()
    }

    /// The checkpoint's configuration.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The text encoders, with the prompts that they remember; loaded now where they are not in
    /// memory.
    ///
    /// # Errors
    /// A file that is missing or wrong.
    pub fn text_encoders(&self) -> Result<Arc<TextEncoders>> {
        match self.offload {
            Some(Offload::Sequential) => self.streamed.text.get(),
            _ => self.networks.text.get(),
        }
    }

    /// The networks that are in memory; `None` where every run decides.
    pub fn offload(&self) -> Option<Offload> {
        self.offload
    }

    /// The precision of the networks.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Makes the pictures that `request` asks for, from the input pictures that it names: reads them
    /// ([`Inputs::read`]), prepares the run and starts it.
    ///
    /// # Errors
    /// The errors of [`Inputs::read`], [`Self::prepare`] and [`Run::start`].
    pub fn generate(
        &self,
        request: &Request,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        self.prepare(request, Inputs::read(request)?)?
            .start(observe)
    }
}
