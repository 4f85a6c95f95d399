//! Recognition of a `.safetensors` file's kind, from the names and shapes of its tensors.

use super::safetensors::TensorSet;

/// Kinds of files that people have beside one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
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

impl Kind {
    /// Recognises the kind of a file by its tensors.
    pub fn of(tensors: &TensorSet) -> Kind {
        let any = |test: &dyn Fn(&str) -> bool| tensors.iter().any(|(name, _)| test(name));
        let has = |name: &str| tensors.get(name).is_some();
        let starts = |prefix: &str| any(&|name| name.starts_with(prefix));
        if any(&is_lora) {
            return Kind::Lora;
        }
        if has("clip_g") || has("clip_l") || has("emb_params") {
            return Kind::Embedding;
        }
        if starts("control_model.") || starts("controlnet_cond_embedding.") {
            return Kind::ControlNet;
        }
        if any(&|n| n.contains("double_blocks.0.") || n.contains("joint_blocks.0.")) {
            return Kind::Transformer;
        }
        if starts("model.diffusion_model.input_blocks.") {
            let edm = ["edm_mean", "edm_vpred.sigma_max", "edm_vpred.sigma_min"];
            return if edm.iter().any(|name| has(name)) {
                Kind::Edm
            } else if starts("conditioner.embedders.1.model.") {
                Kind::Base
            } else if starts("conditioner.embedders.0.model.") {
                Kind::Refiner
            } else if starts("cond_stage_model.model.") {
                Kind::Sd2
            } else if starts("cond_stage_model.transformer.") {
                Kind::Sd1
            } else if starts("model.diffusion_model.label_emb.") {
                Kind::OriginalUNet
            } else {
                Kind::Sd1
            };
        }
        if starts("input_blocks.") && starts("label_emb.") {
            return Kind::OriginalUNet;
        }
        if has("conv_in.weight") && starts("down_blocks.") {
            return Kind::UNet;
        }
        if any(&|n| n.ends_with("embeddings.token_embedding.weight")) {
            return Kind::TextEncoder;
        }
        if any(&|n| n.ends_with("decoder.conv_in.weight")) {
            return Kind::Vae;
        }
        Kind::Unknown
    }

    /// Describes the kind, for a sentence that begins with "this is".
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Base => "a Stable Diffusion XL base checkpoint in one file",
            Kind::Refiner => "a Stable Diffusion XL refiner checkpoint in one file",
            Kind::OriginalUNet => "a UNet alone, without text encoders and VAE",
            Kind::UNet => "the UNet of a checkpoint folder",
            Kind::TextEncoder => "a text encoder of a checkpoint folder",
            Kind::Vae => "a VAE alone",
            Kind::Sd1 => "a Stable Diffusion 1 checkpoint",
            Kind::Sd2 => "a Stable Diffusion 2 checkpoint",
            Kind::Edm => "a checkpoint of SDXL's networks trained for another noise schedule (EDM)",
            Kind::Lora => "a LoRA",
            Kind::Embedding => "a textual inversion",
            Kind::ControlNet => "a ControlNet",
            Kind::Transformer => {
                "a checkpoint of a diffusion transformer (Flux, SD 3 and the like)"
            }
            Kind::Unknown => "not a file whose tensors are known here",
        }
    }

    /// Says what to do with such a file that was given as a checkpoint; a hint, as in
    /// [`crate::error`].
    pub fn advice(self) -> &'static str {
        match self {
            Kind::Base => "give it as the model",
            Kind::Refiner => "give it as the refiner, beside a base checkpoint",
            Kind::OriginalUNet => "give a checkpoint as the model and this file with `unet`",
            Kind::UNet | Kind::TextEncoder => {
                "give the checkpoint's folder, the one that holds model_index.json"
            }
            Kind::Vae => "give a checkpoint as the model and this file with `vae`",
            Kind::Lora => "give a checkpoint as the model and this file with `loras`",
            Kind::Sd1 | Kind::Sd2 | Kind::Transformer => {
                "this program runs Stable Diffusion XL; get a checkpoint of that family"
            }
            Kind::Edm => "this program runs the usual schedule only",
            Kind::Embedding => "give a checkpoint as the model and this file with `embeddings`",
            Kind::ControlNet => "it goes with a checkpoint and is none",
            Kind::Unknown => "give a checkpoint of Stable Diffusion XL",
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
    ]
    .iter()
    .any(|part| name.contains(part))
        || name.starts_with("lora_unet_")
        || name.starts_with("lora_te")
}
