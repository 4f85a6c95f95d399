//! Memory for intermediate results, kept between calls: fresh pages from the system would
//! cost more than what is computed in them.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Buffers that are not in use.
static FREE_BUFFERS: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// The most buffers that are kept.
const MAX_FREE_BUFFERS: usize = 64;

/// A slice of `f32` that holds arbitrary numbers at first.
pub(crate) struct Scratch {
    memory: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Scratch {
        let mut free = FREE_BUFFERS.lock().unwrap_or_else(|e| e.into_inner());
        // The smallest that is large enough, else the largest.
        let best = (0..free.len()).min_by_key(|i| {
            let size = free[*i].len();
            if size >= len {
                (0, size)
            } else {
                (1, usize::MAX - size)
            }
        });
        let mut memory = best.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if memory.len() < len {
            memory = vec![0.0; len];
        }
        Scratch { memory, len }
    }
}

/// Gives back to the system the memory that kernels keep between calls.
pub fn release_scratch() {
    FREE_BUFFERS
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .clear();
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut free = FREE_BUFFERS.lock().unwrap_or_else(|e| e.into_inner());
        if free.len() < MAX_FREE_BUFFERS {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for_and_are_apart() {
        let mut a = Scratch::new(10);
        let mut b = Scratch::new(1000);
        a.fill(1.0);
        b.fill(2.0);
        assert!(a.len() == 10 && b.len() == 1000);
        assert!(a.iter().all(|v| *v == 1.0));
        drop((a, b));
        assert_eq!(Scratch::new(500).len(), 500);
    }
}
