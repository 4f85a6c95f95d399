//! The stored tensors that are stacked into one layer.

use half::{bf16, f16};
use sdxl_kernels::Weights;

use super::stored_tensor::StoredTensor;
use super::tensor_set::TensorSet;
use super::values::to_f32;
use crate::device::{ReadingMemory, StoredWeights};
use crate::error::Result;

/// Tensors whose rows, stacked, are a layer.
pub(super) struct StackedTensors {
    pub(super) tensors: TensorSet,
    pub(super) found: Vec<(String, StoredTensor)>,
}

impl StackedTensors {
    /// A tensor that is small, or read piece by piece, of `tensors`.
    pub(super) fn of_one(tensors: &TensorSet, name: &str, tensor: StoredTensor) -> StackedTensors {
        StackedTensors {
            tensors: tensors.clone(),
            found: vec![(name.to_string(), tensor)],
        }
    }

    /// Whether the stacked rows stay as they are stored, in 16 bits.
    fn narrow(&self) -> bool {
        let stored = |(_, tensor): &(_, StoredTensor)| tensor.value_bytes() == 2;
        let changed = |(name, _): &(String, _)| self.tensors.changes(name);
        self.found.iter().all(stored) && !self.found.iter().any(changed)
    }
}

impl StoredWeights for StackedTensors {
    fn len(&self) -> usize {
        self.found.iter().map(|(_, tensor)| tensor.values()).sum()
    }

    fn value_bytes(&self) -> usize {
        match self.found.as_slice() {
            [(name, tensor)] if !self.tensors.changes(name) => tensor.value_bytes(),
            [_] => size_of::<f32>(),
            // As `StackedRows` has them.
            _ if self.narrow() => 2,
            _ => size_of::<f32>(),
        }
    }

    fn memory(&self) -> ReadingMemory {
        let reading =
            |(name, tensor): &(String, StoredTensor)| self.tensors.reading_bytes(name, tensor);
        let checking = match self.tensors.is_random() {
            true => 0,
            false => self.found.iter().map(reading).max().unwrap_or(0),
        };
        match self.found.as_slice() {
            [one] => ReadingMemory {
                gathering: 0,
                packing: reading(one),
                checking,
            },
            several => {
                let rows = self.len() * self.value_bytes();
                // Values that are widened are there twice for a moment.
                let last = several.last().map_or(0, |last| {
                    let widened = if self.narrow() { 0 } else { last.1.values() };
                    widened * self.value_bytes() + reading(last)
                });
                ReadingMemory {
                    gathering: rows + last,
                    packing: rows,
                    checking,
                }
            }
        }
    }

    fn read(&self, use_values: &mut dyn FnMut(Weights<'_>)) -> Result<()> {
        if let [(name, tensor)] = self.found.as_slice() {
            self.tensors.fetch(tensor);
            return self.tensors.read(name, tensor, use_values);
        }
        let mut rows = StackedRows::default();
        for (name, tensor) in &self.found {
            self.tensors.fetch(tensor);
            self.tensors.read(name, tensor, |w| rows.add(w))?;
        }
        rows.with(use_values);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        for (name, tensor) in &self.found {
            if !self.tensors.is_random() {
                self.tensors.read(name, tensor, |_| ())?;
            }
        }
        Ok(())
    }
}

fn same_type<'a>(a: Weights<'a>, b: Weights<'a>) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}

/// StackedRows of several tensors below one another: as bytes while all of them are, so that those are
/// not rounded again, and as stored while all are of 16 bits, which is quicker.
#[derive(Default)]
struct StackedRows {
    f32s: Vec<f32>,
    f16s: Vec<f16>,
    bf16s: Vec<bf16>,
    bytes: Vec<i8>,
    scales: Vec<f32>,
}

impl StackedRows {
    fn add(&mut self, rows: Weights<'_>) {
        if self.len() == 0 || self.with(|all| same_type(all, rows)) {
            match rows {
                Weights::F32(v) => self.f32s.extend_from_slice(v),
                Weights::F16(v) => self.f16s.extend_from_slice(v),
                Weights::Bf16(v) => self.bf16s.extend_from_slice(v),
                Weights::Int8 { bytes, scales } => {
                    self.bytes.extend_from_slice(bytes);
                    self.scales.extend_from_slice(scales);
                }
            }
            return;
        }
        let mut f32s = self.with(to_f32);
        f32s.extend(to_f32(rows));
        *self = StackedRows {
            f32s,
            ..StackedRows::default()
        };
    }

    fn len(&self) -> usize {
        self.f32s.len() + self.f16s.len() + self.bf16s.len() + self.bytes.len()
    }

    fn with<R>(&self, use_values: impl FnOnce(Weights<'_>) -> R) -> R {
        let (bytes, scales) = (&self.bytes, &self.scales);
        use_values(if !bytes.is_empty() {
            Weights::Int8 { bytes, scales }
        } else if !self.f16s.is_empty() {
            Weights::F16(&self.f16s)
        } else if !self.bf16s.is_empty() {
            Weights::Bf16(&self.bf16s)
        } else {
            Weights::F32(&self.f32s)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_rows_keep_their_values() {
        let f32s = [1.0, -0.3333, 3e-6, 7.5];
        let f16s = f32s.map(f16::from_f32);
        let bf16s = f32s.map(bf16::from_f32);
        let (bytes, scales) = ([3, -7, 127, 0], [0.5, 0.1]);
        let bytes = Weights::Int8 {
            bytes: &bytes,
            scales: &scales,
        };
        let (f32s, f16s) = (Weights::F32(&f32s), Weights::F16(&f16s));
        let all = [f32s, f16s, Weights::Bf16(&bf16s), bytes];
        for first in all {
            for second in all {
                for third in all {
                    let mut rows = StackedRows::default();
                    let mut want = Vec::new();
                    for part in [first, second, third] {
                        rows.add(part);
                        want.extend(to_f32(part));
                    }
                    assert_eq!(rows.with(to_f32), want);
                    // Without a detour where they are of one type.
                    let same = same_type(first, second) && same_type(first, third);
                    assert!(!same || rows.with(|w| same_type(w, first)));
                }
            }
        }
    }
}
