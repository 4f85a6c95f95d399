//! `sdxl generate`: check everything, load, run, write.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::ArgMatches;
use sdxl::image::Format;
use sdxl::memory;
use sdxl::pipeline;
use sdxl::profile;
use sdxl::recipe::{self, Recipe};
use sdxl::request::aspect;
use sdxl::{Event, Inputs, Request, latents_file};

use crate::args::{self, GenerateArgs};
use crate::flags;
use crate::model::Chosen;
use crate::output::{self, Destination};
use crate::pictures::{Hashing, Pictures};
use crate::plan;
use crate::profile_report;
use crate::progress::Progress;
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
    let encoding = output::encoding(own.output.as_deref(), own.format, own.quality)?;
    #[cfg(feature = "c2pa")]
    let sign = own
        .c2pa
        .signer()?
        .map(|signer| -> Box<crate::pictures::Sign> {
            Box::new(move |format, file, composite| signer.sign(format, file, composite))
        });
    #[cfg(not(feature = "c2pa"))]
    let sign = None;
    let refiner = own.start.refiner.as_deref();
    let chosen = Chosen::new(args, refiner, replayed.as_ref(), &[&request], !dry)?;
    let (checkpoint, precision) = (&chosen.checkpoint, chosen.precision);
    let mut inputs = Inputs::read(&request)?;
    inputs.latents = own.latents.as_deref().map(latents_file::read).transpose()?;
    let latents_sha256 = own
        .latents
        .as_deref()
        .map(|path| recipe::hash_file(path).map(|(_, hash)| hash))
        .transpose()?;
    if let (None, Some(was)) = (
        &latents_sha256,
        replayed.as_ref().and_then(|r| r.latents_sha256.as_ref()),
    ) {
        return Err(usage(format!(
            "this picture was started from a latents file (SHA-256 {was}); give it with --latents"
        )));
    }
    if let Some(was) = &replayed {
        refuse_changed_inputs(was, &inputs, &|field| args::given(matches, field))?;
    }
    let refiner = chosen.refiner();
    let request = pipeline::resolve(checkpoint, refiner, &request, &inputs)?;
    let scheduler = pipeline::build_scheduler(checkpoint, &request)?;
    let evaluations = pipeline::evaluations(checkpoint, refiner, &request, &inputs)?;
    // A replay writes the one picture that the recipe is of, unless other pictures
    // were asked for beside it.
    let only = replayed
        .as_ref()
        .filter(|r| r.request.prompt == request.prompt)
        .filter(|r| r.request.num_images == request.num_images)
        .map(|r| r.image_index)
        .filter(|i| *i < request.images());
    let written = if only.is_some() { 1 } else { request.images() };
    check_sides(encoding.format(), &request, &inputs)?;
    let format = encoding.format();
    let (output, overwrite) = (own.output.as_deref(), args.overwrite);
    let destination = Destination::new(output, format, written, overwrite, !dry)?;
    if let Some(path) = &own.output_latents {
        output::check_file(path, args.overwrite)?;
        if own.output.as_ref() == Some(path) {
            return Err(usage(format!(
                "{}: given for the picture and for the latents; they need two files",
                path.display()
            )));
        }
    }

    if let Some(path) = &own.svg {
        output::check_file(path, args.overwrite)?;
    }

    let plan = plan::plan(&chosen, &request, &inputs, own.memory)?;
    if dry {
        plan::show(&plan, &request, own.memory.is_some(), args.json);
        return Ok(());
    }

    let mut progress = Progress::new(evaluations);
    if let Some(notice) = chosen.notice {
        progress.say(notice);
    }
    if args.precision.is_none() && replayed.is_none() {
        progress.say(&format!(
            "precision: {precision}, the default on this processor (--precision f32 gives the \
             reference's numbers)"
        ));
    }
    let mut warnings: Vec<String> = Vec::new();
    let native = checkpoint.unet.native_pixels();
    let known = (precision.warning().into_iter())
        .chain(checkpoint.files().adapters().warnings().iter().cloned())
        .chain(aspect::warning(request.picture_size(), native))
        .chain(plan.warnings());
    for warning in known {
        progress.say(&flags::of_warning(&warning));
        warnings.push(warning.to_string());
    }
    if let Some(was) = &replayed {
        for text in differences(was, latents_sha256.as_deref(), &inputs) {
            progress.say(&format!("warning: {text}"));
            warnings.push(text);
        }
    }
    let interrupted = interrupt_flag()?;
    let mut pictures = Pictures {
        destination: &destination,
        encoding: &encoding,
        sign,
        recipe: Recipe {
            latents_sha256,
            inputs: inputs.files.clone(),
            scheduler_class: scheduler.info().class.to_string(),
            ..chosen.recipe(request.clone())
        },
        hashing: Some(Hashing::new(checkpoint, refiner)),
        replayed: replayed.as_ref(),
        only,
        count: written,
        files: Vec::new(),
        unsigned: None,
    };
    if let (true, Some(side)) = (plan.short, plan.tile_size(&request)) {
        pictures.recipe.request.vae_tile_size = Some(side);
    }
    progress.begin("loading");
    let pipeline = chosen.open(plan.residence)?;
    let mut failed = None;
    let mut observe = |event: Event<'_>| {
        if let Event::Warning(warning) = event {
            warnings.push(warning.to_string());
        }
        if let (Event::Step { .. }, Some(hashing)) = (&event, &mut pictures.hashing) {
            hashing.begin();
        }
        progress.show(event);
        if let Event::Picture {
            index,
            picture,
            vae_tiled,
            ..
        } = event
        {
            let mut warn = |text: String| {
                progress.say(&format!("warning: {text}"));
                warnings.push(text);
            };
            if let Err(error) = pictures.write(index - 1, picture, vae_tiled, &mut warn) {
                failed = Some(error);
                return ControlFlow::Break(());
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
            if !pictures.files.is_empty() && !args.json {
                err!("stopped; these pictures were finished:");
                show_paths(&pictures.files);
            }
            return Err(failed.unwrap_or(error.into()));
        }
    };
    let seconds = progress.finish();
    if let Some(path) = &own.output_latents {
        let bytes = latents_file::to_bytes(&made.latents)?;
        output::write_file(path, &bytes, args.overwrite)?;
    }
    if let (Some(profile), Some(path)) = (&profile, &own.svg) {
        let svg = profile_report::svg(profile);
        output::write_file(path, svg.as_bytes(), args.overwrite)?;
    }
    if let (Some(profile), true) = (&profile, own.profile) {
        err!("{}", profile_report::tables(profile).trim_end());
    }
    if args.json {
        let object = serde_json::json!({
            "images": pictures.files,
            "latents": own.output_latents.as_ref().map(|p| p.to_string_lossy()),
            "seconds": seconds,
            "planned_peak_bytes": plan.peak(),
            "peak_rss_bytes": memory::peak(),
            "precision": precision,
            "isa": pictures.recipe.isa,
            "warnings": warnings,
            "request": pictures.recipe.request,
        });
        out!("{object}");
    } else {
        // Only now, when every file is written: a reader that has gone ends the program.
        show_paths(&pictures.files);
    }
    if let Some((why, paths)) = pictures.unsigned {
        bail!(
            "{why}; what could not be signed is kept without Content Credentials: {}",
            paths.join(", ")
        );
    }
    if interrupted.load(Ordering::SeqCst) {
        return Err(sdxl::Error::Cancelled.into());
    }
    Ok(())
}

fn show_paths(files: &[serde_json::Value]) {
    for file in files {
        out!("{}", file["path"].as_str().unwrap_or_default());
    }
}

/// Refuses, before the work, pictures that are larger than their format allows.
fn check_sides(format: Format, request: &Request, inputs: &Inputs) -> anyhow::Result<()> {
    let made = request.upscaled_size();
    // What is made may be laid into the input picture.
    let input = (inputs.init_image.as_ref()).map_or(0, |p| p.width.max(p.height));
    let side = made.width.max(made.height).max(input);
    if side > format.max_side() {
        return Err(usage(format!(
            "a side of {side} pixels: a {format} has up to {}; write a PNG",
            format.max_side()
        )));
    }
    Ok(())
}

/// What here is unlike the machine or the files that a recipe was made with.
fn differences(was: &Recipe, latents_sha256: Option<&str>, inputs: &Inputs) -> Vec<String> {
    let mut found = Vec::new();
    let isa = sdxl_kernels::Isa::current().to_string();
    let version = env!("CARGO_PKG_VERSION");
    if was.isa != isa {
        found.push(format!(
            "the recipe was made with {} instructions and this is {isa}: the last bits may differ",
            was.isa
        ));
    }
    if was.version != version {
        found.push(format!(
            "the recipe was made by version {} and this is {version}: the picture may differ",
            was.version
        ));
    }
    if let Some(now) = latents_sha256
        && was.latents_sha256.as_deref() != Some(now)
    {
        found.push("these are not the latents that the recipe started from".to_string());
    }
    for now in &inputs.files {
        let before = was.inputs.iter().find(|f| f.field == now.field);
        if before.is_none_or(|f| f.sha256 != now.sha256) {
            let field = &now.field;
            found.push(format!(
                "this is not the {field} that the recipe was made with"
            ));
        }
    }
    found
}

/// Refuses a recipe's picture whose file has changed since, unless another one was `named`.
fn refuse_changed_inputs(
    was: &Recipe,
    inputs: &Inputs,
    named: &dyn Fn(&str) -> bool,
) -> anyhow::Result<()> {
    for before in &was.inputs {
        let now = inputs.files.iter().find(|now| now.field == before.field);
        let flag = before.field.replace('_', "-");
        match now {
            Some(now) if now.sha256 == before.sha256 || named(&before.field) => {}
            Some(now) => {
                return Err(usage(format!(
                    "{}: this is not the file that the recipe was made with (its SHA-256 was {}); \
                     give that one, or another on purpose, with --{flag}",
                    now.path.display(),
                    before.sha256
                )));
            }
            // Its path is in the recipe's request too, unless somebody wrote the recipe by hand.
            None => {
                return Err(usage(format!(
                    "this recipe was made with a {} and does not name it; give it with --{flag}",
                    before.field
                )));
            }
        }
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
