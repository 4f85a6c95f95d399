//! Reading golden files and comparing with them.

#![allow(dead_code)] // each test binary uses its own part of this module

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use sdxl::files::read_json;
use sdxl::pipeline::Source;
use sdxl::prompt::Prompt;
use sdxl::tensor::Tensor;
use sdxl::text::{Conditioning, TextEncoders, TextInput, TextOptions};
use sdxl::{Checkpoint, Event, Output, Pipeline, Precision, Request};
use serde_json::Value;

/// A path below the repository's `golden/`.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden")
        .join(path)
}

/// Copies a folder, following links.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::copy(&source, &target).unwrap();
        }
    }
}

/// A file of golden tensors, in torch's axis order.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn open(path: &str) -> Golden {
        let path = golden(path);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { bytes }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap().shape().to_vec()
    }

    /// The values in file order.
    pub fn flat(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    /// The values of a tensor of bytes, in file order.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::U8, "{name}");
        tensor.data().to_vec()
    }

    /// The values of a tensor of whole numbers, in file order.
    pub fn whole(&self, name: &str) -> Vec<u64> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        let (values, _) = tensor.data().as_chunks::<8>();
        values.iter().map(|b| u64::from_le_bytes(*b)).collect()
    }

    /// Rows of token ids.
    pub fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap();
        let values: Vec<u32> = match tensor.dtype() {
            Dtype::I64 => (tensor.data().as_chunks::<8>().0.iter())
                .map(|b| i64::from_le_bytes(*b) as u32)
                .collect(),
            Dtype::I32 => (tensor.data().as_chunks::<4>().0.iter())
                .map(|b| i32::from_le_bytes(*b) as u32)
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        values
            .chunks_exact(tensor.shape()[1])
            .map(<[u32]>::to_vec)
            .collect()
    }

    /// The tensor as it is.
    pub fn plain(&self, name: &str) -> Tensor {
        Tensor::from_f32(self.shape(name), self.flat(name))
    }

    /// `[B, C, H, W]` as `[B, H, W, C]`; anything else as it is.
    pub fn channel_last(&self, name: &str) -> Tensor {
        channel_last(&self.shape(name), &self.flat(name))
    }
}

/// Values of `[B, C, H, W]` as `[B, H, W, C]`; those of any other shape as they are.
pub fn channel_last(shape: &[usize], values: &[f32]) -> Tensor {
    let [b, c, h, w] = *shape else {
        return Tensor::from_f32(shape, values.to_vec());
    };
    let mut out = Vec::with_capacity(values.len());
    for i in 0..b {
        for p in 0..h * w {
            for k in 0..c {
                out.push(values[(i * c + k) * h * w + p]);
            }
        }
    }
    Tensor::from_f32(vec![b, h, w, c], out)
}

/// Fails where the relative L2 distance of `ours` from `reference` is above `bar`.
pub fn close(what: &str, ours: &Tensor, reference: &[f32], bar: f64) {
    close_values(what, &ours.to_f32_vec(), reference, bar);
}

/// [`close`] for plain values.
pub fn close_values(what: &str, ours: &[f32], reference: &[f32], bar: f64) {
    let error = relative_l2(what, ours, reference);
    assert!(error <= bar, "{what}: relative L2 {error:e} above {bar:e}");
}

/// |ours - reference| / |reference|, in `f64`.
pub fn relative_l2(what: &str, ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len(), "{what}: number of values");
    let square = |v: f64| v * v;
    let difference: f64 = (ours.iter().zip(reference))
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let norm: f64 = reference.iter().map(|b| square(f64::from(*b))).sum();
    assert!(norm > 0.0, "{what}: the reference is all zeros");
    (difference / norm).sqrt()
}

/// Encodes a prompt of `request` with the tiny checkpoint.
pub fn encode(text: &TextEncoders, prompt: &str, request: &Request) -> Arc<Conditioning> {
    let resolved = Prompt::parse(prompt, request.prompt_syntax)
        .unwrap()
        .at(0, 1);
    let input = TextInput {
        raw: prompt,
        parts: &resolved.parts,
    };
    let options = TextOptions::of(request);
    text.encode(input, input, &options, &mut |_| {}).unwrap()
}

/// A pipeline whose networks stay in memory.
pub fn load(source: impl Into<Source>, precision: Precision) -> Pipeline {
    Pipeline::open(source).precision(precision).load().unwrap()
}

/// Makes the pictures of a request, whatever it says meanwhile.
pub fn generate(pipeline: &Pipeline, request: &Request) -> Output {
    let silent = &mut |_: Event<'_>| ControlFlow::Continue(());
    pipeline.generate(request, silent).unwrap()
}

/// The final latents of the request of `lora/cases.json`, in torch's order.
pub fn latents(checkpoint: Checkpoint) -> Vec<f32> {
    latents_of(&load(checkpoint, Precision::F32))
}

/// [`latents`] of a loaded pipeline.
pub fn latents_of(pipeline: &Pipeline) -> Vec<f32> {
    let cases: Value = read_json(&golden("lora/cases.json")).unwrap();
    let told = &cases["request"];
    let text = |key: &str| told[key].as_str().unwrap().to_string();
    let number = |key: &str| told[key].as_u64().unwrap();
    let request = Request {
        prompt: vec![text("prompt")],
        negative_prompt: vec![text("negative_prompt")],
        steps: number("steps") as usize,
        seed: vec![number("seed")],
        ..Request::default()
    };
    generate(pipeline, &request).latents.to_nchw()
}
