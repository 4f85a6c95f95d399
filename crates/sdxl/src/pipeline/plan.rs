//! The plan of a run: the memory and time that it will take, and the arrangement by which it fits.
//!
//! Nothing is estimated by formulas of their own: the networks are rehearsed
//! ([`crate::memory::rehearsal`]), by their own code, for each arrangement that comes into question.
//! The arrangements are tried from the one that costs nothing to the one that costs most:
//!
//! 1. all networks in memory ([`Offload::None`]; for many pictures, and where a pipeline has them);
//! 2. networks in turn, each while it works ([`Offload::Model`]);
//! 3. fewer rows of the UNet's batch at once: pictures one after the other, then the two sides of the
//!    guidance one after the other;
//! 4. the VAE tile by tile, which shows a little in the picture;
//! 5. layers read from the files as they work ([`Offload::Sequential`]), which takes time at every
//!    step;
//! 6. smaller tiles, which show more.
//!
//! Tiles are the only choice that changes numbers, and are said and written into the recipe. The
//! precision is never changed.

mod choose;
mod planner;

use super::conditioning::Prompts;
use super::offload::Offload;
use super::stages::{Stage, StageProgress};
use super::vae::{VaeBatching, latent_grid};
use crate::error::Error;
use crate::inputs::Inputs;
use crate::memory::{Budget, Effort, Speed, bytes};
use crate::model::config::VAE_FACTOR;
use crate::precision::Precision;
use crate::request::{Request, VaeTiling};
use crate::warning::{Warning, WarningKind};
use crate::weights::Checkpoint;

/// A decided run that is to be arranged.
#[derive(Clone, Copy)]
pub(super) struct PlanInputs<'a> {
    /// The model.
    pub checkpoint: &'a Checkpoint,
    /// The refiner, where there is one.
    pub refiner: Option<&'a Checkpoint>,
    /// The precision of the networks.
    pub precision: Precision,
    /// The request, with nothing left open.
    pub request: &'a Request,
    /// The pictures, latents and encoded prompts of the request.
    pub inputs: &'a Inputs,
    /// The prompts of the request.
    pub prompts: &'a Prompts,
    /// The stages of the request.
    pub stages: &'a [Stage],
    /// The places of the stages.
    pub progress: &'a [StageProgress],
    /// The ways in which networks may be in memory, the best first.
    pub offloads: &'a [Offload],
    /// Memory that may be taken.
    pub budget: Budget,
}

/// This part of a budget is left free: a prediction is a little off.
const SPARED: u64 = 16;

impl PlanInputs<'_> {
    /// Bytes that a plan may take.
    fn limit(&self) -> Option<u64> {
        self.budget.bytes().map(|bytes| bytes - bytes / SPARED)
    }
}

/// The arrangement of a run in memory, and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The memory of the whole process that it was made for. `None`: nobody knows how much there is.
    pub budget: Option<u64>,
    /// The precision of the networks.
    pub precision: Precision,
    /// The networks that are in memory.
    pub offload: Offload,
    /// Pictures that go from noise to the end together. The next group begins when they are given
    /// out.
    pub group: usize,
    /// Rows (pictures, times two with guidance) that go through the UNet together, a stage each.
    pub rows: Vec<usize>,
    /// Rows that would fit in memory together, a stage each: what runs may share.
    pub most_rows: Vec<usize>,
    /// Rows that one picture has, a stage each.
    pub rows_of_picture: Vec<usize>,
    /// The side of the VAE's tiles in latents, where it goes tile by tile (through pictures that are
    /// larger than one).
    pub tile: Option<usize>,
    /// Whether pictures go through the VAE one by one.
    pub sliced: bool,
    /// Whether tiles were decided for want of memory.
    pub short: bool,
    /// The phases of the run, in order, each with what is in memory at once.
    pub parts: Vec<PlannedPhase>,
}

/// A part of a run, and what is in memory meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedPhase {
    /// The networks at work.
    pub name: String,
    /// The most memory of the process, in bytes.
    pub peak: u64,
    /// WorkCost, for its time.
    pub efforts: Vec<Effort>,
}

impl PlannedPhase {
    /// About how long it takes.
    pub fn seconds(&self, speed: &mut Speed) -> f64 {
        let seconds = self.efforts.iter().map(|effort| speed.seconds(effort));
        seconds.sum()
    }
}

impl Plan {
    /// The most memory of the process, in bytes.
    pub fn peak(&self) -> u64 {
        self.parts.iter().map(|part| part.peak).max().unwrap_or(0)
    }

    /// About how long the run takes.
    pub fn seconds(&self, speed: &mut Speed) -> f64 {
        self.parts.iter().map(|part| part.seconds(speed)).sum()
    }

    /// Whether the two sides of the guidance, or parts of a prompt, go through the UNet one
    /// after the other in some stage.
    pub fn is_sequential(&self) -> bool {
        self.rows
            .iter()
            .zip(&self.rows_of_picture)
            .any(|(rows, all)| rows < all)
    }

    /// Warnings of decisions for want of memory: those that cost time, and tiles.
    pub(super) fn warnings(&self, request: &Request, choice: bool) -> Vec<Warning> {
        let slow = |field, message| Warning::new(WarningKind::Slow, field, message);
        let mut warnings = Vec::new();
        if choice && self.offload == Offload::Sequential {
            warnings.push(slow(
                "offload",
                "layers are read from the files as they work, which takes longer",
            ));
        }
        if self.is_sequential() {
            warnings.push(slow(
                "memory",
                "the two sides of the guidance go through the UNet one after the other",
            ));
        }
        if self.short && self.tile_size(request).is_some() {
            let message = "memory is short, so the VAE works tile by tile, which shows a little in \
                           the picture";
            let warning = Warning::new(WarningKind::Tiled, "vae_tiling", message);
            warnings.push(warning.with_hint("`vae_tiling off` forbids it"));
        }
        warnings
    }

    /// The side in pixels of the tiles by which finished pictures are decoded, where they are.
    pub fn tile_size(&self, request: &Request) -> Option<u32> {
        let size = request.upscaled_size();
        let passes = VaeBatching::of(self.tile, self.sliced, latent_grid(size), 1);
        passes.tile.map(|side| (VAE_FACTOR * side) as u32)
    }

    fn refusal(&self, asked: &PlanInputs<'_>) -> Error {
        let Some(limit) = asked.budget.bytes() else {
            return Error::request("memory", "there is none");
        };
        let need = (self.peak() + self.peak() / (SPARED - 1) + 1).next_multiple_of(1 << 20);
        let largest = self.parts.iter().max_by_key(|part| part.peak);
        let largest = largest.map_or("", |part| part.name.as_str());
        let mut how = vec![format!("`memory {}MiB`", need >> 20)];
        if self.offload != Offload::Sequential && !asked.offloads.contains(&Offload::Sequential) {
            how.push("`offload sequential` takes less".into());
        }
        if asked.request.vae_tiling == VaeTiling::Off {
            how.push("`vae_tiling auto` may take less".into());
        }
        let size = asked.request.upscaled_size();
        let what = format!("{size} in {}", asked.precision);
        let (given, least) = (bytes(limit), bytes(need));
        let how = how.join("; ");
        if asked.budget.is_given() {
            let message = format!("{given} given, and {what} takes at least {least} ({largest})");
            return Error::request("memory", message)
                .with_hint(format!("the smallest that works: {how}"));
        }
        Error::machine(format!(
            "{what} takes at least {least} of memory ({largest}), and {given} are free"
        ))
        .with_hint("ask for a smaller picture or another `precision`")
    }
}
