//! `sdxl models`: checkpoints on this machine.

use std::path::PathBuf;

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
    /// Write the demo model that this program carries out as checkpoint folders
    ExportDemo {
        /// Folder to make: base/ and refiner/ will be in it
        dir: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    let Command::ExportDemo { dir } = &args.command;
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
