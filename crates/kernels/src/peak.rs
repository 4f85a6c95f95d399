//! The peak speed of the machine, to compare the kernels with.

use std::hint::black_box;
use std::time::Instant;

use crate::dispatch::dispatch;
use crate::isa::Isa;
use crate::simd::{Op, Simd};

/// A number type that is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `f32` products and sums.
    F32,
    /// `bf16` products, `f32` sums.
    Bf16,
    /// Products of bytes, sums of 32-bit integers.
    Int8,
}

/// Measures the operations (a product and a sum are two) per second of all threads of the current
/// pool together, at this kind of arithmetic, with all operands in registers.
pub fn peak_flops(arithmetic: Arithmetic) -> f64 {
    let mut best = 0f64;
    for _ in 0..10 {
        let start = Instant::now();
        let done = rayon::broadcast(|_| {
            let rounds = black_box(2_000_000);
            dispatch(Isa::current(), MultiplyRegisters { arithmetic, rounds })
        });
        best = best.max(done.iter().sum::<f64>() / start.elapsed().as_secs_f64());
    }
    best
}

/// Multiplies numbers in registers.
struct MultiplyRegisters {
    arithmetic: Arithmetic,
    rounds: usize,
}

impl Op for MultiplyRegisters {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        const SUMS: usize = 12;
        let mut sums = [s.splat(black_box(1.0)); SUMS];
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
        let bytes = black_box(0x0102_0304);
        let per_lane = match self.arithmetic {
            Arithmetic::F32 => {
                for _ in 0..self.rounds {
                    for sum in &mut sums {
                        *sum = s.fma(*sum, a, b);
                    }
                }
                2
            }
            Arithmetic::Bf16 => {
                for _ in 0..self.rounds {
                    for sum in &mut sums {
                        *sum = s.dot_bf16(*sum, a, b);
                    }
                }
                4
            }
            Arithmetic::Int8 => {
                for round in 0..self.rounds {
                    // Not the same in each round, or a part would be computed only once.
                    let bytes = bytes + round as u32;
                    for sum in &mut sums {
                        *sum = s.dot_u8i8(*sum, bytes, b);
                    }
                }
                8
            }
        };
        let mut total = s.zero();
        for sum in sums {
            total = s.add(total, sum);
        }
        black_box(s.reduce_sum(total));
        (self.rounds * SUMS * S::LANES * per_lane) as f64
    }
}
