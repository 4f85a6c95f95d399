//! Rehearses a run part by part, and finds the best arrangement for each.

use std::sync::Arc;

use super::{Plan, PlanInputs, PlannedPhase};
use crate::device::Meta;
use crate::error::Result;
use crate::memory::Effort;
use crate::memory::rehearsal::{self, Rehearsed, WorkCost};
use crate::model::config::VAE_FACTOR;
use crate::model::unet::UNet;
use crate::model::vae::{Vae, tiles_of};
use crate::pipeline::conditioning::{self, PromptPair};
use crate::pipeline::denoiser::{KEPT_KEYS, MOST_IMAGES};
use crate::pipeline::guidance::scale_at;
use crate::pipeline::networks::{Holding, Networks};
use crate::pipeline::offload::Offload;
use crate::pipeline::stages::{Network, Stage, StageProgress, StartFrom};
use crate::pipeline::vae::{VaeBatching, latent_grid};
use crate::profile;
use crate::request::{Size, UpscaleMethod, VaeTiling};
use crate::warning::Warning;
use crate::weights::{Checkpoint, Part};

/// A process without networks: program, threads, tokenizers, and what the allocator does not give
/// back. Measured: what runs take beside what is counted, 32.5 MiB optimised and 34 MiB in tests; the
/// part of a budget that is left free covers the difference.
const PROCESS: u64 = 33 << 20;

/// Bytes that reading the tokenizers takes for a moment, measured in the same way.
const TOKENIZERS: u64 = 8 << 20;

/// Bytes of a pixel while a decoded picture becomes one of bytes: the VAE's numbers, twice, the
/// planes that are marked, and the result.
const FINISHING: u64 = 39;

/// Bytes of a pixel of a picture that is to be encoded: as numbers twice, and as it was read.
const PREPARING: u64 = 27;

/// Sequences that a text encoder reads at once, mostly: a prompt and its negative.
const SEQUENCES: usize = 2;

/// Positions of latents, counted over all rows of a batch, from which on a larger batch no longer makes
/// the kernels faster: two rows at 1024x1024, eight at 512x512.
const BATCH_POSITIONS: usize = 1 << 15;

/// Pictures of a group at least, where every group reads the networks again: that takes as long as
/// an evaluation or two, of dozens for each picture.
const MODEL_GROUP: usize = 4;

/// Latents beside those that the UNet reads: noise, prediction, the scheduler's history.
const LATENTS: usize = 10;

/// A model's networks, with weights in memory in one of the ways there are.
struct RehearsedNetworks {
    unet: Rehearsed<UNet>,
    vae: Rehearsed<Vae>,
    /// Weights of the text encoders, and the most that works beside them.
    text: (u64, u64),
    /// Whether it has the VAE of the base.
    vae_shared: bool,
}

/// A stage of the run that is planned.
struct PlannedStage<'a> {
    stage: &'a Stage,
    progress: StageProgress,
    checkpoint: &'a Checkpoint,
    prompts: Vec<PromptPair>,
    /// Operations for encoding them, and bytes of weights where those do not stay in memory.
    encoding: (f64, f64),
}

/// The stages of a run on meta tensors.
pub(super) struct Planner<'a> {
    asked: &'a PlanInputs<'a>,
    stages: Vec<PlannedStage<'a>>,
}

/// A part of the plan for the VAE: before which stage, and what.
type VaePart = (usize, PlannedPhase);

impl<'a> Planner<'a> {
    /// Encodes the prompts without values. `warn` is told of prompts that are cut and the like.
    pub(super) fn new(asked: &'a PlanInputs<'a>, warn: &mut dyn FnMut(Warning)) -> Result<Self> {
        let mut models: Vec<(&Checkpoint, Arc<Meta>, Networks)> = Vec::new();
        for checkpoint in checkpoints(asked) {
            let meta = Arc::new(Meta::default());
            let holding = Holding {
                precision: asked.precision,
                pinned: false,
                streamed: true,
            };
            let networks = Networks::new(&checkpoint.on(meta.clone()), holding, None);
            models.push((checkpoint, meta, networks));
        }
        let mut stages = Vec::new();
        for (stage, progress) in asked.stages.iter().zip(asked.progress) {
            let (checkpoint, meta, networks) = &models[model_of(stage)];
            let embeds = asked.inputs.embeds.as_ref();
            let text = networks.text.get()?;
            let before = meta.meter().packed();
            let (prompts, profile) = profile::record(|| {
                let (encoders, steps) = ((*checkpoint, &*text), progress.steps_total);
                let (request, prompts) = (asked.request, asked.prompts);
                conditioning::encode(encoders, request, prompts, embeds, steps, warn)
            });
            stages.push(PlannedStage {
                prompts: prompts?,
                encoding: (profile.flop as f64, (meta.meter().packed() - before) as f64),
                stage,
                progress: *progress,
                checkpoint,
            });
        }
        Ok(Planner { asked, stages })
    }

    /// Pictures that go through the UNet together where memory allows it: as many as make the kernels
    /// faster.
    fn at_once(&self) -> usize {
        let request = self.asked.request;
        let positions = |planned: &PlannedStage<'_>| {
            let rows = planned.rows_of_picture(request.guided());
            latent_grid(planned.stage.size).iter().product::<usize>() * rows
        };
        let most = self.stages.iter().map(positions).max().unwrap_or(1).max(1);
        (BATCH_POSITIONS / most).clamp(1, MOST_IMAGES.min(request.images()).max(1))
    }

    /// Pictures of a group.
    fn group(&self, offload: Offload) -> usize {
        let at_once = self.at_once();
        match offload {
            // Every group reads the networks again.
            Offload::Model => at_once.max(MODEL_GROUP),
            Offload::None | Offload::Sequential => at_once,
        }
        .min(self.asked.request.images().max(1))
    }

    /// Whether pictures are made in several groups.
    pub(super) fn has_groups(&self) -> bool {
        self.asked.request.images() > self.group(Offload::None)
    }

    /// The best that can be done with weights in memory so: what fits, else what takes least.
    /// `last`: with tiles as small as they can be.
    pub(super) fn arrange(&self, offload: Offload, last: bool) -> Result<Plan> {
        let request = self.asked.request;
        let networks = self.networks(offload == Offload::Sequential)?;
        let limit = self.asked.limit().unwrap_or(u64::MAX);
        // Where all stay, each works beside the weights of the others.
        let others = |own: u64| match offload.keeps_networks() {
            true => networks.iter().map(RehearsedNetworks::weights).sum::<u64>() - own,
            false => 0,
        };

        let group = self.group(offload);
        let (mut rows, mut most_rows) = (Vec::new(), Vec::new());
        let mut stages = Vec::new();
        for planned in &self.stages {
            let unet = &networks[model_of(planned.stage)].unet;
            let around = PROCESS + others(unet.weights()) + self.latents(planned, group);
            let mut found = None;
            for rows in rows_to_try(self.at_once(), planned.rows_of_picture(request.guided())) {
                let work = planned.evaluation(unet, rows);
                let peak = around + work.peak.max(unet.loading().peak);
                found = Some((rows, work, peak));
                if peak <= limit {
                    break;
                }
            }
            // There is always a smallest batch.
            let Some((at_once, work, peak)) = found else {
                continue;
            };
            // Memory grows with every row by the same.
            let of_row = planned
                .evaluation(unet, at_once + 1)
                .peak
                .saturating_sub(work.peak);
            let more = limit.saturating_sub(peak) / of_row.max(1);
            most_rows.push(at_once.saturating_add(more as usize));
            rows.push(at_once);
            stages.push(PlannedPhase {
                name: planned.name(),
                peak,
                efforts: vec![self.evaluations(planned, unet, at_once, work, offload)],
            });
        }

        let mut vae = Vec::new();
        let mut chosen = (None, true);
        for (tile, sliced) in self.passes_to_try(&networks[0].vae, last) {
            chosen = (tile, sliced);
            vae = self.vae(&networks, offload, chosen, &others);
            if vae.iter().all(|(_, part)| part.peak <= limit) {
                break;
            }
        }

        let mut parts = vec![self.texts(&networks, offload, &others)];
        for (i, stage) in stages.into_iter().enumerate() {
            parts.extend(
                vae.iter()
                    .filter(|(at, _)| *at == i)
                    .map(|(_, p)| p.clone()),
            );
            parts.push(stage);
        }
        let end = self.stages.len();
        parts.extend(
            vae.iter()
                .filter(|(at, _)| *at == end)
                .map(|(_, p)| p.clone()),
        );
        let (tile, sliced) = chosen;
        let asked = request.vae_tiling == VaeTiling::On || request.vae_tile_size.is_some();
        Ok(Plan {
            budget: self.asked.budget.bytes(),
            precision: self.asked.precision,
            offload,
            group,
            rows_of_picture: (self.stages.iter())
                .map(|planned| planned.rows_of_picture(request.guided()))
                .collect(),
            rows,
            most_rows,
            tile,
            sliced,
            short: tile.is_some() && !asked,
            parts,
        })
    }

    fn networks(&self, streamed: bool) -> Result<Vec<RehearsedNetworks>> {
        let precision = self.asked.precision;
        let mut all: Vec<RehearsedNetworks> = Vec::new();
        for checkpoint in checkpoints(self.asked) {
            let base = (!all.is_empty()).then_some(self.asked.checkpoint);
            let shares = |part| -> Result<bool> {
                base.map_or(Ok(false), |base| seem_equal(base, checkpoint, part))
            };
            let mut text = (0, 0);
            for part in [Part::TextEncoder2, Part::TextEncoder] {
                // A refiner's text encoder mostly is the base's second.
                let alone = !checkpoint.has(Part::TextEncoder);
                if !checkpoint.has(part) || alone && shares(part)? {
                    continue;
                }
                let encoder = rehearsal::text_encoder(checkpoint, part, precision, streamed)?;
                let most = encoder.encode(SEQUENCES).peak.max(encoder.loading().peak);
                text.0 += encoder.weights();
                text.1 = text.1.max(most - encoder.weights());
            }
            let vae_shared = shares(Part::Vae)?;
            all.push(RehearsedNetworks {
                unet: rehearsal::unet(checkpoint, precision, streamed)?,
                vae: rehearsal::vae(checkpoint, precision, streamed)?,
                text,
                vae_shared,
            });
        }
        Ok(all)
    }

    fn texts(
        &self,
        networks: &[RehearsedNetworks],
        offload: Offload,
        others: &dyn Fn(u64) -> u64,
    ) -> PlannedPhase {
        let weights = networks.iter().map(|n| n.text.0).sum();
        let work = networks.iter().map(|n| n.text.1).max();
        let work = work.expect("a run has a network");
        let (flop, packed) = (self.stages.iter().map(|planned| planned.encoding))
            .fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        PlannedPhase {
            name: "text encoders".into(),
            peak: PROCESS + others(weights) + weights + work.max(TOKENIZERS),
            efforts: vec![Effort {
                part: Part::TextEncoder2,
                precision: self.asked.precision.of_part(Part::TextEncoder2, false),
                flop,
                packed: match offload {
                    Offload::Sequential => packed,
                    _ => weights as f64,
                },
            }],
        }
    }

    fn latents(&self, planned: &PlannedStage<'_>, group: usize) -> u64 {
        let [height, width] = latent_grid(planned.stage.size);
        let values = height * width * planned.checkpoint.vae.latent_channels;
        (LATENTS * values * size_of::<f32>() * group) as u64
    }

    /// All evaluations of a stage, of which `work` is one, of so many rows `at_once`.
    fn evaluations(
        &self,
        planned: &PlannedStage<'_>,
        unet: &Rehearsed<UNet>,
        at_once: usize,
        work: WorkCost,
        offload: Offload,
    ) -> Effort {
        let request = self.asked.request;
        let (mut rows, mut calls) = (0, 0);
        for evaluation in 0..planned.stage.evaluations {
            let step = planned.progress.steps_before + planned.stage.step_of(evaluation);
            let guided = scale_at(request, step, planned.progress.steps_total).is_some();
            let here: usize = (planned.prompts.iter())
                .map(|p| p.positive(step).len() + usize::from(guided || p.is_composed()))
                .sum();
            rows += here * request.num_images;
            calls += (here * request.num_images).div_ceil(at_once);
        }
        Effort {
            part: Part::UNet,
            precision: self.asked.precision,
            flop: work.flop as f64 / at_once as f64 * rows as f64,
            packed: match offload {
                Offload::Sequential => work.packed as f64 * calls as f64,
                Offload::Model => {
                    let groups = request.images().div_ceil(self.group(offload));
                    unet.weights() as f64 * groups as f64
                }
                Offload::None => unet.weights() as f64,
            },
        }
    }

    /// Sides of tiles and whether pictures go one by one, from what changes nothing to the smallest
    /// tiles that may be.
    fn passes_to_try(&self, vae: &Rehearsed<Vae>, smallest: bool) -> Vec<(Option<usize>, bool)> {
        let request = self.asked.request;
        let usual = vae.tile_size();
        let tiles = match (request.vae_tiling, request.vae_tile_size) {
            (VaeTiling::Off, _) => vec![None],
            (_, Some(side)) => vec![Some(side as usize / VAE_FACTOR)],
            (VaeTiling::On, None) => vec![Some(usual)],
            (VaeTiling::Auto, None) => {
                let halves = std::iter::successors(Some(usual / 2), |side| Some(side / 2));
                let halves = halves.take_while(|side| *side >= 16 && side.is_multiple_of(4));
                let halves = halves.filter(|_| smallest).map(Some);
                [None, Some(usual)].into_iter().chain(halves).collect()
            }
        };
        let first = tiles.first().map(|tile| (*tile, request.vae_slicing));
        first
            .into_iter()
            .chain(tiles.iter().map(|tile| (*tile, true)))
            .collect()
    }

    /// Gives the phases of the VAE's work, each with the index of the stage before which it
    /// is done.
    fn vae(
        &self,
        networks: &[RehearsedNetworks],
        offload: Offload,
        (tile, sliced): (Option<usize>, bool),
        others: &dyn Fn(u64) -> u64,
    ) -> Vec<VaePart> {
        let request = self.asked.request;
        let images = self.group(offload);
        // `waiting` is beside the work in memory, `host` what is done before or after it takes.
        let part = |name: &str,
                    vae: &Rehearsed<Vae>,
                    works: &[(WorkCost, f64)],
                    [waiting, host]: [u64; 2]| {
            let sum = |of: &dyn Fn(&WorkCost) -> u64| -> f64 {
                works
                    .iter()
                    .map(|(work, times)| of(work) as f64 * times)
                    .sum()
            };
            let most = works.iter().map(|(work, _)| work.peak).max().unwrap_or(0);
            let upcast = self.asked.checkpoint.vae.force_upcast;
            PlannedPhase {
                name: name.into(),
                peak: PROCESS
                    + others(vae.weights())
                    + (most.max(vae.loading().peak) + waiting).max(vae.weights() + host),
                efforts: vec![Effort {
                    part: Part::Vae,
                    precision: self.asked.precision.of_part(Part::Vae, upcast),
                    flop: sum(&|work| work.flop),
                    packed: match offload {
                        Offload::Sequential => sum(&|work| work.packed),
                        _ => vae.weights() as f64,
                    },
                }],
            }
        };
        // Whole or tile by tile: the works, how often each is done, and the memory of tiles that wait.
        let passes =
            |size: Size, run: &dyn Fn([usize; 2]) -> WorkCost, times: f64, channels: u64| {
                let tile = tile.filter(|tile| latent_grid(size).iter().any(|side| side > tile));
                let Some(tile) = tile else {
                    return (vec![(run(latent_grid(size)), times)], 0);
                };
                let works = tiles_of(latent_grid(size), tile).into_iter();
                let works = works
                    .map(|(grid, count)| (run(grid), times * count as f64))
                    .collect();
                let step = tile - tile / 4;
                let row = latent_grid(size)[1].div_ceil(step) * tile * tile;
                let whole: usize = latent_grid(size).iter().product();
                (
                    works,
                    (whole + 2 * row) as u64 * channels * size_of::<f32>() as u64,
                )
            };
        let base = &networks[0].vae;
        let moments = 2 * self.asked.checkpoint.vae.latent_channels as u64;
        let pixel_values = (VAE_FACTOR * VAE_FACTOR * 3) as u64;
        let mut parts = Vec::new();
        if self.asked.inputs.init_image.is_some() {
            let size = self.stages[0].stage.size;
            let (works, waiting) = passes(size, &|grid| base.encode(grid), 1.0, moments);
            // The prepared picture stays until it is encoded.
            let host = PREPARING * pixels(size);
            parts.push((0, part("VAE, encoding", base, &works, [waiting + host, 0])));
        }
        for (i, planned) in self.stages.iter().enumerate() {
            if planned.stage.start_from != StartFrom::PreviousUpscaled
                || request.upscale_method != UpscaleMethod::Lanczos
            {
                continue;
            }
            let (from, to, times) = (
                request.picture_size(),
                planned.stage.size,
                request.images() as f64,
            );
            let decoding = passes(from, &|grid| base.decode(1, grid), times, pixel_values);
            let encoding = passes(to, &|grid| base.encode(grid), times, moments);
            let works = [decoding.0, encoding.0].concat();
            let waiting = decoding.1.max(encoding.1);
            let host = FINISHING * pixels(from);
            let waiting = waiting + PREPARING * pixels(to) * images as u64;
            parts.push((i, part("VAE, enlarging", base, &works, [waiting, host])));
        }
        let size = request.upscaled_size();
        let vae = match self.stages.last() {
            Some(planned) => &networks[model_of(planned.stage)].vae,
            None => base,
        };
        let group = match VaeBatching::of(tile, sliced, latent_grid(size), images) {
            VaeBatching { tile: Some(_), .. } => 1,
            VaeBatching { group, .. } => group,
        };
        let times = request.images().div_ceil(group) as f64;
        let decode = |grid| vae.decode(group, grid);
        let (works, waiting) = passes(size, &decode, times, pixel_values);
        let finished = 3 * images as u64 * pixels(size);
        let (waiting, host) = (
            waiting + finished,
            FINISHING * group as u64 * pixels(size) + finished,
        );
        let decoding = part("VAE, decoding", vae, &works, [waiting, host]);
        parts.push((self.stages.len(), decoding));
        parts
    }
}

impl RehearsedNetworks {
    fn weights(&self) -> u64 {
        let vae = if self.vae_shared {
            0
        } else {
            self.vae.weights()
        };
        self.text.0 + self.unet.weights() + vae
    }
}

impl PlannedStage<'_> {
    fn name(&self) -> String {
        let what = match (self.stage.network, self.stage.start_from) {
            (Network::Refiner, _) => "refiner's UNet",
            (_, StartFrom::PreviousUpscaled) => "UNet, second pass",
            _ => "UNet",
        };
        format!("{what}, {}", self.stage.size)
    }

    /// The most rows that one picture has at a step.
    fn rows_of_picture(&self, guided: bool) -> usize {
        let parts = self.prompts.iter().map(PromptPair::parts).max();
        let composed = self.prompts.iter().any(PromptPair::is_composed);
        parts.expect("a request has a prompt") + usize::from(guided || composed)
    }

    fn evaluation(&self, unet: &Rehearsed<UNet>, rows: usize) -> WorkCost {
        let width = self.checkpoint.unet.cross_attention_dim;
        let tokens = self.prompts.iter().map(|p| p.tokens(width)).max();
        let tokens = tokens.expect("a request has a prompt").max(1);
        let all = self.prompts.iter().flat_map(PromptPair::texts);
        let mut texts: Vec<_> = all.map(Arc::as_ptr).collect();
        texts.sort();
        texts.dedup();
        let room = KEPT_KEYS / unet.text_keys(tokens).max(1);
        let texts = texts.len().min(room.max(rows));
        unet.evaluation(rows, (texts, tokens), latent_grid(self.stage.size))
    }
}

/// Gives the checkpoints of the base and, where there is one, of the refiner.
fn checkpoints<'a>(asked: &PlanInputs<'a>) -> impl Iterator<Item = &'a Checkpoint> {
    std::iter::once(asked.checkpoint).chain(asked.refiner)
}

/// Which of them a stage runs.
fn model_of(stage: &Stage) -> usize {
    usize::from(stage.network == Network::Refiner)
}

fn pixels(size: Size) -> u64 {
    (size.width * size.height) as u64
}

/// Rows of a batch from many to one: whole pictures, then parts of one.
fn rows_to_try(images: usize, of_picture: usize) -> Vec<usize> {
    let most = (MOST_IMAGES / of_picture.saturating_sub(1).max(1)).clamp(1, images.max(1));
    let pictures = (1..=most).rev().map(|n| n * of_picture);
    let halves = std::iter::successors(Some(of_picture), |n| (*n > 1).then(|| n.div_ceil(2)));
    pictures.chain(halves.skip(1)).collect()
}

/// Whether a part of two checkpoints looks the same; to know it takes reading both.
fn seem_equal(a: &Checkpoint, b: &Checkpoint, part: Part) -> Result<bool> {
    let sizes = |checkpoint: &Checkpoint| -> Result<Vec<(String, usize)>> {
        let tensors = checkpoint.tensors(part)?;
        let sizes = tensors
            .iter()
            .map(|(name, t)| (name.to_string(), t.byte_len()));
        let mut sizes: Vec<_> = sizes.collect();
        sizes.sort();
        Ok(sizes)
    };
    Ok(sizes(a)? == sizes(b)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_to_pictures_and_then_to_rows() {
        assert_eq!(rows_to_try(1, 2), [2, 1]);
        assert_eq!(rows_to_try(3, 2), [6, 4, 2, 1]);
        assert_eq!(rows_to_try(100, 2)[..2], [16, 14]);
        assert_eq!(rows_to_try(1, 1), [1]);
        // A prompt of three parts, and its negative.
        assert_eq!(rows_to_try(5, 4), [8, 4, 2, 1]);
    }
}
