//! Schedulers: from what the UNet answers to the next latents.
//!
//! A [`SchedulerConfig`] is the JSON object that diffusers writes; [`InferenceSteps`] says which steps a
//! run makes (the arguments of `set_timesteps`). [`build`] makes a [`Scheduler`] of the two, and the
//! loop is the same for all of them:
//!
//! ```
//! # use sdxl::Latents;
//! # use sdxl::noise::{NoiseSource, Rng};
//! # use sdxl::scheduler::{InferenceSteps, SchedulerConfig, build};
//! # fn unet(input: &Latents, _timestep: f64) -> Latents { input.map(|x| 0.5 * x) }
//! let config = SchedulerConfig::named("euler")?;
//! let mut scheduler = build(&config, &InferenceSteps::count(4))?;
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
//! results agree with the reference to its own rounding. Names follow diffusers and k-diffusion:
//! `sample` for the latents of an evaluation, `model_output` for the UNet's answer, `sigma` for a
//! noise level, `denoised` or `clean` for the predicted picture, `d` for the derivative by sigma.

mod alphas;
mod clamp;
mod config;
mod config_sources;
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
mod heun_discrete;
mod inference_steps;
mod info;
mod k_dpm_2_ancestral_discrete;
mod k_dpm_2_discrete;
mod lcm;
mod lms_discrete;
mod math;
mod multistep;
mod names;
mod pndm;
mod prediction;
mod registry;
mod sasolver;
mod schedule;
mod state;
mod tcd;
mod training;
mod unipc_multistep;
mod update_rule;
mod variance_exploding;

use std::ops::Range;

use schedule::{Position, Schedule};
use update_rule::{Step, UpdateRule};

use crate::latents::Latents;
use crate::noise::NoiseSource;
pub use config::SchedulerConfig;
pub use error::SchedulerError;
pub use inference_steps::{InferenceSteps, Steps};
pub use info::{Info, OptionInfo, Randomness};
pub(crate) use registry::class;
pub use registry::{all, find};
pub use state::SchedulerState;

/// A scheduler in the middle of a run.
pub struct Scheduler {
    info: &'static Info,
    /// All evaluations that the steps have.
    schedule: Schedule,
    /// The evaluations that the run makes.
    range: Range<usize>,
    rule: Box<dyn UpdateRule>,
    state: SchedulerState,
}

/// Builds the scheduler that `config` describes, for a run of these steps.
///
/// # Errors
/// Options or steps that the class or the model cannot have.
pub fn build(
    config: &SchedulerConfig,
    inference: &InferenceSteps,
) -> Result<Scheduler, SchedulerError> {
    let info = config.info();
    let trained = config.trained()?;
    check_custom(info, inference)?;
    inference.check(trained)?;
    let (schedule, rule) = registry::build_function(info)(config, inference)?;
    let range = inference.range(info, trained, &schedule.timesteps)?;
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

/// Refuses custom timesteps or sigmas where the class places its own, and names the classes that
/// take them.
fn check_custom(info: &Info, inference: &InferenceSteps) -> Result<(), SchedulerError> {
    let (what, takes): (_, fn(&Info) -> bool) = match inference.steps {
        Steps::Count(_) => return Ok(()),
        Steps::Timesteps(_) => ("timesteps", |info| info.custom_timesteps),
        Steps::Sigmas(_) => ("sigmas", |info| info.custom_sigmas),
    };
    if takes(info) {
        return Ok(());
    }
    let takers: Vec<_> = all().filter(|i| takes(i)).map(|i| i.names[0]).collect();
    Err(SchedulerError::NotCustom {
        class: info.class,
        what,
        takers: takers.join(", "),
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

    /// The position of the next evaluation, and after the last one still that of the last.
    fn position(&self) -> Position<'_> {
        let index = self.state.index.min(self.range.len() - 1);
        Position {
            schedule: &self.schedule,
            index: self.range.start + index,
        }
    }

    /// Gives the UNet's input at the next evaluation, for the latents `sample`.
    pub fn scale_model_input(&self, sample: &Latents) -> Latents {
        self.rule.scale_model_input(self.position(), sample)
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
        let other = self.state.latents().find(|l| l.shape() != sample.shape());
        if let Some(other) = other.map(Latents::shape) {
            let reason = format!(
                "its latents are {other:?}, the sample is {:?}",
                sample.shape()
            );
            return Err(SchedulerError::ForeignState(reason));
        }
        let position = Position {
            schedule: &self.schedule,
            index: self.range.start + self.state.index,
        };
        let step = Step {
            position,
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
        self.rule.add_noise(self.position(), original, noise)
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
        let has_begun = state.latents().next().is_some() || !state.seeds.is_empty();
        if state.index == 0 && has_begun || state.history.len() > state.index {
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
