//! `sdxl models doctor`: what is wrong with a checkpoint, and what to do.

use std::path::PathBuf;

use clap::Args;
use sdxl::weights::doctor;
use sdxl_kit::Model;

use crate::Reported;
use crate::flags;

/// `sdxl models doctor`
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Checkpoint folder, or a .safetensors file of any kind
    path: PathBuf,
    /// Look at the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let model = Model::find(Some(&args.path))?;
    let found = doctor::examine(model.path(), args.variant.as_deref());
    let problems = found.iter().filter(|f| f.problem).count();
    if args.json {
        out!("{}", serde_json::json!({ "findings": found }));
    } else {
        for finding in &found {
            let kind = if finding.problem { "problem" } else { "note" };
            out!("{kind}: {}", flags::named(&finding.text));
        }
        if problems == 0 {
            out!("nothing is wrong with {}", args.path.display());
        }
    }
    match problems {
        0 => Ok(()),
        1 => Err(anyhow::Error::new(Reported("one problem".to_string()))),
        many => Err(anyhow::Error::new(Reported(format!("{many} problems")))),
    }
}
