//! Weights stored in blocks: a few bits a value, and scales that a block of values shares.
//!
//! The block types of ggml (<https://github.com/ggml-org/ggml>, `ggml-quants.c`), which
//! GGUF files hold. A file's weights become `f32` here, once, when they are read; from there
//! on they are packed like any others.

mod encode;

use std::fmt;

use half::f16;

/// A way to store a block of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// 4 bits and a scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and an offset for 32 values.
    Q4_1,
    /// 5 bits and a scale for 32 values.
    Q5_0,
    /// 5 bits, a scale and an offset for 32 values.
    Q5_1,
    /// 8 bits and a scale for 32 values.
    Q8_0,
    /// 2 bits; scales and offsets of 4 bits for 16 values, in 256.
    Q2K,
    /// 3 bits; scales of 6 bits for 16 values, in 256.
    Q3K,
    /// 4 bits; scales and offsets of 6 bits for 32 values, in 256.
    Q4K,
    /// 5 bits; scales and offsets of 6 bits for 32 values, in 256.
    Q5K,
    /// 6 bits; scales of 8 bits for 16 values, in 256.
    Q6K,
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        })
    }
}

impl BlockType {
    /// Values in a block.
    pub fn values(self) -> usize {
        match self {
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q5_0
            | BlockType::Q5_1
            | BlockType::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            BlockType::Q4_0 => 2 + 16,
            BlockType::Q4_1 => 4 + 16,
            BlockType::Q5_0 => 2 + 4 + 16,
            BlockType::Q5_1 => 4 + 4 + 16,
            BlockType::Q8_0 => 2 + 32,
            BlockType::Q2K => 16 + 64 + 4,
            BlockType::Q3K => 32 + 64 + 12 + 2,
            BlockType::Q4K => 4 + 12 + 128,
            BlockType::Q5K => 4 + 12 + 32 + 128,
            BlockType::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// The values of whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.bytes() * self.values());
        for block in bytes.chunks_exact(self.bytes()) {
            match self {
                BlockType::Q4_0 => {
                    let d = half_at(block, 0);
                    nibbles(&block[2..], |q| d * (f32::from(q) - 8.0), &mut out);
                }
                BlockType::Q4_1 => {
                    let (d, m) = (half_at(block, 0), half_at(block, 2));
                    nibbles(&block[4..], |q| d * f32::from(q) + m, &mut out);
                }
                BlockType::Q5_0 => {
                    let d = half_at(block, 0);
                    fives(&block[2..], |q| d * (f32::from(q) - 16.0), &mut out);
                }
                BlockType::Q5_1 => {
                    let (d, m) = (half_at(block, 0), half_at(block, 2));
                    fives(&block[4..], |q| d * f32::from(q) + m, &mut out);
                }
                BlockType::Q8_0 => {
                    let d = half_at(block, 0);
                    out.extend(block[2..].iter().map(|q| d * f32::from(*q as i8)));
                }
                BlockType::Q2K => q2_k(block, &mut out),
                BlockType::Q3K => q3_k(block, &mut out),
                BlockType::Q4K => q4_k(block, &mut out),
                BlockType::Q5K => q5_k(block, &mut out),
                BlockType::Q6K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of 16 bytes, then the high ones.
fn nibbles(packed: &[u8], value: impl Fn(u8) -> f32, out: &mut Vec<f32>) {
    out.extend(packed.iter().map(|q| value(q & 15)));
    out.extend(packed.iter().map(|q| value(q >> 4)));
}

/// As [`nibbles`], behind 32 fifth bits.
fn fives(packed: &[u8], value: impl Fn(u8) -> f32, out: &mut Vec<f32>) {
    let high = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
    let low = &packed[4..];
    out.extend((low.iter().enumerate()).map(|(i, q)| value(q & 15 | fifth(i))));
    out.extend((low.iter().enumerate()).map(|(i, q)| value(q >> 4 | fifth(i + 16))));
}

fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, packed) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    // Sixteen runs of sixteen: a byte holds values of four runs that are 32 apart.
    for (run, scale) in scales.iter().enumerate() {
        let (scale, offset) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let (half, shift, side) = (run / 8, run % 8 / 2 * 2, run % 2);
        let bytes = &packed[32 * half + 16 * side..][..16];
        out.extend((bytes.iter()).map(|q| scale * f32::from(q >> shift & 3) - offset));
    }
}

fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, packed, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for run in 0..16 {
        // Four low bits in the first eight bytes, two high ones in the last four.
        let low = scales[run % 8] >> (4 * (run / 8)) & 15;
        let top = scales[8 + run % 4] >> (2 * (run / 4)) & 3;
        let scale = d * (f32::from(low | top << 4) - 32.0);
        let (half, shift, side) = (run / 8, run % 8 / 2 * 2, run % 2);
        let bytes = &packed[32 * half + 16 * side..][..16];
        let thirds = &high[16 * side..][..16];
        out.extend(bytes.iter().zip(thirds).map(|(q, third)| {
            let third = third >> (run / 2) & 1;
            scale * (f32::from(q >> shift & 3 | third << 2) - 4.0)
        }));
    }
}

/// The eight scales and offsets of six bits in twelve bytes.
fn six_bits(packed: &[u8], run: usize) -> (f32, f32) {
    let (scale, offset) = match run {
        0..4 => (packed[run] & 63, packed[run + 4] & 63),
        _ => (
            packed[run + 4] & 15 | packed[run - 4] >> 6 << 4,
            packed[run + 4] >> 4 | packed[run] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(offset))
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, packed) = (&block[4..16], &block[16..144]);
    for run in 0..8 {
        let (scale, offset) = six_bits(scales, run);
        let (scale, offset) = (d * scale, dmin * offset);
        let bytes = &packed[32 * (run / 2)..][..32];
        let shift = 4 * (run % 2);
        out.extend((bytes.iter()).map(|q| scale * f32::from(q >> shift & 15) - offset));
    }
}

fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, packed) = (&block[4..16], &block[16..48], &block[48..176]);
    for run in 0..8 {
        let (scale, offset) = six_bits(scales, run);
        let (scale, offset) = (d * scale, dmin * offset);
        let bytes = &packed[32 * (run / 2)..][..32];
        let shift = 4 * (run % 2);
        out.extend(bytes.iter().zip(high).map(|(q, fifth)| {
            let q = q >> shift & 15 | (fifth >> run & 1) << 4;
            scale * f32::from(q) - offset
        }));
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for half in 0..2 {
        let (low, high) = (&low[64 * half..][..64], &high[32 * half..][..32]);
        // Four runs of 32: two in the low halves of bytes, two in the high ones.
        for run in 0..4 {
            for (i, top) in high.iter().enumerate() {
                let four = low[32 * (run % 2) + i] >> (4 * (run / 2)) & 15;
                let q = four | (top >> (2 * run) & 3) << 4;
                let scale = scales[8 * half + 2 * run + i / 16] as i8;
                out.push(d * f32::from(scale) * (f32::from(q) - 32.0));
            }
        }
    }
}
