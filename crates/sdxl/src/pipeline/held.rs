//! A network of a pipeline: in memory from the start, or only while a run needs it.
//!
//! Which of these it is changes what a run takes of memory and of time, and no number.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;

/// What of a pipeline's networks is in memory, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Residence {
    /// All networks from the start to the end: for many runs, one after the other or at once.
    Whole,
    /// Each network only while a run needs it: text encoders, UNet and VAE one after the other.
    /// Each run reads the weights again.
    InTurn,
    /// As [`Residence::InTurn`], and of the network at work only the part that computes: every
    /// evaluation reads the weights again, from the mapped files.
    Streamed,
}

impl Residence {
    /// Whether networks stay in memory between runs.
    pub fn stays(self) -> bool {
        self == Residence::Whole
    }
}

/// Reads the network, or finds it in memory.
type Load<T> = Box<dyn Fn() -> Result<Arc<T>> + Send + Sync>;

/// A network that is read when it is needed first. It can be read again, so it need not stay.
pub struct Held<T> {
    load: Load<T>,
    stays: bool,
    here: Mutex<Option<Arc<T>>>,
}

impl<T> Held<T> {
    /// A network that `load` reads and that, unless it `stays`, runs let go.
    pub fn new(stays: bool, load: impl Fn() -> Result<Arc<T>> + Send + Sync + 'static) -> Held<T> {
        Held {
            load: Box::new(load),
            stays,
            here: Mutex::new(None),
        }
    }

    /// The network; reads it where it is not there, or waits for a thread that does.
    ///
    /// # Errors
    /// A file that is missing or wrong.
    pub fn get(&self) -> Result<Arc<T>> {
        // A thread that ended while it read leaves nothing, and it is read again.
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = &*here {
            return Ok(Arc::clone(network));
        }
        let network = (self.load)()?;
        *here = Some(Arc::clone(&network));
        Ok(network)
    }

    /// Whether it is there at once.
    pub fn is_here(&self) -> bool {
        let here = self.here.try_lock();
        here.is_ok_and(|network| network.is_some())
    }

    /// Gives its memory back as soon as nobody uses it, unless it stays.
    pub fn let_go(&self) {
        if !self.stays {
            *self.here.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_stays_is_read_once_and_the_rest_when_needed() {
        for (stays, reads) in [(true, 1), (false, 2)] {
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            let network = Held::new(stays, move || {
                Ok(Arc::new(counted.fetch_add(1, Ordering::SeqCst)))
            });
            assert!(!network.is_here());
            assert!(Arc::ptr_eq(
                &network.get().unwrap(),
                &network.get().unwrap()
            ));
            network.let_go();
            assert_eq!(network.is_here(), stays);
            network.get().unwrap();
            assert_eq!(count.load(Ordering::SeqCst), reads);
        }
    }
}
