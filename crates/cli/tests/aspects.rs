//! Aspect ratios as a user meets them.

mod support;

use sdxl_testing::golden;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

#[test]
fn sizes_are_listed_with_their_shapes() {
    let dir = TempDir::new().unwrap();
    let told = text(&sdxl(dir.path(), &["aspects"]).stdout);
    for words in [
        "┌──┐",
        "1344x768 (1.75)",
        "512x2048 (0.25)",
        "--aspect phone",
    ] {
        assert!(told.contains(words), "`{words}` not in:\n{told}");
    }
    let listed = sdxl(dir.path(), &["aspects", "--json", "--model", "demo"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let sizes = listed["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 40);
    for size in sizes {
        assert_eq!(size["width"].as_u64().unwrap() % 8, 0);
        assert_eq!(size["height"].as_u64().unwrap() % 8, 0);
    }
    assert_eq!(listed["names"][0]["width"], 96);
}

#[test]
fn an_aspect_becomes_a_size_of_the_training() {
    let dir = TempDir::new().unwrap();
    let make = |args: &[&str]| {
        let mut all = vec!["generate", "--steps", "1", "--json"];
        all.extend(args);
        let made = sdxl(dir.path(), &all);
        let object: Value = serde_json::from_slice(&made.stdout).unwrap();
        (made.status.code(), object)
    };
    let (code, made) = make(&["a star", "--aspect", "16:9", "--output", "a.png"]);
    assert_eq!(code, Some(0), "{made}");
    assert_eq!(
        (&made["images"][0]["width"], &made["images"][0]["height"]),
        (&128.into(), &72.into())
    );
    assert_eq!(made["warnings"], serde_json::json!([]));
    // A recipe holds the size; another aspect takes its place.
    let (_, made) = make(&["--recipe", "a.png", "--output", "b.png"]);
    assert_eq!(made["images"][0]["width"], 128);
    let (_, made) = make(&[
        "--recipe", "a.png", "--aspect", "phone", "--output", "c.png",
    ]);
    assert_eq!(made["images"][0]["width"], 72);
    // A hint, and a picture.
    let (code, made) = make(&[
        "a star", "--width", "32", "--height", "32", "--output", "d.png",
    ]);
    assert_eq!(code, Some(0), "{made}");
    assert!(
        made["warnings"][0].as_str().unwrap().contains("96x96"),
        "{made}"
    );
}

#[test]
fn what_is_no_aspect_is_refused() {
    let dir = TempDir::new().unwrap();
    let model = golden("base");
    for (args, words) in [
        (&["--aspect", "wider"][..], "16:9"),
        (&["--aspect", "16:9", "--width", "64"], "--width"),
    ] {
        let mut all = vec!["generate", "a cat", "--model", model.to_str().unwrap()];
        all.extend(args);
        let done = sdxl(dir.path(), &all);
        assert_eq!(done.status.code(), Some(2));
        assert!(text(&done.stderr).contains(words), "{}", text(&done.stderr));
    }
}
