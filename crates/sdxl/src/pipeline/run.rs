//! A run as a value: decided when it is prepared, made step by step, saved and resumed.

mod evaluation;
mod fingerprint;
mod state;
mod together;

use fingerprint::MadeBy;
pub use state::RunState;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use super::conditioning::PromptPair;
use super::denoiser::Denoiser;
use super::event::{Event, Output, PictureEvent, StepEvent};
use super::job::Job;
use super::plan::Plan;
use super::preview::{Preview, Projector};
use super::stages::StartFrom;
use super::start::{EncodedInput, Starting, WorkingLatents, noise_source};
use super::vae::{VaeBatching, decode};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::image::{Picture, Pixels};
use crate::inputs::Inputs;
use crate::latents::Latents;
use crate::model::config::VAE_FACTOR;
use crate::noise::{BatchSlice, NoiseSource};
use crate::request::{Request, UpscaleMethod};
use crate::scheduler::Scheduler;
use crate::tensor::release_buffers;
use crate::warning::Warning;

/// A run of a request: everything was decided and nothing refused remains.
///
/// [`Run::start`] makes the pictures; [`Run::step`] does the next piece of the work, so that a program can
/// interleave runs. Between steps it can be saved ([`Run::save`]). It holds the networks that it
/// needs by itself and borrows nothing.
///
/// Many pictures are denoised in groups ([`Plan::group`]): each group is decoded and given out before
/// the next begins, with the numbers that it would have in one batch.
pub struct Run {
    job: Arc<Job>,
    cancel: Cancel,
    projector: Arc<Projector>,
    /// The noise at the start of the run, from which every group begins.
    first_noise: NoiseSource,
    noise: NoiseSource,
    encoded_input: EncodedInput,
    /// The prompts of each stage, once they are encoded.
    conditioning: Vec<Option<Arc<[PromptPair]>>>,
    group: usize,
    phase: Phase,
    /// The stage that begins once the prompts are encoded.
    next_stage: usize,
    /// The latents between stages, and the final ones of the group while it is decoded.
    work: Option<WorkingLatents>,
    stage: Option<ActiveStage>,
    preview: Option<Preview>,
    /// Pictures that are decoded and not given out yet.
    decoded: VecDeque<Picture>,
    /// The picture that was given out last.
    last: Option<Picture>,
    /// Pictures given out.
    given_out: usize,
    /// The final latents of the groups that are finished.
    finished: Vec<Latents>,
    /// The weights and the machine by which a saved state is recognised, once they were asked for.
    made_by: OnceLock<MadeBy>,
}

/// The next piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was done.
    Begin,
    /// The prompts are to be encoded.
    Encode,
    /// A stage is to be started; its network's weights may be missing, which may have been said.
    Start { stage: usize, said: bool },
    /// The stage under way is to be gone on with.
    Denoise { stage: usize },
    /// The picture of the group from which on to decode; whether that was said.
    Decode { first: usize, said: bool },
    /// The pictures were decoded that are given out one by one.
    GiveOut,
    /// Nothing is left.
    Finished,
}

/// A stage under way.
struct ActiveStage {
    scheduler: Scheduler,
    work: WorkingLatents,
    /// `None` until the UNet is there.
    denoiser: Option<Denoiser>,
}

/// A piece of work that was done: an [`Event`] without what it shows of the run.
enum Done {
    /// Nothing: the evaluation of a stage is next, which is to be shared.
    Ready(usize),
    Encoding,
    Loading,
    Step(f64),
    Decoding,
    Picture,
}

impl Run {
    pub(super) fn new(job: Job, projector: Arc<Projector>) -> Result<Run> {
        let noise = noise_source(&job.request)?;
        let mut run = Run {
            cancel: Cancel::new(),
            projector,
            noise: noise.clone(),
            first_noise: noise,
            encoded_input: EncodedInput::default(),
            conditioning: vec![None; job.stages.len()],
            group: 0,
            phase: Phase::Begin,
            next_stage: 0,
            work: None,
            stage: None,
            preview: None,
            decoded: VecDeque::new(),
            last: None,
            given_out: 0,
            finished: Vec::new(),
            made_by: OnceLock::new(),
            job: Arc::new(job),
        };
        run.noise = run.noise_of_group();
        Ok(run)
    }

    /// The request with nothing left open: size, seed, strength.
    pub fn request(&self) -> &Request {
        &self.job.request
    }

    /// The pictures, latents and encoded prompts that it starts from.
    pub fn inputs(&self) -> &Inputs {
        &self.job.inputs
    }

    /// The arrangement of the run in memory.
    pub fn plan(&self) -> &Plan {
        &self.job.plan
    }

    /// Everything the user should know, such as a prompt that is cut or a size far from the
    /// training's. All of it is known before the run starts.
    pub fn warnings(&self) -> &[Warning] {
        &self.job.warnings
    }

    /// Evaluations of the networks in the whole run.
    pub fn evaluations(&self) -> usize {
        self.job.evaluations_of_group() * self.job.groups()
    }

    /// The class of the scheduler.
    pub fn scheduler(&self) -> &'static str {
        self.job.stages[0].info.class
    }

    /// The side in pixels of the tiles by which the VAE decodes, where it does.
    pub fn vae_tile_size(&self) -> Option<u32> {
        self.job.plan.tile_size(&self.job.request)
    }

    /// The pictures that were given out.
    pub fn pictures_given_out(&self) -> usize {
        self.given_out
    }

    /// The token that stops this run, from any thread, within one block of a network. A stopped run
    /// answers [`Error::Cancelled`] and stays as it was after the last step, so that it can be
    /// saved; a token that was used stays used.
    pub fn cancel_token(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Uses another token, which may be that of several runs.
    pub fn set_cancel_token(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    /// Runs to the end. `observe` sees what happens and can stop the run.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Machine`] for numbers that leave the range of the precision; weights
    /// that cannot be read.
    pub fn start(
        mut self,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Output> {
        let mut images = Vec::new();
        while let Some(event) = self.step()? {
            if let Event::Picture(made) = &event {
                images.push(made.picture.clone());
            }
            if observe(event).is_break() {
                // Pictures that are decoded already are given out all the same.
                while !self.decoded.is_empty() {
                    self.step()?.map(&mut *observe);
                }
                return Err(Error::Cancelled);
            }
        }
        Ok(self.output(images))
    }

    /// The result of a finished run, with the pictures that were given out by its steps.
    pub fn output(self, images: Vec<Picture>) -> Output {
        Output {
            images,
            vae_tiled: self.vae_tile_size().is_some(),
            latents: match self.finished.is_empty() {
                true => Latents::zeros([0, 0, 0, 0]),
                false => Latents::concat(&self.finished),
            },
            request: Request::clone(&self.job.request),
            scheduler: self.scheduler(),
            plan: self.job.plan.clone(),
            warnings: self.job.warnings.clone(),
        }
    }

    /// Does the next piece of the work and says what happened: one evaluation, or what comes before
    /// and after them. `None` at the end. After an error the run is as it was before the step.
    ///
    /// # Errors
    /// The errors of [`Self::start`].
    pub fn step(&mut self) -> Result<Option<Event<'_>>> {
        let cancel = self.cancel.clone();
        let done = cancel.run(|| self.advance(false))?;
        Ok(done.map(|done| self.event(done)))
    }

    fn event(&self, done: Done) -> Event<'_> {
        let total = self.job.request.images();
        match done {
            Done::Ready(_) => unreachable!("an evaluation that was to be shared was"),
            Done::Encoding => Event::Encoding,
            Done::Loading => Event::Loading,
            Done::Step(seconds) => Event::Step(StepEvent {
                index: self.evaluations_done(),
                total: self.evaluations(),
                seconds,
                preview: self
                    .preview
                    .as_ref()
                    .expect("an evaluation leaves a preview"),
            }),
            Done::Decoding => Event::Decoding {
                index: self.given_out + 1,
                total,
            },
            Done::Picture => Event::Picture(PictureEvent {
                index: self.given_out,
                total,
                picture: self.last.as_ref().expect("a picture was given out"),
                vae_tiled: self.vae_tile_size().is_some(),
            }),
        }
    }

    /// Evaluations done so far.
    pub fn evaluations_done(&self) -> usize {
        let of_group = self.job.evaluations_of_group();
        let stage = match self.phase {
            Phase::Begin | Phase::Encode => Some(self.next_stage),
            Phase::Start { stage, .. } | Phase::Denoise { stage } => Some(stage),
            Phase::Decode { .. } | Phase::GiveOut | Phase::Finished => None,
        };
        let in_group = stage.map_or(of_group, |stage| {
            let active = self.stage.as_ref().map_or(0, |s| s.scheduler.index());
            self.job.progress[stage].evaluations_before + active
        });
        self.group * of_group + in_group
    }

    /// Does work until something is to be said or, where evaluations are `shared`, one is next.
    fn advance(&mut self, shared: bool) -> Result<Option<Done>> {
        loop {
            // What is decoded is given out, whoever wants to stop.
            if !matches!(self.phase, Phase::GiveOut | Phase::Finished) {
                self.cancel.check()?;
            }
            match self.phase {
                Phase::Begin => {
                    self.phase = Phase::Encode;
                    return Ok(Some(Done::Encoding));
                }
                Phase::Encode => {
                    self.encode()?;
                    let (stage, said) = (self.next_stage, false);
                    self.phase = Phase::Start { stage, said };
                }
                Phase::Start { stage, said } => {
                    if self.start_stage(stage, said)? {
                        self.phase = Phase::Denoise { stage };
                    } else {
                        self.phase = Phase::Start { stage, said: true };
                        return Ok(Some(Done::Loading));
                    }
                }
                Phase::Denoise { stage } if shared => return Ok(Some(Done::Ready(stage))),
                Phase::Denoise { stage } => return Ok(Some(Done::Step(self.evaluate(stage)?))),
                Phase::Decode { first, said: false } => {
                    self.phase = Phase::Decode { first, said: true };
                    return Ok(Some(Done::Decoding));
                }
                Phase::Decode { first, .. } => {
                    self.decode(first)?;
                    self.phase = Phase::GiveOut;
                }
                Phase::GiveOut => {
                    if let Some(picture) = self.decoded.pop_front() {
                        self.last = Some(picture);
                        self.given_out += 1;
                        return Ok(Some(Done::Picture));
                    }
                    self.phase = self.after_pictures();
                }
                Phase::Finished => return Ok(None),
            }
        }
    }

    /// The images that are worked on.
    fn part(&self) -> BatchSlice {
        self.job.part(self.group)
    }

    fn noise_of_group(&self) -> NoiseSource {
        self.first_noise.clone().for_images(self.part())
    }

    /// Whether networks stay loaded to the end.
    fn keeps_networks(&self) -> bool {
        self.job.plan.offload.keeps_networks()
    }

    /// Encodes the prompts. Where memory is to be spared, those of all stages, and the text encoders
    /// go before the UNet comes.
    fn encode(&mut self) -> Result<()> {
        if self.keeps_networks() {
            self.load_refiner_beside();
            return self.conditioning_of(self.next_stage).map(drop);
        }
        for stage in 0..self.job.stages.len() {
            self.conditioning_of(stage)?;
        }
        self.job
            .models()
            .for_each(|model| model.networks.text.unload());
        release_buffers();
        Ok(())
    }

    /// Loads the refiner in a thread of its own while the base works, where both are to stay.
    fn load_refiner_beside(&self) {
        if let Some(refiner) = self.job.refiner.clone()
            && refiner.networks.unet.is_pinned()
            && !refiner.networks.unet.is_loaded()
        {
            let cancel = self.cancel.clone();
            // Without a thread it is loaded when it is needed; what goes wrong here does so again
            // then, and is told of.
            let _ = std::thread::Builder::new()
                .name("refiner".into())
                .spawn(move || cancel.run(|| refiner.networks.load_all()));
        }
    }

    fn conditioning_of(&mut self, stage: usize) -> Result<Arc<[PromptPair]>> {
        if let Some(known) = &self.conditioning[stage] {
            return Ok(Arc::clone(known));
        }
        let encoded = self.job.encode(stage)?;
        self.conditioning[stage] = Some(Arc::clone(&encoded));
        Ok(encoded)
    }

    /// Makes the latents that a stage starts from, and gets its UNet. `false` where the UNet is to be
    /// loaded and nobody `said` so.
    fn start_stage(&mut self, stage: usize, said: bool) -> Result<bool> {
        let job = Arc::clone(&self.job);
        let (model, spec) = (job.model(stage), &job.stages[stage]);
        if self.stage.is_none() {
            let scheduler = spec.scheduler()?;
            let starting = Starting {
                job: &job,
                stage: spec,
                model,
                scheduler: &scheduler,
                images: self.part().count,
            };
            let mut noise = self.noise.clone();
            let work = match self.work.clone() {
                None => starting.first(&mut self.encoded_input, &mut noise)?,
                Some(work) => starting.next(job.model(stage - 1), work, &mut noise)?,
            };
            self.noise = noise;
            self.work = None;
            self.stage = Some(ActiveStage {
                scheduler,
                work,
                denoiser: None,
            });
            // The VAE may have been of use for the start.
            self.unload(|networks| networks.vae.unload());
        }
        let prompts = self.conditioning_of(stage)?;
        if !said && !model.networks.unet.is_loaded() {
            return Ok(false);
        }
        let unet = model.networks.unet.get()?;
        let denoiser = Denoiser::new(
            (&model.checkpoint, unet),
            Arc::clone(&job.request),
            prompts,
            self.part(),
            spec.size,
            spec.start_from == StartFrom::Noise,
        );
        let active = self.stage.as_mut().expect("the stage was started above");
        active.denoiser = Some(denoiser);
        Ok(true)
    }

    /// Ends a stage whose last evaluation is done.
    fn end_stage(&mut self, stage: usize) {
        let active = self.stage.take().expect("a stage is under way");
        self.work = Some(active.work);
        drop(active.denoiser);
        let job = Arc::clone(&self.job);
        let next = job.stages.get(stage + 1);
        // The UNet goes where another follows, and where the VAE works before it goes on.
        let decodes = |begin| {
            begin == StartFrom::PreviousUpscaled
                && job.request.upscale_method == UpscaleMethod::Lanczos
        };
        let goes_on = next.is_some_and(|next| {
            next.network == job.stages[stage].network && !decodes(next.start_from)
        });
        if !goes_on && !self.keeps_networks() {
            job.model(stage).networks.unet.unload();
        }
        release_buffers();
        self.phase = match next {
            Some(_) => Phase::Start {
                stage: stage + 1,
                said: false,
            },
            None => Phase::Decode {
                first: 0,
                said: false,
            },
        };
    }

    /// Unloads a network of each checkpoint, unless networks stay.
    fn unload(&self, unload: impl Fn(&super::networks::Networks)) {
        if !self.keeps_networks() {
            self.job.models().for_each(|model| unload(&model.networks));
        }
    }

    /// The latents of the group, which are final.
    fn final_latents(&self) -> &Latents {
        let work = self.work.as_ref();
        &work.expect("the last stage left its latents").latents
    }

    /// Decodes pictures of the group from `first` on: so many as go through the VAE together.
    fn decode(&mut self, first: usize) -> Result<()> {
        let (job, part) = (Arc::clone(&self.job), self.part());
        let latents = self.final_latents();
        let [images, height, width, _] = latents.shape();
        let batching = VaeBatching::of(job.plan.tile, job.plan.sliced, [height, width], images);
        let (count, mark) = (batching.group, job.request.watermark);
        let made = decode(job.last_model(), latents, first, count, mark, batching.tile)?;
        for (offset, rgb) in made.into_iter().enumerate() {
            let image = part.first + first + offset;
            let pixels = Pixels::new(VAE_FACTOR * width, VAE_FACTOR * height, 3, rgb);
            self.decoded.push_back(Picture {
                pixels: match &job.canvas {
                    Some(canvas) => canvas.finish(pixels),
                    None => pixels,
                },
                seed: job.seed_of(image),
                prompt_index: image / job.request.num_images,
            });
        }
        Ok(())
    }

    /// The phase after pictures were given out: more of the group, the next group, or the end.
    fn after_pictures(&mut self) -> Phase {
        let part = self.part();
        let first = self.given_out - part.first;
        if first < part.count {
            return Phase::Decode { first, said: false };
        }
        let work = self.work.take().expect("the last stage left its latents");
        self.finished.push(work.latents);
        self.unload(|networks| networks.vae.unload());
        release_buffers();
        if self.group + 1 < self.job.groups() {
            self.group += 1;
            self.noise = self.noise_of_group();
            self.next_stage = 0;
            // A run that was resumed among its pictures has encoded no prompts yet.
            return match self.conditioning.iter().all(Option::is_some) {
                false => Phase::Encode,
                true => Phase::Start {
                    stage: 0,
                    said: false,
                },
            };
        }
        Phase::Finished
    }
}

/// Networks that stayed for this run, or that it stopped amidst of, go with it.
impl Drop for Run {
    fn drop(&mut self) {
        self.stage = None;
        for model in self.job.models() {
            model.networks.text.unload();
            model.networks.unet.unload();
            model.networks.vae.unload();
        }
    }
}
