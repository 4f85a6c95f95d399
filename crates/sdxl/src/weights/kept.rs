//! Packed layers that are in memory, to be found again: what a change of LoRAs leaves as it is, is
//! not read a second time.

use std::any::Any;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use sdxl_kernels::WeightFormat;

use crate::error::Result;

/// A file as it was when it was opened: one that was written anew is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, where the system says so.
    pub modified: Option<SystemTime>,
}

/// Where a tensor's values come from: its place in a file, and what LoRAs add.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// File and first byte.
    pub stored: (Stamp, usize),
    /// The same of each change, with the bits of its scale.
    pub added: Vec<(Stamp, usize, u32)>,
}

/// A packed layer: of which tensors, and how it was packed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The tensors' names.
    pub names: Vec<String>,
    /// Where their values come from.
    pub origins: Vec<Origin>,
    /// The kind of layer, and its shape.
    pub packed: (&'static str, [usize; 3]),
    /// How weights are kept; `None`: as stored.
    pub format: Option<WeightFormat>,
}

/// Packed layers, for as long as a network has them.
#[derive(Default)]
pub struct Kept {
    layers: Mutex<HashMap<Key, Weak<dyn Any + Send + Sync>>>,
    reads: AtomicUsize,
}

impl Kept {
    /// The layer, from memory or read.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn layer<T: Any + Send + Sync>(
        &self,
        key: Key,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let found = self.lock().get(&key).and_then(Weak::upgrade);
        if let Some(Ok(layer)) = found.map(Arc::downcast::<T>) {
            return Ok(layer);
        }
        let layer = Arc::new(read()?);
        self.reads.fetch_add(1, Ordering::Relaxed);
        let shared: Arc<dyn Any + Send + Sync> = layer.clone();
        self.lock().insert(key, Arc::downgrade(&shared));
        Ok(layer)
    }

    /// Forgets the names of layers that are in memory no more.
    pub fn tidy(&self) {
        self.lock().retain(|_, layer| layer.strong_count() > 0);
    }

    /// How many layers were read.
    #[cfg(test)]
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Weak<dyn Any + Send + Sync>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_kept_as_long_as_somebody_has_it() {
        let kept = Kept::default();
        let key = |format| Key {
            names: vec!["a.weight".into()],
            origins: Vec::new(),
            packed: ("matrix", [1; 3]),
            format,
        };
        let get = |format| kept.layer(key(format), || Ok(vec![1u8])).unwrap();
        let first = get(None);
        assert!(Arc::ptr_eq(&first, &get(None)));
        let other = get(Some(WeightFormat::Int8));
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(kept.reads(), 2);
        drop(first);
        get(None);
        assert_eq!(kept.reads(), 3);
        kept.tidy();
        assert_eq!(kept.lock().len(), 1);
    }
}
