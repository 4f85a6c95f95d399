//! Schedulers: from what the UNet answers to the next latents.
//!
//! A [`SchedulerConfig`] is the JSON object that diffusers writes; [`build`] turns it and a
//! [`Plan`] into a [`Scheduler`], and the loop is the same for all of them:
//!
//! ```
//! # use sdxl::latents::Latents;
//! # use sdxl::noise::{NoiseSource, Rng};
//! # use sdxl::scheduler::{Plan, SchedulerConfig, build};
//! # fn unet(input: &Latents, _timestep: f64) -> Latents { input.map(|x| 0.5 * x) }
//! let config = SchedulerConfig::named("euler")?;
//! let mut scheduler = build(&config, &Plan::steps(4))?;
//! let mut noise = NoiseSource::new(Rng::TorchCpu, &[42])?;
//! let start = scheduler.init_noise_sigma();
//! let mut latents = noise.draw([1, 16, 16, 4])?.map(|x| x * start);
//! while let Some(timestep) = scheduler.timestep() {
//!     let output = unet(&scheduler.scale_model_input(&latents), timestep);
//!     latents = scheduler.step(&output, &latents, &mut noise)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Updates are computed in `f32`, in the order of the operations of diffusers, so that their
//! results agree with the reference to its own rounding.

// The schedulers that follow use what Euler does not.
#![allow(dead_code)]

mod config;
mod euler_discrete;
mod plan;
mod prediction;
mod registry;
mod training;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::latents::Latents;
use crate::noise::{NoiseError, NoiseSource};
pub use config::SchedulerConfig;
pub use plan::{Plan, Steps};
pub use registry::{Info, OptionInfo, Randomness, all, find};

/// Why a scheduler cannot be built or used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SchedulerError {
    /// No scheduler of that name.
    #[error("unknown scheduler `{name}`; did you mean `{nearest}`? `sdxl schedulers` lists all")]
    UnknownName {
        /// The name as given.
        name: String,
        /// The known name that is most like it.
        nearest: String,
    },
    /// A configuration that is not a JSON object.
    #[error("a scheduler configuration must be a JSON object: {0}")]
    NotJson(String),
    /// An option that the class does not have.
    #[error("{class} has no option `{option}`{hint}; it has: {options}", hint = hint(nearest))]
    UnknownOption {
        /// The class.
        class: &'static str,
        /// The option as given.
        option: String,
        /// The option of the class that is most like it, if one is.
        nearest: Option<String>,
        /// All options of the class.
        options: String,
    },
    /// An option with a value that it cannot have.
    #[error("{class}: {option} cannot be {value}; it must be {expected}")]
    BadOption {
        /// The class.
        class: &'static str,
        /// The option.
        option: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Options that exclude one another.
    #[error("{class}: {first} and {second} exclude one another; choose one")]
    Exclusive {
        /// The class.
        class: &'static str,
        /// One option.
        first: &'static str,
        /// The other option.
        second: &'static str,
    },
    /// A combination of options for which the method has no finite answer, or that it does not
    /// define.
    #[error("{class}: {reason}")]
    Unsupported {
        /// The class.
        class: &'static str,
        /// What does not go together, and what to do.
        reason: String,
    },
    /// A plan without steps.
    #[error("a run needs at least one step")]
    NoSteps,
    /// More steps than the model has timesteps.
    #[error("{steps} steps are more than the {trained} timesteps of training; ask for fewer")]
    TooManySteps {
        /// The steps asked for.
        steps: usize,
        /// The training timesteps.
        trained: usize,
    },
    /// Custom timesteps or sigmas that are not strictly descending.
    #[error("{what} must descend: {before} is followed by {after}")]
    NotDescending {
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// A value.
        before: f64,
        /// The value after it.
        after: f64,
    },
    /// A custom timestep or sigma outside of what the scheduler can use.
    #[error("{what}: {value} is not {expected}")]
    BadValue {
        /// `timesteps`, `sigmas`, `strength`, ...
        what: &'static str,
        /// The value.
        value: f64,
        /// What it may be.
        expected: String,
    },
    /// Custom timesteps or sigmas for a class that places its own.
    #[error("{class} does not take custom {what}; use steps, or one of {takers}")]
    NotCustom {
        /// The class.
        class: &'static str,
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// Classes that do.
        takers: String,
    },
    /// A plan that is cut until nothing is left of it.
    #[error("{what} leaves none of the {evaluations} evaluations; {remedy}")]
    NothingLeft {
        /// What cuts it, with its value.
        what: String,
        /// How many evaluations the whole plan has.
        evaluations: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// A step after the last one.
    #[error("all {0} evaluations of the plan are done")]
    Finished(usize),
    /// A model output that does not fit the sample.
    #[error("the model output has shape {output:?} but the sample {sample:?}")]
    Shape {
        /// `[batch, height, width, channels]` of the output.
        output: [usize; 4],
        /// `[batch, height, width, channels]` of the sample.
        sample: [usize; 4],
    },
    /// A saved state that belongs to another scheduler or plan.
    #[error("the saved state does not fit: {0}")]
    ForeignState(String),
    /// Noise that cannot be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|n| format!(" (did you mean `{n}`?)"))
        .unwrap_or_default()
}

/// What a scheduler remembers between evaluations. Saved after any evaluation and given to
/// [`Scheduler::restore`] of a scheduler built the same way, together with the latents and the
/// noise source, the run goes on bit for bit.
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
    /// What a step in progress has summed up, or the noise that the last step added.
    pub partial: Option<Latents>,
    /// Seeds of noise that is a function of time and not of the order of draws.
    pub seeds: Vec<u64>,
}

impl SchedulerState {
    /// Adds a model output to the history, which keeps the newest `order`.
    fn remember(&mut self, output: Latents, order: usize) {
        self.history.push(output);
        if self.history.len() > order {
            self.history.remove(0);
        }
    }

    /// The model output of `back` evaluations ago, 0 for the newest. The history must reach that
    /// far.
    fn past(&self, back: usize) -> &Latents {
        &self.history[self.history.len() - 1 - back]
    }
}

/// Where the evaluations of a run lie.
#[derive(Clone, Debug, PartialEq)]
struct Schedule {
    /// What the UNet is told, one for each evaluation.
    timesteps: Vec<f64>,
    /// The noise level of each evaluation's sample, and that of the result.
    sigmas: Vec<f32>,
    /// What standard normal latents are multiplied with to start.
    init_noise_sigma: f32,
}

/// All that an update may look at.
struct Step<'a> {
    schedule: &'a Schedule,
    /// Which evaluation of the schedule this is; a cut plan does not begin at 0.
    index: usize,
    model_output: &'a Latents,
    sample: &'a Latents,
    state: &'a mut SchedulerState,
    noise: &'a mut NoiseSource,
}

impl Step<'_> {
    fn sigma(&self) -> f32 {
        self.schedule.sigmas[self.index]
    }

    fn sigma_next(&self) -> f32 {
        self.schedule.sigmas[self.index + 1]
    }

    /// Fresh noise in the shape of the sample.
    fn draw(&mut self) -> Result<Latents, NoiseError> {
        self.noise.draw(self.sample.shape())
    }
}

/// The rule of one scheduler class. It holds the options; what changes from step to step is in the
/// state.
trait Rule: Send {
    /// What the UNet is shown for a sample.
    fn scale_model_input(&self, _schedule: &Schedule, _index: usize, sample: &Latents) -> Latents {
        sample.clone()
    }

    /// The next sample.
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError>;

    /// A clean image with the noise of an evaluation's sample.
    fn add_noise(
        &self,
        schedule: &Schedule,
        index: usize,
        original: &Latents,
        noise: &Latents,
    ) -> Latents;
}

/// A scheduler in the middle of a run.
pub struct Scheduler {
    info: &'static Info,
    schedule: Schedule,
    range: Range<usize>,
    rule: Box<dyn Rule>,
    state: SchedulerState,
}

/// Builds the scheduler that `config` describes, for the run that `plan` describes.
pub fn build(config: &SchedulerConfig, plan: &Plan) -> Result<Scheduler, SchedulerError> {
    let info = config.info();
    plan.check(info, config.trained()?)?;
    let (schedule, rule) = (info.build)(config, plan)?;
    let range = plan.range(info, config.trained()?, &schedule.timesteps)?;
    let state = SchedulerState {
        class: info.class.to_owned(),
        ..SchedulerState::default()
    };
    Ok(Scheduler {
        info,
        schedule,
        range,
        rule,
        state,
    })
}

impl Scheduler {
    /// Its class: names, order, options.
    pub fn info(&self) -> &'static Info {
        self.info
    }

    /// What the UNet is told, one for each evaluation of the run. May be fractional.
    pub fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps[self.range.clone()]
    }

    /// The noise levels of the run: of each evaluation's sample, and of the result. In units where
    /// the data has standard deviation about one and noise is added to it.
    pub fn sigmas(&self) -> &[f32] {
        &self.schedule.sigmas[self.range.start..=self.range.end]
    }

    /// What standard normal latents are multiplied with to start from noise.
    pub fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    /// Evaluations done.
    pub fn index(&self) -> usize {
        self.state.index
    }

    /// What the UNet is told at the next evaluation; none after the last one.
    pub fn timestep(&self) -> Option<f64> {
        self.timesteps().get(self.state.index).copied()
    }

    /// What the UNet is shown at the next evaluation, for the latents `sample`.
    pub fn scale_model_input(&self, sample: &Latents) -> Latents {
        self.rule
            .scale_model_input(&self.schedule, self.range.start + self.state.index, sample)
    }

    /// The latents after the next evaluation, in which the UNet answered `model_output` (guidance
    /// applied) for the latents `sample`. Draws from `noise` exactly what the reference draws from
    /// its generator.
    pub fn step(
        &mut self,
        model_output: &Latents,
        sample: &Latents,
        noise: &mut NoiseSource,
    ) -> Result<Latents, SchedulerError> {
        if self.state.index == self.range.len() {
            return Err(SchedulerError::Finished(self.range.len()));
        }
        if model_output.shape() != sample.shape() {
            return Err(SchedulerError::Shape {
                output: model_output.shape(),
                sample: sample.shape(),
            });
        }
        let index = self.range.start + self.state.index;
        let step = Step {
            schedule: &self.schedule,
            index,
            model_output,
            sample,
            state: &mut self.state,
            noise,
        };
        let next = self.rule.step(step)?;
        self.state.index += 1;
        Ok(next)
    }

    /// The clean latents `original` with as much of `noise` as the sample of the next evaluation
    /// has: the start of image to image, and the known part of an inpainting step. After the last
    /// evaluation there is no noise to add.
    pub fn add_noise(&self, original: &Latents, noise: &Latents) -> Latents {
        if self.state.index == self.range.len() {
            return original.clone();
        }
        self.rule.add_noise(
            &self.schedule,
            self.range.start + self.state.index,
            original,
            noise,
        )
    }

    /// What to save to go on later.
    pub fn state(&self) -> &SchedulerState {
        &self.state
    }

    /// Goes on where a scheduler built the same way was saved.
    pub fn restore(&mut self, state: SchedulerState) -> Result<(), SchedulerError> {
        if state.class != self.info.class {
            let reason = format!("it is of {}, this is {}", state.class, self.info.class);
            return Err(SchedulerError::ForeignState(reason));
        }
        if state.index > self.range.len() {
            let reason = format!(
                "{} evaluations are done, this run has {}",
                state.index,
                self.range.len()
            );
            return Err(SchedulerError::ForeignState(reason));
        }
        self.state = state;
        Ok(())
    }
}
