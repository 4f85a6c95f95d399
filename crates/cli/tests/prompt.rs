//! Prompts as a user meets them: `sdxl prompt`, and what `sdxl generate` makes of them.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use sdxl_testing::golden;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn ok(made: &Output) -> String {
    assert!(made.status.success(), "{}", text(&made.stderr));
    text(&made.stdout)
}

/// `sdxl prompt` on a folder that has the text parts and nothing else.
fn text_parts() -> TempDir {
    let dir = TempDir::new().unwrap();
    for part in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
        let to = dir.path().join(part);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(golden("base").join(part)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Final latents of two steps of the tiny checkpoint.
fn latents(folder: &Path, args: &[&str]) -> Vec<u8> {
    let model = golden("base");
    let mut all = vec!["generate", "--model", model.to_str().unwrap()];
    all.extend(["--precision", "f32", "--steps", "2", "--seed", "3"]);
    all.extend(["--overwrite", "--output", "out.png"]);
    all.extend(["--output-latents", "out.safetensors"]);
    all.extend(args);
    ok(&sdxl(folder, &all));
    fs::read(folder.join("out.safetensors")).unwrap()
}

#[test]
fn the_tree_needs_no_checkpoint() {
    let dir = TempDir::new().unwrap();
    let shown = ok(&sdxl(
        dir.path(),
        &["prompt", "a (red ball)1.3 on a table-"],
    ));
    assert!(
        shown.contains("×1.3") && shown.contains("red ball"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "colours in a pipe: {shown}");

    let shown = ok(&sdxl(
        dir.path(),
        &["prompt", "a (red ball)1.3", "--to", "a1111"],
    ));
    assert_eq!(shown.trim(), "a (red ball:1.3)");

    let made = sdxl(dir.path(), &["prompt", "a (red ball)1.3", "--json"]);
    let object: Value = serde_json::from_str(&ok(&made)).unwrap();
    assert_eq!(object["syntax"], "compel");
    let span = &object["steps"][0]["resolved"]["parts"][0]["content"]["text"][1]["text"];
    assert_eq!(span["text"], "red ball");
    assert_eq!(span["weight"], 1.3);

    let wrong = sdxl(dir.path(), &["prompt", "(\"a\", \"b\").and(1)"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
}

#[test]
fn tokens_weights_and_borders_are_shown() {
    let dir = text_parts();
    let long = format!("a (red)1.4 ball. {} (zebra)0.5", "cat ".repeat(80));
    let args = ["prompt", &long, "--model", "."];
    let shown = ok(&sdxl(dir.path(), &args));
    for words in [
        "text_encoder:",
        "text_encoder_2:",
        "red×1.4",
        "zebra×0.5",
        "chunk 1 (4)",
        "chunk 2 (75)",
        "chunk 3 (6)",
        "would be cut off at 77 tokens: cat cat",
    ] {
        assert!(shown.contains(words), "`{words}` not in:\n{shown}");
    }
    let mut cut = args.to_vec();
    cut.extend(["--truncate-long-prompts", "true"]);
    let shown = ok(&sdxl(dir.path(), &cut));
    assert!(shown.contains("  cut off: cat"), "{shown}");
    assert!(!shown.contains("chunk 2"), "{shown}");

    let mut json = args.to_vec();
    json.push("--json");
    let object: Value = serde_json::from_str(&ok(&sdxl(dir.path(), &json))).unwrap();
    let encoders = object["encoders"].as_array().unwrap();
    assert_eq!(encoders.len(), 2);
    let tokens = encoders[0]["chunks"][0]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 4);
    assert_eq!(tokens[1]["token"], "red</w>");
    assert_eq!(tokens[1]["id"], 736);
    assert!((tokens[1]["weight"].as_f64().unwrap() - 1.4).abs() < 1e-6);

    // A prompt that changes by step is shown for each stretch of steps.
    let args = ["prompt", "a [cat:dog:0.5]", "--prompt-syntax", "a1111"];
    let shown = ok(&sdxl(
        dir.path(),
        &[&args[..], &["--model", ".", "--steps", "10"]].concat(),
    ));
    assert!(shown.contains("steps 1 to 5"), "{shown}");
    assert!(shown.contains("steps 6 to 10"), "{shown}");

    fs::remove_file(dir.path().join("tokenizer/merges.txt")).unwrap();
    let broken = sdxl(dir.path(), &["prompt", "x", "--model", "."]);
    assert_eq!(broken.status.code(), Some(2));
    assert!(text(&broken.stderr).contains("merges.txt"));
}

#[test]
fn an_encoded_prompt_makes_the_same_picture() {
    let dir = text_parts();
    let (prompt, negative) = ("a (red)1.4 fox, (fog)0.5", "rain, ".repeat(50));
    let encode = |prompt: &str, file: &str| {
        let args = [
            "prompt",
            prompt,
            "--model",
            ".",
            "--output-embeddings",
            file,
        ];
        sdxl(dir.path(), &args)
    };
    let shown = ok(&encode(prompt, "fox.safetensors"));
    assert!(shown.contains("[1,77,24]"), "{shown}");
    ok(&encode(&negative, "rain.safetensors"));
    let again = encode(prompt, "fox.safetensors");
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("--overwrite"));

    let of_texts = latents(dir.path(), &[prompt, "--negative-prompt", &negative]);
    let files = [
        "--prompt-embeds",
        "fox.safetensors",
        "--negative-prompt-embeds",
        "rain.safetensors",
    ];
    assert_eq!(latents(dir.path(), &files), of_texts);
    let without = latents(dir.path(), &[prompt]);
    assert_eq!(latents(dir.path(), &files[..2]), without);

    // The recipe knows the files, and refuses others.
    let recipe = fs::read(dir.path().join("out.png")).unwrap();
    fs::write(dir.path().join("recipe.png"), recipe).unwrap();
    assert_eq!(latents(dir.path(), &["--recipe", "recipe.png"]), without);
    fs::copy(
        dir.path().join("rain.safetensors"),
        dir.path().join("fox.safetensors"),
    )
    .unwrap();
    let model = golden("base");
    let args = ["generate", "--recipe", "recipe.png", "--model"];
    let replay = sdxl(
        dir.path(),
        &[&args[..], &[model.to_str().unwrap()]].concat(),
    );
    assert_eq!(replay.status.code(), Some(2));
    assert!(
        text(&replay.stderr).contains("SHA-256"),
        "{}",
        text(&replay.stderr)
    );

    // Of another model.
    let small = dir.path().join("small.safetensors");
    let bytes = fs::read(golden("modules/text_encoder.safetensors")).unwrap();
    fs::write(&small, bytes).unwrap();
    let args = [
        "generate",
        "--prompt-embeds",
        "small.safetensors",
        "--model",
    ];
    let wrong = sdxl(
        dir.path(),
        &[&args[..], &[model.to_str().unwrap()]].concat(),
    );
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("prompt_embeds"));
}

#[test]
fn wildcards_are_chosen_by_seed_and_recorded() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("wild")).unwrap();
    fs::write(dir.path().join("wild/colour.txt"), "red\n# no\ngreen\n").unwrap();
    let prompt = "a __colour__ {cat|dog|bird|fish}";
    let model = golden("base");
    let run = |more: &[&str]| {
        let mut all = vec!["generate", "--model", model.to_str().unwrap(), "--json"];
        all.extend(["--precision", "f32", "--steps", "1", "--overwrite"]);
        all.extend(["--output", "out.png", "--num-images", "4"]);
        all.extend(more);
        let made: Value = serde_json::from_str(&ok(&sdxl(dir.path(), &all))).unwrap();
        made["request"].clone()
    };
    let args = [prompt, "--seed", "5", "--wildcards-dir", "wild"];
    let request = run(&args);
    let prompts: Vec<&str> = (request["prompt"].as_array().unwrap().iter())
        .map(|p| p.as_str().unwrap())
        .collect();
    assert_eq!(prompts.len(), 4);
    for made in &prompts {
        assert!(made.starts_with("a red ") || made.starts_with("a green "));
        assert!(!made.contains(['_', '{', '|']), "{made}");
    }
    assert!(prompts.iter().any(|p| *p != prompts[0]));
    assert_eq!(run(&args), request);
    // Without being asked for, signs are text.
    assert_eq!(run(&[prompt, "--seed", "5"])["prompt"][0], prompt);

    let args = ["generate", "a __sea__", "--wildcards-dir", "wild"];
    let missing = sdxl(dir.path(), &args);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("sea"));
}

#[test]
fn syntaxes_differ_and_recipes_keep_theirs() {
    let dir = TempDir::new().unwrap();
    let prompt = "a (red:1.4) fox";
    let compel = latents(dir.path(), &[prompt]);
    let a1111 = latents(dir.path(), &[prompt, "--prompt-syntax", "a1111"]);
    fs::rename(dir.path().join("out.png"), dir.path().join("a1111.png")).unwrap();
    let no_norm = latents(
        dir.path(),
        &[
            prompt,
            "--prompt-syntax",
            "a1111",
            "--prompt-weighting",
            "a1111-no-norm",
        ],
    );
    let plain = latents(dir.path(), &[prompt, "--prompt-syntax", "plain"]);
    let all = [&compel, &a1111, &no_norm, &plain];
    for (i, one) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| other != one));
    }
    assert_eq!(latents(dir.path(), &["--recipe", "a1111.png"]), a1111);

    // Long prompts are encoded whole, unless they are plain or somebody says so.
    let long = format!("{}zebra", "cat ".repeat(80));
    let without = "cat ".repeat(80);
    let pooled = ["--pooled-from", "clean"];
    let run =
        |prompt: &str, more: &[&str]| latents(dir.path(), &[&[prompt], &pooled[..], more].concat());
    assert_ne!(run(&long, &[]), run(&without, &[]));
    let cut = ["--truncate-long-prompts", "true"];
    assert_eq!(run(&long, &cut), run(&without, &cut));
    let plain = ["--prompt-syntax", "plain"];
    assert_eq!(run(&long, &plain), run(&without, &plain));
}
