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

mod alphas;
mod clamp;
mod config;
mod ddim;
mod ddim_inverse;
mod ddpm;
mod deis_multistep;
mod dpm_solver;
mod dpmsolver_multistep;
mod dpmsolver_sde;
mod dpmsolver_singlestep;
mod edm;
mod edm_dpmsolver_multistep;
mod edm_euler;
mod error;
mod euler_ancestral_discrete;
mod euler_discrete;
mod exploding;
mod heun_discrete;
mod k_dpm_2_ancestral_discrete;
mod k_dpm_2_discrete;
mod lcm;
mod lms_discrete;
mod math;
mod multistep;
mod plan;
mod pndm;
mod prediction;
mod registry;
mod sasolver;
mod tcd;
mod training;
mod unipc_multistep;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::latents::Latents;
use crate::noise::{NoiseError, NoiseSource};
pub use config::SchedulerConfig;
pub use error::SchedulerError;
pub use plan::{Plan, Steps};
pub use registry::{Info, OptionInfo, Randomness, all, find};

/// The state that a scheduler keeps between evaluations. If it is saved after any evaluation and
/// given to [`Scheduler::restore`] of a scheduler built the same way, together with the latents and
/// the noise source, the run goes on bit for bit.
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
    fn remember(&mut self, output: Latents, order: usize) {
        self.history.push(output);
        if self.history.len() > order {
            self.history.remove(0);
        }
    }

    /// The model output of `back` evaluations ago, 0 for the newest.
    fn past(&self, back: usize) -> Result<&Latents, SchedulerError> {
        let place = self.history.len().checked_sub(back + 1);
        place
            .map(|i| &self.history[i])
            .ok_or_else(|| self.foreign("a model output"))
    }

    /// The newest `count` model outputs, newest first.
    fn newest(&self, count: usize) -> Result<Vec<&Latents>, SchedulerError> {
        (0..count).map(|back| self.past(back)).collect()
    }

    /// The sample from which the step in progress started, which ends with this evaluation.
    fn take_anchor(&mut self) -> Result<Latents, SchedulerError> {
        self.anchor
            .take()
            .ok_or_else(|| self.foreign("the sample at the start of the step"))
    }

    fn foreign(&self, missing: &str) -> SchedulerError {
        let reason = format!("after {} evaluations it lacks {missing}", self.index);
        SchedulerError::ForeignState(reason)
    }
}

/// The timesteps and noise levels of a run's evaluations.
#[derive(Clone, Debug, PartialEq)]
struct Schedule {
    /// The timesteps given to the UNet, one for each evaluation.
    timesteps: Vec<f64>,
    /// The noise level of each evaluation's sample, and that of the result.
    sigmas: Vec<f32>,
    /// The factor by which standard normal latents are multiplied to start from noise.
    init_noise_sigma: f32,
}

/// An evaluation of a schedule.
#[derive(Clone, Copy)]
struct At<'a> {
    schedule: &'a Schedule,
    /// Counted from the start of the schedule; a cut plan does not begin at 0.
    index: usize,
}

impl At<'_> {
    /// The timestep.
    fn timestep(self) -> f64 {
        self.schedule.timesteps[self.index]
    }

    /// The noise level of the sample.
    fn sigma(self) -> f32 {
        self.schedule.sigmas[self.index]
    }

    /// The noise level of the result.
    fn sigma_next(self) -> f32 {
        self.schedule.sigmas[self.index + 1]
    }

    /// The noise level of the sample `back` evaluations ago.
    fn sigma_past(self, back: usize) -> f32 {
        self.schedule.sigmas[self.index - back]
    }

    /// Evaluations of the whole schedule.
    fn evaluations(self) -> usize {
        self.schedule.timesteps.len()
    }

    /// Whether this is the second evaluation of a two-evaluation step. Plans are cut between steps.
    fn is_second(self) -> bool {
        self.index % 2 == 1
    }
}

/// All that an update may look at.
struct Step<'a> {
    at: At<'a>,
    model_output: &'a Latents,
    sample: &'a Latents,
    state: &'a mut SchedulerState,
    noise: &'a mut NoiseSource,
}

impl Step<'_> {
    /// Fresh noise in the shape of the sample.
    fn draw(&mut self) -> Result<Latents, NoiseError> {
        self.noise.draw(self.sample.shape())
    }
}

/// The rule of one scheduler class. It holds the options; what changes from step to step is in the
/// state.
trait Rule: Send {
    /// Gives the UNet's input for a sample: the sample itself, unless the class scales it.
    fn scale_model_input(&self, _at: At<'_>, sample: &Latents) -> Latents {
        sample.clone()
    }

    /// The next sample.
    fn step(&mut self, step: Step<'_>) -> Result<Latents, SchedulerError>;

    /// A clean image with the noise of an evaluation's sample.
    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents;

    /// Refuses options that do not go with so many images.
    fn check_images(&self, _images: usize) -> Result<(), SchedulerError> {
        Ok(())
    }
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
    /// Gives the scheduler's class: names, order, options.
    pub fn info(&self) -> &'static Info {
        self.info
    }

    /// Gives the timesteps for the UNet, one for each evaluation of the run. They may be
    /// fractional.
    pub fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps[self.range.clone()]
    }

    /// The noise levels of the run: of each evaluation's sample, and of the result, relative to the
    /// image. As the reference lists them: of two evaluations of a step, the second has the level
    /// at which the step ends.
    pub fn sigmas(&self) -> &[f32] {
        &self.schedule.sigmas[self.range.start..=self.range.end]
    }

    /// Gives the factor by which standard normal latents are multiplied to start from noise.
    pub fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma
    }

    /// Evaluations done.
    pub fn index(&self) -> usize {
        self.state.index
    }

    /// Gives the timestep for the UNet at the next evaluation; none after the last one.
    pub fn timestep(&self) -> Option<f64> {
        self.timesteps().get(self.state.index).copied()
    }

    fn at(&self) -> At<'_> {
        // After the last evaluation there is nothing to scale; its own place does no harm.
        let index = self.state.index.min(self.range.len() - 1);
        At {
            schedule: &self.schedule,
            index: self.range.start + index,
        }
    }

    /// Gives the UNet's input at the next evaluation, for the latents `sample`.
    pub fn scale_model_input(&self, sample: &Latents) -> Latents {
        self.rule.scale_model_input(self.at(), sample)
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
        let state = &self.state;
        let kept = state
            .history
            .iter()
            .chain(&state.anchor)
            .chain(&state.partial);
        if let Some(other) = kept.map(Latents::shape).find(|&s| s != sample.shape()) {
            let reason = format!(
                "its latents are {other:?}, the sample is {:?}",
                sample.shape()
            );
            return Err(SchedulerError::ForeignState(reason));
        }
        let at = At {
            schedule: &self.schedule,
            index: self.range.start + self.state.index,
        };
        let step = Step {
            at,
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
        self.rule.add_noise(self.at(), original, noise)
    }

    /// Refuses options that do not go with a batch of so many images, such as a list of seeds.
    ///
    /// # Errors
    /// [`SchedulerError`] with both numbers.
    pub fn check_images(&self, images: usize) -> Result<(), SchedulerError> {
        self.rule.check_images(images)
    }

    /// Gives the state to save, with which [`Scheduler::restore`] goes on later.
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
        let began = state.anchor.is_some()
            || state.partial.is_some()
            || !state.seeds.is_empty()
            || !state.history.is_empty();
        if state.index == 0 && began || state.history.len() > state.index {
            let reason = format!(
                "it remembers more than {} evaluations can have left",
                state.index
            );
            return Err(SchedulerError::ForeignState(reason));
        }
        self.state = state;
        Ok(())
    }
}
