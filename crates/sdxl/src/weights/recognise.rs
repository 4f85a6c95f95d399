//! Recognition of a `.safetensors` file's kind, from the names and shapes of its tensors.

use crate::weights::TensorSet;

/// Kinds of files that people have beside one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// SDXL base in one file, original names.
    Base,
    /// SDXL refiner in one file, original names.
    Refiner,
    /// An SDXL UNet alone, original names.
    OriginalUNet,
    /// The UNet of a folder.
    UNet,
    /// A text encoder of a folder.
    TextEncoder,
    /// An autoencoder alone, in either set of names.
    Vae,
    /// Stable Diffusion 1 in one file.
    Sd1,
    /// Stable Diffusion 2 in one file.
    Sd2,
    /// Playground 2.5 or CosXL: the SDXL network with another noise schedule (EDM).
    Edm,
    /// Weights to add to those of a checkpoint. Which checkpoint is another question.
    Lora,
    /// A textual inversion: vectors for new words.
    Embedding,
    /// A ControlNet.
    ControlNet,
    /// A diffusion transformer: SD 3, Flux and so on.
    Transformer,
    /// None of these.
    Unknown,
}

impl FileKind {
    /// Recognises the kind of a file by its tensors.
    pub fn of(tensors: &TensorSet) -> FileKind {
        let any = |test: &dyn Fn(&str) -> bool| tensors.iter().any(|(name, _)| test(name));
        let has = |name: &str| tensors.get(name).is_some();
        let starts = |prefix: &str| any(&|name| name.starts_with(prefix));
        if any(&is_lora) {
            return FileKind::Lora;
        }
        if has("clip_g") || has("clip_l") || has("emb_params") {
            return FileKind::Embedding;
        }
        if starts("control_model.") || starts("controlnet_cond_embedding.") {
            return FileKind::ControlNet;
        }
        if any(&|n| n.contains("double_blocks.0.") || n.contains("joint_blocks.0.")) {
            return FileKind::Transformer;
        }
        if starts("model.diffusion_model.input_blocks.") {
            let edm = ["edm_mean", "edm_vpred.sigma_max", "edm_vpred.sigma_min"];
            return if edm.iter().any(|name| has(name)) {
                FileKind::Edm
            } else if starts("conditioner.embedders.1.model.") {
                FileKind::Base
            } else if starts("conditioner.embedders.0.model.") {
                FileKind::Refiner
            } else if starts("cond_stage_model.model.") {
                FileKind::Sd2
            } else if starts("cond_stage_model.transformer.") {
                FileKind::Sd1
            } else if starts("model.diffusion_model.label_emb.") {
                FileKind::OriginalUNet
            } else {
                FileKind::Sd1
            };
        }
        if starts("input_blocks.") && starts("label_emb.") {
            return FileKind::OriginalUNet;
        }
        if has("conv_in.weight") && starts("down_blocks.") {
            return FileKind::UNet;
        }
        if any(&|n| n.ends_with("embeddings.token_embedding.weight")) {
            return FileKind::TextEncoder;
        }
        if any(&|n| n.ends_with("decoder.conv_in.weight")) {
            return FileKind::Vae;
        }
        FileKind::Unknown
    }

    /// Describes the kind, for a sentence that begins with "this is".
    pub fn describe(self) -> &'static str {
        match self {
            FileKind::Base => "a Stable Diffusion XL base checkpoint in one file",
            FileKind::Refiner => "a Stable Diffusion XL refiner checkpoint in one file",
            FileKind::OriginalUNet => "a UNet alone, without text encoders and VAE",
            FileKind::UNet => "the UNet of a checkpoint folder",
            FileKind::TextEncoder => "a text encoder of a checkpoint folder",
            FileKind::Vae => "a VAE alone",
            FileKind::Sd1 => "a Stable Diffusion 1 checkpoint",
            FileKind::Sd2 => "a Stable Diffusion 2 checkpoint",
            FileKind::Edm => {
                "a checkpoint of SDXL's networks trained for another noise schedule (EDM)"
            }
            FileKind::Lora => "a LoRA",
            FileKind::Embedding => "a textual inversion",
            FileKind::ControlNet => "a ControlNet",
            FileKind::Transformer => {
                "a checkpoint of a diffusion transformer (Flux, SD 3 and the like)"
            }
            FileKind::Unknown => "not a file whose tensors are known here",
        }
    }

    /// Says what to do with such a file that was given as a checkpoint; a hint, as in
    /// [`crate::error`].
    pub fn advice(self) -> &'static str {
        match self {
            FileKind::Base => "give it as the model",
            FileKind::Refiner => "give it as the refiner, beside a base checkpoint",
            FileKind::OriginalUNet => "give a checkpoint as the model and this file with `unet`",
            FileKind::UNet => {
                "give the checkpoint's folder, the one that holds model_index.json, or another \
                 checkpoint as the model and this file with `unet`"
            }
            FileKind::TextEncoder => {
                "give the checkpoint's folder, the one that holds model_index.json"
            }
            FileKind::Vae => "give a checkpoint as the model and this file with `vae`",
            FileKind::Lora => "give a checkpoint as the model and this file with `loras`",
            FileKind::Sd1 | FileKind::Sd2 | FileKind::Transformer => {
                "this program runs Stable Diffusion XL; get a checkpoint of that family"
            }
            FileKind::Edm => "this program runs the usual schedule only",
            FileKind::Embedding => "give a checkpoint as the model and this file with `embeddings`",
            FileKind::ControlNet => "it goes with a checkpoint and is none",
            FileKind::Unknown => "give a checkpoint of Stable Diffusion XL",
        }
    }
}

/// Whether a tensor's name is one that LoRAs and their relatives have.
pub fn is_lora(name: &str) -> bool {
    [
        ".lora_up.",
        ".lora_down.",
        ".lora_A.",
        ".lora_B.",
        "_lora.up.",
        "_lora.down.",
        ".lora.up.",
        ".lora.down.",
        ".lokr_w",
        ".hada_w",
        ".dora_scale",
        ".lora_linear_layer.",
        ".lora_magnitude_vector",
        ".oft_",
        ".boft_",
        ".on_input",
    ]
    .iter()
    .any(|part| name.contains(part))
        || name.starts_with("lora_unet_")
        || name.starts_with("lora_te")
        || name.starts_with("lycoris_")
        || name.starts_with("oft_unet_")
}

/// The channels of the text states that a LoRA's attention was trained on, where it has some.
pub fn lora_text_width(tensors: &TensorSet) -> Option<usize> {
    let of = |part: &str| {
        tensors.iter().find_map(|(name, tensor)| {
            // Old diffusers wrote `attn2.processor.to_k_lora.down.weight`.
            let key = name.replace('.', "_").replace("_processor", "");
            let reads = key.contains("attn2_to_k") && part_is(name, part);
            reads.then(|| tensor.shape().get(1).copied()).flatten()
        })
    };
    of("lora_down")
        .or_else(|| of("lora_A"))
        .or_else(|| of("lora.down"))
        .or_else(|| of("to_k_lora.down"))
        .or_else(|| of("hada_w1_b"))
}

fn part_is(name: &str, part: &str) -> bool {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.ends_with(&format!(".{part}"))
}
