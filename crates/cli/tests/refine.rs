//! Refiners, input pictures, masks and second passes as a user meets them: the binary is
//! run on the tiny checkpoints.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use sdxl_testing::{golden, read_png};
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn picture(name: &str) -> String {
    golden(&format!("refined/{name}.png"))
        .to_str()
        .unwrap()
        .into()
}

/// Runs `generate` in `f32` with the checkpoint `model`.
fn generate_with(model: &str, folder: &Path, args: &[&str]) -> Output {
    let model = golden(model);
    let mut all = vec!["generate", "--model", model.to_str().unwrap()];
    all.extend(["--precision", "f32", "--seed", "7"]);
    all.extend(args);
    sdxl(folder, &all)
}

fn generate(folder: &Path, args: &[&str]) -> Output {
    generate_with("base", folder, args)
}

fn made(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The run must be refused before any work, with every one of `words`.
fn refused(output: &Output, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(!said.contains("step 1/"), "refused only after work: {said}");
    for word in words {
        assert!(said.contains(word), "`{word}` not in: {said}");
    }
}

/// Width, height and RGB bytes.
fn shown(folder: &Path, file: &str) -> Value {
    let output = sdxl(folder, &["show", file, "--json"]);
    made(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn base_and_refiner_share_a_run_and_the_recipe_repeats_it() {
    let dir = TempDir::new().unwrap();
    let refiner = golden("refiner");
    let args = ["a cat", "--refiner", refiner.to_str().unwrap()];
    let run = |more: &[&str]| generate(dir.path(), &[&args, more].concat());
    let output = run(&["--steps", "5", "--output", "a.png"]);
    made(&output);
    assert!(text(&output.stderr).contains("step 5/5"));
    let shown = shown(dir.path(), "a.png");
    let parameters = shown["parameters"].as_str().unwrap();
    assert!(
        parameters.contains("Refiner: refiner, Refiner switch at: 0.8"),
        "{parameters}"
    );
    let files = shown["recipe"]["refiner"]["files"].as_array().unwrap();
    assert!(
        files
            .iter()
            .any(|f| f["name"].as_str().unwrap().starts_with("unet/"))
    );

    let again = ["generate", "--recipe", "a.png", "--output", "b.png"];
    made(&sdxl(dir.path(), &again));
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png"));

    // A way to hand over that is typed stands in place of the recipe's.
    let other = [
        &again[..3],
        &["--refiner-strength", "0.5", "--output", "c.png"],
    ]
    .concat();
    let output = sdxl(dir.path(), &other);
    made(&output);
    assert!(text(&output.stderr).contains("step 7/7"));
}

#[test]
fn two_programs_hand_over_as_one_does() {
    let dir = TempDir::new().unwrap();
    let refiner = golden("refiner");
    let together = [
        "--refiner",
        refiner.to_str().unwrap(),
        "--denoising-fraction",
        "0.6",
    ];
    let common = ["a cat", "--steps", "5"];
    let run = |model: &str, more: &[&str]| {
        let output = generate_with(model, dir.path(), &[&common, more].concat());
        made(&output);
    };
    let latents = |name| ["--output-latents", name, "--output", "pictures"];
    run(
        "base",
        &[&together[..], &latents("one.safetensors")].concat(),
    );
    run(
        "base",
        &[
            &["--denoising-end", "0.6"][..],
            &latents("half.safetensors"),
        ]
        .concat(),
    );
    let half = ["--latents", "half.safetensors", "--denoising-start", "0.6"];
    run(
        "refiner",
        &[&half[..], &latents("two.safetensors")].concat(),
    );
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("one.safetensors") == bytes("two.safetensors"));
    assert!(bytes("one.safetensors") != bytes("half.safetensors"));
}

#[test]
fn a_recipe_holds_on_to_its_input_picture() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("in.png");
    fs::copy(picture("wide"), &file).unwrap();
    let args = [
        "a cat",
        "--steps",
        "4",
        "--init-image",
        "in.png",
        "--strength",
        "0.5",
    ];
    made(&generate(
        dir.path(),
        &[&args[..], &["--output", "a.png"]].concat(),
    ));
    assert_eq!(read_png(&dir.path().join("a.png")).0, 80);
    let again = ["generate", "--recipe", "a.png"];
    made(&sdxl(
        dir.path(),
        &[&again[..], &["--output", "b.png"]].concat(),
    ));
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png"));

    fs::copy(picture("square"), &file).unwrap();
    refused(
        &sdxl(dir.path(), &again),
        &["in.png", "SHA-256", "--init-image"],
    );
    // Given on purpose, it is taken and said.
    let named = ["--init-image", "in.png", "--output", "c.png"];
    let output = sdxl(dir.path(), &[&again[..], &named].concat());
    made(&output);
    assert!(text(&output.stderr).contains("not the init_image"));

    fs::remove_file(&file).unwrap();
    refused(&sdxl(dir.path(), &again), &["in.png", "no such file"]);
}

#[test]
fn pixels_outside_the_mask_come_back() {
    let dir = TempDir::new().unwrap();
    let (image, mask) = (picture("large"), picture("large_mask"));
    let common = [
        "a cat",
        "--steps",
        "3",
        "--init-image",
        &image,
        "--mask",
        &mask,
    ];
    let (_, _, before) = read_png(Path::new(&image));
    // A mask is grey: one byte a pixel.
    let (_, _, masked) = read_png(Path::new(&mask));
    for model in ["base", "inpaint"] {
        for (name, more) in [
            ("kept.png", &["--keep-unmasked"][..]),
            ("crop.png", &["--mask-crop-padding", "4"]),
        ] {
            let output = ["--overwrite", "--output", name];
            made(&generate_with(
                model,
                dir.path(),
                &[&common, more, &output].concat(),
            ));
            let (width, height, after) = read_png(&dir.path().join(name));
            assert_eq!((width, height), (96, 80), "{model} {name}");
            let mut new = 0;
            for (i, white) in masked.iter().enumerate() {
                let same = before[3 * i..3 * i + 3] == after[3 * i..3 * i + 3];
                assert!(*white != 0 || same, "{model} {name}: pixel {i}");
                new += usize::from(!same);
            }
            assert!(new > 500, "{model} {name}: {new}");
        }
    }
}

#[test]
fn painting_beyond_the_border_and_a_larger_second_pass() {
    let dir = TempDir::new().unwrap();
    let image = picture("wide");
    let extend = [
        "--init-image",
        &image,
        "--extend",
        "left=16,top=8",
        "--keep-unmasked",
    ];
    let common = ["a cat", "--steps", "3"];
    made(&generate(
        dir.path(),
        &[&common, &extend[..], &["--output", "a.png"]].concat(),
    ));
    let (width, height, after) = read_png(&dir.path().join("a.png"));
    assert_eq!((width, height), (96, 56));
    let (_, _, before) = read_png(Path::new(&image));
    for y in 0..48 {
        let (old, new) = (y * 80 * 3, ((y + 8) * 96 + 16) * 3);
        assert!(before[old..old + 240] == after[new..new + 240], "row {y}");
    }

    let upscale = [
        "--upscale",
        "1.5",
        "--upscale-strength",
        "0.7",
        "--output",
        "b.png",
    ];
    let output = generate(dir.path(), &[&common[..], &upscale].concat());
    made(&output);
    assert!(text(&output.stderr).contains("step 5/5"));
    assert_eq!(read_png(&dir.path().join("b.png")).0, 96);
}

#[test]
fn what_cannot_be_done_is_refused_before_any_work() {
    let dir = TempDir::new().unwrap();
    let (base, refiner) = (golden("base"), golden("refiner"));
    let (base, refiner) = (base.to_str().unwrap(), refiner.to_str().unwrap());
    let (square, wide_mask) = (picture("square"), picture("wide_mask"));
    fs::write(dir.path().join("text.png"), "no picture").unwrap();
    // The header of a picture of 100000 x 100000 pixels.
    let mut header = b"BM".to_vec();
    for word in [54u32, 0, 54, 40, 100_000, 100_000, 24 << 16 | 1] {
        header.extend(word.to_le_bytes());
    }
    header.extend([0; 24]);
    fs::write(dir.path().join("huge.bmp"), header).unwrap();
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("refiner", &[], &["refiner", "--init-image"]),
        (
            "refiner",
            &["--refiner", refiner],
            &["refiner", "base checkpoint"],
        ),
        ("base", &["--refiner", base], &["base", "not a refiner"]),
        ("base", &["--refiner", "nowhere"], &["nowhere"]),
        (
            "base",
            &["--denoising-fraction", "0.8"],
            &["denoising_fraction", "--refiner"],
        ),
        (
            "base",
            &["--refiner", refiner, "--denoising-fraction", "1.2"],
            &["denoising_fraction", "1.2"],
        ),
        (
            "base",
            &["--refiner", refiner, "--denoising-fraction", "-0.1"],
            &["denoising_fraction", "-0.1"],
        ),
        (
            "base",
            &[
                "--refiner",
                refiner,
                "--denoising-fraction",
                "0.5",
                "--refiner-strength",
                "0.3",
            ],
            &["refiner_strength", "denoising_fraction"],
        ),
        (
            "base",
            &["--denoising-start", "0.5"],
            &["denoising_start", "--latents"],
        ),
        (
            "base",
            &["--strength", "0.5"],
            &["strength", "--init-image"],
        ),
        (
            "base",
            &["--init-image", &square, "--strength", "0.2", "--steps", "4"],
            &["strength 0.2", "4 steps"],
        ),
        (
            "base",
            &["--init-image", &square, "--strength", "1.5"],
            &["strength", "1.5"],
        ),
        (
            "base",
            &["--init-image", &square, "--mask", &wide_mask],
            &["mask", "80x48", "64x64"],
        ),
        ("base", &["--mask", &wide_mask], &["mask", "--init-image"]),
        (
            "base",
            &["--init-image", "text.png"],
            &["text.png", "no picture"],
        ),
        (
            "base",
            &["--init-image", "none.png"],
            &["none.png", "no such file"],
        ),
        (
            "base",
            &["--init-image", "huge.bmp"],
            &["huge.bmp", "too large"],
        ),
        (
            "base",
            &["--init-image", &square, "--mask", "huge.bmp"],
            &["huge.bmp", "too large"],
        ),
        (
            "inpaint",
            &["--init-image", &square],
            &["inpainting model", "--mask"],
        ),
        ("inpaint", &[], &["inpainting model", "--mask"]),
        ("base", &["--extend", "left=8"], &["extend", "--init-image"]),
        ("base", &["--extend", "middle=8"], &["middle=8"]),
        ("base", &["--upscale", "0.5"], &["upscale", "0.5"]),
        (
            "base",
            &["--guidance-interval", "0.8,0.2"],
            &["guidance_interval", "0.8,0.2"],
        ),
    ];
    for (model, args, words) in cases {
        let output = generate_with(model, dir.path(), &[&["a cat"], *args].concat());
        refused(&output, words);
    }
}

#[test]
fn latents_of_another_scale_are_not_handed_over() {
    let dir = TempDir::new().unwrap();
    let refiner = dir.path().join("refiner");
    for folder in [
        "scheduler",
        "text_encoder_2",
        "tokenizer_2",
        "unet",
        "vae",
        "",
    ] {
        fs::create_dir_all(refiner.join(folder)).unwrap();
        for entry in fs::read_dir(golden("refiner").join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                fs::copy(entry.path(), refiner.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    let config = refiner.join("vae/config.json");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("0.13025", "0.18215");
    fs::write(&config, changed).unwrap();
    let output = generate(dir.path(), &["a cat", "--refiner", "refiner"]);
    refused(&output, &["scaling_factor", "refiner/vae/config.json"]);
}
