//! The command line program `sdxl`: words typed become a request, the request is run,
//! and what came of it becomes files, lines and an exit code.
//!
//! Exit codes: 0; 1 when this program or the machine failed; 2 when the request or the files
//! are wrong; 130 when interrupted.

/// A line on standard output. A reader that has gone (`| head`) ends the program
/// quietly, where `println!` would panic.
macro_rules! out {
    ($($part:tt)*) => {{
        use std::io::Write;
        if writeln!(std::io::stdout(), $($part)*).is_err() {
            std::process::exit(0);
        }
    }};
}

/// A line on standard error; if nobody reads it any more, the work goes on.
macro_rules! err {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod args;
mod aspects;
mod bench;
mod flags;
mod generate;
mod info;
mod interrupt;
mod models;
mod output;
mod plan;
mod plot;
mod profile_report;
mod progress;
mod prompt;
mod pulling;
mod schedule_plot;
mod schedulers;
mod session;
mod show;
mod watermark;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use sdxl::error::Class;

/// Stable Diffusion XL on this machine, with the numbers of diffusers.
#[derive(Parser)]
#[command(name = "sdxl", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make pictures from prompts
    Generate(Box<args::GenerateArgs>),
    /// Say what `generate` with the same words would take of memory and time, and make nothing
    Plan(Box<args::GenerateArgs>),
    /// Show what a prompt says: its tree, its tokens and their weights
    Prompt(Box<prompt::PromptArgs>),
    /// Compare schedulers, steps or any other field on one labelled sheet
    Plot(Box<plot::PlotArgs>),
    /// Print how a picture was made, from the picture itself
    Show(show::ShowArgs),
    /// List the schedulers, or show the numbers one would use
    Schedulers(schedulers::SchedulersArgs),
    /// List the sizes that SDXL was trained at, with their shapes
    Aspects(aspects::AspectsArgs),
    /// Describe a checkpoint and say what is missing
    Info(info::InfoArgs),
    /// Look for the invisible watermark, or put it into a picture
    Watermark(watermark::WatermarkArgs),
    /// Time the networks on this machine, without a checkpoint
    Bench(bench::BenchArgs),
    /// Checkpoints on this machine
    Models(models::ModelsArgs),
}

/// A mistake in what was asked, found by this program rather than by the library.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A mistake that the JSON object on standard output already tells of.
#[derive(Debug)]
struct Reported(String);

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

/// An [`anyhow::Error`] that ends in exit code 2.
fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(message.into()))
}

/// The program's command line, with the library's defaults in its help; `short_help`: for `-h`, which
/// lists the usual flags in their order.
fn command(short_help: bool) -> clap::Command {
    let pictures = |command| args::arrange(args::complete(command), short_help);
    (Cli::command().mut_subcommand("generate", pictures))
        .mut_subcommand("plan", pictures)
        .mut_subcommand("plot", pictures)
        .mut_subcommand("prompt", args::complete)
        .mut_subcommand("models", |models| {
            models.mut_subcommand("convert", args::complete)
        })
}

fn main() -> ExitCode {
    sdxl_kernels::fix_mmap_threshold();
    let words = args::in_new_spelling(std::env::args_os());
    let has = |flag: &str| words.iter().take_while(|w| *w != "--").any(|w| w == flag);
    let (short_help, wants_json) = (has("-h"), has("--json"));
    let parsed = (command(short_help).try_get_matches_from(words))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let error = args::with_meant(error, &command(short_help));
            return refuse(error, wants_json);
        }
    };
    let (json, result) = match &cli.command {
        Command::Generate(args) => (
            args.picture.output.json,
            generate::run(args, args.files.dry_run),
        ),
        Command::Plan(args) => (args.picture.output.json, generate::run(args, true)),
        Command::Prompt(args) => (args.json, prompt::run(args)),
        Command::Plot(args) => (args.picture.output.json, plot::run(args)),
        Command::Show(args) => (args.json, show::run(args)),
        Command::Schedulers(args) => (args.wants_json(), schedulers::run(args)),
        Command::Aspects(args) => (args.json, aspects::run(args)),
        Command::Info(args) => (args.json, info::run(args)),
        Command::Watermark(args) => (args.wants_json(), watermark::run(args)),
        Command::Bench(args) => (args.json, bench::run(args)),
        Command::Models(args) => (args.wants_json(), models::run(args)),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let code = exit_code(&error);
    if json && !error.is::<Reported>() {
        out!("{}", in_json(&error, code));
    }
    err!("sdxl: {}", flags::of_chain(&error));
    ExitCode::from(code)
}

/// Says what is wrong with the words that were typed, or the help that they asked for.
fn refuse(error: clap::Error, wants_json: bool) -> ExitCode {
    if wants_json && error.use_stderr() {
        let text = error.to_string();
        let message = text.trim().trim_start_matches("error: ");
        out!(
            "{}",
            serde_json::json!({
                "error": message,
                "class": Class::Request,
                "field": null,
                "hint": null,
                "exit_code": 2,
            })
        );
    }
    // A closed pipe is no error.
    let _ = error.print();
    ExitCode::from(u8::from(error.use_stderr()) * 2)
}

/// An error for programs, which know fields and no flags.
fn in_json(error: &anyhow::Error, code: u8) -> serde_json::Value {
    let library = error.downcast_ref::<sdxl::Error>();
    let kit = error.downcast_ref::<sdxl_kit::Error>();
    let class = match (library, kit, code) {
        (Some(error), ..) => error.class(),
        (_, Some(error), _) => error.class(),
        (None, None, 2) => Class::Request,
        (None, None, _) => Class::Machine,
    };
    let field = library
        .and_then(sdxl::Error::field)
        .or(kit.and_then(sdxl_kit::Error::field));
    let hint = library.and_then(|e| e.hint().map(|hint| hint.into_owned()));
    serde_json::json!({
        "error": format!("{error:#}"),
        "class": class,
        "field": field,
        "hint": hint.or_else(|| kit.and_then(sdxl_kit::Error::hint)),
        "exit_code": code,
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let library = error.downcast_ref::<sdxl::Error>();
    let kit = error.downcast_ref::<sdxl_kit::Error>();
    match (library, kit) {
        (Some(sdxl::Error::Cancelled), _) => 130,
        (_, Some(error)) if error.is_cancelled() => 130,
        (Some(error), _) if error.is_usage() => 2,
        (_, Some(error)) if error.is_usage() => 2,
        _ if error.is::<Usage>() || error.is::<Reported>() => 2,
        _ => 1,
    }
}
