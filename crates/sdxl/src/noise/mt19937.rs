//! PyTorch's CPU generator: 32-bit MT19937, and how `torch.randn` turns its output into normal
//! numbers.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

const N: usize = 624;
const M: usize = 397;

/// From this many values on, `torch.randn` fills blocks of 16; below, it draws value by value in
/// `f64`.
const BLOCK: usize = 16;

/// The engine, and the half of a pair that the value-by-value path keeps for later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub(super) struct Mt19937 {
    state: Vec<u32>,
    /// The number of words of `state` that have been given out.
    next: usize,
    /// As bits, which every file format keeps exactly.
    cached: Option<u64>,
}

#[derive(Deserialize)]
struct Parts {
    state: Vec<u32>,
    next: usize,
    cached: Option<u64>,
}

impl TryFrom<Parts> for Mt19937 {
    type Error = String;

    fn try_from(parts: Parts) -> Result<Self, String> {
        if parts.state.len() != N || parts.next > N {
            return Err(format!(
                "{} words at position {} are no MT19937 state",
                parts.state.len(),
                parts.next
            ));
        }
        Ok(Self {
            state: parts.state,
            next: parts.next,
            cached: parts.cached,
        })
    }
}

impl Mt19937 {
    /// Seeded by the original `init_genrand`.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = vec![seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: N,
            cached: None,
        }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// The first of two outputs is the high word.
    pub(super) fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    /// `[0, 1)` in steps of 2^-24.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0xff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// `[0, 1)` in steps of 2^-53.
    fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    pub(super) fn randn(&mut self, numel: usize) -> Vec<f32> {
        if numel < BLOCK {
            return (0..numel).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..numel).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !numel.is_multiple_of(BLOCK) {
            // The last 16 values are drawn afresh, whatever already stands there.
            let tail = &mut values[numel - BLOCK..];
            tail.fill_with(|| self.uniform_f32());
            box_muller(tail);
        }
        values
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return f64::from_bits(value);
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * libm::log1p(-u2)).sqrt();
        let angle = TAU * u1;
        self.cached = Some((radius * libm::sin(angle)).to_bits());
        radius * libm::cos(angle)
    }
}

/// The Box-Muller transform of 16 uniforms, in place: values 8 apart make a pair, the cosines come
/// first.
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        // PyTorch rounds every step to f32; only the functions themselves are exact here.
        let radius = (-2.0 * libm::log(f64::from(1.0 - *a)) as f32).sqrt();
        let angle = f64::from(TAU as f32 * *b);
        *a = radius * libm::cos(angle) as f32;
        *b = radius * libm::sin(angle) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_thousandth_output() {
        let mut engine = Mt19937::new(5489);
        let last = (0..10_000).map(|_| engine.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
