//! The parts of a checkpoint, and the two kinds of SDXL checkpoints.

/// The kinds of SDXL checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKind {
    /// Two text encoders; makes pictures from noise.
    Base,
    /// Only the second text encoder; finishes pictures of a base model.
    Refiner,
}

/// A part of a pipeline that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// CLIP ViT-L text encoder.
    TextEncoder,
    /// OpenCLIP bigG text encoder with projection.
    TextEncoder2,
    /// The denoising network.
    UNet,
    /// The image encoder and decoder.
    Vae,
}

impl Part {
    /// All parts, in the order they run.
    pub const ALL: [Part; 4] = [Part::TextEncoder, Part::TextEncoder2, Part::UNet, Part::Vae];

    /// The folder's name, which is also the key in `model_index.json`.
    pub fn folder(self) -> &'static str {
        match self {
            Part::TextEncoder => "text_encoder",
            Part::TextEncoder2 => "text_encoder_2",
            Part::UNet => "unet",
            Part::Vae => "vae",
        }
    }

    /// The name that weight files start with: transformers and diffusers differ.
    pub(crate) fn file_stem(self) -> &'static str {
        match self {
            Part::TextEncoder | Part::TextEncoder2 => "model",
            Part::UNet | Part::Vae => "diffusion_pytorch_model",
        }
    }

    /// The class that `model_index.json` must name for this part.
    pub(super) fn class(self) -> &'static str {
        match self {
            Part::TextEncoder => "CLIPTextModel",
            Part::TextEncoder2 => "CLIPTextModelWithProjection",
            Part::UNet => "UNet2DConditionModel",
            Part::Vae => "AutoencoderKL",
        }
    }
}

/// The path of a part's configuration in a folder.
pub(super) fn config_key(part: Part) -> String {
    format!("{}/config.json", part.folder())
}
