//! `sdxl info`: what a checkpoint folder holds, and what it lacks.

use std::path::PathBuf;

use clap::Args;
use sdxl::model::config::VAE_FACTOR;
use sdxl::text::tokenizer::Tokenizer;
use sdxl::weights::missing_files;
use sdxl::{Checkpoint, CheckpointKind, Part};
use sdxl_kit::Model;
use serde::Serialize;

use crate::Reported;
use crate::flags;

/// `sdxl info`
#[derive(Args)]
pub(crate) struct InfoArgs {
    /// Checkpoint: the folder that holds model_index.json, a .safetensors file, or `demo`
    pub dir: PathBuf,
    /// Look at the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The contents of a part of a checkpoint.
#[derive(Serialize)]
pub(crate) struct PartInfo {
    /// The part's folder.
    pub name: &'static str,
    /// The names of the files that hold the weights.
    pub files: Vec<String>,
    bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// The element types that the weights are stored in.
    pub dtypes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let model = Model::find(Some(&args.dir))?;
    let checkpoint = match Checkpoint::open(model.path(), args.variant.as_deref()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Err(cannot_open(args, &error)),
    };
    let parts: Vec<PartInfo> = Part::ALL
        .into_iter()
        .filter(|part| checkpoint.has(*part))
        .map(|part| describe(&checkpoint, part))
        .collect();
    let mut problems: Vec<String> = parts.iter().filter_map(|p| p.problem.clone()).collect();
    for part in [Part::TextEncoder, Part::TextEncoder2] {
        if checkpoint.has(part)
            && let Err(error) = Tokenizer::of(checkpoint.files(), part)
        {
            problems.push(error.to_string());
        }
    }
    let family = match checkpoint.family() {
        CheckpointKind::Base => "base",
        CheckpointKind::Refiner => "refiner",
    };
    let (height, width) = checkpoint.unet.default_latent_size();
    let scheduler = checkpoint
        .scheduler
        .get("_class_name")
        .and_then(|v| v.as_str())
        .unwrap_or("not named");
    let total: u64 = parts.iter().map(|p| p.parameters).sum();
    if args.json {
        let object = serde_json::json!({
            "family": family,
            "parts": parts,
            "parameters": total,
            "scheduler": checkpoint.scheduler,
            "width": VAE_FACTOR * width,
            "height": VAE_FACTOR * height,
            "force_zeros_for_empty_prompt": checkpoint.force_zeros_for_empty_prompt,
            "problems": problems,
        });
        out!("{object}");
    } else {
        out!("{}", args.dir.display());
        out!("  family      Stable Diffusion XL, {family}");
        out!(
            "  pictures    {} x {} by default",
            VAE_FACTOR * width,
            VAE_FACTOR * height
        );
        out!("  scheduler   {scheduler}");
        out!("  parameters  {}", count(total));
        for part in &parts {
            out!(
                "  {:<15} {:>9} parameters  {:>9}  {:<9} {}",
                part.name,
                count(part.parameters),
                size(part.bytes),
                part.dtypes.join("+"),
                names(&part.files),
            );
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = problems.iter().map(|text| flags::named(text)).collect();
    let text = format!("not usable as it is:\n  {}", told.join("\n  "));
    Err(anyhow::Error::new(Reported(text)))
}

/// Everything that is wrong with a folder that cannot be opened.
fn cannot_open(args: &InfoArgs, error: &sdxl::Error) -> anyhow::Error {
    let mut problems = vec![error.to_string()];
    problems.extend(missing_files(&args.dir));
    if args.json {
        out!("{}", serde_json::json!({ "problems": problems }));
    }
    let told: Vec<String> = problems.iter().map(|text| flags::named(text)).collect();
    let text = format!("not usable as it is:\n  {}", told.join("\n  "));
    anyhow::Error::new(Reported(text))
}

/// Describes a part.
pub(crate) fn describe(checkpoint: &Checkpoint, part: Part) -> PartInfo {
    let mut info = PartInfo {
        name: part.folder(),
        files: Vec::new(),
        bytes: 0,
        parameters: 0,
        dtypes: Vec::new(),
        problem: None,
    };
    let files = checkpoint.weight_files(part).unwrap_or_else(|error| {
        info.problem = Some(error.to_string());
        Vec::new()
    });
    for file in &files {
        info.bytes += std::fs::metadata(file).map_or(0, |m| m.len());
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        info.files.push(name.into_owned());
    }
    if info.problem.is_none() {
        match checkpoint.tensors(part) {
            Ok(tensors) => {
                for (_, tensor) in tensors.iter() {
                    info.parameters += tensor.shape().iter().product::<usize>() as u64;
                    let dtype = tensor.element().to_string();
                    if !info.dtypes.contains(&dtype) {
                        info.dtypes.push(dtype);
                    }
                }
                info.dtypes.sort();
            }
            Err(error) => info.problem = Some(error.to_string()),
        }
    }
    info
}

fn names(files: &[String]) -> String {
    match files {
        [] => "missing".to_string(),
        [one] => one.clone(),
        many => format!("{} files", many.len()),
    }
}

/// A number of weights, for people to read.
pub(crate) fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.0} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// A number of bytes, for people to read.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
