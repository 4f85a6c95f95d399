//! What a run is said to take before it starts, and what it takes.

mod support;

use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn run(dir: &TempDir, line: &str) -> (Option<i32>, String, String) {
    let words: Vec<&str> = line.split(' ').collect();
    let done = sdxl(dir.path(), &words);
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

fn json(dir: &TempDir, line: &str) -> Value {
    let (code, out, err) = run(dir, line);
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

fn number(told: &Value, key: &str) -> u64 {
    told[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key}: {told}"))
}

const MIB: u64 = 1 << 20;

/// The goal: the predicted peak of the whole process is within a tenth of the measured one.
#[test]
#[cfg(target_os = "linux")]
fn predicted_memory_is_what_is_taken() {
    let dir = TempDir::new().unwrap();
    // Activations are most of what these take: the VAE's, the UNet's, both by tiles or in part.
    for (line, least) in [
        ("--width 768 --height 768 --precision bf16", 180),
        ("--width 512 --height 512 --precision f32", 100),
        (
            "--width 384 --height 512 --vae-tile-size 128 --num-images 5 --precision f32",
            80,
        ),
        (
            "--width 384 --height 512 --vae-tile-size 128 --num-images 6 --precision int8",
            60,
        ),
        (
            "--width 768 --height 768 --memory 100MiB --offload sequential",
            50,
        ),
    ] {
        let line = format!("generate x --seed 1 --steps 1 --json -o a.png --overwrite {line}");
        let told = json(&dir, &line);
        let (said, took) = (
            number(&told, "planned_peak_bytes"),
            number(&told, "peak_rss_bytes"),
        );
        println!("{line}: {} MiB said, {} MiB taken", said / MIB, took / MIB);
        assert!(took >= least * MIB, "{line}: {took}");
        assert!(
            said.abs_diff(took) <= took / 10,
            "{line}: {said} said, {took} taken"
        );
    }
}

/// What is refused names an amount, and with that amount the run works and keeps to it.
#[test]
#[cfg(target_os = "linux")]
fn the_smallest_budget_that_works_is_said_and_kept() {
    let dir = TempDir::new().unwrap();
    let line = |memory: &str| {
        format!(
            "generate x --seed 1 --steps 1 --width 640 --height 640 --precision f32 --json \
             -o a.png --memory {memory}"
        )
    };
    let (code, out, err) = run(&dir, &line("20MiB"));
    assert_eq!(code, Some(2), "{out} {err}");
    assert!(!dir.path().join("a.png").exists());
    let said = format!("{out}{err}");
    let least = said
        .rsplit_once("--memory ")
        .and_then(|(_, rest)| rest.split_once("MiB"));
    let least: u64 = least.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap();
    assert!(said.contains("20 MiB given") && least > 20, "{said}");

    let (code, ..) = run(&dir, &line(&format!("{}MiB", least - 1)));
    assert_eq!(code, Some(2), "less than the least");
    let told = json(&dir, &line(&format!("{least}MiB")));
    assert!(dir.path().join("a.png").exists());
    let (planned, took) = (
        number(&told, "planned_peak_bytes"),
        number(&told, "peak_rss_bytes"),
    );
    assert!(
        planned <= least * MIB && took <= least * MIB,
        "{planned} said, {took} taken"
    );
}

/// `sdxl plan` and `--dry-run` say the same and leave nothing behind.
#[test]
fn a_plan_makes_nothing() {
    let dir = TempDir::new().unwrap();
    let words =
        "x --width 512 --height 384 --num-images 3 --steps 5 --memory 4GiB --json -o pictures";
    let told = json(&dir, &format!("plan {words}"));
    let dry = json(&dir, &format!("generate --dry-run {words}"));
    // But for the demo, which is unpacked to where the user's caches are.
    let left = std::fs::read_dir(dir.path()).unwrap().flatten();
    let left: Vec<_> = left
        .map(|e| e.file_name())
        .filter(|n| n != "cache")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for key in [
        "peak_bytes",
        "budget_bytes",
        "unet_rows",
        "offload",
        "precision",
    ] {
        assert_eq!(told[key], dry[key], "{key}");
    }
    assert_eq!(number(&told, "budget_bytes"), 4 << 30);
    assert_eq!(told["unet_rows"], serde_json::json!([6]));
    let parts = told["parts"].as_array().unwrap();
    let names: Vec<_> = parts
        .iter()
        .map(|part| part["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["text encoders", "UNet, 512x384", "VAE, decoding"]);
    let peaks = parts.iter().map(|part| number(part, "peak_bytes"));
    assert_eq!(peaks.max(), Some(number(&told, "peak_bytes")));
    assert!(
        parts
            .iter()
            .all(|part| part["seconds"].as_f64().unwrap() > 0.0),
        "{told}"
    );
}
