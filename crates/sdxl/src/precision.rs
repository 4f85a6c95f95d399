//! The precision of the networks: the format of their weights and of the activations between them.

use serde::{Deserialize, Serialize};

use sdxl_kernels::WeightFormat;

use crate::named::{Named, named};
use crate::tensor::DType;
use crate::warning::{Warning, WarningKind};
use crate::weights::Part;

/// The precision that the networks compute in. The scheduler, the noise and (where the
/// checkpoint says `force_upcast`) the VAE always compute in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit weights and activations: the reference's numbers.
    F32,
    /// bfloat16 weights and activations, sums in `f32`.
    Bf16,
    /// 16-bit IEEE weights, as `fp16` checkpoints hold them, and `f32` arithmetic:
    /// half the memory of `f32`.
    F16,
    /// The linear layers of the UNet's transformers multiply bytes (W8A8): weights with a scale an
    /// output channel, activations with a scale a token, found as they come. `bf16` between
    /// layers, in those that bytes would hurt ([`crate::weights::Loader::keep_bf16`]) and in the text encoders.
    Int8,
}

impl Precision {
    /// Gives the format in which weights are kept in memory.
    pub fn weight_format(self) -> WeightFormat {
        match self {
            Precision::F32 => WeightFormat::F32,
            Precision::Bf16 => WeightFormat::Bf16,
            Precision::F16 => WeightFormat::F16,
            Precision::Int8 => WeightFormat::Int8,
        }
    }

    /// The element type of activations.
    pub fn activations(self) -> DType {
        match self {
            Precision::F32 | Precision::F16 => DType::F32,
            Precision::Bf16 | Precision::Int8 => DType::Bf16,
        }
    }

    /// The precision of `part` in a run of this one. Only the UNet takes bytes. The published VAE
    /// overflows in half precision (black pictures), so where its config says so
    /// (`vae_upcast`) it is `f32`, always.
    pub fn of_part(self, part: Part, vae_upcast: bool) -> Precision {
        match (part, self) {
            (Part::Vae, _) if vae_upcast => Precision::F32,
            (Part::UNet, _) => self,
            (_, Precision::Int8) => Precision::Bf16,
            _ => self,
        }
    }

    /// Gives a warning where this precision has a drawback on this processor.
    pub fn warning(self) -> Option<Warning> {
        let native = sdxl_kernels::Isa::current().multiplies_int8();
        (self == Precision::Int8 && !native).then(|| {
            Warning::new(
                WarningKind::Precision,
                "precision",
                "int8: this processor has no instructions for products of bytes, so int8 saves \
                 memory here and no time",
            )
        })
    }

    /// Bytes of memory per weight.
    pub fn bytes(self) -> u64 {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 | Precision::F16 => 2,
            Precision::Int8 => 1,
        }
    }
}

named! { Precision:
    F32, "f32", "The numbers of diffusers";
    Bf16, "bf16", "Half the memory; fast where the processor has instructions for it";
    F16, "f16" or "fp16", "Half the memory, the arithmetic of f32";
    Int8, "int8", "The fastest, a quarter of f32's memory; see docs/fidelity.md for how near it comes";
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
