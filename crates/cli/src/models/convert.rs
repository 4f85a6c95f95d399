//! `sdxl models convert`: a checkpoint from a folder into one file, or back.

use std::path::PathBuf;

use clap::Args;
use sdxl::Checkpoint;
use sdxl::weights::convert;
use sdxl::weights::folder::OpenOptions;

use crate::model::Model;
use crate::output::ends_in;

/// `sdxl models convert`
#[derive(Args)]
pub struct ConvertArgs {
    /// Checkpoint: its folder, or one .safetensors file
    from: PathBuf,
    /// What to make: a name that ends in .safetensors becomes one file, another a folder
    to: PathBuf,
    /// Take weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Put this VAE in the place of the checkpoint's own
    #[arg(long, value_name = "FILE|DIR")]
    vae: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let model = Model::find(Some(&args.from))?;
    let options = OpenOptions {
        variant: args.variant.clone(),
        vae: args.vae.clone(),
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open_with(model.folder(), &options)?;
    if ends_in(&args.to, "safetensors") {
        convert::to_single_file(&checkpoint, &args.to)?;
    } else {
        convert::to_folder(&checkpoint, &args.to)?;
    }
    out!("{}", args.to.display());
    Ok(())
}
