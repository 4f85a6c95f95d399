//! Timing the networks, and seeing where the time goes.

mod support;

use sdxl_testing::read_png;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

#[test]
fn a_network_of_full_size_is_timed_without_a_checkpoint() {
    let dir = TempDir::new().unwrap();
    let args = "bench vae --size 64 --repeats 2 --threads 1 --json --profile --svg vae.svg";
    let args: Vec<&str> = args.split(' ').collect();
    let done = sdxl(dir.path(), &args);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(told["precision"], "f32");
    assert_eq!(told["threads"], 1);
    assert_eq!(told["seconds_each"].as_array().unwrap().len(), 2);
    // What PyTorch's FlopCounterMode counts for the decoder at this size.
    assert_eq!(told["gflop"].as_f64().unwrap(), GFLOP);
    let number = |key: &str| {
        told[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {told}"))
    };
    let rate = number("gflop") / number("seconds");
    assert!((rate / number("gflop_per_second") - 1.0).abs() < 1e-9);
    let share = rate / number("peak_gflop_per_second");
    assert!((share / number("share_of_peak") - 1.0).abs() < 1e-9);
    assert!(number("relative_l2") <= 1e-5);
    if cfg!(target_os = "linux") {
        // More than its 84 million weights, and not those of other networks.
        let bytes = number("peak_rss_bytes");
        assert!((3.3e8..1.5e9).contains(&bytes), "{bytes}");
    }
    let decoder = &told["profile"]["inside"][0];
    assert_eq!(
        (&decoder["name"], &decoder["calls"]),
        (&"vae.decoder".into(), &2.into())
    );
    let drawn = std::fs::read_to_string(dir.path().join("vae.svg")).unwrap();
    assert!(drawn.contains("vae.decoder / up_blocks.3.resnets.2 / conv2d 1x64x64 3x3 128-128"));
}

const GFLOP: f64 = 38.760_876_032;

#[test]
fn a_profile_changes_no_picture_and_names_the_networks() {
    let dir = TempDir::new().unwrap();
    let make = |name: &str, more: &[&str]| {
        let mut args = vec!["generate", "a star", "--steps", "2", "--seed", "1"];
        args.extend(["--output", name]);
        args.extend(more);
        let done = sdxl(dir.path(), &args);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{said}");
        (read_png(&dir.path().join(name)), said)
    };
    let (plain, said) = make("plain.png", &[]);
    assert!(!said.contains("GFLOP/s"), "{said}");
    let (profiled, said) = make("profiled.png", &["--profile", "--svg", "time.svg"]);
    assert!(plain == profiled);
    for name in ["text_encoders", "unet", "vae.decoder", "self_attention"] {
        assert!(said.contains(name), "no {name} in:\n{said}");
    }
    let drawn = std::fs::read_to_string(dir.path().join("time.svg")).unwrap();
    assert!(drawn.contains("unet / mid_block.attentions.0 / transformer_blocks.0 / attn1"));
    // Nothing is overwritten unasked, and that is said before the work.
    let again = ["generate", "a star", "--steps", "2", "--svg", "time.svg"];
    assert_eq!(sdxl(dir.path(), &again).status.code(), Some(2));
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let dir = TempDir::new().unwrap();
    for wrong in [
        &["bench", "vae", "--size", "100"][..],
        &["bench", "unet", "--batch", "0"],
        &["bench", "vae", "--precision", "f31"],
        &["bench", "tokenizer"],
    ] {
        let done = sdxl(dir.path(), wrong);
        assert_eq!(done.status.code(), Some(2), "{wrong:?}");
        assert!(done.stdout.is_empty());
    }
}
