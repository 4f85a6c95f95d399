//! A cache of packed layers, so that a change of LoRAs reads only the layers that it changes.

use std::any::Any;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use crate::device::{Layer, PackedWeights};
use crate::error::Result;

/// A file as it was when it was opened: one that was written anew is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileStamp {
    /// The path of the file.
    pub path: PathBuf,
    /// The length of the file in bytes.
    pub bytes: u64,
    /// When it was written, where the system says so.
    pub modified: Option<SystemTime>,
}

/// The origin of a tensor's values: their place in a file, and the changes that LoRAs add.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    /// File and first byte.
    pub stored: (FileStamp, usize),
    /// The same of each change, with the bits of its scale.
    pub added: Vec<(FileStamp, usize, u32)>,
}

/// A packed layer: of which tensors, and how it was packed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    /// The tensors' names.
    pub names: Vec<String>,
    /// The origins of the tensors' values.
    pub origins: Vec<Origin>,
    /// The kind of layer, its shape and format; `None`: a table, as stored.
    pub layer: Option<Layer>,
}

/// A cache of packed layers, each for as long as a network has it.
#[derive(Default)]
pub(crate) struct LayerCache {
    layers: Mutex<HashMap<LayerKey, Weak<dyn Any + Send + Sync>>>,
    reads: AtomicUsize,
}

impl LayerCache {
    /// The layer, from memory or read.
    ///
    /// # Errors
    /// The errors of `read`.
    pub(super) fn layer(
        &self,
        key: LayerKey,
        read: impl FnOnce() -> Result<PackedWeights>,
    ) -> Result<PackedWeights> {
        let found = self.lock().get(&key).and_then(Weak::upgrade);
        if let Some(layer) = found {
            return Ok(layer);
        }
        let layer = read()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key, Arc::downgrade(&layer));
        Ok(layer)
    }

    /// Removes the entries of layers that no network has any more.
    pub(super) fn evict_dropped(&self) {
        self.lock().retain(|_, layer| layer.strong_count() > 0);
    }

    /// Gives the number of layers that were read rather than found in memory.
    #[cfg(test)]
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LayerKey, Weak<dyn Any + Send + Sync>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use sdxl_kernels::WeightFormat;

    use super::*;

    #[test]
    fn a_layer_is_cached_as_long_as_somebody_has_it() {
        let cache = LayerCache::default();
        let key = |format| LayerKey {
            names: vec!["a.weight".into()],
            origins: Vec::new(),
            layer: Some(Layer::Matrix { n: 1, k: 1, format }),
        };
        let get = |format| {
            let read = || Ok(Arc::new(vec![1u8]) as PackedWeights);
            cache.layer(key(format), read).unwrap()
        };
        let first = get(WeightFormat::F32);
        assert!(Arc::ptr_eq(&first, &get(WeightFormat::F32)));
        let other = get(WeightFormat::Int8);
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(cache.reads(), 2);
        drop(first);
        get(WeightFormat::F32);
        assert_eq!(cache.reads(), 3);
        cache.evict_dropped();
        assert_eq!(cache.lock().len(), 1);
    }
}
