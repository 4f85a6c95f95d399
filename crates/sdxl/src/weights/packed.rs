//! A layer's packed weights: in memory, or packed anew from the mapped files whenever it works.

use std::sync::Arc;

use crate::error::Result;

/// Reads and packs.
type Read<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// Packed weights of a layer.
pub struct Packed<T>(Place<T>);

enum Place<T> {
    Memory(Arc<T>),
    Files(Read<T>),
}

impl<T> Packed<T> {
    /// Weights that stay in memory.
    pub fn in_memory(weights: Arc<T>) -> Packed<T> {
        Packed(Place::Memory(weights))
    }

    /// Weights that `read` packs, each time they are asked for. It must have been tried: nobody
    /// expects an error in the middle of a run.
    pub fn in_files(read: impl Fn() -> Result<T> + Send + Sync + 'static) -> Packed<T> {
        Packed(Place::Files(Box::new(read)))
    }

    /// The weights, where they are in memory.
    pub fn here(&self) -> Option<Arc<T>> {
        match &self.0 {
            Place::Memory(weights) => Some(Arc::clone(weights)),
            Place::Files(_) => None,
        }
    }

    /// The weights, for as long as somebody has them.
    ///
    /// # Panics
    /// If they cannot be read any more.
    pub fn get(&self) -> Arc<T> {
        match &self.0 {
            Place::Memory(weights) => Arc::clone(weights),
            Place::Files(read) => match read() {
                Ok(weights) => Arc::new(weights),
                Err(error) => panic!("{error} (it was readable before the run)"),
            },
        }
    }
}
