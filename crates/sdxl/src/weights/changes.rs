//! Changes that are added to tensors as they are read, whatever they come from.

use super::layer_cache::FileStamp;
use crate::error::Result;

/// Changes to the tensors of one part, by the tensors' names.
pub(super) trait Changes: Send + Sync {
    /// Whether the tensor `name` is changed.
    fn change(&self, name: &str) -> bool;

    /// Adds the changes to the values of the tensor `name`, which has this shape.
    ///
    /// # Errors
    /// Changes that cannot be read.
    fn add(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()>;

    /// Gives the origins of the changes to the tensor `name`: a file, the first byte in it and the
    /// bits of the scale, which are all that a change depends on.
    fn origins(&self, name: &str) -> Vec<(FileStamp, usize, u32)>;
}
