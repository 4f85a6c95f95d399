//! `sdxl models`: checkpoints on this machine.

mod cached;
mod compare;
mod convert;
mod doctor;
mod inspect;
mod pull;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use sdxl_demo::Demo;

use crate::usage;

/// `sdxl models`
#[derive(Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch a model from the hub, or what has changed of it since
    Pull(pull::PullArgs),
    /// List the models that were pulled, by this program or by Python's
    List(cached::ListArgs),
    /// Remove a pulled model, or one revision of it
    Rm(cached::RmArgs),
    /// Read pulled models again and compare every file with its hash
    Verify(cached::VerifyArgs),
    /// Say what a file or folder is: its parts, precision, sizes and what its UNet predicts
    Inspect(inspect::InspectArgs),
    /// Look for what is wrong with a file or folder, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Turn a checkpoint's folder into one file, or the file into a folder, bit for bit or with fewer
    /// bits
    Convert(convert::ConvertArgs),
    /// Make pictures with two checkpoints and say how far they are from one another
    Compare(compare::CompareArgs),
    /// Write the demo model that this program carries out as checkpoint folders
    ExportDemo {
        /// Folder to make: base/ and refiner/ will be in it
        dir: PathBuf,
    },
}

impl ModelsArgs {
    /// Whether the result is to be one JSON object.
    pub(crate) fn wants_json(&self) -> bool {
        match &self.command {
            Command::Pull(args) => args.json,
            Command::List(args) => args.json,
            Command::Verify(args) => args.json,
            Command::Inspect(args) => args.json,
            Command::Doctor(args) => args.json,
            Command::Compare(args) => args.json,
            Command::Rm(_) | Command::Convert(_) | Command::ExportDemo { .. } => false,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Pull(args) => pull::run(args),
        Command::List(args) => cached::list(args),
        Command::Rm(args) => cached::rm(args),
        Command::Verify(args) => cached::verify(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Compare(args) => compare::run(args),
        Command::ExportDemo { dir } => export_demo(dir),
    }
}

fn export_demo(dir: &Path) -> anyhow::Result<()> {
    let occupied = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => dir.exists(),
    };
    if occupied {
        return Err(usage(format!(
            "{}: there is something here already; name a new folder",
            dir.display()
        )));
    }
    for demo in Demo::ALL {
        let folder = dir.join(demo.folder_name());
        demo.write(&folder)
            .context("the demo model cannot be written")?;
        out!("{}", folder.display());
    }
    Ok(())
}
