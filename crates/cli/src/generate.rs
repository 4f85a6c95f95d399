//! `sdxl generate`: check everything, load, run, write.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::ArgMatches;
use sdxl::memory;
use sdxl::pipeline;
use sdxl::profile;
use sdxl::recipe::Recipe;
use sdxl::request::aspect;
use sdxl::{Event, Inputs, Request, latents_file};
use sdxl_kit::{Destination, PictureWriter, Written, destination, files, replay};

use crate::args::{self, GenerateArgs};
use crate::plan;
use crate::profile_report;
use crate::progress::Progress;
use crate::session;
use crate::usage;

/// Runs the command; if `dry`, up to the point where weights would be read.
pub fn run(own: &GenerateArgs, matches: &ArgMatches, dry: bool) -> anyhow::Result<()> {
    let args = &own.picture;
    // Everything that can be refused is refused before any weights are read.
    let replayed = args.recipe.as_deref().map(Recipe::read).transpose()?;
    let base = replayed
        .as_ref()
        .map_or_else(Request::default, |r| r.request.clone());
    let request = own.request(base, matches)?;
    request.check()?;
    let encoding = destination::encoding(own.output.as_deref(), own.format, own.quality)?;
    #[cfg(feature = "c2pa")]
    let signer = own.c2pa.signer()?;
    let refiner = own.start.refiner.as_deref();
    let session = session::open(args, refiner, replayed.as_ref(), &[&request], !dry)?;
    let (checkpoint, precision) = (session.checkpoint(), session.precision());
    let mut inputs = Inputs::read(&request)?;
    let mut latents_sha256 = None;
    if let Some(path) = &own.latents {
        let (latents, sha256) = replay::read_latents(path)?;
        (inputs.latents, latents_sha256) = (Some(latents), Some(sha256));
    }
    if let Some(was) = &replayed {
        let renamed = |field: &str| args::given(matches, field);
        replay::check_inputs(was, latents_sha256.as_deref(), &inputs.files, &renamed)?;
    }
    let refiner = session.refiner();
    let request = pipeline::resolve(checkpoint, refiner, &request, &inputs)?;
    let scheduler = pipeline::build_scheduler(checkpoint, &request)?;
    let evaluations = pipeline::evaluations(checkpoint, refiner, &request, &inputs)?;
    // A replay writes the one picture that the recipe is of, unless other pictures
    // were asked for beside it.
    let only = (replayed.as_ref()).and_then(|was| replay::only_picture(was, &request));
    let images = if only.is_some() { 1 } else { request.images() };
    let format = encoding.format();
    destination::check_sides(format, &request, &inputs)?;
    let (output, overwrite) = (own.output.as_deref(), args.overwrite);
    let destination = match dry {
        true => {
            Destination::check_only(output, format, images, overwrite)?;
            None
        }
        false => Some(Destination::new(output, format, images, overwrite)?),
    };
    if let Some(path) = &own.output_latents {
        files::check_file("output_latents", path, args.overwrite)?;
        if own.output.as_ref() == Some(path) {
            return Err(usage(format!(
                "{}: given for the picture and for the latents; they need two files",
                path.display()
            )));
        }
    }

    if let Some(path) = &own.svg {
        files::check_file("svg", path, args.overwrite)?;
    }

    let plan = plan::plan(&session, &request, &inputs, own.memory)?;
    let Some(destination) = destination else {
        plan::show(&plan, &request, own.memory.is_some(), args.json);
        return Ok(());
    };

    let mut progress = Progress::new(evaluations);
    if let Some(notice) = session::notice(&session) {
        progress.say(notice);
    }
    if session.precision_is_default() {
        progress.say(&format!(
            "precision: {precision}, the default on this processor (--precision f32 gives the \
             reference's numbers)"
        ));
    }
    if let Some(remark) = precision.remark() {
        progress.say(remark);
    }
    let mut warnings: Vec<String> = Vec::new();
    for text in checkpoint.files().adapters().warnings() {
        progress.say(&format!("warning: {text}"));
        warnings.push(text.clone());
    }
    if let Some(was) = &replayed {
        for text in replay::differences(was, latents_sha256.as_deref(), &inputs.files) {
            progress.say(&format!("warning: {text}"));
            warnings.push(text);
        }
    }
    let native = checkpoint.unet.native_pixels();
    if let Some(text) = aspect::hint(request.picture_size(), native) {
        progress.say(&format!("hint: {text}"));
        warnings.push(text);
    }
    for text in plan.remarks() {
        progress.say(&text);
    }
    let interrupted = interrupt_flag()?;
    let mut recipe = Recipe {
        latents_sha256,
        ..session.recipe(request.clone(), scheduler.info().class, &inputs)
    };
    if let (true, Some(side)) = (plan.short, plan.tile_size(&request)) {
        recipe.request.vae_tile_size = Some(side);
    }
    let mut pictures = PictureWriter::new(destination, encoding, recipe).with_hashes_of(&session);
    if let Some(was) = &replayed {
        pictures = pictures.replaying(was);
    }
    #[cfg(feature = "c2pa")]
    if let Some(signer) = signer {
        pictures = pictures.signed_by(Box::new(move |format, file, composite| {
            signer.sign(format, file, composite)
        }));
    }
    progress.begin("loading");
    let pipeline = session.load_as(plan.residence)?;
    let mut failed = None;
    let mut observe = |event: Event<'_>| {
        if let Event::Warning(text) = event {
            warnings.push(text.to_string());
        }
        if let Event::Step { .. } = event {
            pictures.begin_hashing();
        }
        progress.show(event);
        if let Event::Picture {
            index,
            picture,
            vae_tiled,
            ..
        } = event
        {
            let mut warn = |text: &str| {
                progress.say(&format!("warning: {text}"));
                warnings.push(text.to_string());
            };
            match pictures.write(index - 1, picture, vae_tiled) {
                Ok(Some(written)) => written.warnings.iter().for_each(|text| warn(text)),
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
        if interrupted.load(Ordering::SeqCst) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let mut generate = || pipeline.generate_planned(&plan, &request, &inputs, &mut observe);
    let (result, profile) = if own.profile || own.svg.is_some() {
        let (result, profile) = profile::record(generate);
        (result, Some(profile))
    } else {
        (generate(), None)
    };
    let made = match result {
        Ok(made) => made,
        Err(error) => {
            progress.finish();
            if !pictures.written().is_empty() && !args.json {
                err!("stopped; these pictures were finished:");
                show_paths(pictures.written());
            }
            return Err(failed.map_or_else(|| error.into(), Into::into));
        }
    };
    let seconds = progress.finish();
    if let Some(path) = &own.output_latents {
        let bytes = latents_file::to_bytes(&made.latents)?;
        files::write_file(path, &bytes, args.overwrite)?;
    }
    if let (Some(profile), Some(path)) = (&profile, &own.svg) {
        let svg = profile_report::svg(profile);
        files::write_file(path, svg.as_bytes(), args.overwrite)?;
    }
    if let (Some(profile), true) = (&profile, own.profile) {
        err!("{}", profile_report::tables(profile).trim_end());
    }
    if args.json {
        let object = serde_json::json!({
            "images": pictures.written(),
            "latents": own.output_latents.as_ref().map(|p| p.to_string_lossy()),
            "seconds": seconds,
            "planned_peak_bytes": plan.peak(),
            "peak_rss_bytes": memory::peak(),
            "precision": precision,
            "isa": pictures.recipe().isa,
            "warnings": warnings,
            "request": pictures.recipe().request,
        });
        out!("{object}");
    } else {
        // Only now, when every file is written: a reader that has gone ends the program.
        show_paths(pictures.written());
    }
    report_shortcomings(pictures.written())?;
    if interrupted.load(Ordering::SeqCst) {
        return Err(sdxl::Error::Cancelled.into());
    }
    Ok(())
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

/// A flag that Ctrl-C raises; a second Ctrl-C ends the program at once.
pub fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        err!("\nstopping after this step; press Ctrl-C again to stop at once");
    })
    .context("Ctrl-C cannot be watched")?;
    Ok(flag)
}
