//! Tables of vectors that text encoders look tokens and positions up in.

use std::sync::Arc;

use super::stacked_tensors::StackedTensors;
use crate::device::Table;

/// A table of vectors looked up by token id or position, kept as stored.
pub struct Embedding {
    pub(super) width: usize,
    pub(super) place: Vectors,
}

/// Home of the vectors of a table.
pub(super) enum Vectors {
    Memory(Arc<Arc<dyn Table>>),
    /// In a tensor of so many rows, which are read where they lie.
    Files {
        source: StackedTensors,
        rows: usize,
    },
}

impl Embedding {
    /// Appends row `index` to `out`, as `f32`. The caller guarantees the range.
    pub fn append_row(&self, index: usize, out: &mut Vec<f32>) {
        match &self.place {
            Vectors::Memory(table) => table.append_row(index, self.width, out),
            Vectors::Files { source, rows } => {
                let [(name, tensor)] = source.found.as_slice() else {
                    unreachable!("a table is one tensor");
                };
                let row = tensor.slice(index, *rows).expect("a row was cut before");
                let row = StackedTensors::of_one(&source.tensors, name, row);
                match source.tensors.device().vector(&row) {
                    Ok(values) => out.extend(values),
                    Err(e) => panic!("{e} (it was readable before the run)"),
                }
            }
        }
    }
}
