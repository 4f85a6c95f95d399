//! PNG, JPEG and WebP as a user meets them: each says how it was made and is made again from it.

mod support;

use std::path::Path;

use sdxl::Pixels;
use sdxl_testing::golden;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

const SOURCE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";

fn generate(folder: &Path, args: &[&str]) {
    let model = golden("base");
    let mut all = vec!["generate", "--model", model.to_str().unwrap()];
    all.extend(["--precision", "f32"]);
    all.extend(args);
    let made = sdxl(folder, &all);
    assert!(made.status.success(), "{}", text(&made.stderr));
}

fn show(folder: &Path, file: &str) -> Value {
    let shown = sdxl(folder, &["show", file, "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    serde_json::from_slice(&shown.stdout).unwrap()
}

fn pixels(folder: &Path, file: &str) -> Pixels {
    Pixels::decode_rgb(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn every_format_says_how_it_was_made_and_is_made_again() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path();
    let make = |name: &str, more: &[&str]| {
        let mut args = vec!["a café, 猫 <b> & 🐱", "--negative-prompt", "rain"];
        args.extend(["--steps", "2", "--seed", "5", "--output", name]);
        args.extend(["--width", "256", "--height", "256"]);
        args.extend(more);
        generate(folder, &args);
    };
    make("a.png", &[]);
    make("a.jpg", &[]);
    make("a.webp", &[]);
    make("lossy.webp", &["--quality", "80"]);
    make("named.img", &["--format", "jpeg", "--quality", "95"]);
    let reference = show(folder, "a.png");
    assert_eq!(
        reference["source_type"],
        format!("{SOURCE}trainedAlgorithmicMedia")
    );
    assert_eq!(reference["watermark"], true);
    assert!(
        reference["parameters"]
            .as_str()
            .unwrap()
            .starts_with("a café, 猫 <b> & 🐱\n")
    );
    for file in ["a.jpg", "a.webp", "lossy.webp", "named.img"] {
        let mut shown = show(folder, file);
        // A lossy file may lose the mark; the rest is the same.
        shown["watermark"] = true.into();
        assert_eq!(shown, reference, "{file}");
        let again = ["--recipe", file, "--output", "again.png", "--overwrite"];
        generate(folder, &again);
        assert_eq!(
            std::fs::read(folder.join("again.png")).unwrap(),
            std::fs::read(folder.join("a.png")).unwrap(),
            "{file}"
        );
    }
    let made = pixels(folder, "a.png");
    assert!(pixels(folder, "a.webp") == made);
    for lossy in ["a.jpg", "lossy.webp", "named.img"] {
        let read = pixels(folder, lossy);
        assert_eq!((read.width, read.height), (256, 256));
        assert!(read != made, "{lossy}");
    }
    let told = text(&sdxl(folder, &["show", "a.webp"]).stdout);
    for words in [
        "Steps: 2",
        "recipe:",
        "trainedAlgorithmicMedia",
        "invisible watermark: found",
    ] {
        assert!(told.contains(words), "`{words}` not in:\n{told}");
    }
    // A folder: names end as the format says.
    generate(
        folder,
        &[
            "x", "--steps", "1", "--seed", "9", "--format", "webp", "--output", "many",
        ],
    );
    assert!(folder.join("many/sdxl-9.webp").exists());
}

#[test]
fn a_picture_of_a_picture_says_so_and_marking_keeps_what_is_said() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path();
    let size = [
        "--width", "256", "--height", "256", "--steps", "2", "--seed", "1",
    ];
    let mut args = vec!["a cat", "--no-watermark", "--output", "a.jpg"];
    args.extend(size);
    generate(folder, &args);
    let mut args = vec!["a dog", "--no-watermark", "--output", "b.webp"];
    args.extend(["--init-image", "a.jpg", "--strength", "0.6"]);
    args.extend(size);
    generate(folder, &args);
    let before = show(folder, "b.webp");
    let composite = format!("{SOURCE}compositeWithTrainedAlgorithmicMedia");
    assert_eq!(before["source_type"], composite);
    assert_eq!(before["watermark"], false);
    for to in ["c.png", "c.jpg", "c.webp"] {
        let done = sdxl(folder, &["watermark", "embed", "b.webp", "--output", to]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let after = show(folder, to);
        for field in ["parameters", "recipe", "source_type"] {
            assert_eq!(after[field], before[field], "{to}: {field}");
        }
        if to != "c.jpg" {
            assert_eq!(after["watermark"], true, "{to}");
        }
    }
}
