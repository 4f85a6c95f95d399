//! `sdxl schedulers`: what there is to choose from, and the numbers each would use.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sdxl::scheduler::{self, Plan, Randomness, SchedulerConfig};
use sdxl::weights::folder::read_json;

use crate::args::scheduler_option;

/// `sdxl schedulers`
#[derive(Args)]
pub struct SchedulersArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Print the timesteps and noise levels of a run
    Show(ShowArgs),
}

#[derive(Args)]
struct ShowArgs {
    /// Scheduler, by its diffusers class or a short name
    name: String,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = sdxl::Request::default().steps)]
    steps: usize,
    /// A key of scheduler_config.json to set, such as use_karras_sigmas=true
    #[arg(long, value_name = "KEY=VALUE")]
    scheduler_option: Vec<String>,
    /// Start from this scheduler_config.json instead of SDXL's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl SchedulersArgs {
    /// Whether JSON was asked for, here or in the subcommand.
    pub fn wants_json(&self) -> bool {
        self.json || matches!(&self.command, Some(Command::Show(args)) if args.json)
    }
}

/// Runs the command.
pub fn run(args: &SchedulersArgs) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Show(show)) => show_one(show, args.wants_json()),
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
            .iter()
            .map(|info| {
                serde_json::json!({
                    "class": info.class,
                    "names": info.names,
                    "order": info.order,
                    "evaluations_per_step": info.evaluations_per_step,
                    "randomness": randomness(info.randomness),
                    "when": info.when,
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

fn show_one(args: &ShowArgs, json: bool) -> anyhow::Result<()> {
    let start = match &args.config {
        Some(path) => SchedulerConfig::from_json(read_json(path)?).map_err(sdxl::Error::from)?,
        None => SchedulerConfig::sdxl(),
    };
    let mut config = start
        .with_scheduler(&args.name)
        .map_err(sdxl::Error::from)?;
    for option in &args.scheduler_option {
        let (key, value) = scheduler_option(option)?;
        config.set(&key, value).map_err(sdxl::Error::from)?;
    }
    let built = scheduler::build(&config, &Plan::steps(args.steps)).map_err(sdxl::Error::from)?;
    if json {
        let object = serde_json::json!({
            "class": built.info().class,
            "timesteps": built.timesteps(),
            "sigmas": built.sigmas(),
            "init_noise_sigma": built.init_noise_sigma(),
        });
        out!("{object}");
        return Ok(());
    }
    out!(
        "{}, {} evaluations",
        built.info().class,
        built.timesteps().len()
    );
    out!("{:>4} {:>12} {:>12}", "", "timestep", "sigma");
    for (i, (timestep, sigma)) in built.timesteps().iter().zip(built.sigmas()).enumerate() {
        out!("{:>4} {timestep:>12.3} {sigma:>12.5}", i + 1);
    }
    if let Some(last) = built.sigmas().get(built.timesteps().len()) {
        out!("{:>4} {:>12} {last:>12.5}", "", "result");
    }
    Ok(())
}
