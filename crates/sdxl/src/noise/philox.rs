//! PyTorch's CUDA generator: Philox4x32-10, one counter per thread, and the normal transform of
//! cuRAND.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

/// Threads per block of PyTorch's random kernels.
const BLOCK: usize = 256;
/// The most blocks a launch has: as many as an H100 or H200 holds at once (132 multiprocessors of
/// 2048 threads). It only matters for tensors that need more blocks than the GPU holds: one image
/// of 1024 x 1024 needs 256.
const MAX_GRID: usize = 132 * 2048 / BLOCK;

/// The seed, and how many values each thread has drawn so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Philox {
    seed: u64,
    offset: u64,
}

impl Philox {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, offset: 0 }
    }

    pub(super) fn randn(&mut self, numel: usize) -> Vec<f32> {
        let threads = BLOCK * numel.div_ceil(BLOCK).min(MAX_GRID);
        let mut values = vec![0.0; numel];
        let mut passes = 0;
        // A thread draws four values at a time and writes them `threads` apart.
        for (pass, chunk) in values.chunks_mut((4 * threads).max(1)).enumerate() {
            let counter = self.offset / 4 + pass as u64;
            for thread in 0..threads.min(chunk.len()) {
                let block = philox(self.seed, counter, thread as u64);
                for (lane, value) in normals(block).into_iter().enumerate() {
                    if let Some(slot) = chunk.get_mut(thread + lane * threads) {
                        *slot = value;
                    }
                }
            }
            passes += 1;
        }
        self.offset += 4 * passes;
        values
    }
}

/// Ten rounds on the counter `(counter, subsequence)` with the key `seed`.
fn philox(seed: u64, counter: u64, subsequence: u64) -> [u32; 4] {
    let mut c = [
        counter as u32,
        (counter >> 32) as u32,
        subsequence as u32,
        (subsequence >> 32) as u32,
    ];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xd251_1f53;
        let p1 = u64::from(c[2]) * 0xcd9e_8d57;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ key[1],
            p0 as u32,
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    c
}

/// Sixteen bytes of the stream that a `seed` has for block `block`, for [`super::roughly_normal`].
pub(super) fn bytes(seed: u64, block: u64) -> [u32; 4] {
    philox(seed, block, 0)
}

/// The Box-Muller transform as cuRAND does it: sine first.
fn normals([x, y, z, w]: [u32; 4]) -> [f32; 4] {
    let pair = |x: u32, y: u32| {
        const UNIT: f32 = 1.0 / 4_294_967_296.0;
        const TURN: f32 = UNIT * TAU as f32;
        let u = x as f32 * UNIT + UNIT / 2.0;
        let angle = f64::from(y as f32 * TURN + TURN / 2.0);
        let radius = (-2.0 * libm::log(f64::from(u)) as f32).sqrt();
        [
            radius * libm::sin(angle) as f32,
            radius * libm::cos(angle) as f32,
        ]
    };
    let ([a, b], [c, d]) = (pair(x, y), pair(z, w));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123: counter and key all zero, all one, and digits of pi.
    #[test]
    fn known_answers() {
        assert_eq!(
            philox(0, 0, 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox(u64::MAX, u64::MAX, u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                0x299f_31d0_a409_3822,
                0x85a3_08d3_243f_6a88,
                0x0370_7344_1319_8a2e
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn layout_of_large_tensors() {
        // Values beyond the number of threads are the further lanes of the first threads.
        let threads = BLOCK * MAX_GRID;
        let values = Philox::new(7).randn(4 * threads + 3);
        let first = normals(philox(7, 0, 5));
        for (lane, expected) in first.into_iter().enumerate() {
            assert_eq!(values[5 + lane * threads], expected);
        }
        assert_eq!(values[4 * threads + 2], normals(philox(7, 1, 2))[0]);
    }
}
