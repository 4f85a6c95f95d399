//! One evaluation of the networks: from noisy latents to less noisy ones.

use std::sync::Arc;
use std::time::Instant;

use super::{ActiveStage, Run};
use crate::error::{Error, Result};
use crate::latents::Latents;
use crate::model::unet::UNet;
use crate::pipeline::denoiser::{Moment, Rows};
use crate::pipeline::guidance::scale_at;
use crate::pipeline::preview::{Preview, clean_latents};

/// An evaluation whose rows are at the UNet.
pub(super) struct Pending {
    /// The latents that the UNet was shown, `[N, H, W, C]`, without the channels of a mask.
    input: Latents,
    moment: Moment,
}

impl Pending {
    /// Height and width of the latents.
    pub(super) fn grid(&self) -> [usize; 2] {
        [self.input.height(), self.input.width()]
    }
}

impl Run {
    /// The UNet of the stage under way.
    pub(super) fn unet(&mut self) -> Arc<UNet> {
        let denoiser = self.active().denoiser.as_ref();
        Arc::clone(denoiser.expect("a stage under way has its UNet").unet())
    }

    /// The stage under way, whose UNet is there.
    fn active(&mut self) -> &mut ActiveStage {
        self.stage.as_mut().expect("a stage is under way")
    }

    /// Does an evaluation, and gives the seconds that it took.
    pub(super) fn evaluate(&mut self, stage: usize) -> Result<f64> {
        let began = Instant::now();
        let mut rows = Rows::default();
        let pending = self.begin_evaluation(stage, &mut rows)?;
        let at_once = self.job.plan.rows[stage];
        let answers = rows.evaluate(&self.unet(), pending.grid(), at_once)?;
        self.finish_evaluation(stage, pending, &answers)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Adds the rows of the next evaluation.
    pub(super) fn begin_evaluation(&mut self, stage: usize, rows: &mut Rows) -> Result<Pending> {
        let job = Arc::clone(&self.job);
        let (spec, progress) = (&job.stages[stage], job.progress[stage]);
        let channels = job.model(stage).unet_channels();
        let ActiveStage {
            scheduler,
            work,
            denoiser,
        } = self.active();
        let timestep = scheduler.timestep();
        let step = progress.steps_before + spec.step_of(scheduler.index());
        let moment = Moment {
            timestep: timestep.expect("a stage ends with its last evaluation"),
            scale: scale_at(&job.request, step, progress.steps_total),
            step,
        };
        let input = scheduler.scale_model_input(&work.latents);
        let denoiser = denoiser.as_mut().expect("a stage under way has its UNet");
        match &work.inpainting {
            Some(inpainting) if channels != input.channels() => {
                denoiser.add_rows(rows, &inpainting.concat_mask(&input), moment)?;
            }
            _ => denoiser.add_rows(rows, &input, moment)?,
        }
        Ok(Pending { input, moment })
    }

    /// Takes the UNet's answers to the rows of an evaluation.
    pub(super) fn finish_evaluation(
        &mut self,
        stage: usize,
        Pending { input, moment }: Pending,
        answers: &[f32],
    ) -> Result<()> {
        let job = Arc::clone(&self.job);
        let model = job.model(stage);
        let (mut noise, channels) = (self.noise.clone(), model.unet_channels());
        let active = self.active();
        let denoiser = active.denoiser.as_ref();
        let denoiser = denoiser.expect("a stage under way has its UNet");
        let prediction = denoiser.combine(answers, input.shape(), moment);
        let (before, index) = (active.scheduler.state().clone(), active.scheduler.index());
        let sigma = active.scheduler.sigmas()[index];
        let scheduler = &mut active.scheduler;
        let mut latents = match scheduler.step(&prediction, &active.work.latents, &mut noise) {
            Ok(latents) => latents,
            Err(error) => {
                scheduler.restore(before)?;
                return Err(error.into());
            }
        };
        if let Some(inpainting) = &active.work.inpainting {
            inpainting.blend_known(&mut latents, scheduler, channels);
        }
        if latents.data().iter().any(|v| !v.is_finite()) {
            scheduler.restore(before)?;
            let message = format!(
                "the numbers left the range of {} at step {}",
                model.precision,
                job.progress[stage].evaluations_before + index + 1
            );
            return Err(Error::machine(message).with_hint("try `precision f32`"));
        }
        active.work.latents = latents;
        let is_over = scheduler.timestep().is_none();
        self.noise = noise;
        let predicts = job.stages[stage].prediction_type();
        let clean = clean_latents(&input, &prediction, sigma, predicts);
        self.preview = Some(Preview::new(&self.projector, clean));
        if is_over {
            self.end_stage(stage);
        }
        Ok(())
    }
}
