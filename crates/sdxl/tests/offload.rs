//! Layers read from the files as they work give the pictures of layers in memory.

mod support;

use std::ops::ControlFlow;

use sdxl::weights::OpenOptions;
use sdxl::weights::lora::Lora;
use sdxl::{Checkpoint, Offload, Pipeline, Precision, Request};
use sdxl_testing::{copy_folder, golden};
use support::generate;

fn latents(options: &OpenOptions, precision: Precision, offload: Offload) -> Vec<f32> {
    let checkpoint = Checkpoint::open_with(&golden("base"), options).unwrap();
    let pipeline = Pipeline::open(checkpoint).precision(precision);
    let pipeline = pipeline.offload(offload).load().unwrap();
    assert_eq!(pipeline.offload(), Some(offload));
    let request = Request {
        prompt: vec!["a lighthouse".into(), "two cats, (asleep)1.3".into()],
        seed: vec![5],
        steps: 2,
        ..Request::default()
    };
    generate(&pipeline, &request).latents.to_nchw()
}

#[test]
fn streamed_layers_give_the_same_numbers() {
    let lora = |name: &str| Lora::new(golden(&format!("lora/{name}.safetensors")), 0.7);
    let plain = OpenOptions::default();
    let with_loras = OpenOptions {
        // Of both text encoders too.
        loras: vec![lora("kohya"), lora("convolution")],
        ..OpenOptions::default()
    };
    let blocks = OpenOptions {
        unet: Some(golden("gguf/unet.gguf")),
        ..OpenOptions::default()
    };
    let all = [
        Precision::F32,
        Precision::Bf16,
        Precision::F16,
        Precision::Int8,
    ];
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for options in [&plain, &with_loras, &blocks] {
        for precision in all {
            let whole = latents(options, precision, Offload::None);
            let streamed = latents(options, precision, Offload::Sequential);
            assert!(whole == streamed, "{precision}");
            // The weights matter: nothing else gives these numbers.
            assert!(!seen.contains(&whole), "{precision}");
            seen.push(whole);
        }
    }
}

#[test]
fn a_missing_tensor_is_named_before_the_first_step() {
    let dir = tempfile::TempDir::new().unwrap();
    copy_folder(&golden("base"), dir.path());
    let unet = dir.path().join("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&unet).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "up_blocks.2.resnets.1.conv2.weight";
    let others = file.iter().filter(|(other, _)| *other != name);
    let written = safetensors::serialize(others, None).unwrap();
    std::fs::write(&unet, written).unwrap();
    let checkpoint = Checkpoint::open(dir.path(), None).unwrap();
    let pipeline = Pipeline::open(checkpoint).precision(Precision::F32);
    let pipeline = pipeline.offload(Offload::Sequential).load();
    let request = Request {
        prompt: vec!["a lighthouse".into()],
        steps: 2,
        ..Request::default()
    };
    let mut steps = 0;
    let made = pipeline.unwrap().generate(&request, &mut |event| {
        steps += usize::from(matches!(event, sdxl::Event::Step(_)));
        ControlFlow::Continue(())
    });
    let error = made.err().unwrap().to_string();
    assert!(error.contains(name) && steps == 0, "{error}, {steps} steps");
}
