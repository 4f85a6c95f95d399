//! A layer's packed weights: in memory, or packed anew from the mapped files whenever it works.

use std::sync::Arc;

use crate::device::{Device, PackedWeights};
use crate::error::Result;

/// Reads and packs.
type Read = Box<dyn Fn() -> Result<PackedWeights> + Send + Sync>;

/// Packed weights of a layer.
pub(crate) struct Packed {
    device: Arc<dyn Device>,
    place: Place,
}

enum Place {
    Memory(PackedWeights),
    Files(Read),
}

impl Packed {
    /// Creates weights that stay in the memory of `device`, which packed them.
    pub(crate) fn in_memory(device: Arc<dyn Device>, weights: PackedWeights) -> Packed {
        Packed {
            device,
            place: Place::Memory(weights),
        }
    }

    /// Creates weights that `read` has `device` pack, each time they are asked for. It must have
    /// been tried: nobody expects an error in the middle of a run.
    pub(crate) fn in_files(
        device: Arc<dyn Device>,
        read: impl Fn() -> Result<PackedWeights> + Send + Sync + 'static,
    ) -> Packed {
        Packed {
            device,
            place: Place::Files(Box::new(read)),
        }
    }

    /// The device that packs them, and computes with them.
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The weights, where they are in memory.
    pub(crate) fn here(&self) -> Option<PackedWeights> {
        match &self.place {
            Place::Memory(weights) => Some(Arc::clone(weights)),
            Place::Files(_) => None,
        }
    }

    /// The weights, for as long as somebody has them.
    ///
    /// # Panics
    /// If they cannot be read any more.
    pub(crate) fn get(&self) -> PackedWeights {
        match &self.place {
            Place::Memory(weights) => Arc::clone(weights),
            Place::Files(read) => match read() {
                Ok(weights) => weights,
                Err(error) => panic!("{error} (it was readable before the run)"),
            },
        }
    }
}
