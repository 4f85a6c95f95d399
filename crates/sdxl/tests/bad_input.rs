//! Broken checkpoints and impossible requests: each gets an error that names the thing.

use std::fs;
use std::path::{Path, PathBuf};

use sdxl::error::Class;
use sdxl::memory::Budget;
use sdxl::request::VaeTiling;
use sdxl::{Checkpoint, Error, Inputs, Pipeline, Precision, Request};
use sdxl_testing::{copy_folder, golden};
use tempfile::TempDir;

/// A copy of the tiny base checkpoint that can be damaged.
fn copy_of_base() -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_folder(&golden("base"), dir.path());
    dir
}

/// Loads the folder and returns the error's text, which must speak of `words`.
fn refused(root: &Path, words: &[&str]) {
    let Err(error) = Pipeline::open(root).precision(Precision::F32).load() else {
        panic!("{words:?}: loaded all the same");
    };
    assert!(error.is_usage(), "{error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` not in: {text}");
    }
}

fn edit_json(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

#[test]
fn an_undamaged_copy_loads() {
    let undamaged = copy_of_base();
    let opening = Pipeline::open(undamaged.path()).precision(Precision::F32);
    assert!(opening.load().is_ok());
}

#[test]
fn missing_folder_part_or_file() {
    refused(
        Path::new("/no/such/folder"),
        &["/no/such/folder", "model_index.json"],
    );
    let empty = TempDir::new().unwrap();
    refused(empty.path(), &["model_index.json"]);

    let dir = copy_of_base();
    let nested = TempDir::new().unwrap();
    copy_folder(dir.path(), &nested.path().join("inner"));
    refused(nested.path(), &["inner"]);

    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let dir = copy_of_base();
        fs::remove_dir_all(dir.path().join(part)).unwrap();
        refused(dir.path(), &[&format!("{part}/config.json"), "missing"]);
    }
    for file in [
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        UNET,
    ] {
        let dir = copy_of_base();
        fs::remove_file(dir.path().join(file)).unwrap();
        refused(
            dir.path(),
            &[Path::new(file).file_name().unwrap().to_str().unwrap()],
        );
    }
}

#[test]
fn pickle_files_are_never_read() {
    let dir = copy_of_base();
    let weights = dir.path().join(UNET);
    fs::rename(&weights, weights.with_extension("bin")).unwrap();
    refused(dir.path(), &["pickle", ".safetensors"]);

    let file = dir.path().join("model.ckpt");
    fs::write(&file, b"x").unwrap();
    refused(&file, &["model.ckpt", "pickle"]);
}

fn damaged(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (TempDir, PathBuf) {
    let dir = copy_of_base();
    let path = dir.path().join(UNET);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, change(bytes)).unwrap();
    (dir, path)
}

#[test]
fn truncated_or_lying_weights() {
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(Damage, &str); 7] = [
        (|b| b[..b.len() - 100].to_vec(), "cut short"),
        (|b| b[..5].to_vec(), "only 5 bytes"),
        (|b| b[..40].to_vec(), "cut short"),
        (|_| Vec::new(), "only 0 bytes"),
        (
            |mut b| {
                b[..8].copy_from_slice(&u64::MAX.to_le_bytes());
                b
            },
            "header",
        ),
        (
            |mut b| {
                b[9] = b'?';
                b
            },
            "not a safetensors file",
        ),
        (
            |_| b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
            "Git LFS",
        ),
    ];
    for (change, word) in cases {
        let (dir, _) = damaged(change);
        refused(dir.path(), &[UNET, word]);
    }
}

#[test]
fn a_tensor_that_claims_more_than_the_file() {
    let (dir, _) = damaged(|bytes| {
        let header =
            br#"{"conv_in.weight":{"dtype":"F32","shape":[8,4,3,3],"data_offsets":[0,1152]}}"#;
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header);
        out.extend_from_slice(&bytes[..100]);
        out
    });
    refused(dir.path(), &[UNET, "cut short"]);
}

#[test]
fn weights_and_config_that_do_not_fit() {
    let dir = copy_of_base();
    edit_json(
        &dir.path().join("unet/config.json"),
        "layers_per_block",
        3.into(),
    );
    refused(dir.path(), &["tensor `", "config.json"]);

    let dir = copy_of_base();
    edit_json(
        &dir.path().join("vae/config.json"),
        "latent_channels",
        8.into(),
    );
    refused(dir.path(), &["shape", "must be"]);

    let dir = copy_of_base();
    edit_json(
        &dir.path().join("unet/config.json"),
        "cross_attention_dim",
        2048.into(),
    );
    refused(dir.path(), &["cross_attention_dim", "2048"]);
}

#[test]
fn configs_of_something_else() {
    let dir = copy_of_base();
    let index = dir.path().join("model_index.json");
    edit_json(&index, "_class_name", "StableDiffusionPipeline".into());
    refused(
        dir.path(),
        &["StableDiffusionPipeline", "not for Stable Diffusion XL"],
    );

    let dir = copy_of_base();
    let index = dir.path().join("model_index.json");
    edit_json(
        &index,
        "unet",
        serde_json::json!(["diffusers", "FluxTransformer2DModel"]),
    );
    refused(
        dir.path(),
        &["FluxTransformer2DModel", "UNet2DConditionModel"],
    );

    for (key, value) in [
        ("time_cond_proj_dim", serde_json::json!(256)),
        ("addition_embed_type", serde_json::json!(null)),
        ("block_out_channels", serde_json::json!([])),
        ("block_out_channels", serde_json::json!([8, 16, 23])),
        (
            "mid_block_type",
            serde_json::json!("UNetMidBlock2DSimpleCrossAttn"),
        ),
        ("attention_head_dim", serde_json::json!([1, 3])),
        ("attention_head_dim", serde_json::json!(0)),
        ("transformer_layers_per_block", serde_json::json!("many")),
    ] {
        let dir = copy_of_base();
        let path = dir.path().join("unet/config.json");
        edit_json(&path, key, value);
        refused(dir.path(), &["unet/config.json"]);
    }

    let dir = copy_of_base();
    let config = dir.path().join("scheduler/scheduler_config.json");
    edit_json(&config, "_class_name", "MagicScheduler".into());
    let checkpoint = Checkpoint::open(dir.path(), None).unwrap();
    let request = Request {
        prompt: vec!["x".into()],
        ..Request::default()
    };
    let error = prepare(checkpoint, &request);
    assert!(error.to_string().contains("MagicScheduler"), "{error}");

    let dir = copy_of_base();
    fs::write(dir.path().join("unet/config.json"), "{ not json").unwrap();
    refused(dir.path(), &["unet/config.json", "line 1"]);
}

#[test]
fn a_variant_that_no_part_has() {
    let opening = Pipeline::open(golden("base")).variant("fp8");
    let Err(error) = opening.precision(Precision::F32).load() else {
        panic!("loaded a variant that does not exist");
    };
    assert!(error.to_string().contains("fp8"), "{error}");
}

/// Why a run cannot be prepared. No weights are read for it.
fn prepare(checkpoint: Checkpoint, request: &Request) -> Error {
    let pipeline = Pipeline::open(checkpoint).offload_by_run().load().unwrap();
    pipeline.prepare(request, Inputs::default()).err().unwrap()
}

fn request_error(change: impl FnOnce(&mut Request)) -> String {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let mut request = Request {
        prompt: vec!["a cat".into()],
        ..Request::default()
    };
    change(&mut request);
    prepare(checkpoint, &request).to_string()
}

#[test]
fn impossible_requests_name_the_field() {
    type Change = fn(&mut Request);
    let cases: [(&str, Change); 17] = [
        ("clip_skip: 4", |r| r.clip_skip = Some(4)),
        ("prompt", |r| r.prompt.clear()),
        ("width: 1001", |r| r.width = Some(1001)),
        ("height: 0", |r| r.height = Some(0)),
        ("steps: 0", |r| r.steps = 0),
        ("guidance_scale: NaN", |r| r.guidance_scale = f32::NAN),
        ("guidance_rescale", |r| r.guidance_rescale = 2.0),
        ("num_images", |r| r.num_images = 0),
        ("negative_prompt", |r| {
            r.negative_prompt = vec!["a".into(); 3]
        }),
        ("seed: 2 seeds", |r| r.seed = vec![1, 2]),
        ("denoising_end", |r| r.denoising_end = Some(0.0)),
        ("eta", |r| r.eta = -1.0),
        ("original_size", |r| r.original_size = "0x8".parse().ok()),
        ("unknown scheduler", |r| r.scheduler = Some("magic".into())),
        ("timesteps and sigmas", |r| {
            r.timesteps = vec![500.0];
            r.sigmas = vec![1.0, 0.0];
        }),
        ("steps: 20 given, but timesteps lists 2", |r| {
            r.steps = 20;
            r.timesteps = vec![500.0, 1.0];
        }),
        ("steps: 4 given, but sigmas lists 3", |r| {
            r.steps = 4;
            r.sigmas = vec![5.0, 1.0, 0.0];
        }),
    ];
    for (words, change) in cases {
        let text = request_error(change);
        assert!(text.contains(words), "`{words}` not in: {text}");
    }
}

#[test]
fn lists_of_steps_have_names_and_may_agree_with_a_number() {
    let read = |json: &str| serde_json::from_str::<Request>(json).unwrap();
    let named = read(r#"{"prompt": ["x"], "timesteps": "ays", "steps": 10}"#);
    assert_eq!(named.timesteps, sdxl::noise_schedule::AYS_SDXL_TIMESTEPS);
    named.check().unwrap();
    let named = read(r#"{"prompt": ["x"], "sigmas": "AYS", "steps": 10}"#);
    assert_eq!(named.sigmas, sdxl::noise_schedule::AYS_SDXL_SIGMAS);
    named.check().unwrap();
    let listed = read(r#"{"prompt": ["x"], "sigmas": [3, 1.5]}"#);
    assert_eq!(listed.sigmas, [3.0, 1.5]);
    listed.check().unwrap();
    // The default number of steps is wrong where somebody asked for it.
    assert!(listed.check_steps_agree().is_err());
    let error = serde_json::from_str::<Request>(r#"{"timesteps": "best"}"#).unwrap_err();
    assert!(error.to_string().contains("nor the name `ays`"), "{error}");
}

#[test]
fn a_size_beyond_memory_says_how_much_it_needs() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let request = Request {
        prompt: vec!["a cat".into()],
        width: Some(16384),
        height: Some(16384),
        vae_tiling: VaeTiling::Off,
        ..Request::default()
    };
    let opening = Pipeline::open(checkpoint).precision(Precision::F32);
    let opening = opening.offload_by_run().memory(Budget::of(1 << 30));
    let pipeline = opening.load().unwrap();
    let error = pipeline.prepare(&request, Inputs::default()).err().unwrap();
    assert_eq!(
        (error.class(), error.field()),
        (Class::Request, Some("memory"))
    );
    let text = error.to_string();
    for part in [
        "1.00 GiB given",
        "VAE, decoding",
        "`memory ",
        "`vae_tiling auto`",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_refiner_cannot_start_from_a_prompt() {
    let checkpoint = Checkpoint::open(&golden("refiner"), None).unwrap();
    let request = Request {
        prompt: vec!["a cat".into()],
        ..Request::default()
    };
    let error = prepare(checkpoint, &request);
    assert!(error.to_string().contains("refiner"), "{error}");
}
