//! `sdxl models`: checkpoints on this machine.

mod convert;
mod doctor;
mod inspect;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use sdxl_demo::Demo;

use crate::usage;

/// `sdxl models`
#[derive(Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what a file or folder is: its parts, precision, sizes and what its UNet predicts
    Inspect(inspect::InspectArgs),
    /// Look for what is wrong with a file or folder, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Turn a checkpoint's folder into one file, or the file into a folder, bit for bit
    Convert(convert::ConvertArgs),
    /// Write the demo model that this program carries out as checkpoint folders
    ExportDemo {
        /// Folder to make: base/ and refiner/ will be in it
        dir: PathBuf,
    },
}

impl ModelsArgs {
    /// Whether the result is to be one JSON object.
    pub fn wants_json(&self) -> bool {
        match &self.command {
            Command::Inspect(args) => args.json,
            Command::Doctor(args) => args.json,
            Command::Convert(_) | Command::ExportDemo { .. } => false,
        }
    }
}

/// Runs the command.
pub fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Convert(args) => convert::run(args),
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
