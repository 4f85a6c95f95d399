//! The storage formats of tensors in files.

use std::fmt;

use safetensors::Dtype;

use super::blocks::BlockType;

/// The storage format of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// One by one.
    Plain(Dtype),
    /// In blocks that share scales.
    Blocks(BlockType),
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElementType::Plain(dtype) => write!(f, "{dtype:?}"),
            ElementType::Blocks(block) => write!(f, "{block}"),
        }
    }
}
