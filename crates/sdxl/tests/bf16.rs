//! `bf16` against PyTorch's `bf16`, module by module: how far each is from `f32`.

mod support;

use sdxl::model::config::UNetConfig;
use sdxl::model::unet::{UNet, UNetConditioning};
use sdxl::model::vae::Vae;
use sdxl::tensor::Tensor;
use sdxl::text::clip::ClipTextModel;
use sdxl::weights::Loader;
use sdxl::weights::folder::read_json;
use sdxl::weights::safetensors::TensorSet;
use sdxl::{Checkpoint, Part, Precision};
use serde_json::Value;
use support::{Golden, golden, relative_l2};

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
            let output = model.forward(&exact.ids("input_ids"), skip);
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
    let out = unet.forward_observed(&sample, timestep, &conditioning, &mut note);
    note("out", &out);
}

fn vae(errors: &mut Errors) {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let tensors = checkpoint.tensors(Part::Vae).unwrap();
    let vae = Vae::load(&checkpoint.vae, &Loader::new(&tensors, Precision::Bf16)).unwrap();
    let exact = Golden::open("modules/vae_decode.safetensors");
    let image = vae.decode(&exact.channel_last("latents")).to_f32_vec();
    let expected = exact.channel_last("image").to_f32_vec();
    errors.note("vae_decode", "image", &image, &expected);

    let exact = Golden::open("modules/vae_encode.safetensors");
    let moments = vae.encode(&exact.channel_last("image")).to_f32_vec();
    let latents = checkpoint.vae.latent_channels;
    let mean: Vec<f32> = (moments.chunks_exact(2 * latents))
        .flat_map(|pixel| pixel[..latents].to_vec())
        .collect();
    let expected = exact.channel_last("mean").to_f32_vec();
    errors.note("vae_encode", "mean", &mean, &expected);
}

#[test]
fn bf16_is_as_near_to_f32_as_pytorchs() {
    let mut errors = Errors::new();
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
        // A block of a tiny network rounds few numbers, so chance decides which of two good
        // ways is nearer there. What a network gives must be as near, and the blocks nearer in
        // the mean.
        let of_block = what.contains("_block");
        let bar = if of_block {
            1.5 * theirs
        } else {
            1.02 * theirs
        };
        assert!(*ours <= bar, "{what}: {ours:.2e}, PyTorch {theirs:.2e}");
        logarithms += (ours / theirs).ln();
    }
    let mean = (logarithms / errors.found.len() as f64).exp();
    println!("{mean:.3} of PyTorch's distance, in the geometric mean");
    assert!(mean < 0.95, "{mean:.3} of PyTorch's distance");
}
