//! A pool of the buffers of dropped tensors, reused for new tensors: fresh pages from the system
//! would cost more than some of what is computed into them.
//!
//! If no kept buffer fits, kept buffers of as many bytes as are asked for are freed first. So
//! tensors in use and kept buffers together never take more memory than the tensors in use took
//! at their peak.

use std::sync::{Mutex, PoisonError};

use half::bf16;

/// Below this the allocator is quick by itself.
const SMALL: usize = 1 << 16;

/// The kept buffers, the longest unused first.
static FREE: Mutex<Vec<FreeBuffer>> = Mutex::new(Vec::new());

/// A buffer that nobody uses.
pub(crate) enum FreeBuffer {
    /// The buffer of a tensor of 32-bit values.
    F32(Vec<f32>),
    /// The buffer of a tensor of bfloat16 values.
    Bf16(Vec<bf16>),
}

impl FreeBuffer {
    fn bytes(&self) -> usize {
        match self {
            FreeBuffer::F32(v) => size_of::<f32>() * v.capacity(),
            FreeBuffer::Bf16(v) => size_of::<bf16>() * v.capacity(),
        }
    }
}

/// Element types whose buffers are used again.
pub(crate) trait Reused: Copy {
    /// A number whose every result shows that it was not computed.
    const POISON: Self;
    /// Marks the buffer with its type.
    fn into_free(values: Vec<Self>) -> FreeBuffer;
    /// The buffer, if it is of this type.
    fn of_free(kept: &mut FreeBuffer) -> Option<&mut Vec<Self>>;
}

impl Reused for f32 {
    const POISON: f32 = f32::NAN;
    fn into_free(values: Vec<f32>) -> FreeBuffer {
        FreeBuffer::F32(values)
    }
    fn of_free(kept: &mut FreeBuffer) -> Option<&mut Vec<f32>> {
        match kept {
            FreeBuffer::F32(values) => Some(values),
            FreeBuffer::Bf16(_) => None,
        }
    }
}

impl Reused for bf16 {
    const POISON: bf16 = bf16::NAN;
    fn into_free(values: Vec<bf16>) -> FreeBuffer {
        FreeBuffer::Bf16(values)
    }
    fn of_free(kept: &mut FreeBuffer) -> Option<&mut Vec<bf16>> {
        match kept {
            FreeBuffer::Bf16(values) => Some(values),
            FreeBuffer::F32(_) => None,
        }
    }
}

/// A buffer of `len` values that are yet to be written: what they are is left open. Builds with
/// debug assertions make them all `NaN`, so that a test finds an operator that reads them.
pub(crate) fn buffer<E: Reused + Default>(len: usize) -> Vec<E> {
    let mut values = kept(len).unwrap_or_default();
    if cfg!(debug_assertions) {
        values.clear();
        values.resize(len, E::POISON);
        return values;
    }
    if values.capacity() == 0 {
        // Zeroed by the system, and not before it is written.
        return vec![E::default(); len];
    }
    values.resize(len, E::default());
    values
}

/// A kept buffer of at least `len` values and not much more; else makes room for a new one.
fn kept<E: Reused>(len: usize) -> Option<Vec<E>> {
    let bytes = len * size_of::<E>();
    if bytes < SMALL {
        return None;
    }
    let mut all = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = len..=len + len / 8;
    let best = (all.iter_mut().enumerate())
        .filter_map(|(i, kept)| Some((E::of_free(kept)?.capacity(), i)))
        .filter(|(capacity, _)| fits.contains(capacity))
        .min();
    if let Some((_, i)) = best {
        return E::of_free(&mut all.remove(i)).map(std::mem::take);
    }
    let mut freed = 0;
    let mut count = 0;
    while count < all.len() && freed < bytes {
        freed += all[count].bytes();
        count += 1;
    }
    all.drain(..count);
    None
}

/// Keeps the memory of a buffer for the next that is asked for.
pub(crate) fn keep<E: Reused>(values: Vec<E>) {
    if values.capacity() * size_of::<E>() >= SMALL {
        let mut all = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(E::into_free(values));
    }
}

/// Gives back to the system what is kept for tensors and operators to come.
pub fn release_buffers() {
    FREE.lock().unwrap_or_else(PoisonError::into_inner).clear();
    sdxl_kernels::release_scratch();
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: what is kept is common to all threads, and other tests make tensors.
    #[test]
    fn buffers_have_the_length_asked_for_and_are_apart() {
        for len in [0, 1, SMALL / 4, SMALL, 3 * SMALL] {
            let (mut a, mut b) = (buffer::<f32>(len), buffer::<f32>(len));
            a.fill(1.0);
            b.fill(2.0);
            assert!(a.len() == len && b.len() == len);
            assert!(a.iter().all(|v| *v == 1.0));
            keep(a);
            keep(b);
            let shorter = buffer::<f32>(len - len / 16);
            assert_eq!(shorter.len(), len - len / 16);
            assert!(len < SMALL || shorter.capacity() <= len + len / 8);
            assert_eq!(buffer::<bf16>(len).len(), len);
        }
        release_buffers();
    }
}
