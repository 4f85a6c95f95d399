//! `bf16` against PyTorch's `bf16`, module by module: how far each is from `f32`.

mod support;

use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::model::config::UNetConfig;
use sdxl::model::unet::{UNet, UNetConditioning};
use sdxl::model::vae::Vae;
use sdxl::tensor::Tensor;
use sdxl::text::clip::ClipTextModel;
use sdxl::weights::Loader;
use sdxl::weights::TensorSet;
use sdxl::{Checkpoint, Part, Precision};
use sdxl_testing::{Golden, golden, relative_l2};
use serde_json::Value;
use support::GoldenTensors;

/// What `golden/modules/bf16.json` says of PyTorch, and what is found of ours.
struct Errors {
    torch: Value,
    found: Vec<(String, f64, f64)>,
}

impl Errors {
    fn new() -> Errors {
        let file: Value = read_json(&golden("modules/bf16.json")).unwrap();
        Errors {
            torch: file["relative_l2"].clone(),
            found: Vec::new(),
        }
    }

    /// Notes the output `name` of `module`, if PyTorch's is known.
    fn note(&mut self, module: &str, name: &str, ours: &[f32], exact: &[f32]) {
        if let Some(theirs) = self.torch[module][name].as_f64() {
            let ours = relative_l2(name, ours, exact);
            println!("{module} {name}: {ours:.2e}, PyTorch {theirs:.2e}");
            self.found.push((format!("{module} {name}"), ours, theirs));
        }
    }

    fn known(&self) -> usize {
        let modules = self.torch.as_object().unwrap().values();
        modules.map(|m| m.as_object().unwrap().len()).sum()
    }
}

fn text_encoders(errors: &mut Errors) {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    for part in [Part::TextEncoder, Part::TextEncoder2] {
        let exact = Golden::open(&format!("modules/{}.safetensors", part.folder()));
        let tensors = checkpoint.tensors(part).unwrap();
        let second = part == Part::TextEncoder2;
        let config = if second {
            checkpoint.text_encoder_2.clone()
        } else {
            checkpoint.text_encoder.clone().unwrap()
        };
        let loader = Loader::new(&tensors, Precision::Bf16);
        let model = ClipTextModel::load(&config, &loader, second).unwrap();
        for skip in 1..=3 {
            let output = model.forward(&exact.ids("input_ids"), skip).unwrap();
            let layer = format!("hidden_states.{}", skip + 1);
            let hidden = output.hidden.to_f32_vec();
            errors.note(part.folder(), &layer, &hidden, &exact.flat(&layer));
            if let (Some(pooled), 1) = (output.pooled, skip) {
                let (pooled, exact) = (pooled.to_f32_vec(), exact.flat("text_embeds"));
                errors.note(part.folder(), "text_embeds", &pooled, &exact);
            }
        }
    }
}

fn unet(errors: &mut Errors, folder: &str, file: &str) {
    let exact = Golden::open(file);
    let path = golden(folder).join("config.json");
    let config: UNetConfig = read_json(&path).unwrap();
    let weights = golden(folder).join("diffusion_pytorch_model.safetensors");
    let tensors = TensorSet::open(&[weights]).unwrap();
    let unet = UNet::load(&config, &path, &Loader::new(&tensors, Precision::Bf16)).unwrap();
    let conditioning = UNetConditioning {
        context: exact.plain("encoder_hidden_states"),
        pooled: exact.plain("text_embeds"),
        time_ids: exact.plain("time_ids"),
    };
    let timestep = f64::from(exact.flat("timestep")[0]);
    let sample = exact.channel_last("sample");
    let mut note = |name: &str, ours: &Tensor| {
        if exact.has(name) {
            let exact = exact.channel_last(name).to_f32_vec();
            errors.note(file, name, &ours.to_f32_vec(), &exact);
        }
    };
    let out = unet
        .forward_observed(&sample, timestep, &conditioning, &mut note)
        .unwrap();
    note("out", &out);
}

fn vae(errors: &mut Errors) {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let tensors = checkpoint.tensors(Part::Vae).unwrap();
    let vae = Vae::load(&checkpoint.vae, &Loader::new(&tensors, Precision::Bf16)).unwrap();
    let exact = Golden::open("modules/vae_decode.safetensors");
    let image = vae
        .decode(&exact.channel_last("latents"))
        .unwrap()
        .to_f32_vec();
    let expected = exact.channel_last("image").to_f32_vec();
    errors.note("vae_decode", "image", &image, &expected);

    let exact = Golden::open("modules/vae_encode.safetensors");
    let moments = vae
        .encode(&exact.channel_last("image"))
        .unwrap()
        .to_f32_vec();
    let latents = checkpoint.vae.latent_channels;
    let mean: Vec<f32> = (moments.chunks_exact(2 * latents))
        .flat_map(|pixel| pixel[..latents].to_vec())
        .collect();
    let expected = exact.channel_last("mean").to_f32_vec();
    errors.note("vae_encode", "mean", &mean, &expected);
}

/// The value of `tools/golden/bf16.py`'s rule for each place of a tensor.
fn made(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    let of_layer = name.ends_with(".weight") || name.ends_with(".bias");
    let inputs = shape.iter().skip(1).product::<usize>() as f64;
    let count = shape.iter().product::<usize>() as u64;
    let value = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let even = 2.0 * ((z >> 40) as f64 / f64::from(1 << 24)) - 1.0;
        let value = match (of_layer, shape.len()) {
            (false, _) => 3f64.sqrt() * even,
            (true, 2..) => (3.0 / inputs).sqrt() * even,
            _ if name.ends_with(".weight") => 1.0 + 0.2 * even,
            _ => 0.1 * even,
        };
        value as f32
    };
    (1..=count).map(value).collect()
}

/// A UNet with enough channels for chance to even out.
fn wide(errors: &mut Errors) {
    let file: Value = read_json(&golden("modules/wide.json")).unwrap();
    let shape = |value: &Value| -> Vec<usize> { serde_json::from_value(value.clone()).unwrap() };
    let shapes = file["shapes"].as_object().unwrap();
    let values: Vec<_> = (shapes.iter())
        .map(|(name, dims)| {
            let bytes = made(name, &shape(dims)).into_iter();
            let bytes: Vec<u8> = bytes.flat_map(f32::to_le_bytes).collect();
            (name, shape(dims), bytes)
        })
        .collect();
    let views = values.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("weights.safetensors");
    safetensors::serialize_to_file(views, None, &weights).unwrap();
    let tensors = TensorSet::open(&[weights]).unwrap();

    let path = golden("modules/wide.json");
    let config: UNetConfig = serde_json::from_value(file["config"].clone()).unwrap();
    let input = |name: &str| {
        let shape = shape(&file["inputs"][name]);
        let values = made(name, &shape);
        support::channel_last(&shape, &values)
    };
    let rows = 2;
    let time_ids = [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0].repeat(rows);
    let conditioning = UNetConditioning {
        context: input("encoder_hidden_states"),
        pooled: input("text_embeds"),
        time_ids: Tensor::from_f32(vec![rows, 6], time_ids),
    };
    let run = |precision| {
        let unet = UNet::load(&config, &path, &Loader::new(&tensors, precision)).unwrap();
        let mut found: Vec<(String, Vec<f32>)> = Vec::new();
        let mut note = |name: &str, ours: &Tensor| found.push((name.into(), ours.to_f32_vec()));
        let out = unet
            .forward_observed(&input("sample"), 500.0, &conditioning, &mut note)
            .unwrap();
        note("out", &out);
        found
    };
    let exact = run(Precision::F32);
    for ((name, ours), (_, exact)) in run(Precision::Bf16).iter().zip(&exact) {
        if let Some(theirs) = file["f32_norms"][name].as_f64() {
            // The same network with the same inputs.
            let square = |v: &f32| f64::from(*v) * f64::from(*v);
            let norm = exact.iter().map(square).sum::<f64>().sqrt();
            assert!(
                (norm / theirs - 1.0).abs() < 1e-5,
                "{name}: {norm} {theirs}"
            );
        }
        errors.note("wide", name, ours, exact);
    }
}

#[test]
fn bf16_is_as_near_to_f32_as_pytorchs() {
    let mut errors = Errors::new();
    wide(&mut errors);
    text_encoders(&mut errors);
    for name in ["base", "refiner"] {
        for size in ["8x12", "9x13"] {
            let file = format!("modules/unet_{name}.{size}.safetensors");
            unet(&mut errors, &format!("{name}/unet"), &file);
        }
    }
    for name in ["ssd-1b", "vega"] {
        let file = format!("unets/{name}/golden.safetensors");
        unet(&mut errors, &format!("unets/{name}"), &file);
    }
    vae(&mut errors);
    assert_eq!(errors.found.len(), errors.known(), "outputs compared");
    let mut logarithms = 0.0;
    for (what, ours, theirs) in &errors.found {
        // A UNet of eight channels rounds few weights, and always the same: which of two good ways
        // is nearer there is chance. The wide one has to be as near in every block, the small ones
        // in the mean.
        let bar = match what.starts_with("modules/unet") || what.starts_with("unets/") {
            true => 1.5 * theirs,
            false => 1.02 * theirs,
        };
        assert!(*ours <= bar, "{what}: {ours:.2e}, PyTorch {theirs:.2e}");
        logarithms += (ours / theirs).ln();
    }
    let mean = (logarithms / errors.found.len() as f64).exp();
    println!("{mean:.3} of PyTorch's distance, in the geometric mean");
    assert!(mean < 0.95, "{mean:.3} of PyTorch's distance");
}
