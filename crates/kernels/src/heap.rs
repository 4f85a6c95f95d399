//! The allocator's setting for large buffers: whether it takes them from the system or its heap.

#![allow(unsafe_code)]

/// Makes the memory of large buffers go back to the system as soon as they are dropped.
///
/// The C library of Linux does so by itself at first. But whenever a large buffer is dropped it
/// learns to keep buffers of that size, up to 32 MiB, in its heap, between whose other pieces they
/// leave gaps: a run of eight pictures took a fifth more memory than it had in use. Buffers that are
/// worth keeping are kept by those who know it (tensors, and what kernels work in).
///
/// For programs to call once, before they start threads; elsewhere than on Linux with glibc it does
/// nothing.
pub fn fix_mmap_threshold() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: i32, value: i32) -> i32;
        }
        /// The setting's number in glibc's `malloc.h`.
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: glibc's `mallopt` takes two integers and changes nothing but the allocator's
        // settings; where it refuses a value it says so and goes on as before.
        unsafe { mallopt(M_MMAP_THRESHOLD, 256 << 10) };
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    #[test]
    fn dropped_buffers_return_to_the_system() {
        fix_mmap_threshold();
        const SIZE: usize = 24 << 20;
        // The first would have made the allocator keep the others.
        drop(vec![1u8; SIZE]);
        let kept: Vec<_> = (0..6).map(|_| (vec![1u8; SIZE], vec![1u8; 1000])).collect();
        let before = resident();
        let small: Vec<_> = kept.into_iter().map(|(_, small)| small).collect();
        assert_eq!(small.len(), 6);
        assert!(before - resident() > 5 * SIZE, "{} {before}", resident());
    }
}
