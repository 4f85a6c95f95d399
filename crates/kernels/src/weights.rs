//! Weights as files store them, and the number formats that packed weights can have.

#![allow(unsafe_code)]

use half::{bf16, f16};

use crate::simd::Simd;

/// Weights as they are stored in a file.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper halves of 32-bit floats.
    Bf16(&'a [bf16]),
    /// Signed bytes and a scale for each row. Packed as [`WeightFormat::Int8`] they stay these
    /// bytes.
    Int8 {
        /// Rows of bytes, -127 to 127.
        bytes: &'a [i8],
        /// The value of one unit of a row's bytes, for each row: finite and not negative.
        scales: &'a [f32],
    },
}

impl Weights<'_> {
    /// Returns the number of weights.
    pub fn len(&self) -> usize {
        match self {
            Weights::F32(w) => w.len(),
            Weights::F16(w) => w.len(),
            Weights::Bf16(w) => w.len(),
            Weights::Int8 { bytes, .. } => bytes.len(),
        }
    }

    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            Weights::F32(w) => w[i],
            Weights::F16(w) => w[i].to_f32(),
            Weights::Bf16(w) => w[i].to_f32(),
            Weights::Int8 { bytes, scales } => {
                f32::from(bytes[i]) * scales[i / (bytes.len() / scales.len())]
            }
        }
    }

    /// Fills `out` with the weights from index `from` on, as `f32`; of bytes no piece may belong to
    /// two rows.
    #[inline(always)]
    pub(crate) fn widen_into<S: Simd>(&self, s: S, from: usize, out: &mut [f32]) {
        let to = from + out.len();
        match self {
            Weights::F32(w) => out.copy_from_slice(&w[from..to]),
            Weights::F16(w) => {
                let w = &w[from..to];
                let whole = w.len() / S::LANES * S::LANES;
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: LANES elements are left.
                    let value = unsafe { s.load_f16(w.as_ptr().add(i)) };
                    s.write(out, i, value);
                }
                for i in whole..w.len() {
                    out[i] = w[i].to_f32();
                }
            }
            Weights::Bf16(w) => {
                let w = &w[from..to];
                for i in (0..w.len()).step_by(S::LANES) {
                    s.write(out, i, s.read(w, i));
                }
            }
            Weights::Int8 { bytes, scales } => {
                let scale = scales[from / (bytes.len() / scales.len())];
                for (out, byte) in out.iter_mut().zip(&bytes[from..to]) {
                    *out = f32::from(*byte) * scale;
                }
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The number format of packed weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision, widened as it is read.
    F16,
    /// The upper halves of 32-bit floats; what the bf16 dot product reads.
    Bf16,
    /// Signed bytes, with a scale for each output that makes its largest weight 127. Activations
    /// are rounded to bytes too (see `int8.rs`), so this is for layers that tolerate it.
    Int8,
}

impl WeightFormat {
    /// Returns the bytes of a weight.
    pub(crate) fn bytes(self) -> usize {
        match self {
            WeightFormat::F32 => 4,
            WeightFormat::F16 | WeightFormat::Bf16 => 2,
            WeightFormat::Int8 => 1,
        }
    }

    /// Returns the number of values of `k` in a step.
    pub(crate) fn depth(self) -> usize {
        match self {
            WeightFormat::F32 | WeightFormat::F16 => 1,
            WeightFormat::Bf16 => 2,
            WeightFormat::Int8 => 4,
        }
    }
}
