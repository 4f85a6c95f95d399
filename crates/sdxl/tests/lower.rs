//! Checkpoints with fewer bits: what is stored, that it is read back, and how far it is.

mod support;

use std::fs;
use std::path::Path;

use sdxl::weights::OpenOptions;
use sdxl::weights::TensorSet;
use sdxl::weights::blocks::BlockType;
use sdxl::weights::convert;
use sdxl::weights::lower::{Report, Target};
use sdxl::{Checkpoint, Part, Precision, Request};
use sdxl_testing::{Golden, copy_folder, golden, relative_l2};
use support::{generate, latents, load};
use tempfile::TempDir;

const WRITTEN: [BlockType; 6] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q6K,
];

#[test]
fn blocks_are_encoded_as_the_gguf_package_does() {
    let golden = Golden::open("gguf/blocks.safetensors");
    let values = golden.flat("encoded.values");
    for block in &WRITTEN[..5] {
        let theirs = golden.bytes(&format!("{block}.encoded"));
        assert!(block.encode(&values) == theirs, "{block}");
    }
}

/// Values as weights are distributed, the same every time.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count)
        .map(|_| 0.1 * (uniform() + uniform() + uniform() + uniform()))
        .collect()
}

#[test]
fn more_bits_are_nearer() {
    let values = weights(64 * 256);
    let bounds = [0.09, 0.08, 0.045, 0.04, 0.006, 0.021];
    for (block, bound) in WRITTEN.into_iter().zip(bounds) {
        let back = block.decode(&block.encode(&values));
        let error = relative_l2(&block.to_string(), &back, &values);
        println!("{block}: {error:.4}");
        assert!(error < bound && error > bound / 2.0, "{block}: {error}");
    }
}

#[test]
fn what_six_bits_can_say_is_said_exactly() {
    // Multiples of a scale that a half holds; the farthest is in every run of sixteen.
    let step = |i: i32| if i % 16 == 0 { -32 } else { i * 7 % 64 - 32 };
    let values: Vec<f32> = (0..256).map(|i| step(i) as f32 / 64.0).collect();
    let back = BlockType::Q6K.decode(&BlockType::Q6K.encode(&values));
    assert!(back == values);
    for special in [vec![0.0; 256], vec![0.25; 256], vec![-3e4; 256]] {
        let back = BlockType::Q6K.decode(&BlockType::Q6K.encode(&special));
        for (a, b) in back.iter().zip(&special) {
            assert!((a - b).abs() <= 0.02 * b.abs(), "{a} for {b}");
        }
    }
}

fn lower(from: &Path, target: Target, to: &Path) -> Report {
    let checkpoint = Checkpoint::open(from, None).unwrap();
    convert::to_lower_precision(&checkpoint, target, to).unwrap()
}

fn dtypes(checkpoint: &Checkpoint) -> Vec<String> {
    let set = checkpoint.tensors(Part::UNet).unwrap();
    let mut all: Vec<String> = set.iter().map(|(_, t)| t.element().to_string()).collect();
    all.sort();
    all.dedup();
    all
}

/// Final latents in a precision.
fn run(checkpoint: Checkpoint, precision: Precision) -> Vec<f32> {
    let request = Request {
        prompt: vec!["a cat".into()],
        seed: vec![3],
        steps: 3,
        ..Request::default()
    };
    generate(&load(checkpoint, precision), &request)
        .latents
        .to_nchw()
}

#[test]
fn bytes_run_as_the_original_does_in_int8() {
    let dir = TempDir::new().unwrap();
    let base = golden("base");
    let (folder, file) = (
        dir.path().join("folder"),
        dir.path().join("one.safetensors"),
    );
    let report = lower(&base, Target::Int8, &folder);
    assert!(report.changed > 20 && report.error > 1e-3 && report.error < 1e-2);
    lower(&base, Target::Int8, &file);
    let open = |path: &Path| Checkpoint::open(path, None).unwrap();
    let bits = |v: Vec<f32>| -> Vec<u32> { v.iter().map(|v| v.to_bits()).collect() };
    let original = bits(run(open(&base), Precision::Int8));
    for path in [&folder, &file] {
        assert_eq!(dtypes(&open(path)), ["F32", "I8"]);
        let ours = bits(run(open(path), Precision::Int8));
        assert!(ours == original, "{}", path.display());
    }
    // In other precisions they are near.
    let full = run(open(&base), Precision::F32);
    let far = relative_l2("f32", &run(open(&folder), Precision::F32), &full);
    println!("int8 in f32: {far:.4}");
    assert!(far > 1e-5 && far < 2e-2, "{far}");
    // And they move between the layouts, and become floats again.
    let back = dir.path().join("back");
    convert::to_folder(&open(&file), &back).unwrap();
    let bytes = |root: &Path| {
        let set = open(root).tensors(Part::UNet).unwrap();
        let mut all: Vec<(String, Vec<u8>)> = (set.iter())
            .map(|(name, t)| (name.to_string(), set.bytes(t).into_owned()))
            .collect();
        all.sort();
        all
    };
    assert!(bytes(&back) == bytes(&folder));
    let floats = dir.path().join("floats");
    lower(&back, Target::Bf16, &floats);
    assert_eq!(dtypes(&open(&floats)), ["BF16"]);
    let set = open(&floats).tensors(Part::UNet).unwrap();
    assert!(!set.iter().any(|(name, _)| name.ends_with("_scale")));
}

#[test]
fn every_format_is_written_read_and_near() {
    let dir = TempDir::new().unwrap();
    let base = golden("base");
    let full = latents(Checkpoint::open(&base, None).unwrap());
    // Of the weights and of the final latents, from the original.
    for (word, weights, end) in [
        ("f16", 3e-4, 2e-3),
        ("bf16", 3e-3, 1e-2),
        ("q8_0", 1.5e-3, 4e-3),
        // Its rows are too short for blocks of 256.
        ("q6_k", 1.5e-3, 4e-3),
        ("q5_1", 1e-2, 2.5e-2),
        ("q5_0", 1e-2, 2.5e-2),
        ("q4_1", 2e-2, 5e-2),
        ("q4_0", 2e-2, 5e-2),
    ] {
        let target: Target = word.parse().unwrap();
        assert_eq!(target.to_string(), word);
        let blocks = matches!(target, Target::Blocks(_));
        let to = dir.path().join(if blocks {
            format!("{word}.gguf")
        } else {
            word.into()
        });
        let report = lower(&base, target, &to);
        let options = OpenOptions {
            unet: blocks.then(|| to.clone()),
            ..OpenOptions::default()
        };
        let root = if blocks { &base } else { &to };
        let checkpoint = Checkpoint::open_with(root, &options).unwrap();
        let found = dtypes(&checkpoint);
        let far = relative_l2(word, &latents(checkpoint), &full);
        println!(
            "{word}: weights {:.2e}, latents {far:.2e}, {found:?}",
            report.error
        );
        assert!(
            report.error > 1e-5 && report.error < weights,
            "{word}: {}",
            report.error
        );
        assert!(far > 1e-6 && far < end, "{word}: {far}");
        let worst = report.worst.unwrap();
        assert!(worst.1 >= report.error && !worst.0.is_empty());
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let base = Checkpoint::open(&golden("base"), None).unwrap();
    let refused = |checkpoint: &Checkpoint, target: Target, name: &str, words: &[&str]| {
        let to = dir.path().join(name);
        let error = convert::to_lower_precision(checkpoint, target, &to).unwrap_err();
        assert!(error.is_usage(), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
    };
    refused(&base, Target::Int8, "a.gguf", &["int8", ".safetensors"]);
    let blocks = Target::Blocks(BlockType::Q4_0);
    refused(&base, blocks, "a.safetensors", &["q4_0", ".gguf"]);
    fs::write(dir.path().join("there"), "mine").unwrap();
    refused(&base, Target::F16, "there", &["already"]);
    assert_eq!(fs::read(dir.path().join("there")).unwrap(), b"mine");

    // A weight that f16 has no number for.
    let root = dir.path().join("large");
    copy_folder(&golden("base"), &root);
    let path = root.join("unet/diffusion_pytorch_model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let set = TensorSet::open(std::slice::from_ref(&path)).unwrap();
    let tensor = set.get("conv_in.weight").unwrap();
    let value = set.bytes(tensor)[..4].to_vec();
    let at = file.windows(4).position(|w| w == value).unwrap();
    file[at..at + 4].copy_from_slice(&1e5f32.to_le_bytes());
    drop(set);
    fs::write(&path, file).unwrap();
    let large = Checkpoint::open(&root, None).unwrap();
    for name in ["half", "half.safetensors"] {
        refused(
            &large,
            Target::F16,
            name,
            &["conv_in.weight", "f16", "bf16"],
        );
    }
    refused(&large, blocks, "half.gguf", &["conv_in.weight", "1e5"]);
    let left: Vec<_> = (fs::read_dir(dir.path()).unwrap())
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n != "there" && n != "large")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!("q3_k".parse::<Target>().unwrap_err().contains("q6_k"));
}

#[test]
fn bytes_without_fitting_scales_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.safetensors");
    let read = |scale: &str, dtype: &str, shape: &[usize], data: &[u8]| {
        let header = format!(
            r#"{{"x.weight":{{"dtype":"I8","shape":[2,3],"data_offsets":[0,6]}},"{scale}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[6,{}]}}}}"#,
            6 + data.len()
        );
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend([1u8, 2, 3, 255, 254, 128]);
        file.extend(data);
        fs::write(&path, file).unwrap();
        let set = TensorSet::open(std::slice::from_ref(&path)).unwrap();
        let tensor = set.get("x.weight").unwrap().clone();
        set.read("x.weight", &tensor, |w| match w {
            sdxl_kernels::Weights::Int8 { bytes, scales } => (bytes.to_vec(), scales.to_vec()),
            _ => panic!("not bytes"),
        })
        .map_err(|e| e.to_string())
    };
    let floats = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let good = floats(&[0.5, 2.0]);
    for shape in [&[2][..], &[2, 1]] {
        let (bytes, scales) = read("x.weight_scale", "F32", shape, &good).unwrap();
        assert_eq!(
            (bytes, scales),
            (vec![1, 2, 3, -1, -2, -128], vec![0.5, 2.0])
        );
    }
    let none = read("y.weight_scale", "F32", &[2], &good).unwrap_err();
    assert!(none.contains("`x.weight_scale` is not there"), "{none}");
    for (dtype, shape, data) in [
        ("F32", &[1][..], floats(&[1.0])),
        ("F32", &[3], floats(&[1.0; 3])),
        ("I8", &[2], vec![1, 1]),
    ] {
        let odd = read("x.weight_scale", dtype, shape, &data).unwrap_err();
        assert!(odd.contains("one float is needed"), "{odd}");
    }
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        let odd = read("x.weight_scale", "F32", &[2], &floats(&[1.0, value])).unwrap_err();
        assert!(odd.contains("impossible value"), "{odd}");
    }
}
