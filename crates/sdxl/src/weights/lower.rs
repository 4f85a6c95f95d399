//! Weights with fewer bits: which tensors of a checkpoint get them, and what that costs.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::Dtype;
use sdxl_kernels::{Weights, quantise_rows};

use super::blocks::BlockType;
use crate::error::{Error, Result};
use crate::weights::Part;
use crate::weights::values::to_f32;
use crate::weights::{ElementType, StoredTensor};

/// The format that weights are to be stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every weight as an IEEE half.
    F16,
    /// Every weight as the upper half of an `f32`.
    Bf16,
    /// The matrices of the UNet's transformers as bytes with an `f32` scale for each output, the
    /// bytes that [`Precision::Int8`](crate::Precision) makes of them when it loads them. All else
    /// stays as it is stored, so that a run in `int8` gives the same picture bit for bit.
    Int8,
    /// A GGUF file of the UNet alone, the matrices of its transformers in blocks of this type.
    Blocks(BlockType),
}

/// Block types that are written, by the words for them.
const BLOCKS: [(&str, BlockType); 6] = [
    ("q4_0", BlockType::Q4_0),
    ("q4_1", BlockType::Q4_1),
    ("q5_0", BlockType::Q5_0),
    ("q5_1", BlockType::Q5_1),
    ("q6_k", BlockType::Q6K),
    ("q8_0", BlockType::Q8_0),
];

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::F16 => f.write_str("f16"),
            Target::Bf16 => f.write_str("bf16"),
            Target::Int8 => f.write_str("int8"),
            Target::Blocks(block) => f.write_str(&block.to_string().to_lowercase()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let lower = s.to_lowercase();
        match lower.as_str() {
            "f16" | "fp16" => Ok(Target::F16),
            "bf16" => Ok(Target::Bf16),
            "int8" => Ok(Target::Int8),
            word => match BLOCKS.iter().find(|(name, _)| *name == word) {
                Some((_, block)) => Ok(Target::Blocks(*block)),
                None => Err(format!(
                    "`{s}` is no precision that weights can be written in; use f16, bf16, int8, \
                     q8_0, q6_k, q5_1, q5_0, q4_1 or q4_0"
                )),
            },
        }
    }
}

/// The format that one tensor is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredAs {
    /// The format that the tensor is stored in already.
    AsStored,
    /// As floats of this type.
    Floats(Dtype),
    /// As bytes with scales beside them.
    Bytes,
    /// In blocks.
    Blocks(BlockType),
}

impl Target {
    /// Gives the format in which a tensor is written; `name` is its name in a folder.
    pub(super) fn storage(self, part: Part, name: &str, tensor: &StoredTensor) -> StoredAs {
        let float = match tensor.element() {
            ElementType::Plain(Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL) => {
                return StoredAs::AsStored;
            }
            ElementType::Plain(dtype) => Some(dtype),
            ElementType::Blocks(_) => None,
        };
        let floats = |dtype| match float {
            Some(stored) if stored == dtype => StoredAs::AsStored,
            _ => StoredAs::Floats(dtype),
        };
        let inside = part == Part::UNet && is_transformer_matrix(name, tensor.shape());
        match self {
            Target::F16 => floats(Dtype::F16),
            Target::Bf16 => floats(Dtype::BF16),
            Target::Int8 if inside && float != Some(Dtype::I8) => StoredAs::Bytes,
            Target::Int8 => StoredAs::AsStored,
            Target::Blocks(block) => in_blocks(block, inside, tensor),
        }
    }
}

/// Whether a tensor of the UNet is one of those matrices that make up nearly all of it and bear
/// fewer bits; embeddings of time and size, and convolutions, are not.
fn is_transformer_matrix(name: &str, shape: &[usize]) -> bool {
    name.contains(".attentions.")
        && name.ends_with(".weight")
        && matches!(shape, [_, _] | [_, _, 1, 1])
}

/// As stable-diffusion.cpp does: what has one axis is `F32`, and a matrix whose rows are not whole
/// blocks of 256 gets blocks of 32 with as many bits or more (in SDXL, those of width 640).
fn in_blocks(block: BlockType, inside: bool, tensor: &StoredTensor) -> StoredAs {
    let shape = tensor.shape();
    let fits = |block: BlockType| match shape {
        [_, k] => k.is_multiple_of(block.values()),
        _ => false,
    };
    match block {
        _ if shape.len() < 2 => StoredAs::Floats(Dtype::F32),
        block if inside && fits(block) => StoredAs::Blocks(block),
        _ if inside && fits(BlockType::Q8_0) => StoredAs::Blocks(BlockType::Q8_0),
        _ => StoredAs::Floats(Dtype::F16),
    }
}

/// `values` as floats of `dtype`, and what they are then.
pub(super) fn floats(values: Vec<f32>, dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
    fn all<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|v| bytes(*v)).collect()
    }
    match dtype {
        Dtype::F16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            let bytes = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
            (bytes, to_f32(Weights::F16(&halves)))
        }
        Dtype::BF16 => {
            let brains: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            let bytes = brains.iter().flat_map(|v| v.to_le_bytes()).collect();
            (bytes, to_f32(Weights::Bf16(&brains)))
        }
        _ => (all(&values, f32::to_le_bytes), values),
    }
}

/// Bytes and scales of `n` rows.
pub(super) fn bytes(values: Weights<'_>, n: usize) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let (bytes, scales) = quantise_rows(values, n);
    let after = to_f32(Weights::Int8 {
        bytes: &bytes,
        scales: &scales,
    });
    (bytes.iter().map(|b| *b as u8).collect(), scales, after)
}

/// A report of how a conversion changed the weights.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Tensors whose values changed.
    pub changed: usize,
    /// Relative L2 distance of all weights that were stored anew from what they were.
    pub error: f64,
    /// The tensor that is farthest from what it was, and how far.
    pub worst: Option<(String, f64)>,
    /// Bytes of what was written.
    pub bytes: u64,
}

/// The record of changes that is kept while tensors are written one after the other.
#[derive(Default)]
pub(super) struct Ledger(RefCell<Noted>);

#[derive(Default)]
struct Noted {
    changed: usize,
    difference: f64,
    norm: f64,
    worst: Option<(String, f64)>,
    failed: Option<Error>,
}

impl Ledger {
    /// Compares a tensor's values.
    ///
    /// # Errors
    /// Values that were numbers and are none.
    pub(super) fn note(
        &self,
        path: &Path,
        name: &str,
        before: &[f32],
        after: &[f32],
        target: Target,
    ) -> Result<()> {
        let (mut difference, mut norm) = (0f64, 0f64);
        for (before, after) in before.iter().zip(after) {
            if before.is_finite() && !after.is_finite() {
                return Err(Error::file(
                    path,
                    format!(
                        "tensor `{name}` holds {before:e}, which {target} has no number for (f16 ends \
                         at 65504); use bf16"
                    ),
                ));
            }
            difference += f64::from(before - after).powi(2);
            norm += f64::from(*before).powi(2);
        }
        let mut noted = self.0.borrow_mut();
        noted.norm += norm;
        noted.difference += difference;
        if difference > 0.0 {
            noted.changed += 1;
            let error = (difference / norm).sqrt();
            if noted.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
                noted.worst = Some((name.to_string(), error));
            }
        }
        Ok(())
    }

    /// Keeps the first error, where none can be given back.
    pub(super) fn fail(&self, error: Error) {
        self.0.borrow_mut().failed.get_or_insert(error);
    }

    /// Returns the error that [`Ledger::fail`] kept, if there is one.
    pub(super) fn check(&self) -> Result<()> {
        match self.0.borrow_mut().failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Makes the report of a conversion that wrote `bytes` bytes.
    pub(super) fn report(self, bytes: u64) -> Report {
        let noted = self.0.into_inner();
        Report {
            changed: noted.changed,
            error: match noted.norm > 0.0 {
                true => (noted.difference / noted.norm).sqrt(),
                false => 0.0,
            },
            worst: noted.worst,
            bytes,
        }
    }
}
