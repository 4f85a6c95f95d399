//! A run that is killed goes on from its state, and its pictures are those of a run that was not.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sdxl_testing::golden;
use support::{sdxl, text};
use tempfile::TempDir;

/// Starts the program and kills it as soon as it says `word`.
fn kill_at(folder: &Path, args: &[&str], word: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args(args)
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines {
        said.push(line.unwrap());
        if said.last().unwrap().contains(word) {
            child.kill().unwrap();
            break;
        }
    }
    assert!(!child.wait().unwrap().success(), "{said:?}");
    assert!(said.last().unwrap().contains(word), "{said:?}");
}

/// The evaluations after which a run says that it goes on.
fn goes_on_after(said: &str) -> usize {
    let line = said.lines().find(|line| line.starts_with("going on after"));
    let line = line.unwrap_or_else(|| panic!("it began anew: {said}"));
    let number = line.split(' ').nth(3).unwrap();
    number.parse().unwrap()
}

#[test]
fn killed_runs_end_in_the_same_bytes() {
    let picture = |name: &str| {
        let path = golden(&format!("refined/{name}.png"));
        assert!(path.exists(), "{}", path.display());
        path.to_str().unwrap().to_string()
    };
    let (photo, mask) = (picture("wide"), picture("wide_mask"));
    let cases: [(&str, &[&str], &str, usize); 6] = [
        ("plain", &[], "step 5/", 1),
        ("ancestral", &["--scheduler", "euler_a"], "step 3/", 1),
        ("sde", &["--scheduler", "dpm++_sde"], "step 9/", 2),
        ("refiner", &["--refiner", "demo-refiner"], "step 7/", 1),
        ("second pass", &["--upscale", "1.5"], "step 9/", 1),
        (
            "inpainting",
            &["--init-image", &photo, "--mask", &mask, "--strength", "0.9"],
            "step 4/",
            3,
        ),
    ];
    for (name, flags, word, every) in cases {
        let dir = TempDir::new().unwrap();
        let run = |output: &str, more: &[&str]| -> Vec<String> {
            let base = [
                "generate",
                "two green squares",
                "--seed",
                "3",
                "--steps",
                "8",
            ];
            let last = ["--precision", "f32", "--output", output];
            let words = [&base[..], flags, more, &last].concat();
            words.into_iter().map(str::to_string).collect()
        };
        let call = |words: &[String]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            sdxl(dir.path(), &words)
        };
        let whole = call(&run("whole.png", &[]));
        assert!(whole.status.success(), "{name}: {}", text(&whole.stderr));
        let every_word: &'static str = ["1", "2", "3"][every - 1];
        let kept = run(
            "kept.png",
            &["--state", "run.state", "--state-every", every_word],
        );
        let words: Vec<&str> = kept.iter().map(String::as_str).collect();
        kill_at(dir.path(), &words, word);
        assert!(!dir.path().join("kept.png").exists(), "{name}");
        assert!(dir.path().join("run.state").exists(), "{name}");
        let again = call(&kept);
        let said = text(&again.stderr);
        assert!(again.status.success(), "{name}: {said}");
        let at: usize = word
            .trim_start_matches("step ")
            .trim_end_matches('/')
            .parse()
            .unwrap();
        // The state of the step that was said last may not have been written.
        let lost = at - goes_on_after(&said).min(at);
        assert!(lost <= every, "{name}: {lost} evaluations were lost");
        let read = |file: &str| fs::read(dir.path().join(file)).unwrap();
        assert!(read("kept.png") == read("whole.png"), "{name}");
        assert!(!dir.path().join("run.state").exists(), "{name}");
    }
}

#[test]
fn pictures_that_were_written_are_not_made_again() {
    let dir = TempDir::new().unwrap();
    let common = [
        "generate",
        "a cat",
        "a dog",
        "--steps",
        "2",
        "--num-images",
        "6",
    ];
    let with = |more: &[&'static str]| -> Vec<&str> { [&common, more].concat() };
    let whole = sdxl(dir.path(), &with(&["--seed", "1", "--output", "whole/"]));
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    // Twelve pictures are two groups, of eight and of four.
    let kept = with(&["--seed", "1", "--output", "kept/", "--state", "run.state"]);
    kill_at(dir.path(), &kept, "step 3/");
    let files = |folder: &str| -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = (fs::read_dir(dir.path().join(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                (name.to_string(), fs::read(&path).unwrap())
            })
            .collect();
        files.sort();
        files
    };
    assert_eq!(files("kept").len(), 8);
    // Another request is not taken for this one.
    let other: Vec<&str> = kept
        .iter()
        .map(|w| if *w == "2" { "3" } else { w })
        .collect();
    let refused = sdxl(dir.path(), &other);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("`steps` differs"), "{said}");
    let again = sdxl(dir.path(), &kept);
    let said = text(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(said.contains("8 of 12 pictures done"), "{said}");
    assert!(files("kept") == files("whole"));
    assert_eq!(text(&again.stdout).lines().count(), 4);
}

#[test]
fn a_seed_that_nobody_chose_is_kept_too() {
    let dir = TempDir::new().unwrap();
    let words = ["generate", "a cat", "--steps", "6", "--output", "a.png"];
    let words = [&words[..], &["--state", "run.state"]].concat();
    kill_at(dir.path(), &words, "step 2/");
    let again = sdxl(dir.path(), &words);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(goes_on_after(&text(&again.stderr)) >= 1);
}

#[test]
fn a_picture_that_was_written_and_not_noted_is_found() {
    let dir = TempDir::new().unwrap();
    let words = |output: &'static str| {
        let first = [
            "generate", "a cat", "--seed", "5", "--steps", "3", "--output",
        ];
        [&first[..], &[output]].concat()
    };
    let whole = sdxl(dir.path(), &words("whole.png"));
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let kept = [&words("kept.png")[..], &["--state", "run.state"]].concat();
    kill_at(dir.path(), &kept, "decoding picture 1");
    // As if it had been killed between the picture and the state after it.
    fs::copy(dir.path().join("whole.png"), dir.path().join("kept.png")).unwrap();
    let again = sdxl(dir.path(), &kept);
    let said = text(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert_eq!(text(&again.stdout), "kept.png\n");
    assert!(
        !dir.path().join("kept (2).png").exists() && !said.contains("warning"),
        "{said}"
    );
    assert!(!dir.path().join("run.state").exists());
    // And a state never takes a picture's place.
    let named = [&words("other.png")[..], &["--state", "other.png"]].concat();
    let refused = sdxl(dir.path(), &named);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("name of a picture"));
}
