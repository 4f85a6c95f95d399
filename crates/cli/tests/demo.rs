//! The demo model inside the program, as somebody meets it who has nothing else.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use sdxl_testing::read_png;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

/// The pixels of a picture of the demo's size.
fn pixels(path: &Path) -> Vec<u8> {
    let (width, height, rgb) = read_png(path);
    assert_eq!((width, height), (96, 96));
    rgb
}

fn colour_at(pixels: &[u8], x: usize, y: usize) -> [u8; 3] {
    let i = (y * 96 + x) * 3;
    [pixels[i], pixels[i + 1], pixels[i + 2]]
}

fn weights_in(folder: &Path) -> Vec<PathBuf> {
    [
        "text_encoder/model",
        "text_encoder_2/model",
        "unet/diffusion_pytorch_model",
    ]
    .iter()
    .map(|name| folder.join(format!("{name}.safetensors")))
    .filter(|path| path.is_file())
    .collect()
}

#[test]
fn without_a_checkpoint_the_demo_draws_what_was_asked() {
    let dir = TempDir::new().unwrap();
    let prompt = "a red circle on a blue background";
    let made = sdxl(
        dir.path(),
        &[
            "generate", prompt, "--steps", "12", "--seed", "1", "--output", "a.png",
        ],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said = text(&made.stderr);
    assert!(
        said.contains("built-in demo") && said.contains("--model DIR"),
        "{said}"
    );
    assert_eq!(
        said.matches("built-in demo").count(),
        1,
        "one line, once: {said}"
    );
    let picture = pixels(&dir.path().join("a.png"));
    let [r, g, b] = colour_at(&picture, 4, 4);
    assert!(b > r && b > g, "the corner is {r} {g} {b}, not blue");
    let [r, g, b] = colour_at(&picture, 48, 48);
    assert!(r > g && r > b, "the middle is {r} {g} {b}, not red");

    // The recipe names the model, not a folder of this machine, and can be replayed.
    let shown = sdxl(dir.path(), &["show", "a.png", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["recipe"]["model"], "demo");
    let again = sdxl(
        dir.path(),
        &["generate", "--recipe", "a.png", "--output", "b.png"],
    );
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(pixels(&dir.path().join("b.png")) == picture);
}

#[test]
fn a_cache_that_cannot_be_written_is_no_obstacle() {
    let dir = TempDir::new().unwrap();
    // A file stands where the folder should be.
    fs::write(dir.path().join("cache"), "").unwrap();
    let made = sdxl(
        dir.path(),
        &["generate", "a star", "--steps", "1", "--output", "a.png"],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    pixels(&dir.path().join("a.png"));
}

#[test]
fn the_demo_can_be_exported_and_used_as_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    let done = sdxl(dir.path(), &["models", "export-demo", "out"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(weights_in(&dir.path().join("out/base")).len(), 3);
    assert_eq!(weights_in(&dir.path().join("out/refiner")).len(), 2);
    for folder in ["out/base", "out/refiner", "demo", "demo-refiner"] {
        let info = sdxl(dir.path(), &["info", folder]);
        assert!(info.status.success(), "{folder}: {}", text(&info.stderr));
    }
    let args = ["a star", "--steps", "2", "--seed", "3", "--output"];
    for (model, file) in [("out/base", "a.png"), ("demo", "b.png")] {
        let mut all = vec!["generate", "--model", model];
        all.extend(args);
        all.push(file);
        let made = sdxl(dir.path(), &all);
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(!text(&made.stderr).contains("built-in demo"));
    }
    assert!(pixels(&dir.path().join("a.png")) == pixels(&dir.path().join("b.png")));

    let refused = sdxl(dir.path(), &["models", "export-demo", "out"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("something here already"));
}

#[test]
fn tiles_change_a_picture_little_and_slices_not_at_all() {
    let dir = TempDir::new().unwrap();
    let make = |name: &str, more: &[&str]| {
        let mut args = vec!["generate", "a house on a hill"];
        args.extend(["--width", "384", "--height", "384", "--steps", "8"]);
        args.extend(["--seed", "1", "--num-images", "2", "--precision", "f32"]);
        args.extend(["--no-watermark", "--output", name]);
        args.extend(more);
        let made = sdxl(dir.path(), &args);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let stem = name.trim_end_matches(".png");
        [1, 2].map(|i| read_png(&dir.path().join(format!("{stem}-{i}.png"))).2)
    };
    let whole = make("whole.png", &["--vae-tiling", "off"]);
    let unsliced = make(
        "unsliced.png",
        &["--vae-tiling", "off", "--vae-slicing", "off"],
    );
    assert!(whole == unsliced);
    // The demo's tiles have 96 pixels, a quarter of them shared.
    let tiled = make("tiled.png", &["--vae-tiling", "on"]);
    // Where their size is asked for they are wanted.
    let larger = make("larger.png", &["--vae-tile-size", "256"]);
    assert!(larger != tiled && larger != whole);
    let args = [
        "generate",
        "a",
        "--vae-tile-size",
        "100",
        "--output",
        "x.png",
    ];
    let refused = sdxl(dir.path(), &args);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("vae_tile_size: 100 given"));
    for (whole, tiled) in whole.iter().zip(&tiled).chain(whole.iter().zip(&larger)) {
        let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
        let error = whole.iter().zip(tiled).map(square).sum::<f64>() / whole.len() as f64;
        let psnr = 10.0 * (255.0 * 255.0 / error).log10();
        println!("PSNR {psnr:.2} dB");
        // As docs/memory.md states.
        assert!(psnr.is_finite() && psnr >= 36.0, "{psnr} dB");
    }
}

#[test]
fn where_the_weights_are_changes_no_byte() {
    let dir = TempDir::new().unwrap();
    let make = |name: &str, offload: &str| {
        let args = ["generate", "a red circle", "--seed", "3", "--steps", "4"];
        let refiner = ["--refiner", "demo-refiner", "--output", name, "--offload"];
        let args: Vec<&str> = args.into_iter().chain(refiner).chain([offload]).collect();
        let made = sdxl(dir.path(), &args);
        assert!(made.status.success(), "{}", text(&made.stderr));
        fs::read(dir.path().join(name)).unwrap()
    };
    let whole = make("none.png", "none");
    assert!(whole == make("model.png", "model"));
    assert!(whole == make("sequential.png", "sequential"));
    let args = ["generate", "a", "--offload", "some", "--output", "x.png"];
    assert_eq!(sdxl(dir.path(), &args).status.code(), Some(2));
}
