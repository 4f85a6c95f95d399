//! GGUF files: read as the gguf package reads them, run as diffusers runs what it reads, and refused
//! where they are broken.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use sdxl::Checkpoint;
use sdxl::weights::OpenOptions;
use sdxl::weights::TensorSet;
use sdxl::weights::blocks::BlockType;
use sdxl::weights::{convert, gguf};
use sdxl_testing::{Golden, assert_close, golden};
use support::latents;
use tempfile::TempDir;

fn open(unet: &Path) -> sdxl::Result<Checkpoint> {
    let options = OpenOptions {
        unet: Some(unet.to_path_buf()),
        ..OpenOptions::default()
    };
    Checkpoint::open_with(&golden("base"), &options)
}

#[test]
fn every_type_of_block_is_decoded_as_the_gguf_package_does() {
    let golden = Golden::open("gguf/blocks.safetensors");
    let types = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
    ];
    for block in types {
        let ours = block.decode(&golden.bytes(&format!("{block}.bytes")));
        let reference = golden.flat(&format!("{block}.values"));
        assert_eq!(ours.len(), 6 * block.values());
        let largest = reference.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(&reference) {
            // The order of the products is another for some.
            assert!((a - b).abs() <= 1e-6 * largest, "{block}: {a} for {b}");
        }
    }
}

#[test]
fn runs_of_diffusers_with_these_unets() {
    let reference = Golden::open("gguf/latents.safetensors");
    for name in ["unet", "reshaped"] {
        let ours = latents(open(&golden(&format!("gguf/{name}.gguf"))).unwrap());
        assert_close(name, &ours, &reference.flat(name), 1e-4);
    }
}

#[test]
fn a_unet_also_comes_from_a_folder_or_a_checkpoint_in_one_file() {
    let dir = TempDir::new().unwrap();
    let single = dir.path().join("base.safetensors");
    let base = Checkpoint::open(&golden("base"), None).unwrap();
    convert::to_single_file(&base, &single).unwrap();
    let own = latents(base);
    let alone = golden("base/unet/diffusion_pytorch_model.safetensors");
    for unet in [golden("base"), golden("base/unet"), alone, single] {
        assert!(latents(open(&unet).unwrap()) == own, "{}", unet.display());
    }
}

fn refused(path: PathBuf) -> String {
    match open(&path) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_unet_for_the_checkpoint_is_refused() {
    let lora = refused(golden("lora/kohya.safetensors"));
    assert!(lora.contains("it is a LoRA"), "{lora}");
    let part = refused(golden("base/text_encoder/model.safetensors"));
    assert!(part.contains("it is a text encoder"), "{part}");
    let refiner = refused(golden("refiner/unet"));
    assert!(refiner.contains("different models"), "{refiner}");
    let nothing = refused(golden("base/tokenizer"));
    assert!(nothing.contains("there is no unet here"), "{nothing}");

    let base = open(&golden("gguf/unet.gguf")).unwrap();
    let dir = TempDir::new().unwrap();
    let made = convert::to_single_file(&base, &dir.path().join("a.safetensors"));
    let error = made.unwrap_err().to_string();
    assert!(error.contains("stored in blocks of Q8_0"), "{error}");
}

#[test]
fn cut_and_changed_headers_are_read_or_refused() {
    let whole = fs::read(golden("gguf/reshaped.gguf")).unwrap();
    let entries = gguf::read(&whole).unwrap();
    let header = entries.iter().map(|e| e.range.0).min().unwrap();
    for end in (0..header).step_by(61) {
        assert!(gguf::read(&whole[..end]).is_err(), "{end} bytes");
    }
    let end = entries.iter().map(|e| e.range.1).max().unwrap();
    assert!(gguf::read(&whole[..end]).is_ok());
    match gguf::read(&whole[..end - 1]) {
        Err(cut) => assert!(cut.contains("was cut off"), "{cut}"),
        Ok(_) => panic!("a tensor beyond the end was taken"),
    }
    let mut changed = whole.clone();
    // Every byte of the first tensors' entries, and samples of the rest: a header is long.
    for at in (0..2000).chain((2000..header).step_by(211)) {
        for value in [0, 1, 127, 255] {
            let was = std::mem::replace(&mut changed[at], value);
            for entry in gguf::read(&changed).unwrap_or_default() {
                assert!(entry.range.1 <= changed.len() && entry.range.0 <= entry.range.1);
            }
            changed[at] = was;
        }
    }
    // As a file.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cut.gguf");
    fs::write(&path, &whole[..header / 2]).unwrap();
    let error = TensorSet::open(&[path]).err().unwrap().to_string();
    assert!(
        error.contains("cut.gguf: its header was cut off"),
        "{error}"
    );
}
