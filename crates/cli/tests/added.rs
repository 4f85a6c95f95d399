//! What is added to a checkpoint for a run: textual inversions, and LoRAs that prompts name.

mod support;

use std::fs;
use std::path::Path;

use sdxl_testing::{golden, read_png};
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn ok(folder: &Path, args: &[&str]) -> String {
    let told = sdxl(folder, args);
    assert!(told.status.success(), "{args:?}: {}", text(&told.stderr));
    text(&told.stdout)
}

/// What is said of a mistake.
fn refused(folder: &Path, args: &[&str]) -> String {
    let told = sdxl(folder, args);
    assert_eq!(
        told.status.code(),
        Some(2),
        "{args:?}: {}",
        text(&told.stderr)
    );
    text(&told.stderr)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Makes a picture of a prompt in two steps; gives its pixels.
fn picture(at: &Path, output: &str, words: &[&str]) -> Vec<u8> {
    let base = golden("base");
    let own = [
        "--steps",
        "2",
        "--seed",
        "1",
        "--precision",
        "f32",
        "--output",
        output,
    ];
    let model = ["generate", "--model", base.to_str().unwrap()];
    ok(at, &[&model, words, &own].concat());
    read_png(&at.join(output)).2
}

fn recipe(at: &Path, file: &str) -> Value {
    json(&ok(at, &["show", file, "--json"]))["recipe"].clone()
}

/// Whether a recipe has a file with its hash.
fn hashed(recipe: &Value, name: &str) -> bool {
    let files = recipe["files"].as_array().unwrap();
    (files.iter()).any(|f| f["name"] == name && f["sha256"].as_str().unwrap().len() == 64)
}

#[test]
fn textual_inversions_are_in_prompts_and_recipes() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    for name in ["toy", "OldStyle"] {
        let file = format!("{name}.safetensors");
        fs::copy(golden("inversion").join(&file), at.join(&file)).unwrap();
    }
    let files = [
        "--embedding",
        "toy.safetensors:<cat-toy>",
        "--embedding",
        "OldStyle.safetensors",
    ];
    let prompt = ["a <cat-toy> on a table"];
    let plain = picture(at, "plain.png", &prompt);
    let with = picture(at, "with.png", &[&prompt[..], &files].concat());
    assert!(with != plain);
    let negative = ["a table", "--negative-prompt", "OldStyle"];
    let plain = picture(at, "negative.png", &negative);
    assert!(picture(at, "negative_with.png", &[&negative[..], &files].concat()) != plain);

    let told = recipe(at, "with.png");
    assert_eq!(told["embeddings"][0]["file"], "toy.safetensors");
    assert_eq!(told["embeddings"][0]["token"], "<cat-toy>");
    assert_eq!(told["embeddings"][1]["token"], "OldStyle");
    assert!(hashed(&told, "toy.safetensors") && hashed(&told, "OldStyle.safetensors"));
    // A replay has them too, and says when a file is another.
    ok(
        at,
        &["generate", "--recipe", "with.png", "--output", "again.png"],
    );
    assert!(read_png(&at.join("again.png")).2 == with);
    fs::copy(at.join("OldStyle.safetensors"), at.join("toy.safetensors")).unwrap();
    let told = sdxl(
        at,
        &["generate", "--recipe", "with.png", "--output", "other.png"],
    );
    assert!(told.status.success());
    assert!(
        text(&told.stderr).contains("toy.safetensors"),
        "{}",
        text(&told.stderr)
    );
    fs::remove_file(at.join("toy.safetensors")).unwrap();
    let told = refused(
        at,
        &["generate", "--recipe", "with.png", "--output", "none.png"],
    );
    assert!(told.contains("toy.safetensors"), "{told}");
}

#[test]
fn the_prompt_command_shows_the_words() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let base = golden("base");
    let toy = golden("inversion/toy.safetensors");
    let toy = format!("{}:<cat-toy>", toy.display());
    let command = [
        "prompt",
        "a <cat-toy> on (snow)1.2",
        "--model",
        base.to_str().unwrap(),
    ];
    let shown = ok(at, &[&command[..], &["--embedding", &toy]].concat());
    assert!(
        shown.contains("a <cat-toy> <cat-toy>_1 <cat-toy>_2 on snow"),
        "{shown}"
    );
    let told = json(&ok(
        at,
        &[&command[..], &["--embedding", &toy, "--json"]].concat(),
    ));
    assert_eq!(told["inversions"][0]["token"], "<cat-toy>");
    assert_eq!(told["inversions"][0]["vectors"], 3);
    let tokens = told["encoders"][1]["chunks"][0]["tokens"]
        .as_array()
        .unwrap();
    assert_eq!(tokens[3]["token"], "<cat-toy>_2");
    assert_eq!(tokens[3]["id"], 49410);
    let write = |file: &str, more: &[&str]| {
        let output = ["--output-embeddings", file];
        ok(at, &[&command[..], &output, more].concat());
        fs::read(at.join(file)).unwrap()
    };
    assert!(write("with", &["--embedding", &toy]) != write("without", &[]));
}

#[test]
fn prompts_name_loras() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let lora = |name: &str, to: &str| {
        let to = at.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden(&format!("lora/{name}.safetensors")), to).unwrap();
    };
    lora("kohya", "loras/ink.safetensors");
    lora("convolution", "loras/more/fur.safetensors");
    let a1111 = |output: &str, prompt: &str, more: &[&str]| {
        let words = [&[prompt, "--prompt-syntax", "a1111"], more].concat();
        picture(at, output, &words)
    };
    // It is what --lora does, and no text.
    let flags = [
        "--lora",
        "loras/ink.safetensors:0.5",
        "--lora",
        "loras/more/fur.safetensors",
    ];
    let plain = a1111("plain.png", "a cat", &[]);
    let flagged = a1111("flagged.png", "a cat", &flags);
    let named = a1111("named.png", "a cat<lora:ink:0.5><lora:fur:1>", &[]);
    assert!(flagged != plain && named == flagged);
    // Two weights are those of the text encoders and of the UNet.
    let unet = a1111("unet.png", "a cat<lora:ink:0:0.5>", &[]);
    let text_only = a1111("text.png", "a cat<lora:ink:0.5:0>", &[]);
    let both = a1111("both.png", "a cat<lora:ink:0.5>", &[]);
    assert!(unet != text_only && unet != both && text_only != both && unet != plain);
    assert!(a1111("nothing.png", "a cat<lora:ink:0>", &[]) == plain);
    // By block, in a prompt and typed.
    let blocks = a1111("blocks.png", "a cat<lora:ink:0.5:lbw=OUTD>", &[]);
    assert!(blocks != both && blocks != plain);
    let typed = [
        "--lora",
        "loras/ink.safetensors:0.5:lbw=1,0,0,0,0,0,1,1,1,0,0,0",
    ];
    assert!(a1111("typed.png", "a cat", &typed) == blocks);
    let words = "loras/ink.safetensors:0.5:down=0,mid=0,up.block_1=0";
    assert!(a1111("dictionary.png", "a cat", &["--lora", words]) == blocks);
    assert_eq!(
        recipe(at, "dictionary.png")["loras"][0]["blocks"]["unet"]["up"]["block_1"],
        0.0
    );
    // Compel's language has its own word for it.
    let compel = picture(
        at,
        "compel.png",
        &["a cat withLora(ink, 0.5)", "--pooled-from", "clean"],
    );
    assert!(compel == both);

    let told = recipe(at, "named.png");
    assert_eq!(told["loras"][0]["file"], "loras/ink.safetensors");
    assert_eq!(told["loras"][0]["scale"], 0.5);
    assert_eq!(told["loras"][0]["name"], "ink");
    assert_eq!(told["loras"][1]["file"], "loras/more/fur.safetensors");
    assert!(hashed(&told, "ink.safetensors") && hashed(&told, "fur.safetensors"));
    assert_eq!(recipe(at, "unet.png")["loras"][0]["text_scale"], 0.0);
    // A replay adds them once, from where they were; another prompt has its own.
    let replay = |output: &str, more: &[&str]| {
        let words = ["generate", "--recipe", "named.png", "--output", output];
        ok(at, &[&words, more].concat());
        read_png(&at.join(output)).2
    };
    assert!(replay("again.png", &["--lora-dir", "elsewhere"]) == named);
    assert!(replay("other.png", &["a cat<lora:ink:0.5>"]) == both);
    assert!(replay("bare.png", &["a cat"]) == plain);

    // Another folder, by its name or by the environment.
    fs::rename(at.join("loras"), at.join("models")).unwrap();
    assert!(a1111("dir.png", "a cat<lora:ink:0.5>", &["--lora-dir", "models"]) == both);
    let base = golden("base");
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args([
            "generate",
            "a cat<lora:ink:0.5>",
            "--prompt-syntax",
            "a1111",
            "--steps",
            "2",
        ])
        .args([
            "--seed",
            "1",
            "--precision",
            "f32",
            "--output",
            "env.png",
            "--model",
        ])
        .arg(base)
        .current_dir(at)
        .env("SDXL_LORA_DIR", "models")
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert!(read_png(&at.join("env.png")).2 == both);
}

#[test]
fn loras_that_cannot_be_found_or_agreed_on_are_refused() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let base = golden("base");
    let model = [
        "--model",
        base.to_str().unwrap(),
        "--prompt-syntax",
        "a1111",
        "--steps",
        "1",
    ];
    let generate = |words: &[&str]| refused(at, &[&["generate"], words, &model].concat());
    let told = generate(&["a <lora:ink:1>"]);
    assert!(
        told.contains("`ink`") && told.contains("--lora-dir"),
        "{told}"
    );
    fs::create_dir(at.join("loras")).unwrap();
    fs::copy(
        golden("lora/kohya.safetensors"),
        at.join("loras/pen-and-ink.safetensors"),
    )
    .unwrap();
    let told = generate(&["a <lora:ink:1>"]);
    assert!(told.contains("`pen-and-ink`"), "{told}");
    let told = generate(&["a <lora:pen-and-ink:1>", "a <lora:pen-and-ink:0.5>"]);
    assert!(
        told.contains("number 2") && told.contains("at 0.5"),
        "{told}"
    );
    let told = generate(&["a <lora:pen-and-ink:much>"]);
    assert!(told.contains("`much`"), "{told}");
    let sheet = [
        "--prompt",
        "a <lora:pen-and-ink:1>",
        "--prompt",
        "a fox",
        "--width",
        "64",
    ];
    let told = refused(at, &[&["plot"], &sheet[..], &model].concat());
    assert!(told.contains("different LoRAs"), "{told}");

    // In Compel's language it is text, and a negative prompt has none.
    let told = sdxl(at, &["prompt", "a <lora:ink:1>"]);
    assert!(told.status.success() && text(&told.stderr).contains("withLora"));
    assert!(text(&told.stdout).contains("<lora:ink:1>"));
    let warned = |words: &[&str]| {
        let own = [
            "generate",
            "--steps",
            "1",
            "--seed",
            "1",
            "--overwrite",
            "--output",
            "a.png",
        ];
        let model = ["--model", base.to_str().unwrap(), "--json"];
        let told = json(&ok(at, &[&own[..], &model, words].concat()));
        told["warnings"].to_string()
    };
    let told = warned(&["a <lora:ink:1>"]);
    assert!(told.contains("prompt_syntax a1111"), "{told}");
    let told = warned(&[
        "a cat",
        "--prompt-syntax",
        "a1111",
        "--negative-prompt",
        "<lora:ink:1>",
    ]);
    assert!(
        told.contains("negative prompt") && told.contains("`ink`"),
        "{told}"
    );
}
