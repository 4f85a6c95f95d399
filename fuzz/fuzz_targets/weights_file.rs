//! Files of weights, `.safetensors` above all: opened, recognised and taken for a checkpoint in one file,
//! a VAE and a UNet, or refused. The header's length is put in front, so that it need not be guessed.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sdxl::weights::recognise::Kind;
use sdxl::weights::replacement::Replacement;
use sdxl::weights::TensorSet;
use sdxl::weights::single_file::SingleFile;

fuzz_target!(|input: (String, Vec<u8>)| {
    let (header, data) = input;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    let folder = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let path = folder.join(format!("sdxl-fuzz-{}.safetensors", std::process::id()));
    if std::fs::write(&path, &file).is_err() {
        return;
    }
    if let Ok(tensors) = TensorSet::open(&[path.clone()]) {
        let _ = Kind::of(&tensors).describe();
        for (name, tensor) in tensors.iter() {
            // Values that would take much memory are another matter.
            if tensor.values() < 1 << 20 {
                let _ = tensors.read(name, tensor, |_| ());
            }
        }
    }
    let _ = SingleFile::open(&path);
    let _ = Replacement::vae(&path, None);
    let _ = Replacement::unet(&path, None, Path::new("none"));
    let _ = std::fs::remove_file(&path);
});
