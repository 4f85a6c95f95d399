//! `sdxl models`: inspecting, converting and examining checkpoints, and running a single file.

mod support;

use std::fs;
use std::path::Path;

use sdxl_testing::{copy_folder, golden, read_png};
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn ok(folder: &Path, args: &[&str]) -> String {
    let told = sdxl(folder, args);
    assert!(told.status.success(), "{args:?}: {}", text(&told.stderr));
    text(&told.stdout)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn folder_to_file_and_back_changes_nothing() {
    for name in ["base", "refiner"] {
        let dir = TempDir::new().unwrap();
        let at = dir.path();
        let folder = golden(name);
        let file = format!("{name}.safetensors");
        ok(at, &["models", "convert", folder.to_str().unwrap(), &file]);
        ok(at, &["models", "convert", &file, "back"]);
        let mut seen = 0;
        for part in ["text_encoder", "text_encoder_2", "unet", "vae"] {
            if !folder.join(part).exists() {
                assert!(!at.join("back").join(part).exists());
                continue;
            }
            for file in ["model.safetensors", "diffusion_pytorch_model.safetensors"] {
                let (was, is) = (folder.join(part).join(file), at.join("back").join(part));
                if was.exists() {
                    assert_eq!(tensors(&was), tensors(&is.join(file)), "{part}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, if name == "base" { 4 } else { 3 });
        for path in fs::read_dir(&folder).unwrap() {
            let name = path.unwrap().file_name();
            for file in [
                "config.json",
                "scheduler_config.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.json",
            ] {
                let (was, is) = (folder.join(&name), at.join("back").join(&name));
                if was.join(file).exists() {
                    assert_eq!(
                        json(&was.join(file)),
                        json(&is.join(file)),
                        "{name:?} {file}"
                    );
                }
            }
            let merges = |root: &Path| fs::read(root.join(&name).join("merges.txt")).ok();
            assert!(merges(&folder) == merges(&at.join("back")));
        }
        let index = "model_index.json";
        assert_eq!(
            json(&folder.join(index)),
            json(&at.join("back").join(index))
        );
        // And the file made of that folder is the first file.
        ok(at, &["models", "convert", "back", "again.safetensors"]);
        assert_eq!(
            tensors(&at.join(&file)),
            tensors(&at.join("again.safetensors"))
        );
        let left: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            !left.iter().any(|n| n.to_string_lossy().ends_with(".part")),
            "{left:?}"
        );
    }
}

type Tensors = Vec<(String, String, Vec<usize>, Vec<u8>)>;

/// All tensors of a file, by name. Read here, not by the library.
fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut all: Tensors = (header.as_object().unwrap().iter())
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, told)| {
            let numbers = |key: &str| -> Vec<usize> {
                let list = told[key].as_array().unwrap().iter();
                list.map(|v| v.as_u64().unwrap() as usize).collect()
            };
            let at = numbers("data_offsets");
            let data = bytes[8 + length + at[0]..8 + length + at[1]].to_vec();
            (
                name.clone(),
                told["dtype"].to_string(),
                numbers("shape"),
                data,
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_single_file_makes_the_folders_picture() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let folder = golden("base");
    let folder = folder.to_str().unwrap();
    ok(at, &["models", "convert", folder, "one.safetensors"]);
    let run = |model: &str, output: &str| {
        let prompt = ["generate", "a cat", "--steps", "2", "--seed", "1"];
        let rest = ["--precision", "f32", "--model", model, "--output", output];
        ok(at, &[&prompt[..], &rest].concat());
        read_png(&at.join(output)).2
    };
    assert!(run(folder, "a.png") == run("one.safetensors", "b.png"));
    let shown = ok(at, &["show", "b.png", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let files = &shown["recipe"]["files"];
    assert_eq!(files.as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(files[0]["name"], "one.safetensors");

    // A VAE given beside it is in the recipe, and a replay uses it.
    let vae = golden("refiner/vae");
    copy_folder(&vae, &at.join("other"));
    let config = at.join("other/config.json");
    let edited = fs::read_to_string(&config)
        .unwrap()
        .replace("0.13025", "0.2");
    fs::write(&config, edited).unwrap();
    let args = [
        "generate",
        "a cat",
        "--steps",
        "2",
        "--seed",
        "1",
        "--precision",
        "f32",
    ];
    let more = [
        "--model",
        "one.safetensors",
        "--vae",
        "other",
        "--output",
        "c.png",
    ];
    ok(at, &[&args[..], &more].concat());
    let with = read_png(&at.join("c.png")).2;
    assert!(with != read_png(&at.join("b.png")).2);
    ok(at, &["generate", "--recipe", "c.png", "--output", "d.png"]);
    assert!(read_png(&at.join("d.png")).2 == with);
}

#[test]
fn inspect_says_what_it_is() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let folder = golden("refiner");
    ok(
        at,
        &[
            "models",
            "convert",
            folder.to_str().unwrap(),
            "r.safetensors",
        ],
    );
    let told = ok(at, &["models", "inspect", "r.safetensors", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["kind"], "Stable Diffusion XL refiner");
    assert_eq!(told["layout"], "one file, original names");
    assert_eq!(told["prediction_type"], "epsilon");
    assert_eq!(told["parts"].as_array().unwrap().len(), 3);
    let folders = ok(
        at,
        &["models", "inspect", folder.to_str().unwrap(), "--json"],
    );
    let folders: Value = serde_json::from_str(&folders).unwrap();
    assert_eq!(folders["layout"], "folder");
    assert_eq!(folders["parameters"], told["parameters"]);

    let vae = golden("base/vae/diffusion_pytorch_model.safetensors");
    let told = ok(at, &["models", "inspect", vae.to_str().unwrap()]);
    assert!(
        told.contains("a VAE alone") && told.contains("--vae"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    // The demo has a vocabulary of its own, and a single file none.
    let told = sdxl(at, &["models", "convert", "demo", "demo.safetensors"]);
    assert_eq!(told.status.code(), Some(2));
    assert!(
        text(&told.stderr).contains("vocabulary"),
        "{}",
        text(&told.stderr)
    );
    fs::write(at.join("there.safetensors"), "x").unwrap();
    let base = golden("base");
    let args = [
        "models",
        "convert",
        base.to_str().unwrap(),
        "there.safetensors",
    ];
    let told = sdxl(at, &args);
    assert_eq!(told.status.code(), Some(2));
    assert_eq!(fs::read(at.join("there.safetensors")).unwrap(), b"x");
}

/// What `models doctor` finds, and its exit code.
fn doctor(folder: &Path, path: &str) -> (i32, Vec<(bool, String)>) {
    let told = sdxl(folder, &["models", "doctor", path, "--json"]);
    let object: Value = serde_json::from_slice(&told.stdout).unwrap();
    let findings = object["findings"].as_array().unwrap().iter();
    let findings = findings.map(|f| {
        let text = f["text"].as_str().unwrap().to_string();
        (f["problem"].as_bool().unwrap(), text)
    });
    (told.status.code().unwrap(), findings.collect())
}

/// One problem (or note) that speaks of all of `words`.
fn speaks(found: &[(bool, String)], problem: bool, words: &[&str]) {
    let said = found
        .iter()
        .any(|(is, text)| *is == problem && words.iter().all(|w| text.contains(w)));
    assert!(said, "{words:?} not in {found:#?}");
}

/// A file of F16 tensors of these names and shapes, all zero.
fn write_zeros(path: &Path, tensors: &[(&str, &[usize])]) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let told = serde_json::json!({
            "dtype": "F16", "shape": shape, "data_offsets": [start, end],
        });
        header.insert(name.to_string(), told);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn doctor_finds_what_is_wrong_with_a_folder() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    copy_folder(&golden("base"), &at.join("base"));
    let (code, found) = doctor(at, "base");
    assert_eq!(code, 0, "{found:?}");
    assert!(found.iter().all(|(problem, _)| !problem));
    speaks(&found, false, &["f16", "force_upcast", "sdxl-vae-fp16-fix"]);

    let edit = |path: &str, from: &str, to: &str| {
        let path = at.join(path);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    // Several at once: all are named.
    let unet = "base/unet/diffusion_pytorch_model.safetensors";
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5135149760\n";
    fs::write(at.join(unet), pointer).unwrap();
    fs::remove_file(at.join("base/tokenizer/merges.txt")).unwrap();
    let (code, found) = doctor(at, "base");
    assert_eq!(code, 2);
    speaks(
        &found,
        true,
        &["unet/diffusion_pytorch_model", "git lfs pull"],
    );
    speaks(&found, true, &["merges.txt"]);
    assert_eq!(found.iter().filter(|f| f.0).count(), 2, "{found:#?}");

    copy_folder(&golden("base"), &at.join("second"));
    edit("second/vae/config.json", "0.13025", "0.18215");
    edit(
        "second/vae/config.json",
        "\"force_upcast\": true",
        "\"force_upcast\": false",
    );
    edit(
        "second/scheduler/scheduler_config.json",
        "\"epsilon\"",
        "\"v_prediction\"",
    );
    let part = at.join("second/unet");
    let plain = part.join("diffusion_pytorch_model.safetensors");
    fs::rename(plain, part.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    let (code, found) = doctor(at, "second");
    assert_eq!(code, 2);
    speaks(&found, true, &["0.18215", "`vae`"]);
    speaks(&found, false, &["black", "force_upcast false"]);
    speaks(&found, false, &["predicts v"]);
    speaks(&found, false, &["variant fp16", "only unet"]);

    let (code, found) = doctor(at, golden("refiner").to_str().unwrap());
    assert_eq!(code, 0);
    speaks(&found, false, &["refiner", "`refiner`"]);
    let (code, found) = doctor(at, "absent");
    assert_eq!(code, 2);
    speaks(&found, true, &["no such checkpoint"]);
}

#[test]
fn doctor_tells_files_apart() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let down =
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight";
    for (width, words) in [
        (768, ["Stable Diffusion 1", "768"]),
        (1024, ["Stable Diffusion 2", "1024"]),
    ] {
        write_zeros(&at.join("lora.safetensors"), &[(down, &[4, width])]);
        let (code, found) = doctor(at, "lora.safetensors");
        assert_eq!(code, 2);
        speaks(&found, true, &words);
    }
    // As `generate` judges it: one that lacks a half, or fits no layer, is of no use.
    write_zeros(&at.join("lora.safetensors"), &[(down, &[4, 2048])]);
    let (code, found) = doctor(at, "lora.safetensors");
    assert_eq!(code, 2);
    speaks(&found, true, &["lacks some of its tensors"]);
    let flux = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight";
    write_zeros(&at.join("lora.safetensors"), &[(flux, &[4, 3072])]);
    let (code, found) = doctor(at, "lora.safetensors");
    assert_eq!(code, 2);
    speaks(&found, true, &["double_blocks", "none of it fits"]);
    let up = down.replace("lora_down", "lora_up");
    write_zeros(
        &at.join("lora.safetensors"),
        &[(down, &[4, 2048]), (&up, &[640, 4])],
    );
    let (code, found) = doctor(at, "lora.safetensors");
    assert_eq!(code, 0);
    speaks(&found, false, &["`loras`"]);
    let told = ok(at, &["models", "inspect", "lora.safetensors"]);
    assert!(told.contains("Stable Diffusion XL, base"), "{told}");

    // Others that hold the same: an old writer, and the Hadamard product of two pairs.
    for old in [
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b",
    ] {
        write_zeros(&at.join("lora.safetensors"), &[(old, &[4, 768])]);
        let (code, found) = doctor(at, "lora.safetensors");
        assert_eq!(code, 2, "{old}");
        speaks(&found, true, &["Stable Diffusion 1", "768"]);
    }
    // A VAE by itself is no problem, unless it is another family's.
    for (channels, code_of, words) in [(4, 0, ["`vae`", "f16"]), (16, 2, ["16 channels", "SDXL"])] {
        let vae = [("decoder.conv_in.weight", &[512, channels, 3, 3][..])];
        write_zeros(&at.join("vae.safetensors"), &vae);
        let (code, found) = doctor(at, "vae.safetensors");
        assert_eq!(code, code_of, "{found:?}");
        speaks(&found, code_of != 0, &words);
    }
    // So is a UNet, unless its weights are scaled in a way that is not read.
    let unet = ("input_blocks.0.0.weight", &[4, 4, 3, 3][..]);
    let label = ("label_emb.0.0.weight", &[8, 8][..]);
    write_zeros(&at.join("unet.safetensors"), &[unet, label]);
    let (code, found) = doctor(at, "unet.safetensors");
    assert_eq!(code, 0, "{found:?}");
    speaks(&found, false, &["`unet`"]);
    let scale = ("label_emb.0.0.scale_weight", &[1][..]);
    write_zeros(&at.join("unet.safetensors"), &[unet, label, scale]);
    let (code, found) = doctor(at, "unet.safetensors");
    assert_eq!(code, 2);
    speaks(&found, true, &["scale_weight", "f16 version"]);

    let sd1 = [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            &[4, 4, 3, 3][..],
        ),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            &[8],
        ),
    ];
    write_zeros(&at.join("sd.safetensors"), &sd1);
    let (code, found) = doctor(at, "sd.safetensors");
    assert_eq!(code, 2);
    speaks(&found, true, &["Stable Diffusion 1", "XL"]);
    fs::write(at.join("old.ckpt"), b"\x80\x02}q").unwrap();
    let (code, found) = doctor(at, "old.ckpt");
    assert_eq!(code, 2);
    speaks(&found, true, &["pickle"]);
}

#[test]
fn fewer_bits_are_written_told_and_compared() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let base = golden("base");
    let base = base.to_str().unwrap();
    let convert = ["models", "convert", base];
    let told = ok(
        at,
        &[&convert[..], &["small.safetensors", "--precision", "int8"]].concat(),
    );
    for words in [
        "small.safetensors",
        "weights",
        "relative L2",
        "int8 against f32",
    ] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(told.matches(" dB").count(), 4, "{told}");
    assert!(ok(at, &["models", "inspect", "small.safetensors"]).contains("I8"));
    let (code, _) = doctor(at, "small.safetensors");
    assert_eq!(code, 0);

    let quick = ["unet.gguf", "--precision", "q4_0", "--no-compare"];
    let told = ok(at, &[&convert[..], &quick].concat());
    assert!(
        told.contains("relative L2") && !told.contains(" dB"),
        "{told}"
    );
    assert!(ok(at, &["models", "inspect", "unet.gguf"]).contains("Q4_0"));
    let (code, found) = doctor(at, "unet.gguf");
    assert_eq!(code, 0, "{found:?}");
    let compared = ok(at, &["models", "compare", base, "unet.gguf", "--json"]);
    let compared: Value = serde_json::from_str(&compared).unwrap();
    assert_eq!(compared["precision"], "f32");
    for picture in compared["pictures"].as_array().unwrap() {
        let psnr = picture["psnr"].as_f64().unwrap();
        assert!(psnr > 20.0 && psnr < 70.0, "{psnr}");
    }
    let same = ok(at, &["models", "compare", base, base]);
    assert_eq!(same.matches("equal").count(), 4, "{same}");

    for (args, words) in [
        (&["unet.gguf", "--precision", "q8_0"][..], "already"),
        (&["other.gguf"], "--precision"),
        (&["other", "--precision", "q8_0"], ".gguf"),
        (&["other", "--precision", "q9"], "q8_0"),
        (&["other", "--no-compare"], "--precision"),
    ] {
        let refused = sdxl(at, &[&convert[..], args].concat());
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        let said = text(&refused.stderr);
        assert!(said.contains(words), "{said}");
        assert!(!at.join("other").exists() && !at.join("other.gguf").exists());
    }
}

#[test]
fn loras_are_in_the_recipe() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let base = golden("base");
    for (name, copy) in [("kohya", "one"), ("convolution", "two")] {
        let lora = golden(&format!("lora/{name}.safetensors"));
        fs::copy(lora, at.join(format!("{copy}.safetensors"))).unwrap();
    }
    let args = [
        "generate",
        "a cat",
        "--steps",
        "2",
        "--seed",
        "1",
        "--precision",
        "f32",
    ];
    let model = ["--model", base.to_str().unwrap(), "--output"];
    let run = |output: &str, more: &[&str]| {
        ok(at, &[&args[..], &model, &[output], more].concat());
        read_png(&at.join(output)).2
    };
    let plain = run("plain.png", &[]);
    let both = ["--lora", "one.safetensors:0.5", "--lora", "two.safetensors"];
    let with = run("with.png", &both);
    assert!(with != plain);
    assert!(run("none.png", &["--lora", "one.safetensors:0"]) == plain);
    let shown = ok(at, &["show", "with.png", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let loras = &shown["recipe"]["loras"];
    assert_eq!(loras[0]["file"], "one.safetensors");
    assert_eq!(loras[0]["scale"], 0.5);
    assert_eq!(loras[1]["scale"], 1.0);
    let files = shown["recipe"]["files"].as_array().unwrap();
    let hashed = |name: &str| files.iter().any(|f| f["name"] == name);
    assert!(
        hashed("one.safetensors") && hashed("two.safetensors"),
        "{shown}"
    );
    // A replay has the same LoRAs, and says when a file is not the same any more.
    ok(
        at,
        &["generate", "--recipe", "with.png", "--output", "again.png"],
    );
    assert!(read_png(&at.join("again.png")).2 == with);
    fs::copy(at.join("two.safetensors"), at.join("one.safetensors")).unwrap();
    let replay = ["generate", "--recipe", "with.png", "--output", "other.png"];
    let told = sdxl(at, &replay);
    assert!(told.status.success());
    assert!(
        text(&told.stderr).contains("one.safetensors"),
        "{}",
        text(&told.stderr)
    );

    let bad = [
        "generate",
        "a cat",
        "--model",
        base.to_str().unwrap(),
        "--lora",
    ];
    let told = sdxl(at, &[&bad[..], &["absent.safetensors:0.5"]].concat());
    assert_eq!(told.status.code(), Some(2));
    assert!(text(&told.stderr).contains("absent.safetensors"));
}
