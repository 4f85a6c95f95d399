//! Files as people and other programs leave them: headers, element types and names that are unusual
//! and right, and files that are something else than their name says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::text::tokenizer::Tokenizer;
use sdxl::weights::lora::Lora;
use sdxl::{Checkpoint, InversionFile, OpenOptions, Part};
use sdxl_testing::{copy_folder, golden};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A layer that the LoRAs here change, and its weight's sizes in the tiny checkpoint.
const MODULE: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";

fn options(loras: &[&Path]) -> OpenOptions {
    OpenOptions {
        loras: loras.iter().map(|file| Lora::new(*file, 1.0)).collect(),
        ..OpenOptions::default()
    }
}

fn base(loras: &[&Path]) -> sdxl::Result<Checkpoint> {
    Checkpoint::open_with(&golden("base"), &options(loras))
}

fn refused(loras: &[&Path], words: &[&str]) {
    let error = base(loras).err().expect("it is refused").to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

/// The values of a weight as a network reads it, with its shape.
fn weight(checkpoint: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    let set = checkpoint.tensors(Part::UNet).unwrap();
    let name = format!("{name}.weight");
    let tensor = set.get(&name).unwrap();
    let values = set.read(&name, tensor, |values| match values {
        sdxl_kernels::Weights::F32(values) => values.to_vec(),
        _ => panic!("the tiny checkpoint is f32, and what is added is too"),
    });
    (tensor.shape().to_vec(), values.unwrap())
}

/// A tensor to be written.
struct New(Dtype, Vec<usize>, Vec<u8>);

fn f32s(shape: &[usize], value: impl Fn(usize) -> f32) -> New {
    let count = shape.iter().product();
    let bytes = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
    New(Dtype::F32, shape.to_vec(), bytes)
}

fn write(path: &Path, tensors: &BTreeMap<String, New>) {
    let views = (tensors.iter()).map(|(name, New(dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The file with a header of so many bytes, filled up with blanks as writers do for alignment.
fn with_header(from: &Path, to: &Path, length: usize) {
    let bytes = fs::read(from).unwrap();
    let old = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert!(old <= length);
    let mut new = (length as u64).to_le_bytes().to_vec();
    new.extend(&bytes[8..8 + old]);
    new.resize(8 + length, b' ');
    new.extend(&bytes[8 + old..]);
    fs::write(to, new).unwrap();
}

/// A small LoRA of `MODULE`, with other names and an alpha as `rename` and `alpha` say.
fn lora(path: &Path, rename: impl Fn(&str, &str) -> String, alpha: Option<(&str, New)>) -> PathBuf {
    let (shape, _) = weight(&base(&[]).unwrap(), MODULE);
    let mut tensors = BTreeMap::from([
        (
            rename(MODULE, "down"),
            f32s(&[2, shape[1]], |i| 0.01 * (i % 7) as f32),
        ),
        (
            rename(MODULE, "up"),
            f32s(&[shape[0], 2], |i| 0.02 * (i % 5) as f32),
        ),
    ]);
    if let Some((name, alpha)) = alpha {
        tensors.insert(name.to_string(), alpha);
    }
    write(path, &tensors);
    path.to_path_buf()
}

fn kohya(module: &str, role: &str) -> String {
    format!("lora_unet_{}.lora_{role}.weight", module.replace('.', "_"))
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    let dir = TempDir::new().unwrap();
    let plain = lora(&dir.path().join("plain.safetensors"), kohya, None);
    let expected = weight(&base(&[&plain]).unwrap(), MODULE);
    // Pickle's protocols 2 to 5, a ZIP archive's first bytes, and a web page's.
    for length in [0x0280, 0x1_0280, 0x0480, 0x1_4b50, 0x213c] {
        let odd = dir.path().join(format!("{length}.safetensors"));
        with_header(&plain, &odd, length);
        assert_eq!(
            weight(&base(&[&odd]).unwrap(), MODULE),
            expected,
            "{length}"
        );
    }
    // A whole checkpoint's shard, and a name that pickles have.
    let root = dir.path().join("base");
    copy_folder(&golden("base"), &root);
    let unet = root.join("unet/diffusion_pytorch_model.safetensors");
    let old = fs::read(&unet).unwrap();
    let header = u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    with_header(
        &unet.clone(),
        &unet,
        header.next_multiple_of(1 << 16) + 0x0280,
    );
    let padded = Checkpoint::open(&root, None).unwrap();
    assert_eq!(weight(&padded, MODULE), weight(&base(&[]).unwrap(), MODULE));
    let named = dir.path().join("lora.bin");
    fs::copy(&plain, &named).unwrap();
    assert_eq!(weight(&base(&[&named]).unwrap(), MODULE), expected);
}

#[test]
fn numbers_of_all_types_are_read_where_a_number_is_meant() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let alpha = format!("lora_unet_{}.alpha", MODULE.replace('.', "_"));
    let open = |alpha_tensor: New| {
        lora(&path, kohya, Some((&alpha, alpha_tensor)));
        weight(&base(&[&path]).unwrap(), MODULE)
    };
    let expected = open(f32s(&[], |_| 4.0));
    let half = half::f16::from_f32(4.0).to_le_bytes().to_vec();
    for (dtype, bytes) in [
        (Dtype::I64, 4i64.to_le_bytes().to_vec()),
        (Dtype::I32, 4i32.to_le_bytes().to_vec()),
        (Dtype::I16, 4i16.to_le_bytes().to_vec()),
        (Dtype::I8, vec![4]),
        (Dtype::U8, vec![4]),
        (Dtype::U64, 4u64.to_le_bytes().to_vec()),
        (Dtype::F64, 4f64.to_le_bytes().to_vec()),
        (Dtype::F16, half),
    ] {
        assert_eq!(
            open(New(dtype, vec![], bytes.clone())),
            expected,
            "{dtype:?}"
        );
        assert_eq!(open(New(dtype, vec![1], bytes)), expected, "{dtype:?}");
    }
    // Factors of 64 bits.
    let bytes = fs::read(&path).unwrap();
    let narrow = SafeTensors::deserialize(&bytes).unwrap();
    let wide = (narrow.iter())
        .map(|(name, tensor)| {
            let floats = tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            let bytes = match tensor.dtype() {
                Dtype::F32 => floats.flat_map(|v| f64::from(v).to_le_bytes()).collect(),
                _ => 4f64.to_le_bytes().to_vec(),
            };
            (
                name.to_string(),
                New(Dtype::F64, tensor.shape().to_vec(), bytes),
            )
        })
        .collect();
    let path = dir.path().join("wide.safetensors");
    write(&path, &wide);
    assert_eq!(weight(&base(&[&path]).unwrap(), MODULE), expected);
}

#[test]
fn a_checkpoint_and_a_textual_inversion_of_64_bits_are_read() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("base");
    copy_folder(&golden("base"), &root);
    let unet = root.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&unet).unwrap();
    let wide = (SafeTensors::deserialize(&bytes).unwrap().iter())
        .map(|(name, tensor)| {
            let floats = tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            let wide = floats.flat_map(|v| f64::from(v).to_le_bytes()).collect();
            (
                name.to_string(),
                New(Dtype::F64, tensor.shape().to_vec(), wide),
            )
        })
        .collect();
    write(&unet, &wide);
    let wide = Checkpoint::open(&root, None).unwrap();
    assert_eq!(weight(&wide, MODULE), weight(&base(&[]).unwrap(), MODULE));

    let checkpoint = base(&[]).unwrap();
    let first = checkpoint.text_encoder.as_ref().unwrap().hidden_size;
    let second = checkpoint.text_encoder_2.hidden_size;
    let words = |dtype| {
        let vectors = |width: usize| {
            let New(_, shape, narrow) = f32s(&[1, width], |i| 0.125 * i as f32);
            let floats = narrow.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            match dtype {
                Dtype::F64 => {
                    let wide = floats.flat_map(|v| f64::from(v).to_le_bytes()).collect();
                    New(dtype, shape, wide)
                }
                _ => New(dtype, shape, narrow),
            }
        };
        let path = dir.path().join(format!("{dtype:?}.safetensors"));
        let tensors = [
            ("clip_l".into(), vectors(first)),
            ("clip_g".into(), vectors(second)),
        ];
        write(&path, &tensors.into());
        let options = OpenOptions {
            embeddings: vec![InversionFile {
                file: path,
                token: Some("sks".into()),
            }],
            ..OpenOptions::default()
        };
        let opened = Checkpoint::open_with(&golden("base"), &options).unwrap();
        let word = opened.files().inversions().words()[0].clone();
        (
            word.rows(Part::TextEncoder).to_vec(),
            word.rows(Part::TextEncoder2).to_vec(),
        )
    };
    assert_eq!(words(Dtype::F64), words(Dtype::F32));
}

#[test]
fn names_of_one_module_mean_one_module() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let open = |rename: &dyn Fn(&str, &str) -> String| {
        let checkpoint = base(&[&lora(&path, rename, None)]).unwrap();
        let warnings = checkpoint.files().adapters().warnings();
        assert!(warnings.is_empty(), "{warnings:?}");
        weight(&checkpoint, MODULE)
    };
    let expected = open(&kohya);
    assert_ne!(expected, weight(&base(&[]).unwrap(), MODULE));
    let peft = |role: &str| if role == "down" { "lora_A" } else { "lora_B" };
    let flat = MODULE.replace('.', "_");
    // SimpleTuner's prefix for LyCORIS.
    assert_eq!(
        open(&|_, role| format!("lycoris_{flat}.lora_{role}.weight")),
        expected
    );
    // The halves of one module under two spellings.
    let mixed = |module: &str, role: &str| match role {
        "down" => format!("lora_unet_{flat}.lora_down.weight"),
        _ => format!(
            "lora_unet_{}.lora_up.weight",
            module.replace("_blocks.1", "_blocks_1")
        ),
    };
    assert_eq!(open(&mixed), expected);
    // Adapters with names, as PEFT's `save_pretrained` and its state dictionaries have them.
    for adapter in ["default_0", "my-style", "a.b"] {
        let named = |module: &str, role: &str| {
            format!("base_model.model.{module}.{}.{adapter}.weight", peft(role))
        };
        assert_eq!(open(&named), expected);
    }
    // What torch.compile and PEFT leave.
    for module in [
        format!("unet._orig_mod.{MODULE}"),
        format!("_orig_mod.unet.{MODULE}"),
        format!("unet.{MODULE}.base_layer"),
        format!("base_model.model._orig_mod.{MODULE}"),
    ] {
        assert_eq!(
            open(&|_, role| format!("{module}.{}.weight", peft(role))),
            expected
        );
    }
}

#[test]
fn one_tensor_under_two_names_and_several_adapters_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let one = |name: &str| (name.to_string(), f32s(&[2, 2], |_| 0.0));
    let flat = MODULE.replace('.', "_");
    let twice = [
        one(&format!("lora_unet_{flat}.lora_down.weight")),
        one(&format!("unet.{MODULE}.lora_A.weight")),
    ];
    write(&path, &twice.into());
    refused(&[&path], &["second time", "to_q"]);
    let two = [
        one(&format!("unet.{MODULE}.lora_A.ink.weight")),
        one(&format!("unet.{MODULE}.lora_A.oil.weight")),
    ];
    write(&path, &two.into());
    refused(&[&path], &["several adapters", "ink, oil"]);
}

#[test]
fn a_bundled_word_is_a_word_of_prompts() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let plain = base(&[]).unwrap();
    let first = plain.text_encoder.as_ref().unwrap().hidden_size;
    let second = plain.text_encoder_2.hidden_size;
    let (shape, _) = weight(&plain, MODULE);
    let tensors = [
        (kohya(MODULE, "down"), f32s(&[2, shape[1]], |_| 0.1)),
        (kohya(MODULE, "up"), f32s(&[shape[0], 2], |_| 0.1)),
        (
            "bundle_emb.sks.clip_l".into(),
            f32s(&[2, first], |i| i as f32),
        ),
        (
            "bundle_emb.sks.clip_g".into(),
            f32s(&[2, second], |i| -(i as f32)),
        ),
    ];
    write(&path, &tensors.into());
    let checkpoint = base(&[&path]).unwrap();
    assert!(checkpoint.files().adapters().warnings().is_empty());
    let words = checkpoint.files().inversions().words();
    assert_eq!(
        (words.len(), words[0].token.as_str(), words[0].vectors),
        (1, "sks", 2)
    );
    assert_eq!(words[0].rows(Part::TextEncoder)[3], 3.0);
    assert_eq!(words[0].rows(Part::TextEncoder2)[3], -3.0);
    // It comes and goes with its LoRA, and is no file that a recipe would name.
    assert!(checkpoint.files().inversions().files().is_empty());
    let without = checkpoint.with_loras(&[]).unwrap();
    assert!(without.files().inversions().words().is_empty());
    let again = without
        .with_loras(&[Lora::new(&path, 1.0), Lora::new(&path, 0.5)])
        .unwrap();
    assert_eq!(again.files().inversions().words().len(), 1);
}

/// `weight` `[rows, columns]` times `by` `[columns, out]`.
fn product(
    weight: &[f32],
    columns: usize,
    by: impl Fn(usize, usize) -> f32,
    out: usize,
) -> Vec<f32> {
    let rows = weight.chunks_exact(columns);
    rows.flat_map(|row| {
        (0..out)
            .map(|j| row.iter().enumerate().map(|(i, w)| w * by(i, j)).sum())
            .collect::<Vec<f32>>()
    })
    .collect()
}

#[test]
fn glora_and_ia3_are_lycoris() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let flat = format!("lora_unet_{}", MODULE.replace('.', "_"));
    let (shape, plain) = weight(&base(&[]).unwrap(), MODULE);
    let (rows, columns) = (shape[0], shape[1]);
    let value = |seed: usize| move |i: usize| ((i * 7 + seed) % 11) as f32 * 0.02 - 0.1;
    let at = |seed: usize, width: usize| move |i: usize, j: usize| value(seed)(i * width + j);
    // weight + scale * (b1 b2 + weight a1 a2), with the newer and the older order of the factors.
    let expected: Vec<f32> = {
        let inner = product(&plain, columns, at(1, 2), 2);
        let inner = product(&inner, 2, at(2, columns), columns);
        let b1: Vec<f32> = (0..rows * 2).map(value(3)).collect();
        let outer = product(&b1, 2, at(4, columns), columns);
        let changes = inner.iter().zip(&outer);
        plain
            .iter()
            .zip(changes)
            .map(|(w, (a, b))| w + 0.5 * (a + b))
            .collect()
    };
    for [a1, a2, b1, b2] in [["a1", "a2", "b1", "b2"], ["a2", "a1", "b2", "b1"]] {
        let tensors = [
            (format!("{flat}.{a1}.weight"), f32s(&[columns, 2], value(1))),
            (format!("{flat}.{a2}.weight"), f32s(&[2, columns], value(2))),
            (format!("{flat}.{b1}.weight"), f32s(&[rows, 2], value(3))),
            (format!("{flat}.{b2}.weight"), f32s(&[2, columns], value(4))),
            (format!("{flat}.alpha"), f32s(&[], |_| 1.0)),
        ];
        write(&path, &tensors.into());
        let (_, read) = weight(&base(&[&path]).unwrap(), MODULE);
        let worst = read
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }
    for (on_input, count) in [(1, columns), (0, rows)] {
        let tensors = [
            (format!("{flat}.weight"), f32s(&[count], value(5))),
            (
                format!("{flat}.on_input"),
                New(Dtype::BOOL, vec![], vec![on_input]),
            ),
        ];
        write(&path, &tensors.into());
        let (_, read) = weight(&base(&[&path]).unwrap(), MODULE);
        for (i, (read, plain)) in read.iter().zip(&plain).enumerate() {
            let place = if on_input == 1 {
                i % columns
            } else {
                i / columns
            };
            let expected = plain * (1.0 + value(5)(place));
            assert!((read - expected).abs() < 1e-6, "{i}: {read} {expected}");
        }
    }
}

#[test]
fn other_kinds_of_changes_are_refused_by_their_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    let flat = MODULE.replace('.', "_");
    for (name, word) in [
        (format!("oft_unet_{flat}.oft_blocks"), "OFT"),
        (format!("lora_unet_{flat}.oft_blocks"), "OFT"),
        (format!("unet.{MODULE}.oft_r.default.weight"), "OFT"),
        (format!("unet.{MODULE}.boft_R.default"), "BOFT"),
    ] {
        write(&path, &[(name, f32s(&[4, 8, 8], |_| 0.0))].into());
        refused(&[&path], &[word, "not read here"]);
    }
}

#[test]
fn something_else_under_a_files_name_is_called_what_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("lora.safetensors");
    for (content, words) in [
        (
            &b"<!DOCTYPE html><html><title>Log in</title>"[..],
            &["web page", "login"][..],
        ),
        (b"\n  <html lang=\"en\">", &["web page"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            &["Git LFS"],
        ),
        (
            b"{\"error\":\"Invalid username or password.\"}",
            &["server's answer"],
        ),
        (b"\x80\x04\x95 and so on, a pickle", &["pickle"]),
        (b"PK\x03\x04 and so on, torch's archive", &["pickle"]),
    ] {
        fs::write(&path, content).unwrap();
        refused(&[&path], words);
    }
    // A folder, with and without the file that is meant.
    let folder = dir.path().join("ink");
    fs::create_dir(&folder).unwrap();
    refused(&[&folder], &["folder", "no .safetensors"]);
    lora(
        &folder.join("pytorch_lora_weights.safetensors"),
        kohya,
        None,
    );
    refused(
        &[&folder],
        &["folder", "ink/pytorch_lora_weights.safetensors"],
    );
    // Weights that bitsandbytes packed.
    let four = [
        (
            "conv_in.weight".to_string(),
            New(Dtype::U8, vec![8, 1], vec![0; 8]),
        ),
        ("conv_in.weight.absmax".to_string(), f32s(&[1], |_| 1.0)),
    ];
    write(&path, &four.into());
    refused(&[&path], &["bitsandbytes", "4 bits"]);
    // A configuration that is no configuration.
    let root = dir.path().join("base");
    copy_folder(&golden("base"), &root);
    fs::write(
        root.join("unet/config.json"),
        "version https://git-lfs.github.com/spec/v1\n",
    )
    .unwrap();
    let error = Checkpoint::open(&root, None).err().unwrap().to_string();
    assert!(
        error.contains("config.json") && error.contains("Git LFS"),
        "{error}"
    );
}

#[test]
fn configurations_are_read_as_python_and_editors_write_them() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("base");
    copy_folder(&golden("base"), &root);
    let path = root.join("scheduler/scheduler_config.json");
    let text = fs::read_to_string(&path).unwrap();
    let python = text.replacen(
        '{',
        "{\"lambda_min_clipped\": -Infinity, \"nothing\": NaN,",
        1,
    );
    fs::write(&path, format!("\u{feff}{python}")).unwrap();
    let config = root.join("unet/config.json");
    let wide: Vec<u8> = (std::iter::once(0xfeff))
        .chain(fs::read_to_string(&config).unwrap().encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    fs::write(&config, wide).unwrap();
    let checkpoint = Checkpoint::open(&root, None).unwrap();
    assert_eq!(checkpoint.scheduler["lambda_min_clipped"], "-Infinity");
    assert_eq!(
        format!("{:?}", checkpoint.unet),
        format!("{:?}", base(&[]).unwrap().unet)
    );
}

/// What transformers 5 writes in the place of `vocab.json`, `merges.txt` and
/// `special_tokens_map.json`; the merges as pairs or, as before tokenizers 0.20, as lines.
fn tokenizer_json(folder: &Path, pairs: bool, pads: bool) -> Value {
    let vocab: Value = read_json(&folder.join("vocab.json")).unwrap();
    let merges = fs::read_to_string(folder.join("merges.txt")).unwrap();
    let merges = merges.lines().skip(1).filter(|line| !line.is_empty());
    let merges: Value = (merges)
        .map(|line| match pairs {
            true => json!(line.split(' ').collect::<Vec<_>>()),
            false => json!(line),
        })
        .collect();
    let added = |content: &str, normalized: bool| {
        json!({
            "id": vocab[content], "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": normalized, "special": true,
        })
    };
    json!({
        "version": "1.0",
        // A token that also fills sequences up is looked for in the text as typed.
        "added_tokens": [added("<|startoftext|>", true), added("<|endoftext|>", !pads)],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

#[test]
fn the_tokenizer_of_transformers_5_is_the_tokenizer() {
    let dir = TempDir::new().unwrap();
    for (name, pairs) in [("tokenizer", true), ("tokenizer_2", false)] {
        let old = golden("base").join(name);
        let new = dir.path().join(name);
        fs::create_dir(&new).unwrap();
        let mut config: Value = read_json(&old.join("tokenizer_config.json")).unwrap();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            let token = config[key].clone();
            config[key] = token.get("content").cloned().unwrap_or(token);
        }
        fs::write(new.join("tokenizer_config.json"), config.to_string()).unwrap();
        let mut json = tokenizer_json(&old, pairs, name == "tokenizer");
        fs::write(new.join("tokenizer.json"), json.to_string()).unwrap();
        let (before, after) = (
            Tokenizer::open(&old).unwrap(),
            Tokenizer::open(&new).unwrap(),
        );
        let ends = |t: &Tokenizer| (t.bos(), t.eos(), t.pad(), t.max_length(), t.vocab_size());
        assert_eq!(ends(&after), ends(&before));
        for text in [
            "A photo of a Caté  with it",
            "",
            "x <|endoftext|> y",
            "<|EndOfText|>!!",
        ] {
            assert_eq!(
                after.ids(text).unwrap(),
                before.ids(text).unwrap(),
                "{text}"
            );
        }
        // Words of textual inversions that were saved along.
        let size = before.vocab_size();
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        for (i, content) in ["<sks>", "<sks>_1"].iter().enumerate() {
            tokens.push(json!({"id": size + i, "content": content, "special": false}));
        }
        fs::write(new.join("tokenizer.json"), json.to_string()).unwrap();
        let with_words = Tokenizer::open(&new).unwrap();
        let found = with_words.ids("a <sks>").unwrap();
        assert!(
            found.contains(&(size as u32)) && found.contains(&(size as u32 + 1)),
            "{found:?}"
        );
    }
    // A pointer in the place of a file is called one.
    let folder = dir.path().join("pointer");
    copy_folder(&golden("base").join("tokenizer"), &folder);
    fs::write(
        folder.join("vocab.json"),
        "version https://git-lfs.github.com/spec/v1\n",
    )
    .unwrap();
    let error = Tokenizer::open(&folder).err().unwrap().to_string();
    assert!(
        error.contains("vocab.json") && error.contains("Git LFS"),
        "{error}"
    );
}

#[test]
fn a_unet_alone_with_diffusers_names_is_built_as_the_one_it_replaces() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sdxl_lightning_4step_unet.safetensors");
    let unet = golden("base/unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&unet).unwrap();
    let halved = |name: &str, data: &[u8]| {
        let floats = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let factor = if name.ends_with("to_q.weight") {
            0.5
        } else {
            1.0
        };
        floats
            .flat_map(|v| (factor * v).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let write_with = |prefix: &str| {
        let tensors = (SafeTensors::deserialize(&bytes).unwrap().iter())
            .map(|(name, tensor)| {
                let data = halved(name, tensor.data());
                (
                    format!("{prefix}{name}"),
                    New(Dtype::F32, tensor.shape().to_vec(), data),
                )
            })
            .collect();
        write(&path, &tensors);
    };
    let single = dir.path().join("base.safetensors");
    let base_checkpoint = base(&[]).unwrap();
    sdxl::weights::convert::to_single_file(&base_checkpoint, &single).unwrap();
    let (shape, plain) = weight(&base_checkpoint, MODULE);
    let expected: Vec<f32> = plain.iter().map(|w| 0.5 * w).collect();
    // In a folder's checkpoint and in one of a single file; alone, and as a pipeline's part.
    for root in [golden("base"), single] {
        for prefix in ["", "unet."] {
            write_with(prefix);
            let options = OpenOptions {
                unet: Some(path.clone()),
                ..OpenOptions::default()
            };
            let checkpoint = Checkpoint::open_with(&root, &options).unwrap();
            assert_eq!(
                weight(&checkpoint, MODULE),
                (shape.clone(), expected.clone())
            );
            let config = |c: &Checkpoint| format!("{:?}", c.unet);
            assert_eq!(config(&checkpoint), config(&base_checkpoint));
        }
    }
    // A config.json beside it counts, unless it is that of another model.
    let beside = path.with_file_name("config.json");
    fs::write(&beside, r#"{"_class_name": "AutoencoderKL"}"#).unwrap();
    let options = OpenOptions {
        unet: Some(path),
        ..OpenOptions::default()
    };
    assert!(Checkpoint::open_with(&golden("base"), &options).is_ok());
    fs::write(
        &beside,
        r#"{"_class_name": "UNet2DConditionModel", "in_channels": "four"}"#,
    )
    .unwrap();
    let error = Checkpoint::open_with(&golden("base"), &options)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("config is not as expected"), "{error}");
}
