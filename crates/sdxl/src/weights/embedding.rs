//! Tables of vectors that text encoders look tokens and positions up in.

use std::sync::Arc;

use super::source::Source;
use crate::device::Table;

/// A table of vectors looked up by token id or position, kept as stored.
pub struct Embedding {
    pub(super) width: usize,
    pub(super) place: Place,
}

/// Home of the vectors of a table.
pub(super) enum Place {
    Memory(Arc<Arc<dyn Table>>),
    /// In a tensor of so many rows, which are read where they lie.
    Files {
        source: Source,
        rows: usize,
    },
}

impl Embedding {
    /// Appends row `index` to `out`, as `f32`. The caller guarantees the range.
    pub fn append_row(&self, index: usize, out: &mut Vec<f32>) {
        match &self.place {
            Place::Memory(table) => table.append_row(index, self.width, out),
            Place::Files { source, rows } => {
                let [(name, tensor)] = source.found.as_slice() else {
                    unreachable!("a table is one tensor");
                };
                let row = tensor.slice(index, *rows).expect("a row was cut before");
                let row = Source::of_one(&source.tensors, name, row);
                match source.tensors.device().vector(&row) {
                    Ok(values) => out.extend(values),
                    Err(e) => panic!("{e} (it was readable before the run)"),
                }
            }
        }
    }
}
