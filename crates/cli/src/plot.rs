//! `sdxl plot`: pictures that differ in up to three fields of their request, on one labelled
//! sheet.
//!
//! Every picture is kept as a file of its own, named by a hash of its recipe, in a folder beside
//! the sheet: a run that was stopped, or that asks for more, makes only what is not there yet.

mod axes;
mod sheet;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use sdxl::files::hash_file;
use sdxl::image::{Texts, png, xmp};
use sdxl::recipe::{Recipe, RefinerRecipe};
use sdxl::{Cancel, Event, Inputs, Pixels, Request, Warning, image};
use sdxl_kit::{Session, files};
use sha2::{Digest, Sha256};

use crate::args::{PictureArgs, heading};
use crate::flags;
use crate::interrupt;
use crate::output;
use crate::progress::Progress;
use crate::session;
use crate::usage;
use axes::{Axis, AxisArgs};
use sheet::{Grid, Sheet};

/// Most pictures of a sheet; beyond them a typing error is likelier than a wish.
const MAX_CELLS: usize = 4096;
/// Most pixels of a sheet.
const MAX_PIXELS: usize = 1 << 28;

/// `sdxl plot`
#[derive(Args)]
pub(crate) struct PlotArgs {
    /// The axes: the settings that differ over the sheet.
    #[command(flatten)]
    pub axes: AxisArgs,
    /// Longest side of a picture on the sheet, in pixels; beside it they are kept in full size
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = heading::SHEET)]
    pub cell_size: usize,
    /// PNG file for the sheet; pictures go into the folder of that name with `.cells`
    #[arg(long, short, value_name = "FILE", default_value = "sheet.png",
          help_heading = heading::OUTPUT)]
    pub output: PathBuf,
    /// The arguments shared with `sdxl generate`.
    #[command(flatten)]
    pub picture: PictureArgs,
}

/// One picture of the sheet.
struct Cell {
    /// The name that tells it from the others, made of its values on all axes.
    name: String,
    /// The recipe that makes it, with everything decided.
    recipe: Recipe,
    /// The path of the file that it is kept in.
    path: PathBuf,
    /// The inputs that it starts from besides its seed.
    inputs: Inputs,
    /// Evaluations that it takes.
    evaluations: usize,
    /// The picture, once it is there.
    picture: Option<Pixels>,
}

/// Runs the command.
pub(crate) fn run(own: &PlotArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let args = &own.picture.output;
    // Everything that can be refused is refused before any weights are read.
    let replayed = args.read_recipe()?;
    let (base, axes) = request(own, replayed.as_ref())?;
    check_output(own)?;
    let combined = combinations(&base, &axes)?;
    let requests: Vec<&Request> = combined.iter().map(|(_, request)| request).collect();
    let session = session::open(&own.picture.model, None, replayed.as_ref(), &requests, true)?;
    let precision = session.precision();
    let mut shared = session.recipe(base, "", &[]);
    // Nothing is loaded to prepare the runs.
    let unloaded = session.pipeline().offload_by_run().lazy()?;
    let mut cells = Vec::new();
    let mut warned: Vec<Warning> = Vec::new();
    for (name, request) in combined {
        let said = || format!("picture `{name}`");
        let inputs = Inputs::read(&request).with_context(said)?;
        let run = (unloaded.prepare(&request, inputs.clone())).with_context(said)?;
        for warning in run.warnings() {
            // Every picture of a prompt has the same.
            if !warned.contains(warning) {
                err!("{}", flags::of_warning(warning));
                warned.push(warning.clone());
            }
        }
        cells.push(Cell {
            evaluations: run.evaluations(),
            recipe: Recipe {
                scheduler_class: run.scheduler().to_string(),
                inputs: inputs.files.clone(),
                request: run.request().clone(),
                ..shared.clone()
            },
            path: PathBuf::new(),
            inputs,
            picture: None,
            name,
        });
    }
    check_size(own, &axes, &cells)?;

    let cancel = interrupt::token()?;
    session.hash_weights(&mut shared)?;
    let configs = hash_configs(session.model().path())?;
    let folder = own.output.with_extension("cells");
    for cell in &mut cells {
        cell.recipe.files = shared.files.clone();
        cell.recipe.refiner = shared.refiner.clone();
        cell.path = folder.join(format!("{}.png", key(&cell.recipe, &configs)));
        cell.picture = read(cell);
    }
    let kept: Vec<bool> = cells.iter().map(|c| c.picture.is_some()).collect();
    if let Some(notice) = session::notice(&session) {
        err!("{notice}");
    }
    make(&mut cells, &session, &folder, &cancel)?;

    let title = title(&shared, &axes, &cells);
    let drawn = arrange(own.cell_size, title, &axes, &cells).draw();
    write(own, &shared, &axes, &drawn)?;
    if args.json {
        let pictures = cells.iter().zip(&kept).map(|(cell, kept)| {
            serde_json::json!({
                "name": cell.name,
                "path": cell.path.to_string_lossy(),
                "kept": kept,
            })
        });
        out!(
            "{}",
            serde_json::json!({
                "sheet": own.output.to_string_lossy(),
                "pictures": pictures.collect::<Vec<_>>(),
                "axes": axes,
                "precision": precision,
                "seconds": began.elapsed().as_secs_f64(),
            })
        );
    } else {
        out!("{}", own.output.display());
    }
    Ok(())
}

/// Gives the request that all pictures share, and the axes along which they differ.
fn request(own: &PlotArgs, replayed: Option<&Recipe>) -> anyhow::Result<(Request, Vec<Axis>)> {
    let mut base = replayed.map_or_else(Request::default, |r| r.request.clone());
    if !own.axes.steps().is_empty() {
        // In the place of a recipe's timesteps or sigmas, if it had some.
        base.timesteps.clear();
        base.sigmas.clear();
    }
    base = own.picture.request(base)?;
    if base.seed.is_empty() {
        // Not from the clock: the next run is to find the pictures of this one.
        base.seed.push(0);
    }
    let (axes, settings): (Vec<Axis>, Vec<Axis>) = own
        .axes
        .typed()?
        .into_iter()
        .partition(|axis| axis.values.len() > 1);
    for setting in &settings {
        base = setting.apply(&base, 0)?;
    }
    match axes.len() {
        0 => Err(usage(
            "nothing differs: give two values or more, as in --schedulers euler,ddim or \
             --axis guidance_scale=3,5,7",
        )),
        1..=3 => Ok((base, axes)),
        more => Err(usage(format!(
            "{more} fields differ; a sheet shows up to three"
        ))),
    }
}

/// The name and the request of every picture, the last axis changing fastest.
fn combinations(base: &Request, axes: &[Axis]) -> anyhow::Result<Vec<(String, Request)>> {
    let count = (axes.iter()).try_fold(1usize, |n, axis| n.checked_mul(axis.values.len()));
    if count.is_none_or(|n| n > MAX_CELLS) {
        return Err(usage(format!(
            "more than {MAX_CELLS} pictures on one sheet; give fewer values"
        )));
    }
    let mut all = vec![(Vec::new(), base.clone())];
    for axis in axes {
        let mut next = Vec::with_capacity(all.len() * axis.values.len());
        for (name, request) in &all {
            for i in 0..axis.values.len() {
                let mut name: Vec<String> = name.clone();
                name.push(axis.label(i));
                next.push((name, axis.apply(request, i)?));
            }
        }
        all = next;
    }
    let mut named = Vec::with_capacity(all.len());
    for (name, request) in all {
        let name = name.join(", ");
        if request.images() != 1 {
            return Err(usage(format!(
                "picture `{name}`: {} pictures asked for where one is to stand; give one prompt and \
                 leave num_images at 1",
                request.images()
            )));
        }
        // Here the default number of steps was asked for too, if `steps` is an axis.
        if axes.iter().any(|axis| axis.field == "steps") {
            request
                .check_steps_agree()
                .with_context(|| format!("picture `{name}`"))?;
        }
        named.push((name, request));
    }
    Ok(named)
}

fn check_output(own: &PlotArgs) -> anyhow::Result<()> {
    if !output::ends_in(&own.output, "png") {
        return Err(usage(format!(
            "--output {}: the sheet is written as PNG; name the file *.png",
            own.output.display()
        )));
    }
    Ok(files::check_writable(
        "output",
        &own.output,
        own.picture.output.overwrites(),
    )?)
}

fn check_size(own: &PlotArgs, axes: &[Axis], cells: &[Cell]) -> anyhow::Result<()> {
    if own.cell_size < 16 {
        return Err(usage(format!(
            "--cell-size {}: use 16 pixels or more",
            own.cell_size
        )));
    }
    let side = |cell: &Cell| {
        let size = cell.recipe.request.picture_size();
        size.width.max(size.height).min(own.cell_size)
    };
    let largest = cells.iter().map(side).max().unwrap_or(0);
    let pixels = cells.len().saturating_mul(largest * largest);
    if pixels > MAX_PIXELS {
        let values: Vec<String> = axes.iter().map(|a| a.values.len().to_string()).collect();
        return Err(usage(format!(
            "a sheet of {} pictures of {largest} pixels is too large; lower --cell-size",
            values.join(" x ")
        )));
    }
    Ok(())
}

/// The small files of a checkpoint and what is in them: they decide the numbers too, and no recipe
/// names them.
fn hash_configs(root: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    let list = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let said = || format!("{} cannot be listed", folder.display());
        let entries = std::fs::read_dir(folder).with_context(said)?;
        let paths: std::io::Result<Vec<PathBuf>> = entries.map(|e| Ok(e?.path())).collect();
        paths.with_context(said)
    };
    for path in list(root)? {
        if path.is_dir() {
            files.extend(list(&path)?);
        } else {
            files.push(path);
        }
    }
    files.retain(|path| {
        path.is_file() && path.extension().is_some_and(|e| e == "json" || e == "txt")
    });
    files.sort();
    let mut all = String::new();
    for path in files {
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        all.push_str(&format!("{name} {}\n", hash_file(&path)?.1));
    }
    Ok(all)
}

/// The name under which a picture is kept: the same for the same pixels. What the checkpoint is
/// called does not matter, what is in it does.
fn key(recipe: &Recipe, configs: &str) -> String {
    let nameless = Recipe {
        model: PathBuf::new(),
        refiner: recipe.refiner.clone().map(|refiner| RefinerRecipe {
            model: PathBuf::new(),
            ..refiner
        }),
        ..recipe.clone()
    };
    let digest = Sha256::digest(format!("{}\n{configs}", nameless.to_json()));
    digest.iter().take(12).map(|b| format!("{b:02x}")).collect()
}

/// The picture of an earlier run, if it is there and whole.
fn read(cell: &Cell) -> Option<Pixels> {
    let size = cell.recipe.request.upscaled_size();
    image::read(&cell.path)
        .ok()
        .filter(|picture| (picture.width, picture.height) == (size.width, size.height))
}

/// Makes the pictures that are not there yet, and keeps each as soon as it is done.
fn make(
    cells: &mut [Cell],
    session: &Session,
    folder: &Path,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    let total = cells.len();
    let missing = || cells.iter().filter(|c| c.picture.is_none());
    let evaluations: usize = missing().map(|c| c.evaluations).sum();
    let count = missing().count();
    let Some(first) = missing().next() else {
        err!("all {total} pictures are kept from an earlier run");
        return Ok(());
    };
    std::fs::create_dir_all(folder)
        .map_err(|e| usage(format!("{}: it cannot be made: {e}", folder.display())))?;
    files::check_writable("output", &first.path, true)?;
    let mut progress = Progress::new(evaluations);
    if count < total {
        progress.say(&format!(
            "{} of {total} pictures are kept from an earlier run",
            total - count
        ));
    }
    let precision = first.recipe.precision;
    progress.say(&format!("precision: {precision}"));
    progress.begin("loading");
    let pipeline = session.load(&mut |warning| progress.say(&flags::of_warning(&warning)))?;
    let (mut done, mut made) = (0, 0);
    for cell in cells.iter_mut().filter(|c| c.picture.is_none()) {
        progress.say(&format!("picture {} of {count}: {}", made + 1, cell.name));
        let mut make = || {
            let mut run = pipeline.prepare(&cell.recipe.request, cell.inputs.clone())?;
            run.set_cancel_token(cancel.clone());
            run.start(&mut |event| {
                match event {
                    // Counted over all pictures, so that the time left is that of the sheet.
                    Event::Step(step) => {
                        progress.step(done + step.index, evaluations, step.seconds);
                    }
                    _ => progress.show(event),
                }
                ControlFlow::Continue(())
            })
        };
        let result = make();
        let output = match result {
            Ok(output) => output,
            Err(error) => {
                progress.finish();
                err!(
                    "{} of {total} pictures are kept in {}; the same command goes on from there",
                    total - count + made,
                    folder.display()
                );
                return Err(anyhow::Error::from(error).context(format!("picture `{}`", cell.name)));
            }
        };
        let Some(picture) = output.images.into_iter().next() else {
            anyhow::bail!("picture `{}`: nothing was made", cell.name);
        };
        let mut bytes = Vec::new();
        png::write(&mut bytes, &picture.pixels, &cell.recipe.texts())?;
        // Whatever is there under this name is a broken copy of the same.
        let saved = files::save_picture(&cell.path, &bytes, true)?;
        if let Some(text) = saved.warning {
            progress.say(&format!("warning: {text}"));
        }
        cell.path = saved.path;
        cell.picture = Some(picture.pixels);
        done += cell.evaluations;
        made += 1;
    }
    progress.finish();
    Ok(())
}

/// Gives the lines above the sheet: the prompt, and the settings and model that all pictures share.
fn title(shared: &Recipe, axes: &[Axis], cells: &[Cell]) -> Vec<String> {
    let varies = |field: &str| axes.iter().any(|axis| axis.field == field);
    let request = &shared.request;
    let mut lines = Vec::new();
    if !varies("prompt") {
        lines.push(request.prompt.join(" "));
    }
    let mut settings = Vec::new();
    if !varies("width")
        && !varies("height")
        && let Some(cell) = cells.first()
    {
        settings.push(cell.recipe.request.picture_size().to_string());
    }
    if !varies("scheduler")
        && request.scheduler.is_none()
        && let Some(cell) = cells.first()
    {
        settings.push(cell.recipe.scheduler_class.clone());
    }
    let default = serde_json::to_value(Request::default()).expect("a request has string keys only");
    let given = serde_json::to_value(request).expect("a request has string keys only");
    for (field, value) in given.as_object().into_iter().flatten() {
        let said = ["prompt", "width", "height"].contains(&field.as_str());
        let always = ["seed", "guidance_scale", "steps"].contains(&field.as_str());
        let listed = !request.timesteps.is_empty() || !request.sigmas.is_empty();
        let silent = said || varies(field) || field == "steps" && listed;
        if !silent && (always || default.get(field) != Some(value)) {
            let axis = Axis {
                field: field.clone(),
                values: vec![value.clone()],
            };
            settings.push(axis.label(0));
        }
    }
    lines.push(settings.join(" \u{b7} "));
    let model = shared.model.file_name().unwrap_or(shared.model.as_os_str());
    let model = model.to_string_lossy();
    // Of a hub's commit seven digits do.
    let model = match model.split_once('@') {
        Some((name, commit)) if commit.len() == 40 && commit.is_ascii() => {
            format!("{name}@{}", &commit[..7])
        }
        _ => model.into_owned(),
    };
    lines.push(format!(
        "{} \u{b7} {} \u{b7} sdxl {}",
        model, shared.precision, shared.version
    ));
    lines
}

/// One axis goes across; of two the first goes down; of three the last makes the grids.
fn arrange(cell_size: usize, title: Vec<String>, axes: &[Axis], cells: &[Cell]) -> Sheet {
    let labels = |axis: Option<&Axis>| match axis {
        Some(axis) => (0..axis.values.len()).map(|i| axis.label(i)).collect(),
        None => vec![String::new()],
    };
    let (down, across, grids) = match axes {
        [one] => (None, Some(one), None),
        [first, second, rest @ ..] => (Some(first), Some(second), rest.first()),
        [] => (None, None, None),
    };
    let (rows, columns, headings) = (labels(down), labels(across), labels(grids));
    // In the order of the axes, so that the grids' index changes fastest.
    let grids = headings.iter().enumerate().map(|(i, heading)| Grid {
        heading: heading.clone(),
        pictures: (cells.iter().skip(i).step_by(headings.len()))
            .filter_map(|cell| cell.picture.as_ref())
            .map(|picture| sheet::reduced(picture, cell_size))
            .collect(),
    });
    Sheet {
        title,
        grids: grids.collect(),
        columns,
        rows,
    }
}

/// Writes the sheet with what it was made of.
fn write(own: &PlotArgs, shared: &Recipe, axes: &[Axis], drawn: &Pixels) -> anyhow::Result<()> {
    let fields: Vec<&str> = axes.iter().map(|a| a.field.as_str()).collect();
    let recipe = serde_json::json!({
        "version": shared.version,
        "axes": axes,
        "model": shared.model,
        "variant": shared.variant,
        "precision": shared.precision,
        "isa": shared.isa,
        "files": shared.files,
        "request": shared.request,
    });
    let texts = Texts {
        parameters: Some(format!(
            "{}\nSheet over {}, Version: sdxl {}",
            shared.request.prompt.join("\n"),
            fields.join(", "),
            shared.version
        )),
        recipe: Some(format!("{recipe:#}")),
        source_type: Some(xmp::TRAINED.into()),
        ..Texts::default()
    };
    let mut bytes = Vec::new();
    png::write(&mut bytes, drawn, &texts)?;
    Ok(files::write_file(
        &own.output,
        &bytes,
        own.picture.output.overwrites(),
    )?)
}
