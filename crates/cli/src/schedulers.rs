//! `sdxl schedulers`: what there is to choose from, and the numbers each would use.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sdxl::files::read_json;
use sdxl::scheduler::{self, InferenceSteps, Randomness, Scheduler, SchedulerConfig, Steps};
use sdxl_kit::files;

use crate::args::{Numbers, scheduler_option};
use crate::schedule_plot::{self, Curve};
use crate::{output, usage};

/// `sdxl schedulers`
#[derive(Args)]
pub(crate) struct SchedulersArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Print or draw the timesteps and noise levels of a run
    Show(ShowArgs),
}

#[derive(Args)]
struct ShowArgs {
    /// Schedulers, by diffusers class or short name
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = sdxl::Request::default().steps)]
    steps: usize,
    /// These timesteps instead (`ays`: the ten of "Align Your Steps")
    #[arg(long, value_name = "T,T,...|ays", value_parser = Numbers::timesteps,
          conflicts_with_all = ["steps", "sigmas"])]
    timesteps: Option<Numbers>,
    /// These noise levels instead (`ays`: those of "Align Your Steps")
    #[arg(long, value_name = "S,S,...|ays", value_parser = Numbers::sigmas,
          conflicts_with = "steps")]
    sigmas: Option<Numbers>,
    /// A key of scheduler_config.json to set, such as use_karras_sigmas=true
    #[arg(long, value_name = "KEY=VALUE")]
    scheduler_option: Vec<String>,
    /// Start from this scheduler_config.json instead of SDXL's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Draw them as an SVG picture instead of printing them
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Replace a FILE.svg that exists
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl SchedulersArgs {
    /// Whether JSON was asked for, here or in the subcommand.
    pub(crate) fn wants_json(&self) -> bool {
        self.json || matches!(&self.command, Some(Command::Show(args)) if args.json)
    }
}

/// Runs the command.
pub(crate) fn run(args: &SchedulersArgs) -> anyhow::Result<()> {
    let wants_json = args.wants_json();
    match &args.command {
        Some(Command::Show(args)) => show(args, wants_json),
        None => {
            list(args.json);
            Ok(())
        }
    }
}

fn randomness(kind: Randomness) -> String {
    match kind {
        Randomness::Optional(when) => format!("draws noise with {when}"),
        Randomness::Deterministic => "deterministic".to_string(),
        Randomness::Stochastic => "draws noise".to_string(),
    }
}

fn list(json: bool) {
    if json {
        let all: Vec<_> = scheduler::all()
            .map(|info| {
                serde_json::json!({
                    "class": info.class,
                    "names": info.names,
                    "order": info.order,
                    "evaluations_per_step": info.evaluations_per_step,
                    "randomness": randomness(info.randomness),
                    "when": info.when,
                    "options": info
                        .options()
                        .map(|option| (option.name.to_string(), option.default_value()))
                        .collect::<serde_json::Map<_, _>>(),
                })
            })
            .collect();
        out!("{}", serde_json::json!({ "schedulers": all }));
        return;
    }
    for info in scheduler::all() {
        let evaluations = match info.evaluations_per_step {
            1 => "1 evaluation a step".to_string(),
            n => format!("{n} evaluations a step"),
        };
        out!(
            "{:<18} {}",
            info.names.first().unwrap_or(&info.class),
            info.class
        );
        out!(
            "{:<18} order {}, {evaluations}, {}",
            "",
            info.order,
            randomness(info.randomness)
        );
        out!("{:<18} {}\n", "", info.when);
    }
}

fn show(args: &ShowArgs, json: bool) -> anyhow::Result<()> {
    let start = match &args.config {
        Some(path) => SchedulerConfig::from_json(read_json(path)?).map_err(sdxl::Error::from)?,
        None => SchedulerConfig::sdxl(),
    };
    let steps = match (&args.timesteps, &args.sigmas) {
        (Some(list), _) => Steps::Timesteps(list.0.clone()),
        (None, Some(list)) => Steps::Sigmas(list.0.clone()),
        (None, None) => Steps::Count(args.steps),
    };
    let mut runs = Vec::new();
    for name in &args.names {
        let built = build(&start, name, &args.scheduler_option, steps.clone())?;
        runs.push((name, built));
    }
    if let Some(path) = &args.plot {
        if !output::ends_in(path, "svg") {
            return Err(usage(format!(
                "--plot {}: it is drawn as SVG; name the file *.svg",
                path.display()
            )));
        }
        files::check_writable("svg", path, args.overwrite)?;
        let svg = schedule_plot::svg(&title(args), &runs.iter().map(curve).collect::<Vec<_>>());
        files::write_file(path, svg.as_bytes(), args.overwrite)?;
    }
    if json {
        let mut objects: Vec<_> = runs.iter().map(|(_, built)| numbers(built)).collect();
        let mut object = match objects.len() {
            1 => objects.remove(0),
            _ => serde_json::json!({ "schedulers": objects }),
        };
        if let Some(path) = &args.plot {
            object["plot"] = path.to_string_lossy().into();
        }
        out!("{object}");
    } else if let Some(path) = &args.plot {
        out!("{}", path.display());
    } else {
        for (_, built) in &runs {
            print(built);
        }
    }
    Ok(())
}

fn build(
    start: &SchedulerConfig,
    name: &str,
    options: &[String],
    steps: Steps,
) -> anyhow::Result<Scheduler> {
    let mut config = start.with_scheduler(name).map_err(sdxl::Error::from)?;
    for option in options {
        let (key, value) = scheduler_option(option)?;
        config.set(&key, value).map_err(sdxl::Error::from)?;
    }
    Ok(scheduler::build(&config, &InferenceSteps::new(steps)).map_err(sdxl::Error::from)?)
}

/// Gives the title of a plot, in the words of the arguments that asked for it.
fn title(args: &ShowArgs) -> String {
    let (what, count) = match (&args.timesteps, &args.sigmas) {
        (Some(list), _) => ("custom timesteps", list.0.len()),
        (None, Some(list)) => ("custom sigmas", list.0.len()),
        (None, None) => ("steps", args.steps),
    };
    let mut title = format!("Schedule, {count} {what}");
    for option in &args.scheduler_option {
        title.push_str(", ");
        title.push_str(option);
    }
    title
}

fn curve((name, built): &(&String, Scheduler)) -> Curve {
    Curve {
        name: (*name).clone(),
        timesteps: built.timesteps().to_vec(),
        sigmas: built.sigmas().iter().map(|&s| s.into()).collect(),
    }
}

fn numbers(built: &Scheduler) -> serde_json::Value {
    serde_json::json!({
        "class": built.info().class,
        "timesteps": built.timesteps(),
        "sigmas": built.sigmas(),
        "init_noise_sigma": built.init_noise_sigma(),
    })
}

fn print(built: &Scheduler) {
    out!(
        "{}, {} evaluations, starts from noise times {:.5}",
        built.info().class,
        built.timesteps().len(),
        built.init_noise_sigma()
    );
    out!("{:>4} {:>12} {:>12}", "", "timestep", "sigma");
    for (i, (timestep, sigma)) in built.timesteps().iter().zip(built.sigmas()).enumerate() {
        out!("{:>4} {timestep:>12.3} {sigma:>12.5}", i + 1);
    }
    if let Some(last) = built.sigmas().get(built.timesteps().len()) {
        out!("{:>4} {:>12} {last:>12.5}", "", "result");
    }
    let options: Vec<_> = built.info().options().map(|o| o.name).collect();
    out!("options: {}\n", options.join(", "));
}
