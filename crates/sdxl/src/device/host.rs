//! Values in the memory of the host: those of the CPU's tensors, and those that every device leaves
//! there.

use std::sync::Arc;

use half::{bf16, f16};
use sdxl_kernels::Weights;

use super::stored_weights::StoredWeights;
use crate::error::Result;
use crate::tensor::{DType, keep};
use crate::weights::values::to_f32;

/// Values in the host's memory, which serves later ones when they are dropped: the storage of
/// [`Cpu`](super::Cpu).
#[derive(Debug)]
pub enum HostValues {
    /// 32-bit values.
    F32(Vec<f32>),
    /// bfloat16 values.
    Bf16(Vec<bf16>),
}

impl Drop for HostValues {
    fn drop(&mut self) {
        match self {
            HostValues::F32(values) => keep(std::mem::take(values)),
            HostValues::Bf16(values) => keep(std::mem::take(values)),
        }
    }
}

impl HostValues {
    /// `f32` values in this element type, rounded to nearest even.
    pub fn of(values: Vec<f32>, dtype: DType) -> HostValues {
        match dtype {
            DType::F32 => HostValues::F32(values),
            DType::Bf16 => HostValues::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }
}

/// A table of vectors on the host, looked up by row.
pub trait Table: Send + Sync {
    /// Appends row `index`, of `width` values, to `out`. The caller guarantees the range.
    fn append_row(&self, index: usize, width: usize, out: &mut Vec<f32>);
}

/// Reads weights and keeps what `make` makes of them.
pub(super) fn read<R>(
    weights: &dyn StoredWeights,
    mut make: impl FnMut(Weights<'_>) -> R,
) -> Result<R> {
    let mut made = None;
    weights.read(&mut |w| made = Some(make(w)))?;
    Ok(made.expect("reading hands the values over"))
}

/// Reads a bias, scale or shift.
pub(super) fn vector(weights: &dyn StoredWeights) -> Result<Vec<f32>> {
    read(weights, to_f32)
}

/// Reads a table of vectors.
pub(super) fn table(weights: &dyn StoredWeights) -> Result<Arc<dyn Table>> {
    let table = read(weights, |w| match w {
        Weights::F32(v) => HostTable::F32(v.to_vec()),
        Weights::F16(v) => HostTable::F16(v.to_vec()),
        Weights::Bf16(v) => HostTable::Bf16(v.to_vec()),
        Weights::Int8 { .. } => HostTable::F32(to_f32(w)),
    })?;
    Ok(Arc::new(table))
}

/// A table of vectors as it is stored.
enum HostTable {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Table for HostTable {
    fn append_row(&self, index: usize, width: usize, out: &mut Vec<f32>) {
        let range = index * width..(index + 1) * width;
        match self {
            HostTable::F32(v) => out.extend_from_slice(&v[range]),
            HostTable::F16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
            HostTable::Bf16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
        }
    }
}
