//! Every module against the reference, with the tiny checkpoints under `golden/`.
//!
//! Both sides compute in `f32` from the same weights. The bar is a relative L2
//! distance of 1e-5, for each block by itself.

mod support;

use std::path::Path;

use sdxl::files::read_json;
use sdxl::model::unet::{UNet, UNetConditioning};
use sdxl::model::vae::Vae;
use sdxl::tensor::Tensor;
use sdxl::text::clip::ClipTextModel;
use sdxl::text::tokenizer::Tokenizer;
use sdxl::weights::Loader;
use sdxl::weights::TensorSet;
use sdxl::{Checkpoint, Part, Precision};
use sdxl_testing::{Golden, assert_close, golden};
use support::GoldenTensors;

const BAR: f64 = 1e-5;

/// [`assert_close`] for a tensor.
fn close(what: &str, ours: &Tensor, reference: &[f32], bar: f64) {
    assert_close(what, &ours.to_f32_vec(), reference, bar);
}

#[test]
fn token_ids_are_exact() {
    let tokens: serde_json::Value = read_json(&golden("tokens.json")).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        let list = value.as_array().unwrap();
        list.iter().map(|v| v.as_u64().unwrap() as u32).collect()
    };
    for folder in ["tokenizer", "tokenizer_2"] {
        let tokenizer = Tokenizer::open(&golden("base").join(folder)).unwrap();
        let prompts = tokens["prompts"].as_array().unwrap();
        assert!(prompts.len() > 20);
        for case in prompts {
            let prompt = case["prompt"].as_str().unwrap();
            let own = tokenizer.ids(prompt).unwrap();
            assert_eq!(
                tokenizer.sequence(&own),
                ids(&case[folder]["ids"]),
                "{folder}: {prompt:?}"
            );
            let whole = ids(&case[folder]["whole"]);
            let inner = &whole[1..whole.len() - 1];
            assert_eq!(own, inner, "{folder}: {prompt:?}");
        }
    }
}

#[test]
fn text_encoders() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    for part in [Part::TextEncoder, Part::TextEncoder2] {
        let expected = Golden::open(&format!("modules/{}.safetensors", part.folder()));
        let tensors = checkpoint.tensors(part).unwrap();
        let second = part == Part::TextEncoder2;
        let config = if second {
            checkpoint.text_encoder_2.clone()
        } else {
            checkpoint.text_encoder.clone().unwrap()
        };
        let loader = Loader::new(&tensors, Precision::F32);
        let model = ClipTextModel::load(&config, &loader, second).unwrap();
        let ids = expected.ids("input_ids");
        // SDXL's own layer, then those of clip_skip 1 and 2.
        for skip in 1..=3 {
            let output = model.forward(&ids, skip).unwrap();
            // Counted from the end, as the pipeline does: 2 is the penultimate.
            let layer = format!("hidden_states.{}", skip + 1);
            close(&layer, &output.hidden, &expected.flat(&layer), BAR);
            assert_eq!(output.pooled.is_some(), second);
            if let Some(pooled) = output.pooled {
                close("text_embeds", &pooled, &expected.flat("text_embeds"), BAR);
            }
        }
    }
}

fn check_unet(folder: &Path, golden_file: &str) {
    let expected = Golden::open(golden_file);
    let config_path = folder.join("config.json");
    let config: sdxl::model::config::UNetConfig = read_json(&config_path).unwrap();
    config.check(&config_path).unwrap();
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let tensors = TensorSet::open(&[weights]).unwrap();
    let loader = Loader::new(&tensors, Precision::F32);
    let unet = UNet::load(&config, &config_path, &loader).unwrap();
    let conditioning = UNetConditioning {
        context: expected.plain("encoder_hidden_states"),
        pooled: expected.plain("text_embeds"),
        time_ids: expected.plain("time_ids"),
    };
    let mut seen = 0;
    let timestep = f64::from(expected.flat("timestep")[0]);
    let sample = expected.channel_last("sample");
    let out = unet
        .forward_observed(&sample, timestep, &conditioning, &mut |name, tensor| {
            seen += 1;
            let values = expected.channel_last(name).to_f32_vec();
            close(&format!("{golden_file} {name}"), tensor, &values, BAR);
        })
        .unwrap();
    // Each level twice, the first convolution, the embedding, and mostly a middle.
    assert!(seen >= 2 * config.block_out_channels.len() + 2, "{seen}");
    let values = expected.channel_last("out").to_f32_vec();
    close(&format!("{golden_file} out"), &out, &values, BAR);
}

#[test]
fn unet_of_base_and_refiner() {
    for (checkpoint, name) in [("base", "unet_base"), ("refiner", "unet_refiner")] {
        for size in ["8x12", "9x13"] {
            let file = format!("modules/{name}.{size}.safetensors");
            check_unet(&golden(checkpoint).join("unet"), &file);
        }
    }
}

#[test]
fn unet_of_the_smaller_relatives() {
    for name in ["ssd-1b", "vega", "no-mid", "cross-mid"] {
        let file = format!("unets/{name}/golden.safetensors");
        check_unet(&golden("unets").join(name), &file);
    }
}

#[test]
fn vae_both_ways() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let tensors = checkpoint.tensors(Part::Vae).unwrap();
    let vae = Vae::load(&checkpoint.vae, &Loader::new(&tensors, Precision::F32)).unwrap();

    let expected = Golden::open("modules/vae_decode.safetensors");
    let image = vae.decode(&expected.channel_last("latents")).unwrap();
    let values = expected.channel_last("image").to_f32_vec();
    close("decoded image", &image, &values, BAR);

    let expected = Golden::open("modules/vae_decode_tiled.safetensors");
    let latents = expected.channel_last("latents");
    assert!(latents.dim(1) > vae.tile_size() && latents.dim(2) > vae.tile_size());
    let image = vae.decode_tiled(&latents, vae.tile_size()).unwrap();
    let values = expected.channel_last("image").to_f32_vec();
    close("image decoded in tiles", &image, &values, BAR);

    let expected = Golden::open("modules/vae_encode.safetensors");
    let moments = vae
        .encode(&expected.channel_last("image"))
        .unwrap()
        .to_f32_vec();
    let latents = checkpoint.vae.latent_channels;
    for (name, offset) in [("mean", 0), ("logvar", latents)] {
        let values = expected.channel_last(name).to_f32_vec();
        let ours: Vec<f32> = moments
            .chunks_exact(2 * latents)
            .flat_map(|pixel| pixel[offset..offset + latents].to_vec())
            .collect();
        assert_close(name, &ours, &values, BAR);
    }
}
