//! The weights of a layer as they are stored, for a device to read and pack.

use sdxl_kernels::Weights;

use crate::error::Result;

/// Weights of a layer that a device may read, or only ask for their size.
pub trait StoredWeights {
    /// The number of weights.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a value as [`Self::read`] hands it over.
    fn value_bytes(&self) -> usize;

    /// Memory that reading them takes.
    fn memory(&self) -> ReadingMemory;

    /// Runs `use_values` once, on the values.
    ///
    /// # Errors
    /// Values that cannot be read.
    fn read(&self, use_values: &mut dyn FnMut(Weights<'_>)) -> Result<()>;

    /// Reads without making anything of it: later, in the middle of a run, nothing may be found
    /// to be wrong.
    ///
    /// # Errors
    /// Values that cannot be read.
    fn check(&self) -> Result<()>;
}

/// The most memory at once that reading weights takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadingMemory {
    /// Before all values are there.
    pub gathering: usize,
    /// Beside what is made of the values.
    pub packing: usize,
    /// In [`StoredWeights::check`].
    pub checking: usize,
}
