//! Checkpoints in one file: found by their names, equal to the folder they were made of.

mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::text::tokenizer::Tokenizer;
use sdxl::weights::OpenOptions;
use sdxl::weights::{ElementType, StoredTensor, TensorSet};
use sdxl::{Checkpoint, CheckpointKind, Lora, Part, Pipeline, Precision, Request};
use sdxl_testing::{copy_folder, golden};
use serde_json::{Map, Value, json};
use support::{generate, load};
use tempfile::TempDir;

/// What `tools/golden/single_file.py` tells of a file's tensors.
fn layout(name: &str) -> Map<String, Value> {
    let file: Value = read_json(&golden(&format!("single/{name}.json"))).unwrap();
    file["tensors"].as_object().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<usize> {
    let list = value.as_array().unwrap().iter();
    list.map(|v| v.as_u64().unwrap() as usize).collect()
}

/// The configuration files of a folder, as the header of a converted file holds them: tiny
/// networks have head sizes and groups that no published one has.
fn configs(folder: &Path, parts: &[Part]) -> String {
    let mut paths = vec![
        "model_index.json".into(),
        "scheduler/scheduler_config.json".into(),
    ];
    paths.extend(parts.iter().map(|p| format!("{}/config.json", p.folder())));
    let read = |path: &String| (path.clone(), read_json(&folder.join(path)).unwrap());
    Value::Object(paths.iter().map(read).collect()).to_string()
}

/// One tensor of a single file.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn plain(tensor: &StoredTensor) -> Dtype {
    match tensor.element() {
        ElementType::Plain(dtype) => dtype,
        ElementType::Blocks(block) => panic!("{block} in a safetensors file"),
    }
}

fn entry(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Entry {
    Entry {
        name: name.to_string(),
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

/// The tensors of a folder in the places where a single file has them.
fn tensors_of(checkpoint: &Checkpoint, layout: &Map<String, Value>) -> Vec<Entry> {
    let sets: HashMap<&str, TensorSet> = (Part::ALL.into_iter())
        .filter(|part| checkpoint.has(*part))
        .map(|part| (part.folder(), checkpoint.tensors(part).unwrap()))
        .collect();
    let mut entries = Vec::new();
    for (name, told) in layout {
        let (mut bytes, mut dtype) = (Vec::new(), Dtype::F32);
        for source in told["holds"].as_object().unwrap().keys() {
            let (part, inner) = source.split_once('/').unwrap();
            let tensor = sets[part].get(inner).unwrap();
            bytes.extend_from_slice(&sets[part].bytes(tensor));
            dtype = plain(tensor);
        }
        let shape = numbers(&told["shape"]);
        if told.get("transposed").is_some() {
            let (rows, columns) = (shape[0], shape[1]);
            let size = bytes.len() / (rows * columns);
            let at = |row: usize, column: usize| (column * rows + row) * size;
            bytes = (0..rows)
                .flat_map(|row| (0..columns).map(move |column| at(row, column)))
                .flat_map(|at| bytes[at..at + size].to_vec())
                .collect();
        }
        entries.push(entry(name, dtype, &shape, bytes));
    }
    entries
}

fn write(path: &Path, entries: &[Entry], metadata: &[(&str, String)]) {
    let views = (entries.iter()).map(|e| {
        (
            e.name.as_str(),
            TensorView::new(e.dtype, e.shape.clone(), &e.bytes).unwrap(),
        )
    });
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.clone()));
    safetensors::serialize_to_file(views, Some(metadata.collect()), path).unwrap();
}

const BASE: [Part; 4] = Part::ALL;
const REFINER: [Part; 3] = [Part::TextEncoder2, Part::UNet, Part::Vae];

/// The tiny base or refiner as a single file, changed by `change`.
fn tiny(name: &str, parts: &[Part], change: impl FnOnce(&mut Vec<Entry>)) -> (TempDir, PathBuf) {
    let folder = golden(name);
    let checkpoint = Checkpoint::open(&folder, None).unwrap();
    let mut entries = tensors_of(&checkpoint, &layout(&format!("tiny_{name}")));
    change(&mut entries);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(format!("{name}.safetensors"));
    write(
        &path,
        &entries,
        &[("sdxl.configs", configs(&folder, parts))],
    );
    (dir, path)
}

fn sorted(checkpoint: &Checkpoint, part: Part) -> Vec<(String, Vec<usize>, Dtype, Vec<u8>)> {
    let set = checkpoint.tensors(part).unwrap();
    let mut all: Vec<_> = (set.iter())
        .map(|(n, t)| {
            (
                n.to_string(),
                t.shape().to_vec(),
                plain(t),
                set.bytes(t).to_vec(),
            )
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn every_tensor_is_that_of_the_folder() {
    for (name, parts) in [("base", &BASE[..]), ("refiner", &REFINER[..])] {
        let (_dir, path) = tiny(name, parts, |_| ());
        let folder = Checkpoint::open(&golden(name), None).unwrap();
        let single = Checkpoint::open(&path, None).unwrap();
        assert_eq!(single.family(), folder.family());
        assert_eq!(single.scheduler, folder.scheduler);
        for part in parts {
            assert!(
                sorted(&single, *part) == sorted(&folder, *part),
                "{name} {part:?}"
            );
        }
    }
}

fn request() -> Request {
    Request {
        prompt: vec!["a lighthouse, (dusk)1.2!".into()],
        negative_prompt: vec!["rain".into()],
        seed: vec![5],
        steps: 3,
        ..Request::default()
    }
}

fn latents(checkpoint: Checkpoint) -> Vec<f32> {
    generate(&load(checkpoint, Precision::F32), &request())
        .latents
        .data()
        .to_vec()
}

#[test]
fn a_run_is_the_folders_bit_for_bit() {
    let (_dir, path) = tiny("base", &BASE, |_| ());
    let folder = latents(Checkpoint::open(&golden("base"), None).unwrap());
    assert!(latents(Checkpoint::open(&path, None).unwrap()) == folder);
    // A folder with nothing else in it is as good as the file.
    assert!(latents(Checkpoint::open(path.parent().unwrap(), None).unwrap()) == folder);
}

#[test]
fn clips_tokenizer_is_that_of_the_folders() {
    let file: Value = read_json(&golden("tokens.json")).unwrap();
    for (first, name) in [(true, "tokenizer"), (false, "tokenizer_2")] {
        let tokenizer = Tokenizer::of_clip(first, Path::new("file")).unwrap();
        for prompt in file["prompts"].as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap();
            let ids = tokenizer.sequence(&tokenizer.ids(text).unwrap());
            let expected: Vec<u32> = numbers(&prompt[name]["ids"])
                .into_iter()
                .map(|id| id as u32)
                .collect();
            assert_eq!(ids, expected, "{name} {text:?}");
        }
    }
}

/// A file of the published size that takes no room: a header, and a hole for the values.
fn hollow(layout: &Map<String, Value>, dir: &Path) -> PathBuf {
    let mut header = Map::new();
    let mut end = 0;
    for (name, told) in layout {
        if name == "__metadata__" {
            header.insert(name.clone(), told.clone());
            continue;
        }
        let shape = numbers(&told["shape"]);
        let start = end;
        end += shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({ "dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, end] }),
        );
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let path = dir.join("published.safetensors");
    let mut file = File::create(&path).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&text).unwrap();
    file.set_len((8 + text.len() + end) as u64).unwrap();
    path
}

#[test]
fn published_sizes_are_told_from_the_shapes() {
    for (name, family, parts) in [
        ("base", CheckpointKind::Base, &BASE[..]),
        ("refiner", CheckpointKind::Refiner, &REFINER[..]),
    ] {
        let layout = layout(name);
        let dir = TempDir::new().unwrap();
        let checkpoint = Checkpoint::open(&hollow(&layout, dir.path()), None).unwrap();
        assert_eq!(checkpoint.family(), family);
        for part in parts {
            let mut expected: Vec<(String, Vec<usize>)> = (layout.values())
                .flat_map(|told| told["holds"].as_object().unwrap())
                .filter_map(|(source, shape)| {
                    let inner = source.strip_prefix(part.folder())?.strip_prefix('/')?;
                    Some((inner.to_string(), numbers(shape)))
                })
                .collect();
            expected.sort();
            let found = checkpoint.tensors(*part).unwrap();
            let mut found: Vec<_> = (found.iter())
                .map(|(name, tensor)| (name.to_string(), tensor.shape().to_vec()))
                .collect();
            found.sort();
            assert!(found == expected, "{name} {part:?}");
        }
        let path = Path::new("config.json");
        let levels = checkpoint.unet.levels(path).unwrap();
        let heads: Vec<usize> = levels.iter().map(|l| l.heads).collect();
        let depths: Vec<Vec<usize>> = levels.iter().map(|l| l.up_transformers.clone()).collect();
        let text = &checkpoint.text_encoder_2;
        assert_eq!((text.num_attention_heads, text.num_hidden_layers), (20, 32));
        assert_eq!(
            (text.hidden_act.as_str(), text.projection_dim),
            ("gelu", 1280)
        );
        assert_eq!(checkpoint.vae.scaling_factor, 0.13025);
        assert!(checkpoint.vae.force_upcast);
        assert_eq!(checkpoint.unet.default_latent_size(), (128, 128));
        assert_eq!(checkpoint.scheduler["timestep_spacing"], "leading");
        assert_eq!(checkpoint.scheduler["steps_offset"], 1);
        if family == CheckpointKind::Base {
            let first = checkpoint.text_encoder.as_ref().unwrap();
            assert_eq!(
                (first.num_attention_heads, first.num_hidden_layers),
                (12, 12)
            );
            assert_eq!(
                (first.hidden_act.as_str(), first.eos_token_id),
                ("quick_gelu", 2)
            );
            assert_eq!(heads, [5, 10, 20]);
            assert_eq!(depths, [vec![], vec![2; 3], vec![10; 3]]);
            assert!(checkpoint.force_zeros_for_empty_prompt);
            assert!(!checkpoint.requires_aesthetics_score);
        } else {
            assert_eq!(heads, [6, 12, 24, 24]);
            assert_eq!(depths, [vec![], vec![4; 3], vec![4; 3], vec![]]);
            assert!(!checkpoint.force_zeros_for_empty_prompt);
            assert!(checkpoint.requires_aesthetics_score);
        }
        let middle = checkpoint.unet.middle(path).unwrap();
        let depth = if family == CheckpointKind::Base {
            10
        } else {
            4
        };
        assert_eq!(middle, sdxl::model::config::Middle::CrossAttention(depth));
    }
}

#[test]
fn eight_bit_floats_are_torchs() {
    let set = TensorSet::open(&[golden("single/eight_bits.safetensors")]).unwrap();
    let read = |name: &str| -> Vec<f32> {
        let tensor = set.get(name).unwrap();
        let to_f32 = |values: sdxl_kernels::Weights<'_>| match values {
            sdxl_kernels::Weights::F32(v) => v.to_vec(),
            sdxl_kernels::Weights::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            sdxl_kernels::Weights::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            sdxl_kernels::Weights::Int8 { .. } => Vec::new(),
        };
        set.read(name, tensor, to_f32).unwrap()
    };
    for name in ["e4m3", "e5m2"] {
        let (ours, torchs) = (read(name), read(&format!("{name}.values")));
        assert_eq!(ours.len(), 256);
        for (code, (a, b)) in ours.iter().zip(&torchs).enumerate() {
            let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(same, "{name} {code}: {a} for {b}");
        }
    }
}

#[test]
fn an_eight_bit_checkpoint_runs() {
    // The upper byte of an f16 is an e5m2, so the two files hold the same values.
    let cut = |entries: &mut Vec<Entry>, eight: bool| {
        for e in entries.iter_mut().filter(|e| e.dtype == Dtype::F16) {
            let upper = e.bytes.as_chunks::<2>().0.iter().map(|b| b[1]);
            e.bytes = if eight {
                upper.collect()
            } else {
                upper.flat_map(|b| [0, b]).collect()
            };
            e.dtype = if eight { Dtype::F8_E5M2 } else { Dtype::F16 };
        }
    };
    let (_a, eight) = tiny("base", &BASE, |entries| cut(entries, true));
    let (_b, sixteen) = tiny("base", &BASE, |entries| cut(entries, false));
    let run = |path: &Path| latents(Checkpoint::open(path, None).unwrap());
    assert!(run(&eight) == run(&sixteen));
    // A LoRA is added to the values that the bytes stand for.
    let options = OpenOptions {
        loras: vec![Lora::new(golden("lora/kohya.safetensors"), 1.0)],
        ..OpenOptions::default()
    };
    let with = |path: &Path| latents(Checkpoint::open_with(path, &options).unwrap());
    assert!(with(&eight) == with(&sixteen) && with(&eight) != run(&eight));
}

#[test]
fn markers_change_the_schedule() {
    let mark = |names: &[&str], prediction: &str| {
        let layout = layout("base");
        let dir = TempDir::new().unwrap();
        let mut with = layout.clone();
        for name in names {
            with.insert(name.to_string(), json!({ "shape": [0] }));
        }
        let told = json!({ "modelspec.prediction_type": prediction });
        with.insert("__metadata__".to_string(), told);
        let path = hollow(&with, dir.path());
        Checkpoint::open(&path, None).unwrap().scheduler
    };
    let plain = mark(&[], "epsilon");
    assert_eq!(plain["prediction_type"], "epsilon");
    let v = mark(&["v_pred"], "");
    assert_eq!(v["prediction_type"], "v_prediction");
    assert_eq!(v.get("rescale_betas_zero_snr"), None);
    assert_eq!(mark(&[], "v")["prediction_type"], "v_prediction");
    let both = mark(&["v_pred", "ztsnr"], "v");
    assert_eq!(both["prediction_type"], "v_prediction");
    assert_eq!(both["rescale_betas_zero_snr"], true);
    assert_eq!(both["timestep_spacing"], "trailing");
}

#[test]
fn a_unet_that_stands_in_is_read_by_the_same_rules() {
    let with = |names: &[&str], prediction: &str, dir: &TempDir| {
        let mut with = layout("base");
        for name in names {
            with.insert(name.to_string(), json!({ "shape": [0] }));
        }
        let told = json!({ "modelspec.prediction_type": prediction });
        with.insert("__metadata__".to_string(), told);
        hollow(&with, dir.path())
    };
    let dirs: [TempDir; 4] = std::array::from_fn(|_| TempDir::new().unwrap());
    let plain = with(&[], "", &dirs[0]);
    let replaced = |unet: PathBuf| {
        let options = OpenOptions {
            unet: Some(unet),
            ..OpenOptions::default()
        };
        Checkpoint::open_with(&plain, &options)
    };
    for unet in [with(&["v_pred"], "", &dirs[1]), with(&[], "v", &dirs[2])] {
        let scheduler = replaced(unet).unwrap().scheduler;
        assert_eq!(scheduler["prediction_type"], "v_prediction");
    }
    let scaled = with(&["scaled_fp8"], "", &dirs[3]);
    for refused in [Checkpoint::open(&scaled, None), replaced(scaled)] {
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("multiplied by factors"), "{error}");
    }
}

fn with_vae(root: &Path, vae: &Path) -> sdxl::Result<Checkpoint> {
    let options = OpenOptions {
        vae: Some(vae.to_path_buf()),
        ..OpenOptions::default()
    };
    Checkpoint::open_with(root, &options)
}

#[test]
fn a_vae_can_be_replaced() {
    let bare = |entries: &mut Vec<Entry>| {
        entries.retain(|e| !e.name.starts_with("first_stage_model."));
    };
    let (_dir, without) = tiny("base", &BASE, bare);
    let Err(error) = Checkpoint::open(&without, None) else {
        panic!("opened without a VAE");
    };
    assert!(error.to_string().contains("`vae`"), "{error}");

    let folder = Checkpoint::open(&golden("base"), None).unwrap();
    let expected = sorted(&folder, Part::Vae);
    let run = latents(folder);
    // The VAE's own folder, and a checkpoint's.
    for vae in ["base/vae", "base"] {
        let checkpoint = with_vae(&without, &golden(vae)).unwrap();
        assert!(sorted(&checkpoint, Part::Vae) == expected, "{vae}");
        assert!(latents(checkpoint) == run);
    }
    // Its weights without their config.json: what shapes cannot tell is as published.
    let dir = TempDir::new().unwrap();
    let alone = dir.path().join("alone.safetensors");
    let weights = golden("base/vae/diffusion_pytorch_model.safetensors");
    fs::copy(&weights, &alone).unwrap();
    let error = with_vae(&without, &alone).err().unwrap().to_string();
    assert!(error.contains("norm_num_groups"), "{error}");
    fs::copy(
        golden("base/vae/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    assert!(sorted(&with_vae(&without, &alone).unwrap(), Part::Vae) == expected);

    // One that is changed changes the folder's pictures, and nothing else.
    let dir = TempDir::new().unwrap();
    copy_folder(&golden("base/vae"), dir.path());
    let edited = dir.path().join("config.json");
    let text = fs::read_to_string(&edited).unwrap();
    fs::write(&edited, text.replace("0.13025", "0.25")).unwrap();
    let checkpoint = with_vae(&golden("base"), dir.path()).unwrap();
    assert_eq!(checkpoint.vae.scaling_factor, 0.25);
    let files = sdxl::recipe::hash_weights(&checkpoint, &sdxl::files::hash_file).unwrap();
    assert_eq!(files.len(), 4);
    assert!(with_vae(&golden("base"), &golden("base/unet")).is_err());
}

/// A file with these tensors and nothing in them.
fn file_of(dir: &Path, name: &str, tensors: &[(&str, &[usize])]) -> PathBuf {
    let zeros = |shape: &[usize]| vec![0; 2 * shape.iter().product::<usize>()];
    let entries: Vec<Entry> = (tensors.iter())
        .map(|(name, shape)| entry(name, Dtype::F16, shape, zeros(shape)))
        .collect();
    let path = dir.join(name);
    write(&path, &entries, &[]);
    path
}

#[test]
fn other_files_are_told_by_what_they_are() {
    let dir = TempDir::new().unwrap();
    type Case<'a> = (&'a str, &'a [(&'a str, &'a [usize])], &'a [&'a str]);
    let unet = "model.diffusion_model.input_blocks.0.0.weight";
    let cases: [Case<'_>; 8] = [
        (
            "sd15",
            &[
                (unet, &[4, 4, 3, 3]),
                (
                    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
                    &[8],
                ),
            ],
            &["Stable Diffusion 1", "XL"],
        ),
        (
            "sd2",
            &[
                (unet, &[4, 4, 3, 3]),
                ("cond_stage_model.model.ln_final.weight", &[8]),
            ],
            &["Stable Diffusion 2"],
        ),
        (
            "lora",
            &[(
                "lora_unet_input_blocks_4_1_proj_in.lora_down.weight",
                &[4, 640],
            )],
            &["LoRA", "`loras`"],
        ),
        (
            "peft",
            &[(
                "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight",
                &[4, 640],
            )],
            &["LoRA", "`loras`"],
        ),
        (
            "vae",
            &[("decoder.conv_in.weight", &[4, 4, 3, 3])],
            &["VAE", "`vae`"],
        ),
        (
            "unet",
            &[
                ("conv_in.weight", &[4, 4, 3, 3]),
                ("down_blocks.0.resnets.0.norm1.weight", &[4]),
            ],
            &["folder", "model_index.json"],
        ),
        (
            "inversion",
            &[("clip_g", &[1, 1280]), ("clip_l", &[1, 768])],
            &["textual inversion"],
        ),
        ("else", &[("w", &[1])], &["not a file whose tensors"]),
    ];
    for (name, tensors, words) in cases {
        let path = file_of(dir.path(), &format!("{name}.safetensors"), tensors);
        let error = Checkpoint::open(&path, None).err().unwrap();
        assert!(error.is_usage());
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{name}: `{word}` not in: {text}");
        }
    }
    let (_tiny, path) = tiny("base", &BASE, |entries| {
        let name = "model.diffusion_model.out.2.weight";
        entries.retain(|e| e.name != name);
        entries.push(entry(name, Dtype::F32, &[1 << 40, 0, 3, 3], Vec::new()));
    });
    let text = Checkpoint::open(&path, None).err().unwrap().to_string();
    assert!(text.contains("impossible shape"), "{text}");
    let pickle = dir.path().join("model.ckpt");
    fs::write(&pickle, b"PK\x03\x04 and so on").unwrap();
    let text = Checkpoint::open(&pickle, None).err().unwrap().to_string();
    assert!(text.contains("pickle"), "{text}");
    // The same under another name.
    let renamed = dir.path().join("model.safetensors");
    fs::rename(&pickle, &renamed).unwrap();
    let text = Checkpoint::open(&renamed, None).err().unwrap().to_string();
    assert!(text.contains("pickle"), "{text}");
}

#[test]
fn incomplete_files_name_what_they_lack() {
    let lacking = |start: &str| {
        let (_dir, path) = tiny("base", &BASE, |entries| {
            entries.retain(|e| !e.name.starts_with(start));
        });
        match Checkpoint::open(&path, None) {
            Ok(checkpoint) => {
                let opening = Pipeline::open(checkpoint).precision(Precision::F32);
                let Err(error) = opening.load() else {
                    panic!("loaded without {start}");
                };
                error.to_string()
            }
            Err(error) => error.to_string(),
        }
    };
    assert!(lacking("conditioner.embedders.0.").contains("text encoder"));
    let text = lacking("model.diffusion_model.input_blocks.4.1.");
    assert!(text.contains("down_blocks.1.attentions.0."), "{text}");
    let text = lacking("conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight");
    assert!(text.contains("layers.2.self_attn.q_proj.weight"), "{text}");
}
