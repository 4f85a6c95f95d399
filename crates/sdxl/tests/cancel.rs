//! A cancelled token ends networks and loading, and leaves nothing incomplete behind; rows of one
//! batch may have timesteps of their own.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sdxl::files::read_json;
use sdxl::memory::rehearsal;
use sdxl::model::unet::{UNet, UNetConditioning};
use sdxl::model::vae::Vae;
use sdxl::prompt::Prompt;
use sdxl::tensor::Tensor;
use sdxl::text::{TextEncoders, TextInput, TextOptions};
use sdxl::weights::Loader;
use sdxl::weights::OpenOptions;
use sdxl::weights::lora::Lora;
use sdxl::{Cancel, Cancelled, OrCancelled};
use sdxl::{Checkpoint, Error, Part, Pipeline, Precision, PromptSyntax, Request};
use sdxl_testing::{Golden, assert_close, demo, golden};
use serde_json::Value;
use support::{GoldenTensors, latents_of};

fn base() -> Checkpoint {
    Checkpoint::open(&golden("base"), None).unwrap()
}

fn unet(root: &Path, precision: Precision) -> sdxl::Result<UNet> {
    let checkpoint = Checkpoint::open(root, None)?;
    let tensors = checkpoint.tensors(Part::UNet)?;
    let loader = Loader::new(&tensors, precision);
    UNet::load(
        &checkpoint.unet,
        &checkpoint.config_path(Part::UNet),
        &loader,
    )
}

fn vae(precision: Precision) -> Vae {
    let checkpoint = base();
    let tensors = checkpoint.tensors(Part::Vae).unwrap();
    Vae::load(&checkpoint.vae, &Loader::new(&tensors, precision)).unwrap()
}

/// Runs `work` with a token that another thread cancels after `wait`.
fn cancelled_after<R>(wait: Duration, work: impl FnOnce() -> R) -> R {
    let token = Cancel::new();
    let other = token.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(wait);
        other.cancel();
    });
    let made = token.run(work);
    thread.join().unwrap();
    made
}

/// Makes `network` compute again and again until another thread cancels it, at several moments: it
/// ends, and what it has given by then is `expected`, whole.
fn ends_and_is_whole(what: &str, expected: &[f32], network: &dyn Fn() -> OrCancelled<Tensor>) {
    for wait in 0..12 {
        let ended = cancelled_after(Duration::from_micros(700 * wait), || -> OrCancelled<()> {
            loop {
                let made = network()?.to_f32_vec();
                assert!(made == expected, "{what} gave something incomplete");
            }
        });
        assert_eq!(ended, Err(Cancelled), "{what}");
    }
    // Without the token it goes on as before.
    assert!(network().unwrap().to_f32_vec() == expected, "{what}");
}

#[test]
fn networks_end_at_any_moment_and_give_nothing_incomplete() {
    let expected = Golden::open("modules/unet_base.8x12.safetensors");
    let conditioning = UNetConditioning {
        context: expected.plain("encoder_hidden_states"),
        pooled: expected.plain("text_embeds"),
        time_ids: expected.plain("time_ids"),
    };
    let sample = expected.channel_last("sample");
    for precision in [Precision::F32, Precision::Bf16] {
        let unet = unet(&golden("base"), precision).unwrap();
        let run = || unet.forward(&sample, 500.0, &conditioning);
        let whole = run().unwrap().to_f32_vec();
        ends_and_is_whole(&format!("UNet, {precision}"), &whole, &run);
    }

    let vae = vae(Precision::F32);
    let pattern = |shape: [usize; 4]| {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|i| (i % 97) as f32 / 48.0 - 1.0);
        Tensor::from_f32(shape, values.collect())
    };
    let (latents, picture) = (pattern([1, 24, 16, 4]), pattern([1, 192, 128, 3]));
    let runs: [(&str, &dyn Fn() -> OrCancelled<Tensor>); 4] = [
        ("decoding", &|| vae.decode(&latents)),
        ("decoding by tiles", &|| vae.decode_tiled(&latents, 8)),
        ("encoding", &|| vae.encode(&picture)),
        ("encoding by tiles", &|| vae.encode_tiled(&picture, 8)),
    ];
    for (what, run) in runs {
        let whole = run().unwrap().to_f32_vec();
        ends_and_is_whole(what, &whole, run);
    }
}

#[test]
fn a_unet_goes_no_further_than_the_block_it_is_in() {
    let expected = Golden::open("modules/unet_base.8x12.safetensors");
    let conditioning = UNetConditioning {
        context: expected.plain("encoder_hidden_states"),
        pooled: expected.plain("text_embeds"),
        time_ids: expected.plain("time_ids"),
    };
    let unet = unet(&golden("base"), Precision::F32).unwrap();
    let token = Cancel::new();
    let mut seen: Vec<String> = Vec::new();
    let made = token.run(|| {
        let sample = expected.channel_last("sample");
        unet.forward_observed(&sample, 500.0, &conditioning, &mut |name, _| {
            seen.push(name.to_string());
            if name == "down_blocks.0" {
                let token = token.clone();
                std::thread::spawn(move || token.cancel()).join().unwrap();
            }
        })
    });
    assert!(matches!(made, Err(Cancelled)));
    assert_eq!(seen, ["emb", "conv_in", "down_blocks.0"]);
}

#[test]
fn loading_ends_and_leaves_nothing_incomplete() {
    for wait in 0..6 {
        let wait = Duration::from_millis(wait);
        let ended = cancelled_after(wait, || -> sdxl::Result<()> {
            loop {
                unet(&golden("base"), Precision::Bf16)?;
            }
        });
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }
    // What a LoRA adds is a product, which a raised flag cuts short: no layer may be kept of one.
    let options = OpenOptions {
        loras: vec![Lora::new(golden("lora/kohya.safetensors"), 0.7)],
        ..OpenOptions::default()
    };
    let open = || Checkpoint::open_with(&golden("base"), &options).unwrap();
    let load = |checkpoint: &Checkpoint| {
        Pipeline::open(checkpoint.clone())
            .precision(Precision::F32)
            .load()
    };
    let checkpoint = open();
    for wait in 0..6 {
        let ended = cancelled_after(Duration::from_millis(wait), || -> sdxl::Result<()> {
            loop {
                load(&checkpoint)?;
            }
        });
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }
    let (after, fresh) = (load(&checkpoint).unwrap(), load(&open()).unwrap());
    assert!(latents_of(&after) == latents_of(&fresh));
}

#[test]
fn a_cancelled_prompt_is_not_remembered() {
    let file: Value = read_json(&golden("conditioning/cases.json")).unwrap();
    let expected = Golden::open("conditioning/states.safetensors");
    let request = Request {
        truncate_long_prompts: Some(false),
        ..Request::default()
    };
    let options = TextOptions::of(&request);
    let text = TextEncoders::load(&base().text_parts(), Precision::F32, false).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let cases = cases.iter().filter(|case| case.get("inversion").is_none());
    let mut stopped = 0;
    for (i, case) in cases.take(30).enumerate() {
        let raw = case["prompt"].as_str().unwrap();
        let resolved = Prompt::parse(raw, PromptSyntax::Compel).unwrap().at(0, 1);
        let input = TextInput {
            raw,
            parts: &resolved.parts,
        };
        let encode = || text.encode(input, input, &options, &mut |_| {});
        // The first at once, the others at some moment or not in time.
        let wait = Duration::from_micros(150 * i as u64);
        let first = if i == 0 {
            let token = Cancel::new();
            token.cancel();
            token.run(encode)
        } else {
            cancelled_after(wait, encode)
        };
        if let Err(error) = &first {
            assert!(matches!(error, Error::Cancelled), "{error}");
            stopped += 1;
        }
        let again = encode().unwrap();
        let states = expected.flat(case["whole"].as_str().unwrap());
        let pooled = expected.flat(case["pooled"].as_str().unwrap());
        assert_close(raw, &again.context, &states, 1e-5);
        assert_close(raw, &again.pooled, &pooled, 1e-5);
    }
    assert!(stopped > 0);
}

#[test]
fn a_rehearsal_counts_to_its_end() {
    let counts = rehearsal::vae(&base(), Precision::F32, false).unwrap();
    let token = Cancel::new();
    token.cancel();
    let cancelled = token.run(|| counts.decode(1, [16, 16]));
    assert_eq!(cancelled, counts.decode(1, [16, 16]));
}

#[test]
fn rows_have_their_own_timesteps_and_the_numbers_of_a_row_alone() {
    for root in [golden("base"), demo("base")] {
        for precision in [Precision::F32, Precision::Bf16] {
            let unet = unet(&root, precision).unwrap();
            let config = unet.config();
            let pattern = |shape: Vec<usize>, step: usize| {
                let count: usize = shape.iter().product();
                let values = (0..count).map(|i| ((step * i) % 101) as f32 / 50.0 - 1.0);
                Tensor::from_f32(shape, values.collect())
            };
            let timesteps = [999.0, 500.5, 1.0];
            let rows = timesteps.len();
            let ids = [96.0, 96.0, 0.0, 0.0, 96.0, 96.0];
            let width = config.projection_class_embeddings_input_dim
                - ids.len() * config.addition_time_embed_dim;
            let x = pattern(vec![rows, 12, 12, config.in_channels], 7);
            let pooled = pattern(vec![rows, width], 5);
            let ids = Tensor::from_f32(vec![rows, ids.len()], ids.repeat(rows));
            let texts: Vec<_> = (0..rows)
                .map(|row| pattern(vec![77, config.cross_attention_dim], 3 + row))
                .map(|text| Arc::new(unet.text_keys(&text).unwrap()))
                .collect();
            let run = |timesteps: &[f64], first: usize| {
                let count = timesteps.len();
                let part = |all: &Tensor| all.narrow_batch(first, count);
                let texts = &texts[first..first + count];
                let made =
                    unet.forward_with(&part(&x), timesteps, texts, &part(&pooled), &part(&ids));
                made.unwrap().to_f32_vec()
            };
            let together = run(&timesteps, 0);
            let alone: Vec<f32> = (0..rows)
                .flat_map(|row| run(&timesteps[row..row + 1], row))
                .collect();
            let what = format!("{} {precision}", root.display());
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(&together) == bits(&alone), "{what}");
            // The timesteps matter, each for its row.
            let others = run(&[999.0, 20.0, 1.0], 0);
            let size = together.len() / rows;
            let same = |row: usize| {
                let row = row * size..(row + 1) * size;
                together[row.clone()] == others[row]
            };
            assert_eq!([same(0), same(1), same(2)], [true, false, true], "{what}");
        }
    }
}
