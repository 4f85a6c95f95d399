//! `sdxl models convert`: a checkpoint from a folder into one file, or back, or with fewer bits.

use std::path::PathBuf;

use clap::Args;
use sdxl::Checkpoint;
use sdxl::weights::OpenOptions;
use sdxl::weights::convert;
use sdxl::weights::lower::Target;
use sdxl_kit::Model;

use super::compare::{self, Side};
use crate::args::switch;
use crate::info::size;
use crate::output::ends_in;
use crate::usage;

const HELP: &str = "\
Without --precision no bit of a weight changes. With it, what it costs is said twice: how far the
weights are from what they were, which is known once they are written, and how far pictures of four
prompts are (PSNR against f32), which takes as long as eight pictures of a few steps do: minutes for a
model of full size. That comes last: the file is whole before it begins, and Ctrl-C loses nothing but
the comparison. --no-compare leaves it out; `sdxl models compare` makes it another time.

Blocks (q8_0 to q4_0) are unpacked as the networks are loaded, so they save disk and reading; they
save memory where weights are streamed from the file.";

/// `sdxl models convert`
#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct ConvertArgs {
    /// Checkpoint: its folder, one .safetensors file, or the name of one that was pulled
    from: PathBuf,
    /// Output: a name that ends in .safetensors becomes one file, one in .gguf the UNet alone
    /// (for --unet), another a folder
    to: PathBuf,
    /// Store the weights with fewer bits: f16 or bf16, all of them; int8, the matrices of the UNet's
    /// transformers, as --precision int8 runs them (all else as it is); q8_0, q6_k, q5_1, q5_0, q4_1
    /// or q4_0, those in blocks of 8 to 4 bits, as GGUF
    #[arg(long, value_name = "PRECISION")]
    precision: Option<Target>,
    /// Compare pictures after --precision [default: on]
    #[arg(long, requires = "precision")]
    compare: bool,
    /// The negative
    #[arg(long, requires = "precision")]
    no_compare: bool,
    /// Take weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Put this VAE in the place of the checkpoint's own
    #[arg(long, value_name = "FILE|DIR")]
    vae: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    if args.precision.is_none() && ends_in(&args.to, "gguf") {
        return Err(usage(format!(
            "{}: a GGUF file needs --precision q8_0, q6_k, q5_1, q5_0, q4_1 or q4_0",
            args.to.display()
        )));
    }
    if let Some(target) = args.precision {
        convert::check_name(target, &args.to)?;
    }
    let model = Model::find(Some(&args.from))?;
    let vae = (args.vae.as_deref())
        .map(|named| Model::find(Some(named)))
        .transpose()?;
    let options = OpenOptions {
        variant: args.variant.clone(),
        vae: vae.as_ref().map(|vae| vae.path().to_path_buf()),
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open_with(model.path(), &options)?;
    let Some(target) = args.precision else {
        if ends_in(&args.to, "safetensors") {
            convert::to_single_file(&checkpoint, &args.to)?;
        } else {
            convert::to_folder(&checkpoint, &args.to)?;
        }
        out!("{}", args.to.display());
        return Ok(());
    };
    let report = convert::to_lower_precision(&checkpoint, target, &args.to)?;
    out!("{}", args.to.display());
    let relative = 100.0 * report.error;
    out!("  size     {}", size(report.bytes));
    out!(
        "  weights  {} tensors changed, by {relative:.3} % (relative L2)",
        report.changed
    );
    if let Some((name, error)) = &report.worst {
        out!("  most     {name}, by {:.3} %", 100.0 * error);
    }
    if !switch(args.compare, args.no_compare).unwrap_or(true) {
        return Ok(());
    }
    let other = Side::open(&args.to, Some((model.path(), &options)))?;
    let original = Side::of(checkpoint);
    match compare::report(&original, &other, false) {
        Err(error) if compare::is_interrupted(&error) => {
            err!("not compared; {} is whole", args.to.display());
            Ok(())
        }
        compared => compared,
    }
}
