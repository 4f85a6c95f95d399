//! `sdxl models compare`: how far the pictures of one checkpoint are from those of another.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use sdxl::model::config::VAE_FACTOR;
use sdxl::weights::OpenOptions;
use sdxl::{Checkpoint, Error, Inputs, Offload, Part, Pipeline, Precision, Request, Size};
use sdxl_kit::Model;
use serde_json::json;

use crate::interrupt;
use crate::output::ends_in;
use crate::progress::Progress;

const HELP: &str = "\
Four prompts with fixed seeds, eight steps, at the model's size or at 512 where that is smaller: the
pictures of the first model in f32 against those of the second, as PSNR in decibels. The second runs in
f32 too, so that its weights alone make the difference, unless they are int8, which is run as int8.
From 40 dB on pictures are hard to tell apart; below 20 they are other pictures.";

/// `sdxl models compare`
#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct CompareArgs {
    /// Checkpoint to compare with: a folder, a file or the name of one that was pulled
    model: PathBuf,
    /// The other: the same, or a .gguf file, which stands in for the UNet of the first
    other: PathBuf,
    /// Take weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

const PROMPTS: [&str; 4] = [
    "a red circle to the left of a blue star on a yellow background",
    "a photograph of a lighthouse on a cliff at dusk, waves below",
    "portrait of an old sailor with a grey beard, oil painting",
    "three green apples in a wooden bowl on a kitchen table",
];
const STEPS: usize = 8;
/// The longest side: at 1024 a comparison on two cores takes most of an hour.
const SIDE: usize = 512;

/// One of the two.
pub(super) struct Side {
    checkpoint: Checkpoint,
    precision: Precision,
    // Where the demo could only be unpacked for a while, it goes with this.
    _model: Option<Model>,
}

impl Side {
    /// A checkpoint in `f32`.
    pub(super) fn of(checkpoint: Checkpoint) -> Side {
        Side {
            checkpoint,
            precision: Precision::F32,
            _model: None,
        }
    }

    /// Opens the checkpoint that `named` means; a GGUF file stands in for the UNet of `base`,
    /// opened with these options.
    pub(super) fn open(named: &Path, base: Option<(&Path, &OpenOptions)>) -> anyhow::Result<Side> {
        if let (Some((base, options)), true) = (base, ends_in(named, "gguf")) {
            let options = OpenOptions {
                unet: Some(named.to_path_buf()),
                ..options.clone()
            };
            return Ok(Side::of(Checkpoint::open_with(base, &options)?));
        }
        let model = Model::find(Some(named))?;
        let variant = base.and_then(|(_, options)| options.variant.clone());
        let options = OpenOptions {
            variant,
            ..OpenOptions::default()
        };
        let checkpoint = Checkpoint::open_with(model.path(), &options)?;
        let bytes =
            (checkpoint.tensors(Part::UNet)?.iter()).any(|(_, t)| t.element().to_string() == "I8");
        Ok(Side {
            precision: match bytes {
                true => Precision::Int8,
                false => Precision::F32,
            },
            _model: Some(model),
            ..Side::of(checkpoint)
        })
    }
}

/// Runs the command.
pub(super) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let model = Model::find(Some(&args.model))?;
    let options = OpenOptions {
        variant: args.variant.clone(),
        ..OpenOptions::default()
    };
    let other = Side::open(&args.other, Some((model.path(), &options)))?;
    let original = Side::of(Checkpoint::open_with(model.path(), &options)?);
    report(&original, &other, args.json)
}

/// Makes the pictures and prints how far they are from one another.
pub(super) fn report(original: &Side, other: &Side, json: bool) -> anyhow::Result<()> {
    let cancel = interrupt::token()?;
    let request = request(&original.checkpoint);
    let pictures = |side: &Side, what: &str| -> anyhow::Result<Vec<Vec<u8>>> {
        let pipeline = Pipeline::open(side.checkpoint.clone())
            .precision(side.precision)
            .offload(Offload::Model)
            .load()?;
        let mut run = pipeline.prepare(&request, Inputs::default())?;
        run.set_cancel_token(cancel.clone());
        let mut progress = Progress::new(run.evaluations());
        progress.begin(&format!(
            "comparing: {} pictures of {what} in {} (Ctrl-C leaves it)",
            PROMPTS.len(),
            side.precision
        ));
        let output = run.start(&mut |event| {
            progress.show(event);
            ControlFlow::Continue(())
        })?;
        progress.finish();
        Ok(output.images.into_iter().map(|p| p.pixels.data).collect())
    };
    let full = pictures(original, "the first model")?;
    let ours = pictures(other, "the second")?;
    let psnr: Vec<Option<f64>> = (full.iter().zip(&ours)).map(|(a, b)| psnr(a, b)).collect();
    let Size { width, height } = request.picture_size();
    if json {
        let rows = PROMPTS.iter().zip(&psnr);
        let rows: Vec<_> = rows
            .map(|(prompt, psnr)| json!({ "prompt": prompt, "psnr": psnr }))
            .collect();
        out!(
            "{}",
            json!({
                "precision": other.precision.to_string(),
                "width": width,
                "height": height,
                "steps": STEPS,
                "pictures": rows,
            })
        );
        return Ok(());
    }
    out!(
        "  pictures in {} against f32, {width} x {height}, {STEPS} steps:",
        other.precision
    );
    for (prompt, psnr) in PROMPTS.iter().zip(&psnr) {
        match psnr {
            Some(psnr) => out!("  {psnr:>5.1} dB  {prompt}"),
            None => out!("   equal    {prompt}"),
        }
    }
    Ok(())
}

fn request(checkpoint: &Checkpoint) -> Request {
    let (height, width) = checkpoint.unet.default_latent_size();
    Request {
        prompt: PROMPTS.map(String::from).into(),
        seed: vec![1, 2, 3, 4],
        steps: STEPS,
        width: Some((VAE_FACTOR * width).min(SIDE)),
        height: Some((VAE_FACTOR * height).min(SIDE)),
        ..Request::default()
    }
}

/// The peak signal-to-noise ratio of bytes, in decibels; nothing where they are equal.
fn psnr(a: &[u8], b: &[u8]) -> Option<f64> {
    let squares: f64 = (a.iter().zip(b))
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    (squares > 0.0).then(|| 10.0 * (255f64.powi(2) * a.len() as f64 / squares).log10())
}

/// Whether an error is a comparison that was broken off.
pub(super) fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::Cancelled))
}
