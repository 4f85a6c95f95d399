//! Contact sheets and drawn schedules, by running the binary on the tiny checkpoint.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use sdxl_testing::{golden, read_png};
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

/// What every picture here has in common: small, and the reference's precision.
const SMALL: [&str; 6] = ["--precision", "f32", "--width", "40", "--height", "32"];

fn with_model<'a>(command: &'a str, model: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec![command, "--model", model];
    all.extend(SMALL);
    all.extend(args);
    all
}

fn plot(folder: &Path, args: &[&str]) -> Output {
    let model = golden("base");
    sdxl(folder, &with_model("plot", model.to_str().unwrap(), args))
}

struct Pixels {
    width: usize,
    rows: Vec<Vec<u8>>,
}

fn pixels(path: &Path) -> Pixels {
    let (width, _, rgb) = read_png(path);
    Pixels {
        width,
        rows: rgb.chunks(3 * width).map(<[u8]>::to_vec).collect(),
    }
}

/// Where `part` is on the sheet: pixels from the left and from the top.
fn find(sheet: &Pixels, part: &Pixels) -> Option<(usize, usize)> {
    (0..=sheet.rows.len() - part.rows.len()).find_map(|y| {
        let x = (0..=sheet.width - part.width).find(|x| {
            let places = part.rows.iter().zip(&sheet.rows[y..]);
            places
                .into_iter()
                .all(|(part, row)| row[3 * x..].starts_with(part))
        })?;
        Some((x, y))
    })
}

fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kept(object: &Value) -> Vec<bool> {
    let pictures = object["pictures"].as_array().unwrap();
    pictures
        .iter()
        .map(|p| p["kept"].as_bool().unwrap())
        .collect()
}

#[test]
fn a_sheet_shows_what_generate_makes() {
    let dir = TempDir::new().unwrap();
    let args = [
        "--prompt",
        "a cat",
        "--schedulers",
        "euler,heun,DPM++ 2M Karras",
    ];
    let made = plot(
        dir.path(),
        &[&args[..], &["--steps", "2,3", "--json"]].concat(),
    );
    let made = object(&made);
    let sheet = pixels(&dir.path().join("sheet.png"));
    let mut places = Vec::new();
    for (i, picture) in made["pictures"].as_array().unwrap().iter().enumerate() {
        let path = dir.path().join(picture["path"].as_str().unwrap());
        let part = pixels(&path);
        assert_eq!((part.width, part.rows.len()), (40, 32));
        let place = find(&sheet, &part);
        places.push(place.unwrap_or_else(|| panic!("{} is not there", picture["name"])));

        // The same request through `generate`.
        let model = golden("base");
        let out = format!("{i}.png");
        let scheduler = ["euler", "heun", "DPM++ 2M Karras"][i / 2];
        let args = ["a cat", "--seed", "0", "--scheduler", scheduler];
        let steps = ["--steps", ["2", "3"][i % 2], "--output", &out];
        let all = [&args[..], &steps[..]].concat();
        let same = sdxl(
            dir.path(),
            &with_model("generate", model.to_str().unwrap(), &all),
        );
        assert!(same.status.success(), "{}", text(&same.stderr));
        assert_eq!(
            fs::read(dir.path().join(&out)).unwrap(),
            fs::read(path).unwrap()
        );
    }
    // Schedulers go down, steps across, in the order in which they were typed.
    for i in 0..3 {
        let (left, right) = (places[2 * i], places[2 * i + 1]);
        assert!(left.0 < right.0 && left.1 == right.1);
        assert_eq!(left.0, places[0].0);
        assert!(i == 0 || left.1 > places[2 * i - 2].1);
    }

    let shown = object(&sdxl(dir.path(), &["show", "sheet.png", "--json"]));
    let axes = &shown["recipe"]["axes"];
    assert_eq!(axes[0]["field"], "scheduler");
    assert_eq!(axes[1]["values"], serde_json::json!([2, 3]));
    assert_eq!(shown["recipe"]["request"]["prompt"][0], "a cat");
    let again = sdxl(dir.path(), &["generate", "--recipe", "sheet.png"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("sheet of many pictures"));
}

#[test]
fn only_what_is_missing_is_made() {
    let dir = TempDir::new().unwrap();
    let args = [
        "--prompt",
        "a cat",
        "--axis",
        "guidance-scale=1,4",
        "--json",
    ];
    let run = |steps: &str| {
        let more = ["--steps", steps, "--overwrite"];
        object(&plot(dir.path(), &[&args[..], &more].concat()))
    };
    let first = run("1,2");
    assert_eq!(kept(&first), [false; 4]);
    let sheet = fs::read(dir.path().join("sheet.png")).unwrap();

    let again = run("1,2");
    assert_eq!(kept(&again), [true; 4]);
    assert_eq!(fs::read(dir.path().join("sheet.png")).unwrap(), sheet);

    // One is lost and one is broken.
    let path = |i: usize| {
        dir.path()
            .join(first["pictures"][i]["path"].as_str().unwrap())
    };
    let whole = fs::read(path(2)).unwrap();
    fs::remove_file(path(1)).unwrap();
    fs::write(path(2), &whole[..whole.len() / 2]).unwrap();
    assert_eq!(kept(&run("1,2")), [true, false, false, true]);
    assert_eq!(fs::read(path(2)).unwrap(), whole);
    assert_eq!(fs::read(dir.path().join("sheet.png")).unwrap(), sheet);

    // More values cost only what is new; a changed checkpoint costs everything.
    assert_eq!(kept(&run("2,1,3")), [true, true, false, true, true, false]);
    let copy = dir.path().join("copy");
    let copied = Command::new("cp")
        .arg("-rL")
        .arg(golden("base"))
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    let mut other = vec!["plot", "--model", "copy", "--steps", "1,2", "--overwrite"];
    other.extend(SMALL);
    other.extend(args);
    assert_eq!(kept(&object(&sdxl(dir.path(), &other))), [true; 4]);
    let config = copy.join("scheduler/scheduler_config.json");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("leading", "trailing");
    fs::write(&config, changed).unwrap();
    assert_eq!(kept(&object(&sdxl(dir.path(), &other))), [false; 4]);
}

#[test]
fn three_axes_prompts_and_a_recipe() {
    let dir = TempDir::new().unwrap();
    let args = [
        "--prompt",
        "a cat, asleep",
        "--prompt",
        "a dog",
        "--seed",
        "1,2",
        "--steps",
        "1",
        "--axis",
        "scheduler_options.timestep_spacing=leading,trailing",
        "--output",
        "pets.png",
        "--cell-size",
        "16",
        "--json",
    ];
    let made = object(&plot(dir.path(), &args));
    let names: Vec<&str> = (made["pictures"].as_array().unwrap().iter())
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[1], "a cat, asleep, seed 1, timestep_spacing trailing");
    assert_eq!(names[6], "a dog, seed 2, timestep_spacing leading");
    assert!(dir.path().join("pets.png").exists());

    // A picture of the sheet as the start of another.
    let cell = made["pictures"][6]["path"].as_str().unwrap();
    let args = ["plot", "--recipe", cell, "--axis", "eta=0,1", "--json"];
    let object = object(&sdxl(dir.path(), &args));
    assert_eq!(kept(&object).len(), 2);
    let cell = dir
        .path()
        .join(object["pictures"][0]["path"].as_str().unwrap());
    let shown = sdxl(dir.path(), &["show", cell.to_str().unwrap(), "--json"]);
    let recipe = &serde_json::from_slice::<Value>(&shown.stdout).unwrap()["recipe"];
    assert_eq!(recipe["request"]["seed"], serde_json::json!([2]));
    assert_eq!(recipe["request"]["prompt"], serde_json::json!(["a dog"]));
}

#[test]
fn mistakes_are_named_before_any_work() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("there.png"), "mine").unwrap();
    let cases: [(&[&str], &str); 15] = [
        (&["--steps", "1,2", "--output", "there.png"], "--overwrite"),
        (&["--steps", "1,2", "--output", "x.jpg"], "PNG"),
        (&["--steps", "1,2", "--cell-size", "3"], "--cell-size 3"),
        (&["--steps", "8"], "nothing differs"),
        (
            &["--steps", "1,2", "--axis", "steps=3,4"],
            "steps is given twice",
        ),
        (&["--steps", "1,2,1"], "steps: 1 is given twice"),
        (
            &["--schedulers", "euler,eulr"],
            "picture `eulr`: unknown scheduler",
        ),
        (&["--axis", "guidance=1,2"], "no such field"),
        (&["--axis", "guidance_scale"], "FIELD=VALUE"),
        (
            &["--axis", "guidance_scale=1,many"],
            "guidance_scale: \"many\"",
        ),
        (&["--axis", "num_images=1,2"], "2 pictures asked for"),
        (&["--axis", "width=64,65"], "width: 65"),
        (
            &["--steps", "5,10", "--timesteps", "ays"],
            "picture `5 steps`: steps: 5 given",
        ),
        (
            &["--schedulers", "euler,ddim", "--scheduler", "heun"],
            "cannot be used with",
        ),
        (
            &[
                "--axis",
                "eta=0,1",
                "--axis",
                "guidance_rescale=0,1",
                "--steps",
                "1,2",
                "--seed",
                "1,2",
            ],
            "4 fields differ",
        ),
    ];
    for (args, words) in cases {
        let refused = plot(dir.path(), &[&["--prompt", "a cat"], args].concat());
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words), "`{words}` not in: {said}");
        assert!(
            !said.contains("loading") && !said.contains("panicked"),
            "{said}"
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read(dir.path().join("there.png")).unwrap(), b"mine");
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_is_done() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let dir = TempDir::new().unwrap();
    let model = golden("base");
    let args = ["--prompt", "a cat", "--steps", "1,400"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args(with_model("plot", model.to_str().unwrap(), &args))
        .current_dir(dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let second = lines.find(|l| l.as_ref().unwrap().starts_with("picture 2 of 2"));
    assert!(second.is_some());
    let signal = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said = rest.join("\n");
    assert!(
        said.contains("1 of 2 pictures are kept in sheet.cells"),
        "{said}"
    );
    assert!(!dir.path().join("sheet.png").exists());

    let again = plot(dir.path(), &args);
    let said = text(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(
        said.contains("1 of 2 pictures are kept") && said.contains("picture 1 of 1: 400 steps")
    );
}

#[test]
fn schedules_are_drawn_and_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let args = [
        "schedulers",
        "show",
        "euler",
        "heun",
        "--steps",
        "5",
        "--plot",
        "s.svg",
    ];
    let made = sdxl(dir.path(), &args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(text(&made.stdout).trim(), "s.svg");
    let svg = fs::read_to_string(dir.path().join("s.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains(">heun<"));
    // Euler has 5 evaluations and 6 levels, Heun 9 and 10.
    assert_eq!(svg.matches("<circle").count(), 5 + 6 + 9 + 10);

    let again = sdxl(dir.path(), &args);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("--overwrite"));
    let both = [&args[..], &["--overwrite", "--json"]].concat();
    let both = object(&sdxl(dir.path(), &both));
    assert_eq!(both["schedulers"].as_array().unwrap().len(), 2);
    assert_eq!(both["plot"], "s.svg");
    let wrong = sdxl(
        dir.path(),
        &["schedulers", "show", "euler", "--plot", "s.png"],
    );
    assert!(text(&wrong.stderr).contains("*.svg"));

    let args = [
        "schedulers",
        "show",
        "euler",
        "--timesteps",
        "ays",
        "--json",
    ];
    let ays = object(&sdxl(dir.path(), &args));
    assert_eq!(ays["timesteps"][9], 13.0);
    let both = [&args[..], &["--steps", "10"]].concat();
    assert_eq!(sdxl(dir.path(), &both).status.code(), Some(2));
}
