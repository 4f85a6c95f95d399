//! The models of a command, opened as its flags say.

use std::path::Path;

use sdxl::{Recipe, Request};
use sdxl_kit::{FetchPolicy, ModelOptions, Session};

use crate::args::ModelArgs;
use crate::pulling::Bars;

/// A line for whoever named no checkpoint.
const DEMO_NOTICE: &str = "model: the built-in demo, which draws simple scenes at 96x96; for real pictures add --model \
     stabilityai/stable-diffusion-xl-base-1.0 (fetched once: 7 GB, or 14 for f32), or --model DIR, an SDXL \
     checkpoint's folder";

/// Opens what was typed, and else what the recipe beside it says; with `fetch`, what is on a hub
/// only is fetched. `requests` are all that will be run, whose prompts may ask for LoRAs.
pub(crate) fn open(
    args: &ModelArgs,
    refiner: Option<&Path>,
    replayed: Option<&Recipe>,
    requests: &[&Request],
    fetch: bool,
) -> sdxl_kit::Result<Session> {
    let typed = ModelOptions {
        model: args.model.clone(),
        variant: args.variant.clone(),
        precision: args.precision,
        device: args.device,
        vae: args.vae.clone(),
        unet: args.unet.clone(),
        loras: args.lora.clone(),
        named_loras: Vec::new(),
        lora_dir: args.lora_dir.clone(),
        embeddings: args.embedding.clone(),
        refiner: refiner.map(Path::to_path_buf),
        offload: args.offload,
    };
    let options = match replayed {
        Some(was) => typed.or_recipe(was),
        None => typed,
    };
    let bars = Bars::new();
    let show = |event: sdxl::hub::DownloadEvent<'_>| bars.show(event);
    let fetch = match fetch {
        true => FetchPolicy::Missing(&show),
        false => FetchPolicy::Never,
    };
    Session::open(&options, requests, fetch)
}

/// A line for whoever named no checkpoint.
pub(crate) fn notice(session: &Session) -> Option<&'static str> {
    session.model_is_default().then_some(DEMO_NOTICE)
}
