//! Whole runs against `StableDiffusionXLPipeline`: noise within 2e-6, final latents
//! within a relative L2 of 1e-4, pictures within one level of 255.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::noise::NoiseSource;
use sdxl::{Inputs, Latents, Pipeline, Precision, PromptSyntax, Request};
use sdxl_testing::{Golden, assert_close, copy_folder, golden, psnr};
use serde_json::{Map, Value, json};
use support::{GoldenTensors, generate};
use tempfile::TempDir;

const BAR: f64 = 1e-4;
const NOISE_BAR: f32 = 2e-6;

fn load(root: &Path, variant: Option<&str>) -> Pipeline {
    let opening = Pipeline::open(root).precision(Precision::F32);
    let opening = match variant {
        Some(variant) => opening.variant(variant),
        None => opening,
    };
    opening.load().unwrap()
}

/// A request as `runs.json` writes it: lists may be single values, sizes are pairs.
fn request_of(run: &Value) -> Request {
    let mut fields: Map<String, Value> = run["request"].as_object().unwrap().clone();
    fields.remove("latents");
    // Compared with diffusers, which reads prompts as they stand.
    fields
        .entry("prompt_syntax")
        .or_insert_with(|| json!("plain"));
    for (key, value) in &mut fields {
        let list = [
            "prompt",
            "negative_prompt",
            "prompt_2",
            "negative_prompt_2",
            "seed",
        ];
        if list.contains(&key.as_str()) && !value.is_array() {
            *value = json!([value.clone()]);
        }
        if key.ends_with("_size") {
            *value = json!(format!("{}x{}", value[0], value[1]));
        }
    }
    serde_json::from_value(Value::Object(fields)).unwrap()
}

fn latents(expected: &Golden, name: &str) -> Latents {
    let shape = expected.shape(name);
    let [n, c, h, w] = shape[..] else {
        panic!("{name} {shape:?}");
    };
    Latents::from_nchw([n, h, w, c], &expected.flat(name))
}

fn check(pipeline: &Pipeline, run: &Value) {
    let name = run["name"].as_str().unwrap();
    let request = request_of(run);
    let expected = Golden::open(&format!("runs/{name}.safetensors"));
    let start = expected
        .has("initial_latents")
        .then(|| latents(&expected, "initial_latents"));
    assert_eq!(start.is_some(), run["request"].get("latents").is_some());
    if start.is_none() {
        let noise = latents(&expected, "noise");
        let mut source = NoiseSource::new(request.rng, &request.seed).unwrap();
        let ours = source.draw(noise.shape()).unwrap();
        for (a, b) in ours.data().iter().zip(noise.data()) {
            assert!((a - b).abs() <= NOISE_BAR, "{name}: noise {a} for {b}");
        }
    }
    let mut evaluations = 0;
    let inputs = Inputs {
        latents: start,
        ..Inputs::default()
    };
    let output = (pipeline.prepare(&request, inputs))
        .and_then(|run| {
            run.start(&mut |event| {
                if let sdxl::Event::Step(step) = event {
                    evaluations = step.total;
                }
                ControlFlow::Continue(())
            })
        })
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(evaluations, expected.shape("timesteps")[0], "{name}");
    let reference = latents(&expected, "latents");
    assert_eq!(output.latents.shape(), reference.shape(), "{name}");
    assert_close(name, output.latents.data(), reference.data(), BAR);
    assert_eq!(output.images.len(), reference.batch(), "{name}");
    if expected.has("image") {
        let reference = expected.channel_last("image").to_f32_vec();
        let ours = output.images.iter().flat_map(|i| i.pixels.data.iter());
        for (ours, reference) in ours.zip(reference) {
            let level = (255.0 * reference).round_ties_even();
            assert!(
                (f32::from(*ours) - level).abs() <= 1.0,
                "{name}: {ours} for {level}"
            );
        }
    }
}

fn runs() -> Vec<Value> {
    let file: Value = read_json(&golden("runs/runs.json")).unwrap();
    file["runs"].as_array().unwrap().clone()
}

fn run_named(name: &str) -> Value {
    runs().into_iter().find(|r| r["name"] == name).unwrap()
}

#[test]
fn runs_of_the_reference() {
    let pipeline = load(&golden("base"), None);
    let plain: Vec<Value> = (runs().into_iter())
        .filter(|r| r.get("weights").is_none())
        .collect();
    assert!(plain.len() > 80);
    for run in plain {
        check(&pipeline, &run);
    }
}

#[test]
fn every_scheduler_has_a_picture_of_the_reference() {
    for info in sdxl::scheduler::all() {
        let run = run_named(&format!("class_{}", info.class));
        assert_eq!(run["request"]["scheduler"], info.class);
        let expected = Golden::open(&format!("runs/class_{}.safetensors", info.class));
        assert!(expected.has("image"), "{}", info.class);
    }
}

/// Rewrites a safetensors file with every tensor turned into `dtype` by `convert`.
fn rewrite(from: &Path, to: &Path, dtype: Dtype, convert: impl Fn(f32) -> [u8; 2]) {
    let bytes = fs::read(from).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            let values = tensor.data().as_chunks::<4>().0.iter();
            let data = values
                .flat_map(|b| convert(f32::from_le_bytes(*b)))
                .collect();
            (name.to_string(), tensor.shape().to_vec(), data)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(n, s, d)| (n.as_str(), TensorView::new(dtype, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None, to).unwrap();
}

const WEIGHTS: &str = "diffusion_pytorch_model";

/// A checkpoint that has nothing but rounded weights, under variant names.
fn variant_copy(variant: &str, dtype: Dtype, convert: impl Fn(f32) -> [u8; 2] + Copy) -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_folder(&golden("base"), dir.path());
    for part in ["unet", "vae"] {
        let folder = dir.path().join(part);
        let plain = folder.join(format!("{WEIGHTS}.safetensors"));
        let named = folder.join(format!("{WEIGHTS}.{variant}.safetensors"));
        rewrite(&plain, &named, dtype, convert);
        fs::remove_file(plain).unwrap();
    }
    for part in ["text_encoder", "text_encoder_2"] {
        let folder = dir.path().join(part);
        let named = folder.join(format!("model.{variant}.safetensors"));
        fs::rename(folder.join("model.safetensors"), named).unwrap();
    }
    dir
}

#[test]
fn half_precision_variant_files() {
    let dir = variant_copy("fp16", Dtype::F16, |v| f16::from_f32(v).to_le_bytes());
    let run = run_named("f16_weights");
    check(&load(dir.path(), Some("fp16")), &run);
    // The only files there are serve without being asked for by name too.
    check(&load(dir.path(), None), &run);

    let dir = variant_copy("bf16", Dtype::BF16, |v| bf16::from_f32(v).to_le_bytes());
    check(&load(dir.path(), Some("bf16")), &run_named("bf16_weights"));
}

#[test]
fn sharded_files() {
    let dir = TempDir::new().unwrap();
    copy_folder(&golden("base"), dir.path());
    let folder = dir.path().join("unet");
    let whole = folder.join(format!("{WEIGHTS}.safetensors"));
    let bytes = fs::read(&whole).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = Map::new();
    let mut names: Vec<&str> = file.names();
    names.sort_unstable();
    let shards: Vec<&[&str]> = names.chunks(names.len() / 2 + 1).collect();
    assert_eq!(shards.len(), 2);
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("{WEIGHTS}-0000{}-of-00002.safetensors", i + 1);
        let views = shard.iter().map(|n| (*n, file.tensor(n).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join(&name)).unwrap();
        map.extend(shard.iter().map(|n| (n.to_string(), json!(name))));
    }
    fs::remove_file(whole).unwrap();
    let index = folder.join(format!("{WEIGHTS}.safetensors.index.json"));
    fs::write(index, json!({ "weight_map": map }).to_string()).unwrap();
    check(&load(dir.path(), None), &run_named("default"));

    fs::remove_file(folder.join(format!("{WEIGHTS}-00002-of-00002.safetensors"))).unwrap();
    let Err(error) = Pipeline::open(dir.path()).load() else {
        panic!("loaded without its second shard");
    };
    assert!(error.to_string().contains("00002-of-00002"), "{error}");
}

#[test]
fn reduced_precision_stays_near_full() {
    let request = request_of(&run_named("default"));
    let picture = |precision| {
        let output = generate(&support::load(golden("base"), precision), &request);
        output.images[0].pixels.data.clone()
    };
    let full = picture(Precision::F32);
    let (half, brain) = (picture(Precision::F16), picture(Precision::Bf16));
    println!(
        "PSNR against f32: f16 {:.1} dB, bf16 {:.1} dB",
        psnr(&half, &full),
        psnr(&brain, &full)
    );
    // Rounded weights are not the same weights: neither may be exact.
    assert!(half != full && brain != full);
    assert!(psnr(&half, &full) > 50.0);
    assert!(psnr(&brain, &full) > 30.0);
}

#[test]
fn results_do_not_depend_on_threads_or_company() {
    let pipeline = load(&golden("base"), None);
    let run = |threads: usize, request: &Request| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| generate(&pipeline, request))
    };
    let request = Request {
        steps: 3,
        ..request_of(&run_named("seeds"))
    };
    let (one, three) = (run(1, &request), run(3, &request));
    assert_eq!(one.latents.data(), three.latents.data());
    assert_eq!(one.images, three.images);
    // A picture with its own seed is the same alone as in a batch.
    let alone = Request {
        seed: vec![request.seed[1]],
        num_images: 1,
        ..request.clone()
    };
    assert_eq!(
        run(2, &alone).images[0].pixels.data,
        one.images[1].pixels.data
    );
}

#[test]
fn an_observer_can_stop_a_run() {
    let pipeline = load(&golden("base"), None);
    let mut seen = 0;
    let stopped = pipeline.generate(
        &request_of(&run_named("default")),
        &mut |event| match event {
            sdxl::Event::Step(step) => {
                seen = step.index;
                if seen == 2 {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stopped, Err(sdxl::Error::Cancelled)));
    assert_eq!(seen, 2);
}

#[test]
fn finished_pictures_are_told_of_as_they_come() {
    let pipeline = load(&golden("base"), None);
    let request = Request {
        num_images: 3,
        steps: 1,
        seed: vec![1, 2, 3],
        vae_slicing: true,
        ..request_of(&run_named("default"))
    };
    let (mut told, mut seen) = (String::new(), Vec::new());
    let made = pipeline.generate(&request, &mut |event| {
        match event {
            sdxl::Event::Decoding { index, .. } => told += &format!("decoding {index}, "),
            sdxl::Event::Picture(made) => {
                told += &format!("picture {}, ", made.index);
                seen.push((made.picture.seed, made.picture.pixels.data.clone()));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(
        told,
        "decoding 1, picture 1, decoding 2, picture 2, decoding 3, picture 3, "
    );
    let made = made.unwrap().images.into_iter();
    assert!(seen == made.map(|p| (p.seed, p.pixels.data)).collect::<Vec<_>>());
    // And it can be stopped there.
    let stopped = pipeline.generate(&request, &mut |event| match event {
        sdxl::Event::Picture(made) if made.index == 2 => ControlFlow::Break(()),
        sdxl::Event::Decoding { index: 3, .. } => panic!("it goes on"),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(sdxl::Error::Cancelled)));
}

#[test]
fn a_long_prompt_warns_with_what_was_cut() {
    let pipeline = load(&golden("base"), None);
    let request = Request {
        prompt: vec![format!("{} zebra", "cat ".repeat(75))],
        prompt_syntax: PromptSyntax::Plain,
        steps: 1,
        seed: vec![1],
        ..Request::default()
    };
    let run = pipeline.prepare(&request, Inputs::default()).unwrap();
    let warnings = run.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].message.contains("zebra") && !warnings[0].message.contains("cat"));
}
