//! An output that tasks write to at the same time, each to its own part.

#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A borrowed slice whose parts are handed to tasks that run at once.
///
/// A kernel's tasks own rectangles of a matrix (some columns of some rows), which are not
/// slices: so `chunks_mut` cannot hand them out, and each task takes the pieces of its rows by
/// itself with [`part`](DisjointOut::part).
pub(crate) struct DisjointOut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed mutably for as long as this is there, so nobody reaches its
// elements but through `part`, whose callers promise that no two parts that are there at once
// overlap: threads share no element. A thread writes elements that another one may drop or read
// later, hence `T: Send`.
unsafe impl<T: Send> Sync for DisjointOut<'_, T> {}

impl<'a, T> DisjointOut<'a, T> {
    pub(crate) fn new(out: &'a mut [T]) -> DisjointOut<'a, T> {
        DisjointOut {
            start: out.as_mut_ptr(),
            len: out.len(),
            borrowed: PhantomData,
        }
    }

    /// Returns the address of element `at`, to be prefetched: it may lie past the end.
    #[inline(always)]
    pub(crate) fn address(&self, at: usize) -> *const T {
        self.start.wrapping_add(at)
    }

    /// Returns `len` elements from index `at` on.
    ///
    /// # Safety
    /// They must be elements of the slice, and no other part that is there at the same time,
    /// in this task or another, may have one of them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        debug_assert!(at + len <= self.len, "{at} and {len} more of {}", self.len);
        // SAFETY: within the slice and nobody else's, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn tasks_write_columns_of_one_matrix() {
        let (rows, columns) = (70, 12);
        let mut out = vec![0; rows * columns];
        let shared = DisjointOut::new(&mut out);
        (0..4usize).into_par_iter().for_each(|task| {
            for row in 0..rows {
                // SAFETY: three columns of each row are this task's alone.
                let part = unsafe { shared.part(row * columns + 3 * task, 3) };
                part.fill(row * 4 + task);
            }
        });
        for (i, value) in out.into_iter().enumerate() {
            assert_eq!(value, i / columns * 4 + i % columns / 3);
        }
    }
}
