//! Pipelines and prompts of the tiny checkpoint, and golden tensors as the library's.

#![allow(dead_code)] // each test binary uses its own part of this module

use std::ops::ControlFlow;
use std::sync::Arc;

use sdxl::files::read_json;
use sdxl::pipeline::CheckpointSource;
use sdxl::prompt::Prompt;
use sdxl::tensor::Tensor;
use sdxl::text::{Conditioning, TextEncoders, TextInput, TextOptions};
use sdxl::{Checkpoint, Event, Output, Pipeline, Precision, Request};
use sdxl_testing::{Golden, golden};
use serde_json::Value;

/// Golden tensors as the library's.
pub(crate) trait GoldenTensors {
    /// The tensor as it is.
    fn plain(&self, name: &str) -> Tensor;

    /// `[B, C, H, W]` as `[B, H, W, C]`; anything else as it is.
    fn channel_last(&self, name: &str) -> Tensor;
}

impl GoldenTensors for Golden {
    fn plain(&self, name: &str) -> Tensor {
        Tensor::from_f32(self.shape(name), self.flat(name))
    }

    fn channel_last(&self, name: &str) -> Tensor {
        channel_last(&self.shape(name), &self.flat(name))
    }
}

/// Values of `[B, C, H, W]` as `[B, H, W, C]`; those of any other shape as they are.
pub(crate) fn channel_last(shape: &[usize], values: &[f32]) -> Tensor {
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

/// Encodes a prompt of `request` with the tiny checkpoint.
pub(crate) fn encode(text: &TextEncoders, prompt: &str, request: &Request) -> Arc<Conditioning> {
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
pub(crate) fn load(source: impl Into<CheckpointSource>, precision: Precision) -> Pipeline {
    Pipeline::open(source).precision(precision).load().unwrap()
}

/// Makes the pictures of a request, whatever it says meanwhile.
pub(crate) fn generate(pipeline: &Pipeline, request: &Request) -> Output {
    let silent = &mut |_: Event<'_>| ControlFlow::Continue(());
    pipeline.generate(request, silent).unwrap()
}

/// The final latents of the request of `lora/cases.json`, in torch's order.
pub(crate) fn latents(checkpoint: Checkpoint) -> Vec<f32> {
    latents_of(&load(checkpoint, Precision::F32))
}

/// [`latents`] of a loaded pipeline.
pub(crate) fn latents_of(pipeline: &Pipeline) -> Vec<f32> {
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
