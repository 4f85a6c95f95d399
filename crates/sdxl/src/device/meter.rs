//! Counts the memory that work would take, without doing it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sdxl_kernels::Workspace;

/// Counts bytes. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Count>>);

#[derive(Debug, Default)]
struct Count {
    weights: usize,
    /// Bytes of all weights packed so far, including those that are gone.
    packed: usize,
    tensors: usize,
    /// The most that tensors took so far: their memory is kept for the next ones.
    kept: usize,
    /// Memory that kernels keep between calls, as `scratch.rs` does.
    scratch: Vec<usize>,
    peak: usize,
}

/// The kind of the memory that is counted: each kind is given back in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Packed weights: gone with the layer.
    Weights,
    /// Tensors: their memory serves later ones.
    Tensor,
}

/// Bytes that count for as long as this is there.
#[derive(Debug)]
pub struct CountedBytes {
    meter: Meter,
    kind: MemoryKind,
    bytes: usize,
}

impl Count {
    fn now(&self) -> usize {
        self.weights + self.kept + self.scratch.iter().sum::<usize>()
    }

    fn note(&mut self, temporary: usize) {
        self.peak = self.peak.max(self.now() + temporary);
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` until the result is dropped.
    pub fn count(&self, kind: MemoryKind, bytes: usize) -> CountedBytes {
        let mut count = self.lock();
        match kind {
            MemoryKind::Weights => {
                count.weights += bytes;
                count.packed += bytes;
            }
            MemoryKind::Tensor => {
                count.tensors += bytes;
                count.kept = count.kept.max(count.tensors);
            }
        }
        count.note(0);
        CountedBytes {
            meter: self.clone(),
            kind,
            bytes,
        }
    }

    /// Notes memory that is there for a moment, beside all that is counted.
    pub fn temporary(&self, bytes: usize) {
        self.lock().note(bytes);
    }

    /// Notes a kernel's work.
    pub fn work(&self, workspace: &Workspace) {
        let mut count = self.lock();
        // As `Scratch::new` chooses: the smallest that is large enough, else the largest.
        let taken: Vec<usize> = (workspace.scratch.iter())
            .map(|len| {
                let free = &mut count.scratch;
                let best = (0..free.len()).min_by_key(|i| match free[*i] >= *len {
                    true => (0, free[*i]),
                    false => (1, usize::MAX - free[*i]),
                });
                best.map_or(0, |i| free.swap_remove(i)).max(*len)
            })
            .collect();
        count.scratch.extend(taken);
        count.note(workspace.temporary);
    }

    /// Gives back what is kept for tensors and kernels to come.
    pub fn release(&self) {
        let mut count = self.lock();
        count.kept = count.tensors;
        count.scratch.clear();
    }

    /// Bytes that are in use or kept now.
    pub fn now(&self) -> usize {
        self.lock().now()
    }

    /// Bytes of packed weights now.
    pub fn weights(&self) -> usize {
        self.lock().weights
    }

    /// Bytes of packed weights in all, those that are gone too.
    pub fn packed(&self) -> usize {
        self.lock().packed
    }

    /// Bytes that kernels keep.
    pub fn scratch(&self) -> usize {
        self.lock().scratch.iter().sum()
    }

    /// The most bytes since the meter is there, or since this was called last.
    pub fn take_peak(&self) -> usize {
        let mut count = self.lock();
        let now = count.now();
        std::mem::replace(&mut count.peak, now)
    }
}

impl CountedBytes {
    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        let mut count = self.meter.lock();
        match self.kind {
            MemoryKind::Weights => count.weights -= self.bytes,
            MemoryKind::Tensor => count.tensors -= self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_kept_and_weights_are_not() {
        let meter = Meter::default();
        let weights = meter.count(MemoryKind::Weights, 1000);
        let tensor = meter.count(MemoryKind::Tensor, 100);
        drop(meter.count(MemoryKind::Tensor, 50));
        assert_eq!(meter.now(), 1150);
        drop(tensor);
        // In the place of what was there.
        let tensor = meter.count(MemoryKind::Tensor, 140);
        assert_eq!((meter.now(), meter.weights()), (1150, 1000));
        meter.temporary(7);
        assert_eq!(meter.take_peak(), 1157);
        drop(weights);
        assert_eq!((meter.now(), meter.take_peak()), (150, 1150));
        meter.release();
        assert_eq!(meter.now(), 140);
        drop(tensor);
        meter.release();
        assert_eq!((meter.now(), meter.take_peak()), (0, 150));
    }

    #[test]
    fn scratch_is_used_again_as_far_as_it_goes() {
        let meter = Meter::default();
        let work = |scratch: &[usize]| {
            meter.work(&Workspace {
                temporary: 1,
                scratch: scratch.to_vec(),
            });
            meter.now()
        };
        assert_eq!(work(&[10, 3, 3]), 16);
        assert_eq!(work(&[2]), 16);
        // The largest goes for a larger one.
        assert_eq!(work(&[20]), 26);
        assert_eq!(work(&[3, 3, 20]), 26);
        assert_eq!(meter.take_peak(), 27);
    }
}
