//! The element types of activations.

use half::bf16;

/// The element type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit IEEE floating point.
    F32,
    /// bfloat16: the upper half of an `f32`.
    Bf16,
}

impl DType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => size_of::<f32>(),
            DType::Bf16 => size_of::<bf16>(),
        }
    }
}
