//! `sdxl generate`: prepare a run, make its pictures, write them.

use std::time::Instant;

use anyhow::bail;
use sdxl::memory;
use sdxl::profile::{self, Profile};
use sdxl::recipe::Recipe;
use sdxl::{Event, Run, Warning, WarningKind, latents_file};
use sdxl_kit::{
    Destination, PictureWriter, Session, StateFile, Written, destination, files, replay,
};

use crate::args::GenerateArgs;
use crate::flags;
use crate::interrupt;
use crate::plan;
use crate::profile_report;
use crate::progress::Progress;
use crate::session;
use crate::usage;

/// Runs the command; if `dry`, up to the point where weights would be read.
pub(crate) fn run(own: &GenerateArgs, dry: bool) -> anyhow::Result<()> {
    let (args, own_files) = (&own.picture.output, &own.files);
    // Everything that can be refused is refused before any weights are read.
    let replayed = args.read_recipe()?;
    let base = replayed.as_ref().map(|was| was.request.clone());
    let request = own.request(base.unwrap_or_default())?;
    request.check()?;
    let (output, overwrite) = (own_files.output.as_deref(), args.overwrites());
    let encoding = destination::encoding(output, own_files.format, own_files.quality)?;
    #[cfg(feature = "c2pa")]
    let signer = own_files.c2pa.signer()?;
    let refiner = own.start.refiner.as_deref();
    let session = session::open(
        &own.picture.model,
        refiner,
        replayed.as_ref(),
        &[&request],
        !dry,
    )?;
    let inputs = replay::read_inputs(&request, own.latents.as_deref())?;
    if let Some(was) = &replayed {
        replay::check_inputs(was, &inputs, &|field| own.names_file_of(field))?;
    }
    check_files(own)?;
    let state = own_files.state.as_deref().filter(|_| !dry);
    let state = state.map(StateFile::new).transpose()?;
    let resumes = state.as_ref().is_some_and(StateFile::exists);
    let mut run = plan::prepare(own, &session, &request, inputs, state.as_ref())?;
    destination::check_picture_sides(encoding.format(), run.request(), run.inputs())?;
    let (images, done) = images_written(&run, replayed.as_ref());
    if dry {
        Destination::check_only(output, encoding.format(), images, overwrite)?;
        plan::show(&run, own.memory.is_some(), args.json);
        return Ok(());
    }
    let recipe = session.recipe_of(&run);
    let format = encoding.format();
    let place = match resumes {
        true => Destination::resuming(done, output, format, images, overwrite)?,
        false => Destination::new(output, format, images, overwrite)?,
    };
    let pictures = PictureWriter::new(place, encoding, recipe).with_hashes_of(&session);
    let mut pictures = pictures.resuming(done);
    if let Some(was) = &replayed {
        pictures = pictures.replaying(was);
    }
    #[cfg(feature = "c2pa")]
    if let Some(signer) = signer {
        pictures = pictures.signed_by(Box::new(move |format, file, composite| {
            signer.sign(format, file, composite)
        }));
    }
    run.set_cancel_token(interrupt::token()?);
    let mut making = Making {
        progress: Progress::new(run.evaluations()),
        pictures,
        warnings: Vec::new(),
        state: state.map(|file| (file, own_files.state_every.unwrap_or(StateFile::EVERY))),
    };
    making.begin(&session, &run, replayed.as_ref());
    let began = Instant::now();
    let (result, profile) = match own_files.profile || own_files.svg.is_some() {
        true => {
            let (result, profile) = profile::record(|| making.all(&mut run));
            (result, Some(profile))
        }
        false => (making.all(&mut run), None),
    };
    making.progress.finish();
    if let Err(error) = result {
        making.tell_of_finished(args.json);
        return Err(error.into());
    }
    making.report(own, run, began.elapsed().as_secs_f64(), profile.as_ref())
}

/// Refuses the files beside the pictures that cannot be written.
fn check_files(own: &GenerateArgs) -> anyhow::Result<()> {
    let (own, overwrite) = (&own.files, own.picture.output.overwrites());
    if let Some(path) = &own.output_latents {
        files::check_writable("output_latents", path, overwrite)?;
        if own.output.as_ref() == Some(path) {
            return Err(usage(format!(
                "{}: given for the picture and for the latents; they need two files",
                path.display()
            )));
        }
    }
    if let Some(path) = &own.svg {
        files::check_writable("svg", path, overwrite)?;
    }
    Ok(())
}

/// Number of pictures that are written, and of those that were before the run was resumed: a replay
/// writes the one that the recipe is of, unless other pictures were asked for beside it.
fn images_written(run: &Run, replayed: Option<&Recipe>) -> (usize, usize) {
    let done = run.pictures_given_out();
    let only = replayed.and_then(|was| replay::only_picture(was, run.request()));
    match only {
        Some(one) => (1, usize::from(one < done)),
        None => (run.request().images(), done),
    }
}

/// A run whose pictures are being made and written.
struct Making {
    progress: Progress,
    pictures: PictureWriter,
    warnings: Vec<Warning>,
    /// The file of the run's state, and the evaluations after which it is written.
    state: Option<(StateFile, usize)>,
}

impl Making {
    /// Says everything there is to say before the work begins.
    fn begin(&mut self, session: &Session, run: &Run, replayed: Option<&Recipe>) {
        if let Some(notice) = session::notice(session) {
            self.progress.say(notice);
        }
        if session.precision_is_default() {
            self.progress.say(&format!(
                "precision: {}, the default on this processor (--precision f32 gives the \
                 reference's numbers)",
                session.precision()
            ));
        }
        run.warnings().iter().for_each(|warning| self.warn(warning));
        let of_replay = replayed.map(|was| replay::differences(was, run.inputs()));
        of_replay
            .iter()
            .flatten()
            .for_each(|warning| self.warn(warning));
        let (done, pictures) = (run.evaluations_done(), run.pictures_given_out());
        if done > 0 {
            self.progress.say(&format!(
                "going on after {done} of {} evaluations, {pictures} of {} pictures done",
                run.evaluations(),
                run.request().images()
            ));
        }
    }

    fn warn(&mut self, warning: &Warning) {
        self.progress.say(&flags::of_warning(warning));
        self.warnings.push(warning.clone());
    }

    /// Makes all pictures and writes each as it comes.
    fn all(&mut self, run: &mut Run) -> sdxl_kit::Result<()> {
        self.save(run)?;
        let mut evaluations = 0;
        while let Some(event) = run.step()? {
            self.progress.show(event);
            let save = match event {
                Event::Step(_) => {
                    self.pictures.begin_hashing();
                    evaluations += 1;
                    (self.state.as_ref()).is_some_and(|(_, every)| evaluations % every == 0)
                }
                Event::Picture(made) => {
                    let written =
                        self.pictures
                            .write(made.index - 1, made.picture, made.vae_tiled)?;
                    let warnings = written.map_or_else(Vec::new, |w| w.warnings.clone());
                    warnings.iter().for_each(|warning| self.warn(warning));
                    true
                }
                _ => false,
            };
            if save && let Err(error) = self.save(run) {
                // The run is worth more than its state.
                let message = format!("the state is not kept any more: {error}");
                self.warn(&Warning::new(
                    WarningKind::StateNotWritten,
                    "state",
                    message,
                ));
                self.state = None;
            }
        }
        Ok(())
    }

    fn save(&self, run: &Run) -> sdxl_kit::Result<()> {
        match &self.state {
            Some((file, _)) => file.write(run),
            None => Ok(()),
        }
    }

    /// Says which pictures were finished before a run ended early.
    fn tell_of_finished(&self, json: bool) {
        if !self.pictures.written().is_empty() && !json {
            err!("stopped; these pictures were finished:");
            show_paths(self.pictures.written());
        }
    }

    /// Writes what belongs beside the pictures, and says what was made.
    fn report(
        self,
        own: &GenerateArgs,
        run: Run,
        seconds: f64,
        profile: Option<&Profile>,
    ) -> anyhow::Result<()> {
        let (pictures, output) = (&self.pictures, &own.picture.output);
        let (own, overwrite) = (&own.files, output.overwrites());
        let planned_peak = run.plan().peak();
        if let Some(path) = &own.output_latents {
            let made = run.output(Vec::new());
            files::write_file(path, &latents_file::to_bytes(&made.latents)?, overwrite)?;
        }
        if let (Some(profile), Some(path)) = (profile, &own.svg) {
            let svg = profile_report::svg(profile);
            files::write_file(path, svg.as_bytes(), overwrite)?;
        }
        if let Some((file, _)) = &self.state {
            file.remove()?;
        }
        if let (Some(profile), true) = (profile, own.profile) {
            err!("{}", profile_report::tables(profile).trim_end());
        }
        if output.json {
            let warnings: Vec<String> = self.warnings.iter().map(Warning::to_string).collect();
            let object = serde_json::json!({
                "images": pictures.written(),
                "latents": own.output_latents.as_ref().map(|p| p.to_string_lossy()),
                "seconds": seconds,
                "planned_peak_bytes": planned_peak,
                "peak_rss_bytes": memory::peak(),
                "precision": pictures.recipe().precision,
                "isa": pictures.recipe().isa,
                "warnings": warnings,
                "request": pictures.recipe().request,
            });
            out!("{object}");
        } else {
            // Only now, when every file is written: a reader that has gone ends the program.
            show_paths(pictures.written());
        }
        report_shortcomings(pictures.written())
    }
}

fn show_paths(written: &[Written]) {
    for picture in written {
        out!("{}", picture.path.display());
    }
}

/// Fails where pictures were made and not as they were asked for.
fn report_shortcomings(written: &[Written]) -> anyhow::Result<()> {
    let paths = |which: &dyn Fn(&Written) -> bool| -> Vec<String> {
        let found = written.iter().filter(|picture| which(picture));
        found
            .map(|picture| picture.path.display().to_string())
            .collect()
    };
    if let Some(why) = written.iter().find_map(|picture| picture.unsigned.as_ref()) {
        bail!(
            "{why}; what could not be signed is kept without Content Credentials: {}",
            paths(&|picture| picture.unsigned.is_some()).join(", ")
        );
    }
    let temporary = paths(&|picture| picture.is_temporary);
    if !temporary.is_empty() {
        bail!(
            "what could not be written where it was to be is kept in the folder for temporary \
             files, from where it should be moved: {}",
            temporary.join(", ")
        );
    }
    Ok(())
}
