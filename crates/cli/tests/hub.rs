//! Models of a hub on the command line: the built-in demo served by a hub in the test.

#[path = "../../sdxl/tests/support/hub_server.rs"]
mod hub_server;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use hub_server::{Fault, Model, Server, commit};
use sdxl_demo::Demo;
use sdxl_testing::read_png;
use serde_json::Value;
use support::text;
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn model(demo: Demo) -> Model {
    let mut model = Model::default();
    for file in demo.files() {
        model
            .files
            .insert(file.path.to_string(), file.bytes.to_vec());
    }
    // As hubs have them: files that nobody needs.
    model.files.insert("README.md".into(), b"# demo".to_vec());
    model
        .files
        .insert("all.safetensors".into(), vec![7; 100_000]);
    model
}

struct Place {
    dir: TempDir,
    server: Server,
}

fn place() -> Place {
    let place = Place {
        dir: TempDir::new().unwrap(),
        server: Server::start(),
    };
    place.server.publish("demo-org/demo", model(Demo::Base));
    place
        .server
        .publish("demo-org/demo-refiner", model(Demo::Refiner));
    place
}

impl Place {
    fn at(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, offline: bool, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sdxl"))
            .args(args)
            .current_dir(self.at())
            .env("HOME", self.at().join("home"))
            .env("XDG_CACHE_HOME", self.at().join("cache"))
            .env("HF_HOME", self.at().join("hf"))
            .env("HF_ENDPOINT", &self.server.endpoint)
            .env("HF_HUB_OFFLINE", if offline { "1" } else { "0" })
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_TOKEN")
            .output()
            .unwrap()
    }

    fn ok(&self, offline: bool, args: &[&str]) -> (String, String) {
        let told = self.run(offline, args);
        assert!(told.status.success(), "{args:?}: {}", text(&told.stderr));
        (text(&told.stdout), text(&told.stderr))
    }

    fn refused(&self, offline: bool, args: &[&str], words: &[&str]) {
        let told = self.run(offline, args);
        assert_eq!(
            told.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&told.stderr)
        );
        for word in words {
            let said = text(&told.stderr);
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(true, args).0).unwrap()
    }
}

#[test]
fn a_name_makes_the_picture_that_the_folder_makes() {
    let place = place();
    let make = |offline: bool, model: &str, output: &str| {
        let mut args = vec![
            "generate",
            "a red circle on a blue background",
            "--seed",
            "3",
        ];
        args.extend(["--steps", "4", "--model", model, "--output", output]);
        place.ok(offline, &args).1
    };
    // Cut once on the way, to see it told.
    place.server.fail("storage", Fault::Cut(20_000));
    let said = make(false, "demo-org/demo", "a.png");
    for word in ["pulling demo-org/demo@", UNET, "again in 1 s"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("README.md") && !said.contains("all.safetensors"));
    make(true, "demo", "b.png");
    assert!(read_png(&place.at().join("a.png")) == read_png(&place.at().join("b.png")));

    // Again, from the cache: without the hub, and without a word about it.
    place.server.seen();
    let said = make(true, "demo-org/demo", "c.png");
    assert!(!said.contains("pulling"), "{said}");
    make(false, "demo-org/demo@main", "d.png");
    assert!(place.server.seen().is_empty());
    assert!(read_png(&place.at().join("c.png")) == read_png(&place.at().join("b.png")));

    // The recipe means the same files on any day.
    let shown = place.json(&["show", "a.png", "--json"]);
    let exact = format!("demo-org/demo@{}", commit(&model(Demo::Base)));
    assert_eq!(shown["recipe"]["model"], exact.as_str());
    place.ok(
        true,
        &["generate", "--recipe", "a.png", "--output", "e.png"],
    );
    assert!(read_png(&place.at().join("e.png")) == read_png(&place.at().join("b.png")));

    // Other commands find it by the same name, and look at it without fetching.
    let kind = place.json(&["models", "inspect", "demo-org/demo", "--json"]);
    assert_eq!(kind["kind"], "Stable Diffusion XL base");
    place.ok(true, &["info", "demo-org/demo"]);
    place.ok(true, &["prompt", "a cat", "--model", "demo-org/demo"]);
    place.refused(
        false,
        &["info", "demo-org/demo-refiner"],
        &["not in the cache", "sdxl models pull demo-org/demo-refiner"],
    );
}

#[test]
fn refiner_and_vae_by_name() {
    let place = place();
    let make = |words: &[&str], output: &str| {
        let mut args = vec![
            "generate", "a star", "--seed", "3", "--steps", "4", "--output", output,
        ];
        args.extend(words);
        place.ok(false, &args);
    };
    let from = [
        "--refiner",
        "demo-org/demo-refiner",
        "--vae",
        "demo-org/demo",
    ];
    make(&from, "a.png");
    make(&["--refiner", "demo-refiner"], "b.png");
    assert!(read_png(&place.at().join("a.png")) == read_png(&place.at().join("b.png")));
    // Of the model that is here for its VAE there is nothing else, nor a VAE of the refiner's.
    let list = place.json(&["models", "list", "--json"]);
    let path = |i: usize| Path::new(list["models"][i]["path"].as_str().unwrap()).to_path_buf();
    assert!(path(0).join("vae/config.json").is_file() && !path(0).join("unet").exists());
    assert!(path(1).join("unet/config.json").is_file() && !path(1).join("vae").exists());
    place.ok(
        true,
        &["generate", "--recipe", "a.png", "--output", "c.png"],
    );
    assert!(read_png(&place.at().join("c.png")) == read_png(&place.at().join("a.png")));
}

#[test]
fn what_stands_in_for_a_part_is_not_fetched_too() {
    let place = place();
    let at = place.at();
    place.ok(true, &["models", "export-demo", "own"]);
    let make = |model: &str, output: &str, words: &[&str]| {
        let mut args = vec!["generate", "a star", "--seed", "3", "--steps", "4"];
        args.extend(["--model", model, "--output", output]);
        args.extend(words);
        place.ok(false, &args);
    };
    // A slip in its name is told before anything is fetched.
    let slip = [
        "generate",
        "a star",
        "--model",
        "demo-org/demo",
        "--unet",
        "none",
    ];
    place.refused(false, &slip, &["none: there is no such file"]);
    assert!(place.server.seen().is_empty());
    make("demo", "a.png", &[]);
    make("demo-org/demo", "b.png", &["--unet", "own/base/unet"]);
    assert!(read_png(&at.join("a.png")) == read_png(&at.join("b.png")));
    let list = place.json(&["models", "list", "--json"]);
    let path = Path::new(list["models"][0]["path"].as_str().unwrap()).to_path_buf();
    assert!(path.join("unet/config.json").is_file() && !path.join(UNET).exists());
    assert!(path.join("vae").is_dir());
    // A replay knows; a run without the other UNet fetches the model's own.
    place.ok(
        true,
        &["generate", "--recipe", "b.png", "--output", "c.png"],
    );
    assert!(read_png(&at.join("a.png")) == read_png(&at.join("c.png")));
    make("demo-org/demo", "d.png", &[]);
    assert!(read_png(&at.join("a.png")) == read_png(&at.join("d.png")) && path.join(UNET).exists());
}

#[test]
fn what_is_here_is_never_taken_for_a_name_and_what_is_neither_says_both() {
    let place = place();
    place.ok(true, &["models", "export-demo", "demo-org/demo"]);
    let base = "demo-org/demo/base";
    place.ok(
        false,
        &[
            "generate", "a star", "--steps", "1", "--model", base, "--output", "a.png",
        ],
    );
    // There, though it is not a checkpoint.
    let none = ["generate", "a star", "--model", "demo-org/demo"];
    place.refused(false, &none, &["no model_index.json"]);
    assert!(place.server.seen().is_empty());

    let wrong = ["generate", "a star", "--model", "demo-org/nothing"];
    place.refused(
        false,
        &wrong,
        &[
            "no file or folder `demo-org/nothing`",
            "shows no model",
            "HF_TOKEN",
        ],
    );
    place.refused(true, &wrong, &["no file or folder", "HF_HUB_OFFLINE"]);
    let neither = ["generate", "a star", "--model", "nothing"];
    place.refused(false, &neither, &["no such checkpoint", "ORG/NAME"]);
    let file = [
        "generate",
        "a star",
        "--model",
        "models/nothing.safetensors",
    ];
    place.refused(false, &file, &["no such checkpoint"]);
    assert_eq!(
        place.server.seen().len(),
        1,
        "a file that is missing is not asked for"
    );
    place.refused(false, &["models", "pull", "nothing"], &["ORG/NAME"]);
}

#[test]
fn pull_list_verify_and_rm() {
    let place = place();
    let none = place.json(&["models", "list", "--json"]);
    assert_eq!(none["models"].as_array().unwrap().len(), 0);
    let (path, _) = place.ok(false, &["models", "pull", "demo-org/demo"]);
    let path = Path::new(path.trim()).to_path_buf();
    assert!(path.starts_with(place.at().join("hf/hub/models--demo-org--demo/snapshots")));
    assert!(path.join(UNET).is_file() && !path.join("README.md").exists());
    let list = place.json(&["models", "list", "--json"]);
    let one = &list["models"][0];
    assert_eq!(one["name"], "demo-org/demo");
    assert_eq!(one["revisions"][0], "main");
    assert_eq!(one["kind"], "Stable Diffusion XL base");
    let (shown, _) = place.ok(true, &["models", "list"]);
    let short = &commit(&model(Demo::Base))[..7];
    for word in [
        "demo-org/demo",
        "main",
        short,
        "MB",
        "Stable Diffusion XL base",
    ] {
        assert!(shown.contains(word), "no `{word}` in: {shown}");
    }

    let good = place.json(&["models", "verify", "--json"]);
    assert_eq!(good["models"][0]["broken"].as_array().unwrap().len(), 0);
    let blob = fs::canonicalize(path.join(UNET)).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let verify = ["models", "verify", "demo-org/demo"];
    place.refused(true, &verify, &["1 broken file", "--remove-broken"]);
    let mend = ["models", "verify", "demo-org/demo", "--remove-broken"];
    place.refused(true, &mend, &["1 broken file removed", "sdxl models pull"]);
    place.ok(false, &["models", "pull", "demo-org/demo"]);
    place.ok(true, &verify);

    // Nobody is there to be asked.
    place.refused(true, &["models", "rm", "demo-org/demo"], &["--yes", "MB"]);
    assert!(path.exists());
    let (freed, _) = place.ok(true, &["models", "rm", "demo-org/demo", "--yes"]);
    assert!(freed.contains("freed"), "{freed}");
    assert!(!place.at().join("hf/hub/models--demo-org--demo").exists());
    place.refused(
        true,
        &["models", "rm", "demo-org/demo", "-y"],
        &["not in the cache"],
    );
}
