//! Values into blocks: the other direction of [`BlockType::decode`].
//!
//! Q4_0 to Q8_0 are rounded as ggml's reference does (and the gguf package, bit for bit). Of the
//! 256-value types only Q6_K is written; its scales are found here by least squares.

use half::f16;

use super::BlockType;

impl BlockType {
    /// Whether [`BlockType::encode`] writes this type.
    pub fn is_written(self) -> bool {
        !matches!(
            self,
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K
        )
    }

    /// Blocks of `values`, as many as whole blocks have.
    ///
    /// # Panics
    /// If the type is not [written](BlockType::is_written) or the last block is not whole.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        assert!(self.is_written(), "{self} is not written");
        assert!(values.len().is_multiple_of(self.values()), "whole blocks");
        let mut out = Vec::with_capacity(values.len() / self.values() * self.bytes());
        for block in values.chunks_exact(self.values()) {
            match self {
                BlockType::Q4_0 => {
                    let (d, q) = symmetric(block, 8);
                    half(d, &mut out);
                    nibbles(&q, &mut out);
                }
                BlockType::Q4_1 => {
                    let (d, m, q) = between(block, 15);
                    half(d, &mut out);
                    half(m, &mut out);
                    nibbles(&q, &mut out);
                }
                BlockType::Q5_0 => {
                    let (d, q) = symmetric(block, 16);
                    half(d, &mut out);
                    fives(&q, &mut out);
                }
                BlockType::Q5_1 => {
                    let (d, m, q) = between(block, 31);
                    half(d, &mut out);
                    half(m, &mut out);
                    fives(&q, &mut out);
                }
                BlockType::Q8_0 => {
                    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                    let d = largest / 127.0;
                    let factor = inverse(d);
                    half(d, &mut out);
                    out.extend(block.iter().map(|v| (v * factor).round() as i8 as u8));
                }
                _ => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half(value: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(value).to_le_bytes());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The scale that makes the value farthest from zero `-steps`, and the values in units of it,
/// `steps` added: integers below `2·steps`.
fn symmetric(block: &[f32], steps: u8) -> (f32, Vec<u8>) {
    let farthest = (block.iter()).fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = farthest / -f32::from(steps);
    let (factor, middle) = (inverse(d), f32::from(steps) + 0.5);
    let round = |v: &f32| ((v * factor + middle) as u8).min(2 * steps - 1);
    (d, block.iter().map(round).collect())
}

/// The scale and offset that make the smallest value 0 and the largest `last`, and the values
/// in units of them.
fn between(block: &[f32], last: u8) -> (f32, f32, Vec<u8>) {
    let smallest = block.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (largest - smallest) / f32::from(last);
    let factor = inverse(d);
    let round = |v: &f32| (((v - smallest) * factor + 0.5) as u8).min(last);
    (d, smallest, block.iter().map(round).collect())
}

/// The first half of the values in the low halves of bytes, the second in the high ones.
fn nibbles(q: &[u8], out: &mut Vec<u8>) {
    let (low, high) = q.split_at(q.len() / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
}

/// As [`nibbles`], behind the fifth bits of all values.
fn fives(q: &[u8], out: &mut Vec<u8>) {
    let fifths = (q.iter().enumerate()).fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
    out.extend(fifths.to_le_bytes());
    nibbles(q, out);
}

/// The scale of sixteen values with which integers from -32 to 31 come nearest to them.
///
/// For given integers `q` the best scale is `Σxq / Σq²`, and the square of the error is then
/// smaller by `(Σxq)² / Σq²` than that of zeros; so scales around the one that makes the
/// farthest value -32 are tried for their integers.
fn nearest_scale(x: &[f32]) -> f32 {
    let farthest = x
        .iter()
        .fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    if farthest == 0.0 {
        return 0.0;
    }
    let (mut best, mut gain) = (0.0, 0.0);
    for step in -9..=9 {
        let factor = -(32.0 + 0.1 * step as f32) / farthest;
        let (mut xq, mut qq) = (0f32, 0f32);
        for v in x {
            let q = (v * factor).round_ties_even().clamp(-32.0, 31.0);
            xq += v * q;
            qq += q * q;
        }
        if qq > 0.0 && xq * xq / qq > gain {
            (best, gain) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

fn q6_k(block: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = block.chunks_exact(16).map(nearest_scale).collect();
    let farthest = (scales.iter()).fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = f16::from_f32(farthest / -128.0);
    let factor = inverse(d.to_f32());
    let scales: Vec<i8> = (scales.iter())
        .map(|s| (s * factor).round_ties_even().clamp(-128.0, 127.0) as i8)
        .collect();
    let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
    for (at, v) in block.iter().enumerate() {
        let unit = d.to_f32() * f32::from(scales[at / 16]);
        let q = (v * inverse(unit)).round_ties_even().clamp(-32.0, 31.0);
        let q = (q + 32.0) as u8;
        // As they are read: halves of 128, of four runs of 32.
        let (half, run, i) = (at / 128, at % 128 / 32, at % 32);
        low[64 * half + 32 * (run % 2) + i] |= (q & 15) << (4 * (run / 2));
        high[32 * half + i] |= (q >> 4) << (2 * run);
    }
    out.extend(low);
    out.extend(high);
    out.extend(scales.iter().map(|s| *s as u8));
    out.extend(d.to_le_bytes());
}
