//! The watermark as a user meets it.

mod support;

use sdxl_testing::golden;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

#[test]
fn pictures_carry_it_unless_told_otherwise() {
    let dir = TempDir::new().unwrap();
    let model = golden("base");
    let make = |name: &str, more: &[&str]| {
        let mut args = vec!["generate", "a cat", "--model", model.to_str().unwrap()];
        args.extend([
            "--width", "256", "--height", "256", "--steps", "2", "--seed", "3",
        ]);
        args.extend(["--output", name]);
        args.extend(more);
        let made = sdxl(dir.path(), &args);
        assert!(made.status.success(), "{}", text(&made.stderr));
    };
    make("with.png", &[]);
    make("without.png", &["--no-watermark"]);
    let done = sdxl(
        dir.path(),
        &["watermark", "detect", "with.png", "without.png", "--json"],
    );
    let found: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(found["files"][0]["watermark"], true, "{found}");
    assert_eq!(found["files"][1]["watermark"], false, "{found}");

    // Put in afterwards, with what the picture says about itself kept.
    let embed = ["watermark", "embed", "without.png", "--output", "after.png"];
    let done = sdxl(dir.path(), &embed);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let told = text(&sdxl(dir.path(), &["watermark", "detect", "after.png"]).stdout);
    assert!(told.starts_with("after.png: watermark ("), "{told}");
    let shown = sdxl(dir.path(), &["show", "after.png", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["recipe"]["request"]["watermark"], false);
    let again = sdxl(dir.path(), &embed);
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn bad_files_are_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("words.png"), "words").unwrap();
    for file in ["words.png", "absent.png"] {
        let done = sdxl(dir.path(), &["watermark", "detect", file]);
        assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
        assert!(text(&done.stderr).contains(file));
    }
}
