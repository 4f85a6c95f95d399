//! The loop: one stage from its noisy latents to its last ones.

use std::ops::ControlFlow;
use std::time::Instant;

use super::guidance::scale_at;
use super::predict::Rows;
use super::stages::{Course, Stage};
use super::start::Work;
use super::{Event, Pipeline, proceed};
use crate::error::{Error, Result};
use crate::noise::NoiseSource;

/// Runs `stage` on `work`.
///
/// # Errors
/// [`Error::Cancelled`] where `observe` says so; [`Error::Machine`] for numbers that leave
/// the range of the precision.
pub fn denoise(
    model: &Pipeline,
    rows: &Rows<'_>,
    stage: &mut Stage,
    work: &mut Work,
    noise: &mut NoiseSource,
    course: Course,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let scheduler = &mut stage.scheduler;
    let channels = model.checkpoint.unet.in_channels;
    while let Some(timestep) = scheduler.timestep() {
        let began = Instant::now();
        let step = course.steps_before + scheduler.index() / scheduler.info().evaluations_per_step;
        let mut input = scheduler.scale_model_input(&work.latents);
        if let Some(inpainting) = &work.inpainting
            && channels != input.channels()
        {
            input = inpainting.widen(input);
        }
        let scale = scale_at(rows.request(), step, course.steps);
        let prediction = rows.predict(&input, timestep, scale, step);
        work.latents = scheduler.step(&prediction, &work.latents, noise)?;
        if let Some(inpainting) = &work.inpainting {
            inpainting.hold(&mut work.latents, scheduler, channels);
        }
        if work.latents.data().iter().any(|v| !v.is_finite()) {
            let message = format!(
                "the numbers left the range of {} at step {}",
                model.precision,
                course.before + scheduler.index()
            );
            return Err(Error::machine(message).with_hint("try `precision f32`"));
        }
        proceed(observe(Event::Step {
            index: course.before + scheduler.index(),
            total: course.total,
            seconds: began.elapsed().as_secs_f64(),
        }))?;
    }
    Ok(())
}
