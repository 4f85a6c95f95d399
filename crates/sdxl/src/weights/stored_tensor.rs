//! One tensor of a file: its shape, its storage format and its place.

use safetensors::Dtype;

use super::element::ElementType;

/// One tensor of a file, as stored.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    pub(super) file: usize,
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
    /// Byte range inside the file.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Whether the file has rows and columns the other way round than `shape` says.
    pub(super) transposed: bool,
}

impl StoredTensor {
    /// One of a set of random weights.
    pub(super) fn random(shape: &[usize]) -> StoredTensor {
        StoredTensor {
            file: 0,
            element: ElementType::Plain(Dtype::BF16),
            shape: shape.to_vec(),
            start: 0,
            end: 0,
            transposed: false,
        }
    }

    /// The shape as stored (torch's axis order).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type as stored, shown in the words of the file format (`F32`, `BF16`,
    /// `Q8_0`, ...).
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Bytes it takes as stored.
    pub fn byte_len(&self) -> usize {
        self.end - self.start
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a value once it is read: bits that weights have not are widened.
    pub(super) fn value_bytes(&self) -> usize {
        match self.element {
            ElementType::Plain(Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2) => 2,
            _ => 4,
        }
    }

    /// Bytes that are in memory while it is read, and given back then: of the file, and of the
    /// values where they are not used as they are.
    pub(super) fn reading_bytes(&self) -> usize {
        let file = self.byte_len();
        let widened = match self.element {
            ElementType::Plain(Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F64)
            | ElementType::Blocks(_) => true,
            ElementType::Plain(_) => self.transposed || file == 0,
        };
        file + if widened {
            self.values() * self.value_bytes()
        } else {
            0
        }
    }

    /// The same values under another shape.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> StoredTensor {
        debug_assert_eq!(shape.iter().product::<usize>(), self.values());
        StoredTensor {
            shape,
            ..self.clone()
        }
    }

    /// Part `index` of `count` equal parts along the first axis; nothing where it cannot be
    /// divided so.
    pub(super) fn slice(&self, index: usize, count: usize) -> Option<StoredTensor> {
        let rows = *self.shape.first()?;
        let bytes = self.end - self.start;
        // Rows hold whole blocks, so only a tensor with one axis can be cut inside of one.
        let cut = matches!(self.element, ElementType::Blocks(_)) && self.shape.len() == 1;
        let even = rows.is_multiple_of(count) && bytes.is_multiple_of(count) && !cut;
        if self.transposed || index >= count || !even {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] = rows / count;
        let start = self.start + index * (bytes / count);
        Some(StoredTensor {
            shape,
            start,
            end: start + bytes / count,
            ..self.clone()
        })
    }

    /// The matrix with rows and columns exchanged; nothing where it is no matrix.
    pub(super) fn transpose(&self) -> Option<StoredTensor> {
        let ([rows, columns], ElementType::Plain(_)) = (&self.shape[..], self.element) else {
            return None;
        };
        let (rows, columns) = (*rows, *columns);
        Some(StoredTensor {
            shape: vec![columns, rows],
            transposed: !self.transposed,
            ..self.clone()
        })
    }
}
