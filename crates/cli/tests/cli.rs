//! The program as a user meets it: the binary is run on the tiny checkpoint.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use sdxl_testing::{golden, read_png};
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

/// Runs `generate` on the tiny base checkpoint, two steps unless told otherwise.
fn generate(folder: &Path, args: &[&str]) -> Output {
    let model = golden("base");
    let mut all = vec!["generate", "--model", model.to_str().unwrap()];
    all.extend(["--precision", "f32"]);
    if !args.contains(&"--steps") && !args.contains(&"--recipe") {
        all.extend(["--steps", "2"]);
    }
    all.extend(args);
    sdxl(folder, &all)
}

#[test]
fn help_is_grouped_and_shows_defaults() {
    let dir = TempDir::new().unwrap();
    let help = text(&sdxl(dir.path(), &["generate", "--help"]).stdout);
    for words in [
        "Prompt:",
        "Sampling:",
        "Output:",
        "[default: 50]",
        "[default: 5]",
        "torch-cpu",
    ] {
        assert!(help.contains(words), "`{words}` not in:\n{help}");
    }
}

#[test]
fn a_picture_is_made_and_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let args = ["a cat", "--seed", "7", "--output", "cat.png"];
    let first = generate(dir.path(), &args);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout).trim(), "cat.png");
    assert!(text(&first.stderr).contains("step 2/2"));
    let made = fs::read(dir.path().join("cat.png")).unwrap();

    let second = generate(dir.path(), &["a dog", "--output", "cat.png"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second.stderr).contains("--overwrite"));
    assert!(
        !text(&second.stderr).contains("step"),
        "refused only after work"
    );
    assert_eq!(fs::read(dir.path().join("cat.png")).unwrap(), made);

    let third = generate(dir.path(), &["a dog", "--output", "cat.png", "--overwrite"]);
    assert!(third.status.success());
    assert_ne!(fs::read(dir.path().join("cat.png")).unwrap(), made);
}

#[test]
fn several_pictures_get_names_of_their_own() {
    let dir = TempDir::new().unwrap();
    let args = [
        "a cat",
        "a dog",
        "--num-images",
        "2",
        "--seed",
        "3",
        "--output",
        "pets",
    ];
    let made = generate(dir.path(), &args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(text(&made.stdout).lines().count(), 4);
    assert_eq!(fs::read_dir(dir.path().join("pets")).unwrap().count(), 4);

    let again = generate(dir.path(), &args);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(fs::read_dir(dir.path().join("pets")).unwrap().count(), 8);
}

#[test]
fn json_is_one_object_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let args = [
        "a cat",
        "--seed",
        "5,6",
        "--num-images",
        "2",
        "--json",
        "--width",
        "72",
    ];
    let made = generate(dir.path(), &args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let object: Value = serde_json::from_slice(&made.stdout).unwrap();
    let images = object["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[1]["seed"], 6);
    assert_eq!(images[0]["width"], 72);
    assert_eq!(object["request"]["steps"], 2);
    for image in images {
        assert!(dir.path().join(image["path"].as_str().unwrap()).exists());
    }

    let refused = generate(dir.path(), &["a cat", "--json", "--steps", "0"]);
    assert_eq!(refused.status.code(), Some(2));
    let object: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(object["error"].as_str().unwrap().contains("steps"));
    assert_eq!(
        (&object["class"], &object["field"], &object["exit_code"]),
        (&"request".into(), &"steps".into(), &2.into())
    );
    assert_eq!(object["hint"], "use 1 to 1000");

    // Programs are told of fields and people of flags.
    let words = ["a cat", "--json", "--denoising-start", "0.5"];
    let refused = generate(dir.path(), &words);
    let object: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(object["field"], "denoising_start");
    assert!(object["hint"].as_str().unwrap().contains("`latents`"));
    assert!(text(&refused.stderr).contains("with --latents, or a refiner"));
}

#[test]
fn a_recipe_makes_the_picture_again() {
    let dir = TempDir::new().unwrap();
    let args = [
        "a cat, 猫",
        "a dog",
        "--negative-prompt",
        "rain",
        "--seed",
        "11",
        "--guidance-scale",
        "7.5",
        "--scheduler-option",
        "timestep_spacing=trailing",
        "--output",
        "pet.png",
    ];
    let made = generate(dir.path(), &args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let again = sdxl(
        dir.path(),
        &["generate", "--recipe", "pet-2.png", "--output", "again.png"],
    );
    assert!(again.status.success(), "{}", text(&again.stderr));
    let (first, second) = (dir.path().join("pet-2.png"), dir.path().join("again.png"));
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

    // A flag beside the recipe wins.
    let changed = sdxl(
        dir.path(),
        &[
            "generate",
            "--recipe",
            "pet-2.png",
            "--seed",
            "12",
            "--output",
            "other.png",
        ],
    );
    assert!(changed.status.success(), "{}", text(&changed.stderr));
    assert_ne!(read_png(&first), read_png(&dir.path().join("other.png")));

    let shown = text(&sdxl(dir.path(), &["show", "pet-1.png"]).stdout);
    assert!(shown.starts_with("a cat, 猫\nNegative prompt: rain\nSteps: 2, Sampler: Euler,"));
    let json = sdxl(dir.path(), &["show", "pet-1.png", "--json"]).stdout;
    let object: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(object["recipe"]["request"]["guidance_scale"], 7.5);
    let hash = object["recipe"]["files"][0]["sha256"].as_str().unwrap();
    assert_eq!(hash.len(), 64);

    // The same recipe as a JSON file.
    fs::write(dir.path().join("r.json"), object["recipe"].to_string()).unwrap();
    let args = ["generate", "--recipe", "r.json", "--output", "json.png"];
    assert!(sdxl(dir.path(), &args).status.success());
    assert_eq!(
        read_png(&dir.path().join("json.png")),
        read_png(&dir.path().join("pet-1.png"))
    );
}

#[test]
fn lists_of_steps_and_numbers_of_steps_take_each_others_place() {
    let dir = TempDir::new().unwrap();
    let steps = |args: &[&str]| {
        let made = sdxl(dir.path(), &[&["generate", "--json"], args].concat());
        let said = text(&made.stderr);
        assert!(made.status.success(), "{said}");
        let last = said.lines().rfind(|l| l.starts_with("step "));
        let object: Value = serde_json::from_slice(&made.stdout).unwrap();
        let path = object["images"][0]["path"].as_str().unwrap().to_string();
        (
            path,
            last.unwrap()
                .split([' ', '/', ','])
                .nth(2)
                .unwrap()
                .to_string(),
        )
    };
    let model = golden("base");
    let start = [
        "a cat",
        "--model",
        model.to_str().unwrap(),
        "--precision",
        "f32",
    ];
    let (path, count) = steps(&[&start[..], &["--timesteps", "900,500,100"]].concat());
    assert_eq!(count, "3");
    let (path, count) = steps(&["--recipe", &path, "--steps", "2"]);
    assert_eq!(count, "2");
    let (path, count) = steps(&["--recipe", &path, "--sigmas", "9,3,1,0.5,0"]);
    assert_eq!(count, "4");
    let (path, count) = steps(&["--recipe", &path, "--timesteps", "AYS", "--steps", "10"]);
    assert_eq!(count, "10");
    assert_eq!(steps(&["--recipe", &path]).1, "10");
}

#[test]
fn latents_go_out_and_in() {
    let dir = TempDir::new().unwrap();
    let args = [
        "a cat",
        "--seed",
        "1",
        "--output-latents",
        "l.safetensors",
        "--output",
        "a.png",
    ];
    assert!(generate(dir.path(), &args).status.success());
    let from = |out| {
        generate(
            dir.path(),
            &["a cat", "--latents", "l.safetensors", "--output", out],
        )
    };
    let made = from("b.png");
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_ne!(
        read_png(&dir.path().join("b.png")),
        read_png(&dir.path().join("a.png"))
    );

    let wrong = generate(
        dir.path(),
        &["a cat", "--latents", "l.safetensors", "--width", "80"],
    );
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("latents"));
    assert!(
        !text(&wrong.stderr).contains("loading"),
        "refused only after loading"
    );

    fs::write(dir.path().join("bad.safetensors"), b"not a file of tensors").unwrap();
    let wrong = generate(dir.path(), &["a cat", "--latents", "bad.safetensors"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("bad.safetensors"));
}

#[test]
fn mistakes_are_named_with_exit_code_2() {
    let dir = TempDir::new().unwrap();
    let cases: [(&[&str], &str); 23] = [
        (
            &["a", "b", "--num-images", "9223372036854775808"],
            "num_images",
        ),
        (&["a cat", "--latents", "/dev/zero"], "regular file"),
        (
            &["a cat", "--output", "x.png", "--output-latents", "x.png"],
            "two files",
        ),
        (&["a cat", "--width", "1001"], "width: 1001"),
        (&["a cat", "--steps", "0"], "steps: 0"),
        (&["a cat", "--guidance-scale", "NaN"], "guidance_scale: NaN"),
        (
            &["a cat", "--guidance-rescale", "-1"],
            "guidance_rescale: -1",
        ),
        (
            &["a cat", "--output", "/no/such/place/x.png"],
            "/no/such/place",
        ),
        (&["a cat", "--output", "x.gif"], "*.webp"),
        (&["a cat", "--output", "x.jpg", "--format", "png"], "JPEG"),
        (
            &["a cat", "--output", "x.png", "--quality", "90"],
            "lossless",
        ),
        (
            &["a cat", "--output", "x.jpg", "--quality", "0"],
            "1 to 100",
        ),
        (&["a cat", "--scheduler", "magic"], "magic"),
        (&["a cat", "--scheduler-option", "karras"], "KEY=VALUE"),
        (
            &["a cat", "--scheduler-option", "use_karras=1"],
            "use_karras",
        ),
        (&["a cat", "--variant", "fp8"], "fp8"),
        (&["a cat", "--device", "cuda"], "use auto or cpu"),
        (&["a cat", "--recipe", "none.png"], "none.png"),
        (&["a cat", "--clip-skip", "9"], "clip_skip"),
        (
            &["a cat", "--steps", "50", "--timesteps", "ays"],
            "steps: 50 given, but timesteps lists 10",
        ),
        (
            &["a cat", "--steps", "4", "--sigmas", "5,1,0"],
            "steps: 4 given, but sigmas lists 3",
        ),
        (&["a cat", "--timesteps", "fast"], "nor the name `ays`"),
        (&[], "PROMPT"),
    ];
    for (args, words) in cases {
        let refused = generate(dir.path(), args);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words), "`{words}` not in: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    let no_folder = sdxl(dir.path(), &["generate", "a cat", "--model", "none"]);
    assert_eq!(no_folder.status.code(), Some(2));
    assert!(text(&no_folder.stderr).contains("none"));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "something was left behind"
    );
}

#[test]
fn schedulers_are_listed_and_shown() {
    let dir = TempDir::new().unwrap();
    let told = text(&sdxl(dir.path(), &["schedulers"]).stdout);
    for words in [
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
        "order 2",
    ] {
        assert!(told.contains(words), "`{words}` not in:\n{told}");
    }
    let args = ["schedulers", "show", "euler", "--steps", "4", "--json"];
    let object: Value = serde_json::from_slice(&sdxl(dir.path(), &args).stdout).unwrap();
    assert_eq!(
        object["timesteps"],
        serde_json::json!([751.0, 501.0, 251.0, 1.0])
    );
    assert_eq!(object["sigmas"].as_array().unwrap().len(), 5);

    let args = ["schedulers", "show", "eulr"];
    let refused = sdxl(dir.path(), &args);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("did you mean"));
}

#[test]
fn info_describes_and_says_what_is_missing() {
    let dir = TempDir::new().unwrap();
    let base = golden("base");
    let told = text(&sdxl(dir.path(), &["info", base.to_str().unwrap()]).stdout);
    for words in [
        "base",
        "64 x 64",
        "EulerDiscreteScheduler",
        "text_encoder_2",
        "F16",
    ] {
        assert!(told.contains(words), "`{words}` not in:\n{told}");
    }
    let refiner = golden("refiner");
    let json = sdxl(dir.path(), &["info", refiner.to_str().unwrap(), "--json"]).stdout;
    let object: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(object["family"], "refiner");
    assert_eq!(object["parts"].as_array().unwrap().len(), 3);

    let broken = dir.path().join("broken");
    let copied = Command::new("cp")
        .args(["-rL", base.to_str().unwrap()])
        .arg(&broken)
        .status();
    assert!(copied.unwrap().success());
    fs::remove_file(broken.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    fs::remove_file(broken.join("tokenizer/merges.txt")).unwrap();
    let told = sdxl(dir.path(), &["info", "broken"]);
    assert_eq!(told.status.code(), Some(2));
    let said = text(&told.stderr);
    assert!(
        said.contains("diffusion_pytorch_model.safetensors is missing"),
        "{said}"
    );
    assert!(said.contains("merges.txt"), "{said}");
}

#[test]
fn info_names_everything_that_is_missing_in_one_object() {
    let dir = TempDir::new().unwrap();
    let broken = dir.path().join("broken");
    let copied = Command::new("cp")
        .arg("-rL")
        .arg(golden("base"))
        .arg(&broken)
        .status();
    assert!(copied.unwrap().success());
    for file in [
        "unet/config.json",
        "tokenizer_2/vocab.json",
        "vae/diffusion_pytorch_model.safetensors",
    ] {
        fs::remove_file(broken.join(file)).unwrap();
    }
    let told = sdxl(dir.path(), &["info", "broken", "--json"]);
    assert_eq!(told.status.code(), Some(2));
    let object: Value = serde_json::from_slice(&told.stdout).unwrap();
    let problems = object["problems"].to_string();
    for words in [
        "unet/config.json",
        "tokenizer_2/vocab.json",
        "diffusion_pytorch_model",
    ] {
        assert!(problems.contains(words), "`{words}` not in: {problems}");
    }
}

#[cfg(unix)]
#[test]
fn readers_that_go_away_cost_no_pictures() {
    let dir = TempDir::new().unwrap();
    let line = format!(
        "{} generate a b c --model {} --steps 2 --seed 1 --output all.png --output-latents l.safetensors",
        env!("CARGO_BIN_EXE_sdxl"),
        golden("base").display()
    );
    for end in ["2>/dev/null | true", "2>&1 >/dev/null | true"] {
        let line = format!("set -o pipefail; {line} {end}");
        let run = Command::new("bash")
            .args(["-c", &line])
            .current_dir(dir.path())
            .output();
        assert!(run.unwrap().status.success(), "{end}");
        for i in 1..=3 {
            fs::remove_file(dir.path().join(format!("all-{i}.png"))).unwrap();
        }
        fs::remove_file(dir.path().join("l.safetensors")).unwrap();
    }
}

#[test]
fn recipes_that_are_changed_or_foreign() {
    let dir = TempDir::new().unwrap();
    assert!(
        generate(dir.path(), &["a", "b", "--seed", "1", "--output", "p.png"])
            .status
            .success()
    );
    // Other prompts are other pictures: all of them are written.
    let args = [
        "generate", "--recipe", "p-2.png", "x", "y", "z", "--output", "new.png",
    ];
    let made = sdxl(dir.path(), &args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(text(&made.stdout).lines().count(), 3);

    let json = sdxl(dir.path(), &["show", "p-1.png", "--json"]).stdout;
    let mut recipe = serde_json::from_slice::<Value>(&json).unwrap()["recipe"].clone();
    recipe["isa"] = "abacus".into();
    recipe["files"][0]["sha256"] = "x".into();
    recipe["files"][2]["sha256"] = "y".into();
    recipe["request"]["prompt"][0] = "red \u{1b}[31m".into();
    fs::write(dir.path().join("odd.json"), recipe.to_string()).unwrap();
    let shown = sdxl(dir.path(), &["show", "odd.json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert!(!text(&shown.stdout).contains('\u{1b}'));
    let args = ["generate", "--recipe", "odd.json", "--output", "odd.png"];
    let said = text(&sdxl(dir.path(), &args).stderr);
    assert!(
        said.contains("abacus") && said.contains("other weights"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_run_and_exits_130() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = TempDir::new().unwrap();
    let model = golden("base");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args(["generate", "a cat", "--model", model.to_str().unwrap()])
        .args(["--steps", "1000", "--output", "never.png"])
        .current_dir(dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.find(|l| l.as_ref().unwrap().starts_with("step"));
    assert!(first.is_some());
    let signal = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        rest.iter()
            .any(|l| l.contains("stopping; press Ctrl-C again")),
        "{rest:?}"
    );
    assert!(rest.iter().any(|l| l.contains("cancelled")), "{rest:?}");
    assert!(!dir.path().join("never.png").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_the_pictures_that_are_finished() {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args(["generate", "a star", "--seed", "3", "--steps", "1"])
        .args(["--width", "768", "--height", "768", "--num-images", "4"])
        .args(["--output", "a.png"])
        .env("XDG_CACHE_HOME", dir.path().join("cache"))
        .current_dir(dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let first = dir.path().join("a-1.png");
    while !first.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let signal = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    let told = child.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(130));
    assert!(text(&told.stdout).starts_with("a-1.png\n"));
    assert!(!dir.path().join("a-4.png").exists());
    // Whole, with a whole recipe.
    assert_eq!(read_png(&first).0, 768);
    let shown = sdxl(dir.path(), &["show", "a-1.png", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert!(!shown["recipe"]["files"].as_array().unwrap().is_empty());
    assert_eq!(shown["recipe"]["image_index"], 0);
}

#[test]
fn words_that_do_not_parse_are_answered_in_json_too() {
    let dir = TempDir::new().unwrap();
    let refused = sdxl(
        dir.path(),
        &["generate", "a star", "--cfg_scale", "7", "--json"],
    );
    assert_eq!(refused.status.code(), Some(2));
    let told: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(
        (&told["exit_code"], &told["class"]),
        (&2.into(), &"request".into())
    );
    let said = told["error"].as_str().unwrap();
    assert!(
        said.contains("'--cfg_scale'") && said.contains("'--guidance-scale'"),
        "{said}"
    );
    // Help is no error.
    let help = sdxl(dir.path(), &["generate", "--json", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).starts_with("Make pictures"));
}
