//! The allocator's threshold between buffers of its heap and buffers mapped from the system.

#![allow(unsafe_code)]

/// Fixes the size from which buffers are mapped from the system, and so go back to it as soon as
/// they are dropped, at 256 KiB.
///
/// The C library of Linux (glibc) begins like this, with 128 KiB. But whenever a mapped buffer is
/// dropped it raises its threshold to that buffer's size, up to 32 MiB; from then on such buffers
/// lie in its heap, and leave gaps between its other pieces when they are dropped: a run of eight
/// pictures took a fifth more memory than it had in use. Buffers that are worth keeping for the
/// next use are kept elsewhere (by tensors, and by kernels for their intermediate results).
///
/// A program calls this once, before it starts threads. Without glibc it does nothing.
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
