//! What a run consists of: which network goes through which part of which schedule.

use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::request::{Request, Size};
use crate::scheduler::{self, Plan, Scheduler, SchedulerConfig, Steps};
use crate::weights::folder::Checkpoint;

/// Whose network a stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The pipeline's own.
    Base,
    /// The refiner's.
    Refiner,
}

/// Where a stage starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// From standard normal latents, drawn or given.
    Noise,
    /// From the input picture, or finished latents given, with noise.
    Picture,
    /// From the input picture, or noisy latents given, as they are.
    GoOn,
    /// From the noisy latents of the stage before.
    HandOver,
    /// From the finished latents of the stage before, with noise.
    Again,
    /// From the finished latents of the stage before, enlarged, with noise.
    Enlarged,
}

/// One network's way through a schedule, or a part of one.
pub struct Stage {
    /// Whose network.
    pub network: Network,
    /// From where.
    pub begin: Begin,
    /// The size of its pictures.
    pub size: Size,
    /// At its start.
    pub scheduler: Scheduler,
}

impl Stage {
    /// Evaluations of the network.
    pub fn evaluations(&self) -> usize {
        self.scheduler.timesteps().len()
    }

    /// Steps, of which each is one or two evaluations.
    pub fn steps(&self) -> usize {
        self.evaluations()
            .div_ceil(self.scheduler.info().evaluations_per_step)
    }
}

/// What of a schedule a stage runs; see [`Plan`] for the words.
#[derive(Default)]
struct Cut {
    strength: Option<f64>,
    start: Option<f64>,
    end: Option<f64>,
}

/// Where base and refiner share a run, the ends of their parts: equal where only one is given.
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
pub fn stages(
    checkpoint: &Checkpoint,
    refiner: Option<&Checkpoint>,
    request: &Request,
    inputs: &Inputs,
) -> Result<Vec<Stage>> {
    let begin = first(refiner.is_some(), request, inputs)?;
    let shared = refiner.filter(|_| request.refiner_strength.is_none());
    let (end, start) = match shared {
        Some(_) => hand_over(request),
        None => (request.denoising_end, request.denoising_start),
    };
    let size = request.picture_size();
    let stage = |network, begin, size, checkpoint, cut| -> Result<Stage> {
        Ok(Stage {
            network,
            begin,
            size,
            scheduler: scheduler_for(checkpoint, request, &cut).map_err(|error| {
                // It stands for both.
                match request.denoising_fraction {
                    Some(_) => error
                        .of_field("denoising_end", "denoising_fraction")
                        .of_field("denoising_start", "denoising_fraction"),
                    None => error,
                }
            })?,
        })
    };

    let cut = Cut {
        strength: request.strength.filter(|_| begin == Begin::Picture),
        start: start.filter(|_| begin == Begin::GoOn),
        end: end.filter(|end| *end < 1.0),
    };
    let mut stages = vec![stage(Network::Base, begin, size, checkpoint, cut)?];
    if let Some(refiner) = shared {
        let cut = Cut {
            start,
            ..Cut::default()
        };
        let second = stage(Network::Refiner, Begin::HandOver, size, refiner, cut)?;
        // Schedulers scale noisy latents in different ways: those of another would be no
        // picture's.
        let [ours, theirs] = [&stages[0], &second].map(|s| s.scheduler.info().class);
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
        let second = stage(Network::Base, Begin::Enlarged, size, checkpoint, cut)
            .map_err(|error| error.of_field("strength", "upscale_strength"))?;
        stages.push(second);
    }
    if let (Some(refiner), Some(_)) = (refiner, request.refiner_strength) {
        let cut = Cut {
            strength: request.refiner_strength,
            ..Cut::default()
        };
        let again = stage(Network::Refiner, Begin::Again, size, refiner, cut)
            .map_err(|error| error.of_field("strength", "refiner_strength"))?;
        stages.push(again);
    }
    Ok(stages)
}

/// How often the networks are evaluated for a resolved request, all stages together.
///
/// # Errors
/// Whatever [`super::resolve`] refuses.
pub fn evaluations(
    checkpoint: &Checkpoint,
    refiner: Option<&Checkpoint>,
    request: &Request,
    inputs: &Inputs,
) -> Result<usize> {
    let stages = stages(checkpoint, refiner, request, inputs)?;
    Ok(stages.iter().map(Stage::evaluations).sum())
}

/// How a run begins, after refusing what contradicts itself.
fn first(refiner: bool, request: &Request, inputs: &Inputs) -> Result<Begin> {
    let no = |field, message: &str, hint: &str| -> Result<Begin> {
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
    if inputs.mask.is_some() && request.upscale.is_some() {
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
        (true, true) => Ok(Begin::GoOn),
        (false, true) => no(
            "denoising_start",
            "there is nothing to go on with",
            "give the noisy latents of another run with `latents`, or a refiner to hand over to",
        ),
        (true, false) if picture || request.strength.is_some() => Ok(Begin::Picture),
        (false, false) if request.strength.is_some() => no(
            "strength",
            "there is no picture to start from",
            "give `init_image` (or `latents`)",
        ),
        _ => Ok(Begin::Noise),
    }
}

/// The scheduler of a request for all of its schedule, at its start.
///
/// # Errors
/// [`Error::Scheduler`] for a name or an option that it does not have.
pub fn build_scheduler(checkpoint: &Checkpoint, request: &Request) -> Result<Scheduler> {
    scheduler_for(checkpoint, request, &Cut::default())
}

fn scheduler_for(checkpoint: &Checkpoint, request: &Request, cut: &Cut) -> Result<Scheduler> {
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
    let mut plan = Plan::new(steps);
    plan.eta = request.eta;
    plan.strength = cut.strength;
    plan.denoising_start = cut.start;
    plan.denoising_end = cut.end;
    Ok(scheduler::build(&config, &plan)?)
}

/// Counts evaluations over all stages, and steps over those that share one way from noise to
/// picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// Evaluations of the stages before.
    pub before: usize,
    /// Evaluations of all stages.
    pub total: usize,
    /// Steps of the stages before on the same way.
    pub steps_before: usize,
    /// Steps of the whole way.
    pub steps: usize,
}

impl Course {
    /// The course of every stage.
    pub fn of(stages: &[Stage]) -> Vec<Course> {
        let total = stages.iter().map(Stage::evaluations).sum();
        let mut courses: Vec<Course> = Vec::new();
        let mut before = 0;
        for (i, stage) in stages.iter().enumerate() {
            let steps_before = match courses.last() {
                Some(last) if stage.begin == Begin::HandOver => {
                    last.steps_before + stages[i - 1].steps()
                }
                _ => 0,
            };
            let after: usize = (stages[i + 1..].iter())
                .take_while(|next| next.begin == Begin::HandOver)
                .map(Stage::steps)
                .sum();
            courses.push(Course {
                before,
                total,
                steps_before,
                steps: steps_before + stage.steps() + after,
            });
            before += stage.evaluations();
        }
        courses
    }
}
