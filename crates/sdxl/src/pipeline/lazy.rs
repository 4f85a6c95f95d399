//! Networks that are loaded on first use, and may be unloaded.

use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Duration;

use crate::cancel;
use crate::error::Result;

/// A pause before asking again whether another thread has loaded a network.
const WAIT: Duration = Duration::from_millis(2);

/// Reads the network, or finds it in memory.
type Load<T> = Box<dyn Fn() -> Result<Arc<T>> + Send + Sync>;

/// A network that is loaded on first use. It can be loaded again, so it need not stay.
pub(super) struct Lazy<T> {
    load: Load<T>,
    pinned: bool,
    loaded: Mutex<Loaded<T>>,
}

/// A network that is in memory, or may be.
struct Loaded<T> {
    kept: Option<Arc<T>>,
    /// The network for as long as a run uses it, so that it is never in memory twice.
    used: Weak<T>,
}

impl<T> Lazy<T> {
    /// Creates an unloaded network. `load` reads its weights on first use; with `pinned` they stay
    /// loaded between runs.
    pub(super) fn new(
        pinned: bool,
        load: impl Fn() -> Result<Arc<T>> + Send + Sync + 'static,
    ) -> Lazy<T> {
        Lazy {
            load: Box::new(load),
            pinned,
            loaded: Mutex::new(Loaded {
                kept: None,
                used: Weak::new(),
            }),
        }
    }

    /// The network; loads it where it is not loaded, or waits for a thread that does.
    ///
    /// # Errors
    /// A file that is missing or wrong; [`crate::Error::Cancelled`], also while it waits.
    pub(super) fn get(&self) -> Result<Arc<T>> {
        let mut loaded = loop {
            match self.loaded.try_lock() {
                Ok(loaded) => break loaded,
                // A thread that ended while it loaded leaves nothing, and it is loaded again.
                Err(TryLockError::Poisoned(loaded)) => break loaded.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    cancel::check()?;
                    std::thread::sleep(WAIT);
                }
            }
        };
        let there = loaded.kept.take().or_else(|| loaded.used.upgrade());
        let network = match there {
            Some(network) => network,
            None => (self.load)()?,
        };
        *loaded = Loaded {
            used: Arc::downgrade(&network),
            kept: Some(Arc::clone(&network)),
        };
        Ok(network)
    }

    /// Whether the weights are loaded and no other thread is loading them.
    pub(super) fn is_loaded(&self) -> bool {
        let loaded = self.loaded.try_lock();
        loaded.is_ok_and(|network| network.kept.is_some() || network.used.strong_count() > 0)
    }

    /// Whether the weights stay loaded between runs.
    pub(super) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Unloads the weights, unless pinned or just being loaded for another run. Memory is freed when
    /// the last user drops its `Arc`.
    pub(super) fn unload(&self) {
        if !self.pinned
            && let Ok(mut loaded) = self.loaded.try_lock()
        {
            loaded.kept = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn pinned_networks_are_loaded_once_and_others_when_needed() {
        for (pinned, loads) in [(true, 1), (false, 2)] {
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            let network = Lazy::new(pinned, move || {
                Ok(Arc::new(counted.fetch_add(1, Ordering::SeqCst)))
            });
            assert!(!network.is_loaded());
            assert!(Arc::ptr_eq(
                &network.get().unwrap(),
                &network.get().unwrap()
            ));
            network.unload();
            assert_eq!(network.is_loaded(), pinned);
            // While somebody uses it, it is the same one.
            let used = network.get().unwrap();
            assert_eq!(count.load(Ordering::SeqCst), loads);
            network.unload();
            assert!(Arc::ptr_eq(&used, &network.get().unwrap()));
            assert_eq!(count.load(Ordering::SeqCst), loads);
        }
    }
}
