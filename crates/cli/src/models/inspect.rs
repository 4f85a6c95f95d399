//! `sdxl models inspect`: what a file or folder of weights is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use sdxl::weights::TensorSet;
use sdxl::weights::recognise::FileKind;
use sdxl::weights::recognise::lora_text_width;
use sdxl::{Checkpoint, CheckpointKind, Part};
use sdxl_kit::Model;
use serde_json::json;

use crate::flags;
use crate::info::{PartInfo, count, describe};

/// `sdxl models inspect`
#[derive(Args)]
pub(super) struct InspectArgs {
    /// Checkpoint folder, a .safetensors file of any kind, or `demo`
    path: PathBuf,
    /// Look at the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let model = Model::find(Some(&args.path))?;
    if model.path().is_file() {
        let tensors = TensorSet::open(&[model.path().to_path_buf()])?;
        let kind = FileKind::of(&tensors);
        if !matches!(kind, FileKind::Base | FileKind::Refiner) {
            other(args, kind, &tensors);
            return Ok(());
        }
    }
    let checkpoint = Checkpoint::open(model.path(), args.variant.as_deref())?;
    let parts: Vec<PartInfo> = (Part::ALL.into_iter())
        .filter(|part| checkpoint.has(*part))
        .map(|part| describe(&checkpoint, part))
        .collect();
    let layout = if model.path().is_file() {
        "one file, original names"
    } else {
        "folder"
    };
    let family = match checkpoint.family() {
        CheckpointKind::Base => "base",
        CheckpointKind::Refiner => "refiner",
    };
    let setting = |key: &str| checkpoint.scheduler.get(key).cloned().unwrap_or_default();
    let prediction = setting("prediction_type");
    let prediction = prediction.as_str().unwrap_or("epsilon");
    let zero_snr = setting("rescale_betas_zero_snr") == true;
    let total: u64 = parts.iter().map(|p| p.parameters).sum();
    let channels = checkpoint.unet.in_channels;
    if args.json {
        let object = json!({
            "kind": format!("Stable Diffusion XL {family}"),
            "layout": layout,
            "prediction_type": prediction,
            "zero_terminal_snr": zero_snr,
            "in_channels": channels,
            "parameters": total,
            "parts": parts,
        });
        out!("{object}");
        return Ok(());
    }
    out!("{}", args.path.display());
    out!("  kind        Stable Diffusion XL, {family}");
    out!("  layout      {layout}");
    let zero = if zero_snr {
        ", trained down to zero signal-to-noise ratio"
    } else {
        ""
    };
    out!("  predicts    {prediction}{zero}");
    if channels == 9 {
        out!("  inpainting  yes: it takes a mask and a masked picture");
    }
    out!("  parameters  {}", count(total));
    for part in &parts {
        let (name, weights) = (part.name, count(part.parameters));
        out!("  {name:<15} {weights:>9}  {}", part.dtypes.join("+"));
    }
    Ok(())
}

/// A file that is no checkpoint.
fn other(args: &InspectArgs, kind: FileKind, tensors: &TensorSet) {
    let dtypes: BTreeSet<String> = tensors
        .iter()
        .map(|(_, t)| t.element().to_string())
        .collect();
    let dtypes: Vec<String> = dtypes.into_iter().collect();
    let parameters: u64 = tensors.iter().map(|(_, t)| t.values() as u64).sum();
    let context = (kind == FileKind::Lora)
        .then(|| lora_text_width(tensors))
        .flatten();
    let trained_on = match context {
        Some(768) => Some("Stable Diffusion 1"),
        Some(1024) => Some("Stable Diffusion 2"),
        Some(1280) => Some("Stable Diffusion XL, refiner"),
        Some(2048) => Some("Stable Diffusion XL, base"),
        _ => None,
    };
    if args.json {
        let object = json!({
            "kind": kind.describe(),
            "trained_on": trained_on,
            "tensors": tensors.iter().count(),
            "parameters": parameters,
            "dtypes": dtypes,
        });
        out!("{object}");
        return;
    }
    out!("{}", args.path.display());
    out!("  kind        {}", kind.describe());
    if let Some(model) = trained_on {
        out!("  made for    {model}");
    }
    out!("  tensors     {}", tensors.iter().count());
    out!("  parameters  {}  {}", count(parameters), dtypes.join("+"));
    out!("  to use it   {}", flags::named(kind.advice()));
}
