//! The stages of a run: which network goes through which part of which schedule.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::request::{Request, Size};
use crate::scheduler::{self, InferenceSteps, Info, Scheduler, SchedulerConfig, Steps};
use crate::weights::Checkpoint;

/// The network of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// The pipeline's own.
    Base,
    /// The refiner's.
    Refiner,
}

/// The latents that a stage starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StartFrom {
    /// Standard normal latents, drawn or given.
    Noise,
    /// The input picture, or finished latents given, with noise.
    Image,
    /// The input picture, or noisy latents given, as they are (diffusers' `denoising_start`).
    NoisyLatents,
    /// The noisy latents of the stage before.
    PreviousNoisy,
    /// The finished latents of the stage before, with noise.
    Previous,
    /// The finished latents of the stage before, enlarged, with noise.
    PreviousUpscaled,
}

/// One network's way through a schedule, or a part of one.
pub(super) struct Stage {
    /// The network.
    pub network: Network,
    /// The latents that the stage starts from.
    pub start_from: StartFrom,
    /// The size of its pictures.
    pub size: Size,
    config: SchedulerConfig,
    steps: InferenceSteps,
    /// Evaluations of the network.
    pub evaluations: usize,
    /// The class of its scheduler.
    pub info: &'static Info,
}

impl Stage {
    fn new(
        network: Network,
        start_from: StartFrom,
        size: Size,
        (config, steps): (SchedulerConfig, InferenceSteps),
    ) -> Result<Stage> {
        let scheduler = scheduler::build(&config, &steps)?;
        Ok(Stage {
            network,
            start_from,
            size,
            evaluations: scheduler.timesteps().len(),
            info: scheduler.info(),
            config,
            steps,
        })
    }

    /// The scheduler at its start. Built anew for every group of pictures.
    ///
    /// # Errors
    /// None that did not show when the stage was made.
    pub(super) fn scheduler(&self) -> Result<Scheduler> {
        Ok(scheduler::build(&self.config, &self.steps)?)
    }

    /// Gives the prediction type of the network, in the words of `scheduler_config.json`.
    pub(super) fn prediction_type(&self) -> &str {
        let named = self.config.get("prediction_type");
        named.and_then(|name| name.as_str()).unwrap_or("epsilon")
    }

    /// Steps, of which each is one or two evaluations.
    pub(super) fn steps(&self) -> usize {
        self.evaluations.div_ceil(self.info.evaluations_per_step)
    }

    /// The step that an evaluation belongs to, both from 0.
    pub(super) fn step_of(&self, evaluation: usize) -> usize {
        evaluation / self.info.evaluations_per_step
    }
}

/// The part of a schedule that a stage runs; [`InferenceSteps`] explains the terms.
#[derive(Default)]
struct Cut {
    strength: Option<f64>,
    start: Option<f64>,
    end: Option<f64>,
}

/// Gives the end of the base's part and the start of the refiner's in a run that both share: equal
/// where only one is given.
fn hand_over(request: &Request) -> (Option<f64>, Option<f64>) {
    let (end, start) = (request.denoising_end, request.denoising_start);
    match request.denoising_fraction {
        Some(fraction) => (Some(fraction), Some(fraction)),
        None => (end.or(start), start.or(end)),
    }
}

/// The stages of a request whose open questions are decided, in order.
///
/// # Errors
/// [`Error::Request`] for parts that do not go together; [`Error::Scheduler`] for a scheduler
/// that cannot do what is asked, such as a strength that leaves no step.
pub(super) fn stages(
    checkpoint: &Checkpoint,
    refiner: Option<&Checkpoint>,
    request: &Request,
    inputs: &Inputs,
) -> Result<Vec<Stage>> {
    let start_from = first(refiner.is_some(), request, inputs)?;
    let shared = refiner.filter(|_| request.refiner_strength.is_none());
    let (end, start) = match shared {
        Some(_) => hand_over(request),
        None => (request.denoising_end, request.denoising_start),
    };
    let size = request.picture_size();
    let stage = |network, start_from, size, checkpoint, cut| {
        Stage::new(
            network,
            start_from,
            size,
            schedule_of(checkpoint, request, &cut)?,
        )
        .map_err(|error| {
            // It stands for both.
            match request.denoising_fraction {
                Some(_) => error
                    .of_field("denoising_end", "denoising_fraction")
                    .of_field("denoising_start", "denoising_fraction"),
                None => error,
            }
        })
    };

    let cut = Cut {
        strength: request.strength.filter(|_| start_from == StartFrom::Image),
        start: start.filter(|_| start_from == StartFrom::NoisyLatents),
        end: end.filter(|end| *end < 1.0),
    };
    let mut stages = vec![stage(Network::Base, start_from, size, checkpoint, cut)?];
    if let Some(refiner) = shared {
        let cut = Cut {
            start,
            ..Cut::default()
        };
        let second = stage(
            Network::Refiner,
            StartFrom::PreviousNoisy,
            size,
            refiner,
            cut,
        )?;
        // Schedulers scale noisy latents in different ways: those of another would be no
        // picture's.
        let [ours, theirs] = [&stages[0], &second].map(|s| s.info.class);
        if ours != theirs {
            let message = format!(
                "the base's is {ours} and the refiner's {theirs}, which cannot take over its latents"
            );
            return Err(Error::request("scheduler", message)
                .with_hint("choose one for both with `scheduler`"));
        }
        stages.push(second);
    }
    let size = request.upscaled_size();
    if request.upscale.is_some() {
        let cut = Cut {
            strength: Some(request.upscale_strength),
            ..Cut::default()
        };
        let start_from = StartFrom::PreviousUpscaled;
        let second = stage(Network::Base, start_from, size, checkpoint, cut)
            .map_err(|error| error.of_field("strength", "upscale_strength"))?;
        stages.push(second);
    }
    if let (Some(refiner), Some(_)) = (refiner, request.refiner_strength) {
        let cut = Cut {
            strength: request.refiner_strength,
            ..Cut::default()
        };
        let again = stage(Network::Refiner, StartFrom::Previous, size, refiner, cut)
            .map_err(|error| error.of_field("strength", "refiner_strength"))?;
        stages.push(again);
    }
    Ok(stages)
}

/// Decides how a run begins, after refusing a request that contradicts itself.
fn first(refiner: bool, request: &Request, inputs: &Inputs) -> Result<StartFrom> {
    let no = |field, message: &str, hint: &str| -> Result<StartFrom> {
        Err(Error::request(field, message).with_hint(hint))
    };
    let cut_short = request.denoising_end.is_some_and(|end| end < 1.0);
    if refiner {
        if request.refiner_strength.is_some()
            && (request.denoising_fraction.is_some()
                || request.denoising_start.is_some()
                || cut_short)
        {
            return no(
                "refiner_strength",
                "it lets the refiner go over the finished picture, denoising_fraction \
                 (denoising_end, denoising_start) hands it an unfinished one",
                "give one of them",
            );
        }
    } else {
        for (name, given) in [
            ("denoising_fraction", request.denoising_fraction.is_some()),
            ("refiner_strength", request.refiner_strength.is_some()),
        ] {
            if given {
                return no(name, "there is no refiner", "give one with `refiner DIR`");
            }
        }
        if cut_short && request.upscale.is_some() {
            return no(
                "upscale",
                "denoising_end leaves noise, which cannot be enlarged",
                "leave one of them out",
            );
        }
    }
    let (picture, latents) = (inputs.init_image.is_some(), inputs.latents.is_some());
    if picture && latents {
        return no(
            "init_image",
            "init_image and latents are both given",
            "a run starts from one of them",
        );
    }
    let masked = inputs.mask.is_some() || !request.extend.is_zero();
    if masked && request.upscale.is_some() {
        return no(
            "upscale",
            "a second pass would also go over what the mask keeps",
            "leave one of them out",
        );
    }
    let go_on = request.denoising_start.is_some() && !refiner;
    if go_on && request.strength.is_some() {
        return no(
            "strength",
            "it has no meaning beside denoising_start, which says where the run begins",
            "leave one of them out",
        );
    }
    match (picture || latents, go_on) {
        (true, true) => Ok(StartFrom::NoisyLatents),
        (false, true) => no(
            "denoising_start",
            "there is nothing to go on with",
            "give the noisy latents of another run with `latents`, or a refiner to hand over to",
        ),
        (true, false) if picture || request.strength.is_some() => Ok(StartFrom::Image),
        (false, false) if request.strength.is_some() => no(
            "strength",
            "there is no picture to start from",
            "give `init_image` (or `latents`)",
        ),
        _ => Ok(StartFrom::Noise),
    }
}

/// The scheduler's options and the part of its schedule that a stage runs.
fn schedule_of(
    checkpoint: &Checkpoint,
    request: &Request,
    cut: &Cut,
) -> Result<(SchedulerConfig, InferenceSteps)> {
    let mut config = SchedulerConfig::from_json(checkpoint.scheduler.clone())?;
    if let Some(name) = &request.scheduler {
        config = config.with_scheduler(name)?;
    }
    for (option, value) in &request.scheduler_options {
        config.set(option, value.clone())?;
    }
    let steps = if !request.timesteps.is_empty() {
        Steps::Timesteps(request.timesteps.clone())
    } else if !request.sigmas.is_empty() {
        Steps::Sigmas(request.sigmas.clone())
    } else {
        Steps::Count(request.steps)
    };
    let steps = InferenceSteps {
        steps,
        strength: cut.strength,
        denoising_start: cut.start,
        denoising_end: cut.end,
        eta: request.eta,
    };
    Ok((config, steps))
}

/// The place of a stage within the run. Evaluations are counted over all stages (for progress); steps
/// over the stages that share one way from noise to picture, so that base and refiner agree on the
/// number of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StageProgress {
    /// Evaluations of the stages before.
    pub evaluations_before: usize,
    /// Steps of the stages before on the same way.
    pub steps_before: usize,
    /// Steps of the whole way.
    pub steps_total: usize,
}

impl StageProgress {
    /// The places of all stages.
    pub(super) fn of(stages: &[Stage]) -> Vec<StageProgress> {
        let mut all: Vec<StageProgress> = Vec::new();
        let mut evaluations_before = 0;
        for (i, stage) in stages.iter().enumerate() {
            let steps_before = match all.last() {
                Some(last) if stage.start_from == StartFrom::PreviousNoisy => {
                    last.steps_before + stages[i - 1].steps()
                }
                _ => 0,
            };
            let after: usize = (stages[i + 1..].iter())
                .take_while(|next| next.start_from == StartFrom::PreviousNoisy)
                .map(Stage::steps)
                .sum();
            all.push(StageProgress {
                evaluations_before,
                steps_before,
                steps_total: steps_before + stage.steps() + after,
            });
            evaluations_before += stage.evaluations;
        }
        all
    }
}
