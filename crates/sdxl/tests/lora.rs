//! LoRAs and their relatives against diffusers and peft, and files that do not fit.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::weights::OpenOptions;
use sdxl::weights::lora::Lora;
use sdxl::{Checkpoint, Precision};
use sdxl_testing::{Golden, golden, relative_l2};
use serde_json::{Value, json};
use support::{latents, latents_of, load};
use tempfile::TempDir;

fn open(root: &Path, loras: &[(PathBuf, f32)]) -> sdxl::Result<Checkpoint> {
    let loras = (loras.iter()).map(|(file, scale)| Lora::new(file, *scale));
    open_scaled(root, loras.collect())
}

fn open_scaled(root: &Path, loras: Vec<Lora>) -> sdxl::Result<Checkpoint> {
    let options = OpenOptions {
        loras,
        ..OpenOptions::default()
    };
    Checkpoint::open_with(root, &options)
}

/// A LoRA with scales by block, which multiply `scale`.
fn by_block(name: &str, scale: f32, blocks: Value) -> Lora {
    Lora {
        blocks: Some(serde_json::from_value(blocks).unwrap()),
        ..Lora::new(file(name), scale)
    }
}

fn base(loras: &[(PathBuf, f32)]) -> sdxl::Result<Checkpoint> {
    open(&golden("base"), loras)
}

fn file(name: &str) -> PathBuf {
    golden(&format!("lora/{name}.safetensors"))
}

#[test]
fn runs_of_diffusers_and_peft() {
    let cases: Value = read_json(&golden("lora/cases.json")).unwrap();
    let runs = Golden::open("lora/runs.safetensors");
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let adapters: Vec<(PathBuf, f32)> = (case["adapters"].as_object().unwrap().iter())
            .map(|(name, scale)| (file(name), scale.as_f64().unwrap() as f32))
            .collect();
        let checkpoint = base(&adapters).unwrap();
        let warnings = checkpoint.files().adapters().warnings();
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
        let apart = relative_l2(name, &latents(checkpoint), &runs.flat(name));
        println!("{name}: {apart:.1e}");
        if apart > 1e-4 {
            wrong.push(format!("{name}: {apart:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn at_scale_0_nothing_changes() {
    let plain = latents(base(&[]).unwrap());
    assert!(latents(base(&[(file("kohya"), 0.0)]).unwrap()) == plain);
    assert!(latents(base(&[(file("loha"), 0.0), (file("lokr"), 0.0)]).unwrap()) == plain);
}

#[test]
fn scales_by_block_are_those_of_diffusers() {
    let cases: Value = read_json(&golden("lora/blocks.json")).unwrap();
    let runs = Golden::open("lora/blocks.safetensors");
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let loras = case["adapters"].as_object().unwrap().iter();
        let loras = loras.map(|(name, scale)| match scale.as_f64() {
            Some(scale) => Lora::new(file(name), scale as f32),
            None => by_block(name, 1.0, scale.clone()),
        });
        let checkpoint = open_scaled(&golden("base"), loras.collect()).unwrap();
        let apart = relative_l2(name, &latents(checkpoint), &runs.flat(name));
        println!("{name}: {apart:.1e}");
        assert!(apart <= 1e-4, "{name}: {apart:.1e}");
    }
}

#[test]
fn scales_by_block_multiply_the_scale() {
    let with = |lora: Lora| latents(open_scaled(&golden("base"), vec![lora]).unwrap());
    let whole = with(Lora::new(file("kohya"), 0.5));
    assert!(
        with(by_block(
            "kohya",
            1.0,
            json!({"unet": 0.5, "text_encoder": 0.5, "text_encoder_2": 0.5})
        )) == whole
    );
    assert!(
        with(by_block(
            "kohya",
            0.25,
            json!([2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
        )) == whole
    );
    assert!(with(by_block("kohya", 0.5, json!({}))) == whole);
    // Twelve numbers name those of the twenty that have transformers; the others are 0.
    let twelve: Vec<f32> = (1..13).map(|i| i as f32 / 10.0).collect();
    let mut twenty = vec![0.0; 20];
    for (place, weight) in [0, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        .into_iter()
        .zip(&twelve)
    {
        twenty[place] = *weight;
    }
    let lists =
        [json!(twelve), json!(twenty)].map(|list| with(by_block("sgm_convolution", 1.0, list)));
    assert!(lists[0] == lists[1]);
    // In the order BASE, IN04, IN05, IN07, IN08, MID, OUT0 to OUT5: as diffusers' blocks.
    let list = json!([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.1, 1.2, 1.3]);
    let dictionary = json!({
        "unet": {
            "down": {"block_1": [0.1, 0.2], "block_2": [0.3, 0.4]},
            "mid": 0.5,
            "up": {"block_0": [0.6, 0.7, 0.8], "block_1": [1.1, 1.2, 1.3]},
        },
        "text_encoder": 0.9,
        "text_encoder_2": 0.9,
    });
    assert!(with(by_block("kohya", 1.0, list)) == with(by_block("kohya", 1.0, dictionary)));
    // What the command line says is the same.
    let path = file("kohya");
    let typed = format!("{}:0.5:down=0.5,up.block_0=1,0,2", path.display());
    let told = json!({"unet": {"down": 0.5, "up": {"block_0": [1, 0, 2]}}});
    assert!(with(typed.parse().unwrap()) == with(by_block("kohya", 0.5, told)));
    let typed = format!("{}:lbw=OUTD", path.display());
    assert!(
        with(typed.parse().unwrap())
            == with(by_block(
                "kohya",
                1.0,
                json!([1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0])
            ))
    );
    // A recipe keeps them.
    for lora in [
        by_block("kohya", 0.5, json!({"unet": {"mid": 0.1}})),
        typed.parse().unwrap(),
    ] {
        let text = serde_json::to_string(&lora).unwrap();
        assert_eq!(serde_json::from_str::<Lora>(&text).unwrap(), lora);
    }
}

#[test]
fn blocks_that_are_not_there_are_named() {
    let refused = |name: &str, blocks: Value, words: &[&str]| {
        let opened = open_scaled(&golden("base"), vec![by_block(name, 1.0, blocks.clone())]);
        let error = opened.err().unwrap_or_else(|| panic!("{blocks} is taken"));
        assert!(error.is_usage());
        let text = error.to_string();
        for word in words.iter().chain(&[name]) {
            assert!(text.contains(word), "`{word}` not in: {text}");
        }
    };
    refused("kohya", json!({"unte": 1}), &["`unte`", "text_encoder_2"]);
    refused("kohya", json!({"vae": 1}), &["`vae`"]);
    refused(
        "kohya",
        json!({"unet": {"middle": 1}}),
        &["`middle`", "mid"],
    );
    // Level 0 has no transformers.
    let none = json!({"unet": {"down": {"block_0": 1}}});
    refused("kohya", none, &["`down.block_0`", "block_1, block_2"]);
    let long = json!({"unet": {"up": {"block_1": [1, 2]}}});
    refused("kohya", long, &["`up.block_1` has 2", "has 3"]);
    refused(
        "kohya",
        json!({"unet": {"mid": "much"}}),
        &["`mid`", "much"],
    );
    refused(
        "kohya",
        json!({"text_encoder": {"layer": 1}}),
        &["`text_encoder`"],
    );
    refused(
        "kohya",
        json!([1, 2, 3]),
        &["3 numbers", "12", "IN04, IN05, IN07, IN08, MID, OUT0", "20"],
    );
    refused(
        "kohya",
        json!(vec![0; 17]),
        &["17 numbers", "Stable Diffusion 1"],
    );
    // There, but the file changes nothing in it.
    let mid = json!({"unet": {"down": 1, "mid": 1}});
    refused(
        "peft",
        mid,
        &["`mid`", "down.block_1, down.block_2", "text_encoder"],
    );
    refused(
        "convolution",
        json!({"text_encoder": 0.5}),
        &["`text_encoder`", "up.block_1"],
    );
}

#[test]
fn weights_of_few_bits_take_loras_and_give_them_back() {
    let lora = [(file("kohya"), 1.0)];
    let with = latents(base(&lora).unwrap());
    let without = latents(base(&[]).unwrap());
    let gguf = golden("gguf/unet.gguf");
    for (name, unet, precision) in [
        ("int8", None, Precision::Int8),
        ("bf16", None, Precision::Bf16),
        ("GGUF", Some(gguf.clone()), Precision::F32),
        ("GGUF as int8", Some(gguf), Precision::Int8),
    ] {
        let options = OpenOptions {
            unet,
            ..OpenOptions::default()
        };
        let checkpoint = Checkpoint::open_with(&golden("base"), &options).unwrap();
        let plain = load(checkpoint, precision);
        let own = latents_of(&plain);
        let changed = plain.with_loras(&[Lora::new(file("kohya"), 1.0)]).unwrap();
        let ours = latents_of(&changed);
        let apart = [&with, &without].map(|other| relative_l2(name, &ours, other));
        println!(
            "{name}: {:.3} from f32 with, {:.3} without",
            apart[0], apart[1]
        );
        assert!(2.0 * apart[0] < apart[1], "{name}: {apart:?}");
        drop(plain);
        let again = changed.with_loras(&[]).unwrap();
        assert!(latents_of(&again) == own, "{name}");
    }
}

#[test]
fn kohyas_dora_is_pefts() {
    let kohya = latents(base(&[(file("dora"), 0.5)]).unwrap());
    let peft = latents(base(&[(file("dora_peft"), 0.5)]).unwrap());
    assert!(kohya == peft);
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    (file.iter())
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            let held = (tensor.shape().to_vec(), tensor.data().to_vec());
            (name.to_string(), held)
        })
        .collect()
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let views = (tensors.iter()).map(|(name, (shape, data))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    safetensors::serialize_to_file(views, Some(metadata.collect()), path).unwrap();
}

/// The file under other names.
fn renamed(name: &str, dir: &Path, rename: impl Fn(&str) -> Option<String>) -> PathBuf {
    let tensors = read(&file(name)).into_iter();
    let tensors = tensors.filter_map(|(name, held)| Some((rename(&name)?, held)));
    let path = dir.join(format!("{name}.safetensors"));
    write(&path, &tensors.collect(), &[]);
    path
}

#[test]
fn all_spellings_of_a_name_mean_the_same() {
    let dir = TempDir::new().unwrap();
    let expected = latents(base(&[(file("peft"), 1.0)]).unwrap());
    let same = |rename: &dyn Fn(&str) -> Option<String>| {
        let path = renamed("peft", dir.path(), rename);
        let checkpoint = base(&[(path, 1.0)]).unwrap();
        assert!(checkpoint.files().adapters().warnings().is_empty());
        assert!(latents(checkpoint) == expected);
    };
    // diffusers before PEFT, and text encoders without their prefix.
    same(&|name| {
        let name = name
            .replace("lora_A", "lora.down")
            .replace("lora_B", "lora.up");
        Some(name.replace("text_model.", ""))
    });
    // diffusers' attention processors.
    same(&|name| {
        let mut name = name.to_string();
        for (from, to) in [
            ("attn1.to_", "attn1.processor.to_"),
            ("attn2.to_", "attn2.processor.to_"),
        ] {
            name = name.replace(from, to);
        }
        if name.contains(".processor.") {
            name = name.replace("to_out.0", "to_out");
            name = name
                .replace(".lora_A.", "_lora.down.")
                .replace(".lora_B.", "_lora.up.");
        }
        Some(name)
    });
    // kohya's.
    same(&|name| {
        let (module, ending) = name.split_at(name.find(".lora_").unwrap());
        let ending = ending
            .replace("lora_A", "lora_down")
            .replace("lora_B", "lora_up");
        let (part, module) = module.split_once('.').unwrap();
        let part = match part {
            "unet" => "lora_unet",
            "text_encoder" => "lora_te1",
            _ => "lora_te2",
        };
        Some(format!("{part}_{}{ending}", module.replace('.', "_")))
    });
}

#[test]
fn alpha_may_stand_in_the_header() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("told.safetensors");
    let tensors = read(&file("peft"));
    // The rank is 4.
    let config = r#"{"unet.lora_alpha": 2, "unet.r": 4, "text_encoder.lora_alpha": 2,
        "text_encoder_2.lora_alpha": 2, "unet.alpha_pattern": {}}"#;
    write(&path, &tensors, &[("lora_adapter_metadata", config)]);
    let half = latents(base(&[(file("peft"), 0.5)]).unwrap());
    assert!(latents(base(&[(path, 1.0)]).unwrap()) == half);

    // The same in the file that PEFT writes beside its weights.
    let path = dir.path().join("adapter_model.safetensors");
    write(&path, &tensors, &[]);
    let config = r#"{"lora_alpha": 1, "use_rslora": true}"#;
    fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    assert!(latents(base(&[(path, 1.0)]).unwrap()) == half);
}

#[test]
fn a_single_file_takes_loras_too() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("one.safetensors");
    let folder = base(&[]).unwrap();
    sdxl::weights::convert::to_single_file(&folder, &path).unwrap();
    let lora = [(file("sgm_convolution"), 1.0), (file("kohya_text"), 0.5)];
    let expected = latents(base(&lora).unwrap());
    assert!(latents(open(&path, &lora).unwrap()) == expected);
    // And what is converted is the checkpoint, not the LoRA.
    let again = dir.path().join("again.safetensors");
    sdxl::weights::convert::to_single_file(&base(&lora).unwrap(), &again).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
}

#[test]
fn whole_changes_of_weights_and_biases() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("diff.safetensors");
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut tensors = Tensors::new();
    tensors.insert(
        "lora_unet_conv_out.diff".into(),
        (vec![4, 8, 3, 3], bytes(&[0.0; 288])),
    );
    tensors.insert(
        "lora_unet_conv_out.diff_b".into(),
        (vec![4], bytes(&[1.0, 0.0, 0.0, 0.0])),
    );
    write(&path, &tensors, &[]);
    let checkpoint = base(&[(path, 2.0)]).unwrap();
    let read = |checkpoint: &Checkpoint| -> Vec<f32> {
        let set = checkpoint.tensors(sdxl::Part::UNet).unwrap();
        let tensor = set.get("conv_out.bias").unwrap();
        let to_f32 = |values: sdxl_kernels::Weights<'_>| match values {
            sdxl_kernels::Weights::F32(v) => v.to_vec(),
            _ => Vec::new(),
        };
        set.read("conv_out.bias", tensor, to_f32).unwrap()
    };
    let (ours, plain) = (read(&checkpoint), read(&base(&[]).unwrap()));
    assert_eq!(ours[0], plain[0] + 2.0);
    assert_eq!(ours[1..], plain[1..]);
}

#[test]
fn files_that_do_not_fit_say_why() {
    let dir = TempDir::new().unwrap();
    let refused = |path: &Path, words: &[&str]| {
        let error = base(&[(path.to_path_buf(), 1.0)]).err().unwrap();
        assert!(error.is_usage());
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "`{word}` not in: {text}");
        }
    };
    // Nothing fits.
    let other = renamed("convolution", dir.path(), |name| {
        Some(name.replace("lora_unet_", "lora_transformer_"))
    });
    refused(
        &other,
        &["none of it", "lora_transformer_down_blocks_0", "more"],
    );
    // No LoRA at all.
    let vae = golden("base/vae/diffusion_pytorch_model.safetensors");
    refused(&vae, &["LoRA", "VAE"]);
    refused(&dir.path().join("absent.safetensors"), &["no such file"]);
    // Another model's text states.
    let mut tensors = Tensors::new();
    let module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let zeros = |shape: &[usize]| (shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()]);
    tensors.insert(format!("{module}.lora_down.weight"), zeros(&[2, 768]));
    tensors.insert(format!("{module}.lora_up.weight"), zeros(&[16, 2]));
    let path = dir.path().join("sd1.safetensors");
    write(&path, &tensors, &[]);
    refused(&path, &["Stable Diffusion 1", "768"]);
    // Another size elsewhere.
    let module = "lora_unet_down_blocks_1_attentions_0_proj_in";
    let mut tensors = Tensors::new();
    tensors.insert(format!("{module}.lora_down.weight"), zeros(&[2, 640]));
    tensors.insert(format!("{module}.lora_up.weight"), zeros(&[640, 2]));
    write(&path, &tensors, &[]);
    refused(&path, &[module, "640 x 640", "16 x 16"]);
    // Shapes that only a hostile file has.
    let huge = (vec![1 << 40, 0], Vec::new());
    tensors.insert(format!("{module}.lora_down.weight"), huge);
    write(&path, &tensors, &[]);
    refused(&path, &[module, "impossible shape"]);
    tensors.insert(format!("{module}.lora_down.weight"), zeros(&[2, 640]));
    // Half of a pair.
    tensors.remove(&format!("{module}.lora_up.weight"));
    write(&path, &tensors, &[]);
    refused(&path, &[module, "lacks"]);
}

#[test]
fn what_is_left_out_is_named() {
    let dir = TempDir::new().unwrap();
    let path = renamed("kohya_text", dir.path(), |name| {
        Some(name.replace(
            "te2_text_model_encoder_layers_3_mlp",
            "te2_text_model_encoder_layers_9_mlp",
        ))
    });
    let checkpoint = base(&[(path, 1.0)]).unwrap();
    let [warning] = checkpoint.files().adapters().warnings() else {
        panic!("no warning");
    };
    for word in [
        "2 of its modules",
        "lora_te2_text_model_encoder_layers_9_mlp_fc1",
    ] {
        assert!(warning.message.contains(word), "{warning}");
    }
}

#[test]
fn a_refiner_does_not_share_what_a_lora_changed() {
    use sdxl::Part;
    use sdxl::weights::same::same_part;
    let refiner = Checkpoint::open(&golden("refiner"), None).unwrap();
    let same = |base: &Checkpoint, part| same_part(base, &refiner, part).unwrap();
    let (plain, changed) = (
        base(&[]).unwrap(),
        base(&[(file("kohya_text"), 1.0)]).unwrap(),
    );
    assert!(same(&plain, Part::TextEncoder2) && same(&plain, Part::Vae));
    assert!(!same(&changed, Part::TextEncoder2) && same(&changed, Part::Vae));
}
