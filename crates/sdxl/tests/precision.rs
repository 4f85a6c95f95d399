//! How far the reduced precisions are from `f32`: one call of the UNet, and finished pictures.

mod support;

use std::path::Path;

use sdxl::model::unet::{UNet, UNetConditioning};
use sdxl::noise::{NoiseSource, Rng};
use sdxl::prompt::Prompt;
use sdxl::tensor::Tensor;
use sdxl::text::{Conditioning, TextEncoders, TextInput, TextOptions};
use sdxl::weights::Loader;
use sdxl::weights::{Checkpoint, Part};
use sdxl::{Precision, Request};
use sdxl_testing::{demo, golden, psnr, relative_l2};
use support::{generate, load};

/// What one call of the UNet may differ from `f32`, as a relative L2 distance.
const INT8_BAR: f64 = 3e-2;
const BF16_BAR: f64 = 1.5e-2;

/// The UNet's answers in `f32`, `bf16` and `int8` for noise and an encoded prompt, at a few
/// timesteps: the relative L2 distances of the other two from the first, the largest.
fn unet_errors(root: &Path, side: usize) -> [f64; 2] {
    let checkpoint = Checkpoint::open(root, None).unwrap();
    let request = Request::default();
    let text = TextEncoders::load(&checkpoint.text_parts(), Precision::F32, false).unwrap();
    let encode = |raw: &str| {
        let resolved = Prompt::parse(raw, request.prompt_syntax).unwrap().at(0, 1);
        let input = TextInput {
            raw,
            parts: &resolved.parts,
        };
        text.encode(input, input, &TextOptions::of(&request), &mut |_| {})
            .unwrap()
    };
    let texts = [
        encode(""),
        encode("a red circle to the left of a blue star"),
    ];
    let rows: Vec<&Conditioning> = texts.iter().map(|c| &**c).collect();
    let (context, pooled) = Conditioning::stack(&rows, checkpoint.unet.cross_attention_dim);
    let size = 8.0 * side as f32;
    let ids = [size, size, 0.0, 0.0, size, size];
    let conditioning = UNetConditioning {
        context,
        pooled,
        time_ids: Tensor::from_f32(vec![2, 6], [ids, ids].concat()),
    };
    let mut noise = NoiseSource::new(Rng::default(), &[1]).unwrap();
    let noise = noise.draw([1, side, side, 4]).unwrap();
    let x = Tensor::from_f32(
        vec![2, side, side, 4],
        [noise.data(), noise.data()].concat(),
    );
    let answers = |precision| -> Vec<Vec<f32>> {
        let tensors = checkpoint.tensors(Part::UNet).unwrap();
        let path = checkpoint.config_path(Part::UNet);
        let loader = Loader::new(&tensors, precision);
        let unet = UNet::load(&checkpoint.unet, &path, &loader).unwrap();
        [999.0, 500.0, 20.0]
            .map(|t| unet.forward(&x, t, &conditioning).unwrap().to_f32_vec())
            .into()
    };
    let full = answers(Precision::F32);
    [Precision::Bf16, Precision::Int8].map(|precision| {
        let errors = (answers(precision).into_iter().zip(&full))
            .map(|(ours, full)| relative_l2("prediction", &ours, full));
        let worst = errors.fold(0.0, f64::max);
        println!("{}: {precision} {worst:.2e}", root.display());
        worst
    })
}

#[test]
fn one_call_of_the_unet_stays_near_full_precision() {
    for (root, side) in [(golden("base"), 12), (demo("base"), 12)] {
        let [brain, bytes] = unet_errors(&root, side);
        // Rounded weights are not the same weights: neither may be exact.
        assert!(brain > 1e-4 && brain < BF16_BAR, "bf16: {brain:e}");
        assert!(bytes > brain && bytes < INT8_BAR, "int8: {bytes:e}");
    }
}

#[test]
fn pictures_of_the_demo_stay_near_those_of_full_precision() {
    let request = Request {
        prompt: vec![
            "a red circle to the left of a blue star on a yellow background".into(),
            "a house on a hill".into(),
            "three green triangles".into(),
        ],
        seed: vec![1],
        steps: 20,
        ..Default::default()
    };
    let pictures = |precision| -> Vec<Vec<u8>> {
        let output = generate(&load(demo("base"), precision), &request);
        output.images.into_iter().map(|i| i.pixels.data).collect()
    };
    let full = pictures(Precision::F32);
    // As docs/fidelity.md states.
    for (precision, floor) in [(Precision::Bf16, 44.0), (Precision::Int8, 40.0)] {
        for (ours, full) in pictures(precision).iter().zip(&full) {
            let psnr = psnr(ours, full);
            println!("{precision}: PSNR {psnr:.1} dB");
            assert!(ours != full && psnr >= floor, "{precision}: {psnr} dB");
        }
    }
}
