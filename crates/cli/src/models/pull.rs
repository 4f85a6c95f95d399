//! `sdxl models pull`: a model from the hub into the cache.

use clap::Args;
use sdxl::Precision;
use sdxl::hub::{FetchOptions, ModelName, Purpose};
use sdxl::pipeline::default_precision;
use sdxl_kit::hub;

use crate::args::names;
use crate::pulling::Bars;
use crate::usage;

/// `sdxl models pull`
#[derive(Args)]
pub(super) struct PullArgs {
    /// ORG/NAME[@REVISION], or one file of a model as ORG/NAME/FILE.safetensors[@REVISION]
    name: String,
    /// The precision of the runs to come: weights of variant fp16 are enough for bf16 and f16
    /// [default: bf16 where the processor has it, else f32]
    #[arg(long, value_parser = names::<Precision>())]
    precision: Option<Precision>,
    /// Take weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The name of a model on a hub.
pub(super) fn parse(text: &str) -> anyhow::Result<ModelName> {
    ModelName::parse(text).ok_or_else(|| {
        usage(format!(
            "`{text}` is not the name of a model on the hub; those are ORG/NAME, ORG/NAME@REVISION \
             or ORG/NAME/FILE.safetensors, as in stabilityai/stable-diffusion-xl-base-1.0"
        ))
    })
}

/// Runs the command.
pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let name = parse(&args.name)?;
    let want = FetchOptions {
        purpose: Purpose::Any,
        precision: args.precision.unwrap_or_else(default_precision),
        variant: args.variant.clone(),
        replaced: Vec::new(),
    };
    let bars = Bars::new();
    let found = hub().pull(&name, &want, &|event| bars.show(event))?;
    if args.json {
        let object = serde_json::json!({
            "name": found.name.to_string(),
            "path": found.path.to_string_lossy(),
            "variant": found.variant,
        });
        out!("{object}");
    } else {
        out!("{}", found.path.display());
    }
    Ok(())
}
