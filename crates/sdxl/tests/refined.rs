//! Runs from pictures and with a refiner against diffusers' image-to-image, inpainting and
//! base pipelines: final latents within a relative L2 of 1e-4.

mod support;

use sdxl::files::read_json;
use sdxl::image::{mask, resize};
use sdxl::{Checkpoint, Latents, Offload, Pipeline, Pixels, Precision, Request, ResizeMode};
use sdxl_testing::{Golden, golden, relative_l2};
use serde_json::{Map, Value, json};
use support::generate;

const BAR: f64 = 1e-4;

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&golden(name), None).unwrap()
}

fn load(name: &str) -> Pipeline {
    support::load(open(name), Precision::F32)
}

/// The base with the refiner.
fn load_both(offload: Offload) -> Pipeline {
    let both = Pipeline::open(open("base")).refiner(open("refiner"));
    both.precision(Precision::F32)
        .offload(offload)
        .load()
        .unwrap()
}

fn picture_path(name: &str) -> String {
    golden(&format!("refined/{name}.png"))
        .to_str()
        .unwrap()
        .into()
}

/// A request as `cases.json` writes it: lists may be single values, sizes are pairs, pictures
/// are names.
fn request_of(case: &Value) -> Request {
    let mut fields: Map<String, Value> = case["request"].as_object().unwrap().clone();
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
        if key == "init_image" || key == "mask" {
            *value = json!(picture_path(value.as_str().unwrap()));
        }
    }
    serde_json::from_value(Value::Object(fields)).unwrap()
}

fn cases(prefix: &str) -> Vec<Value> {
    let file: Value = read_json(&golden("refined/cases.json")).unwrap();
    let mut cases = file["cases"].as_array().unwrap().clone();
    cases.retain(|case| case["name"].as_str().unwrap().starts_with(prefix));
    assert!(!cases.is_empty(), "{prefix}");
    cases
}

/// Runs every case whose name starts so, with the pipeline made for each by `choose`.
fn check<'a>(prefix: &str, choose: impl Fn(&Value) -> &'a Pipeline) {
    let expected = Golden::open("refined/latents.safetensors");
    let mut worst = 0.0f64;
    for case in cases(prefix) {
        let name = case["name"].as_str().unwrap();
        let output = generate(choose(&case), &request_of(&case));
        let shape = expected.shape(&format!("{name}.latents"));
        let [n, c, h, w] = shape[..] else {
            panic!("{name} {shape:?}");
        };
        let flat = expected.flat(&format!("{name}.latents"));
        let reference = Latents::from_nchw([n, h, w, c], &flat);
        assert_eq!(output.latents.shape(), reference.shape(), "{name}");
        let error = relative_l2(name, output.latents.data(), reference.data());
        assert!(error <= BAR, "{name}: relative L2 {error:e} above {BAR:e}");
        worst = worst.max(error);
        let image = format!("{name}.image");
        if expected.has(&image) {
            let reference = expected.bytes(&image);
            let ours: Vec<u8> = output
                .images
                .iter()
                .flat_map(|i| i.pixels.data.clone())
                .collect();
            assert_eq!(ours.len(), reference.len(), "{name}");
            let off = (ours.iter().zip(&reference)).map(|(a, b)| a.abs_diff(*b));
            assert!(off.max() <= Some(1), "{name}: off by more than a level");
        }
    }
    println!("{prefix}: relative L2 of the worst case {worst:.1e}");
}

#[test]
fn image_to_image() {
    let (base, refiner) = (load("base"), load("refiner"));
    check("img2img.", |case| match case["model"].as_str() {
        Some("base") => &base,
        _ => &refiner,
    });
}

#[test]
fn base_and_refiner_together() {
    let both = load_both(Offload::None);
    check("ensemble.", |_| &both);
}

#[test]
fn the_finished_picture_through_the_refiner() {
    let both = load_both(Offload::None);
    check("two_stage.", |_| &both);
}

#[test]
fn inpainting() {
    let (base, inpaint, refiner) = (load("base"), load("inpaint"), load("refiner"));
    check("inpaint", |case| match case["model"].as_str() {
        Some("base") => &base,
        Some("refiner") => &refiner,
        _ => &inpaint,
    });
}

#[test]
fn a_second_pass_at_a_higher_size() {
    let base = load("base");
    let both = load_both(Offload::None);
    check("upscale.", |case| match case["refiner"].as_bool() {
        Some(true) => &both,
        _ => &base,
    });
}

#[test]
fn guidance_that_changes_with_the_steps() {
    let base = load("base");
    let both = load_both(Offload::None);
    check("guidance.", |case| match case["refiner"].as_bool() {
        Some(true) => &both,
        _ => &base,
    });
}

fn read(name: &str, decode: fn(&[u8]) -> Result<Pixels, String>) -> Pixels {
    decode(&std::fs::read(picture_path(name)).unwrap()).unwrap()
}

#[test]
fn pictures_are_resized_as_pillow_does() {
    let odd = read("odd", Pixels::decode_rgb);
    let expected = Golden::open("refined/pixels.safetensors");
    for (name, mode) in [
        ("stretch", ResizeMode::Stretch),
        ("crop", ResizeMode::Crop),
        ("pad", ResizeMode::Pad),
    ] {
        for (width, height) in [(48, 64), (104, 40), (64, 48)] {
            let key = format!("resize.{name}.{width}x{height}");
            let ours = resize::fit(&odd, width, height, mode);
            let reference = expected.bytes(&key);
            let differing = (ours.data.iter().zip(&reference)).filter(|(a, b)| a != b);
            assert_eq!(ours.data.len(), reference.len(), "{key}");
            assert_eq!(differing.count(), 0, "{key}");
        }
    }
}

#[test]
fn masks_are_blurred_and_cropped_as_pillow_and_diffusers_do() {
    let wide = read("wide_mask", Pixels::decode_grey);
    let expected = Golden::open("refined/pixels.safetensors");
    for (name, radius) in [("0.7", 0.7), ("2", 2.0), ("5.5", 5.5)] {
        let key = format!("blur.{name}");
        assert!(
            mask::blur(&wide, radius).data == expected.bytes(&key),
            "{key}"
        );
    }
    for padding in [0, 4, 100] {
        for (width, height) in [(64, 64), (128, 48), (32, 96)] {
            let key = format!("region.{padding}.{width}x{height}");
            let ours = mask::crop_region(&wide, width, height, padding);
            assert_eq!(
                ours.map(|v| v as u64).to_vec(),
                expected.whole(&key),
                "{key}"
            );
        }
    }
}

#[test]
fn sparing_memory_changes_no_number() {
    let request = Request {
        prompt: vec!["a [red:blue:0.5] fox".into()],
        prompt_syntax: sdxl::PromptSyntax::A1111,
        init_image: Some(
            picture_path(
                cases("")
                    .iter()
                    .find_map(|c| c["request"]["init_image"].as_str())
                    .unwrap(),
            )
            .into(),
        ),
        strength: Some(0.8),
        steps: 5,
        seed: vec![1],
        upscale: Some(1.5),
        refiner_strength: Some(0.5),
        ..Default::default()
    };
    let whole = load_both(Offload::None);
    let whole = generate(&whole, &request);
    for offload in [Offload::Model, Offload::Sequential] {
        let sparing = load_both(offload);
        // Twice: the second run finds nothing of the first.
        for _ in 0..2 {
            let again = generate(&sparing, &request);
            assert_eq!(again.latents.data(), whole.latents.data());
            assert_eq!(again.images, whole.images);
        }
    }
}
