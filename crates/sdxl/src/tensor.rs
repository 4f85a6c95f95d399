//! The activations of the networks: a shape and a buffer of `f32` or `bf16`.
//!
//! Dense, row-major, channel-last: a feature map is `[B, H, W, C]`, and the same
//! buffer is the token matrix `[B, H·W, C]`. Cloning shares the buffer. There is
//! no arithmetic here: models compute through [`crate::ops`] only. The memory of a buffer that
//! nobody needs any more serves the next one (`tensor/reuse.rs`).
//!
//! In a rehearsal ([`crate::memory`]) tensors have a shape and no values: their bytes are counted,
//! and nothing is computed.

mod reuse;

use std::sync::Arc;

use half::bf16;
use sdxl_kernels::{Counted, Kind, Meter};

pub use reuse::release_buffers;
pub(crate) use reuse::{Reused, buffer};

/// The element type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit IEEE floating point.
    F32,
    /// bfloat16: the upper half of an `f32`.
    Bf16,
}

impl DType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => size_of::<f32>(),
            DType::Bf16 => size_of::<bf16>(),
        }
    }
}

/// The values of a tensor, in one of the supported element types.
#[derive(Debug)]
pub enum Buffer {
    /// 32-bit values.
    F32(Vec<f32>),
    /// bfloat16 values.
    Bf16(Vec<bf16>),
    /// As many bytes as values of this type would take, which nobody computed.
    Unmade(DType, Counted),
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self {
            Buffer::F32(values) => reuse::keep(std::mem::take(values)),
            Buffer::Bf16(values) => reuse::keep(std::mem::take(values)),
            Buffer::Unmade(..) => {}
        }
    }
}

impl Buffer {
    /// Number of values.
    fn len(&self) -> usize {
        match self {
            Buffer::F32(v) => v.len(),
            Buffer::Bf16(v) => v.len(),
            Buffer::Unmade(dtype, counted) => counted.bytes() / dtype.bytes(),
        }
    }
}

/// A dense, immutable, shared array.
#[derive(Debug, Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    buffer: Arc<Buffer>,
}

impl Tensor {
    /// A tensor over `buffer`, whose length must be the product of `shape`.
    pub fn new(shape: impl Into<Vec<usize>>, buffer: Buffer) -> Self {
        let shape = shape.into();
        let values = shape.iter().product::<usize>();
        assert_eq!(buffer.len(), values, "shape {shape:?}");
        Tensor {
            shape,
            buffer: Arc::new(buffer),
        }
    }

    /// A tensor of `f32` values.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Tensor::new(shape, Buffer::F32(values))
    }

    /// A tensor without values, which `meter` counts.
    pub fn unmade(shape: impl Into<Vec<usize>>, dtype: DType, meter: &Meter) -> Self {
        let shape = shape.into();
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let buffer = Buffer::Unmade(dtype, meter.count(Kind::Tensor, bytes));
        Tensor::new(shape, buffer)
    }

    /// Who counts this tensor, where it has no values.
    pub fn meter(&self) -> Option<&Meter> {
        match &*self.buffer {
            Buffer::Unmade(_, counted) => Some(counted.meter()),
            _ => None,
        }
    }

    /// The length of every axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The length of axis `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// The length of the last axis: the channels.
    pub fn channels(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The number of rows when everything but the channels is flattened.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match *self.buffer {
            Buffer::F32(_) => DType::F32,
            Buffer::Bf16(_) => DType::Bf16,
            Buffer::Unmade(dtype, _) => dtype,
        }
    }

    /// Memory the values take.
    pub fn bytes(&self) -> usize {
        self.buffer.len() * self.dtype().bytes()
    }

    /// The values.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The values themselves, where no other tensor shares them; else the tensor as it was.
    pub(crate) fn into_buffer(self) -> Result<Buffer, Tensor> {
        let Tensor { shape, buffer } = self;
        Arc::try_unwrap(buffer).map_err(|buffer| Tensor { shape, buffer })
    }

    /// The same values under another shape of the same size.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            self.shape.iter().product::<usize>(),
            "reshape {:?} to {shape:?}",
            self.shape
        );
        Tensor {
            shape,
            buffer: Arc::clone(&self.buffer),
        }
    }

    /// The values as `f32`, copied; zeros where there are none.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match &*self.buffer {
            Buffer::F32(v) => v.clone(),
            Buffer::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            unmade @ Buffer::Unmade(..) => vec![0.0; unmade.len()],
        }
    }

    /// The same values in element type `dtype` (rounded to nearest even).
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        let buffer = match (&*self.buffer, dtype) {
            (Buffer::Unmade(own, _), dtype) if *own == dtype => return self.clone(),
            (Buffer::Unmade(_, counted), _) => {
                return Tensor::unmade(self.shape.clone(), dtype, counted.meter());
            }
            (Buffer::F32(_), DType::F32) | (Buffer::Bf16(_), DType::Bf16) => return self.clone(),
            (Buffer::F32(v), DType::Bf16) => {
                Buffer::Bf16(v.iter().map(|&x| bf16::from_f32(x)).collect())
            }
            (Buffer::Bf16(v), DType::F32) => Buffer::F32(v.iter().map(|x| x.to_f32()).collect()),
        };
        Tensor::new(self.shape.clone(), buffer)
    }

    /// Joins tensors of one element type along the first axis.
    pub fn cat_batch(parts: &[&Tensor]) -> Tensor {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        if let Some(meter) = parts[0].meter() {
            return Tensor::unmade(shape, parts[0].dtype(), meter);
        }
        let buffer = match parts[0].dtype() {
            DType::F32 => Buffer::F32(parts.iter().flat_map(|p| p.to_f32_vec()).collect()),
            DType::Bf16 => Buffer::Bf16(
                parts
                    .iter()
                    .flat_map(|p| match &*p.buffer {
                        Buffer::Bf16(v) => v.clone(),
                        _ => panic!("cat of mixed element types"),
                    })
                    .collect(),
            ),
        };
        Tensor::new(shape, buffer)
    }

    /// `count` entries of the first axis from `start`, copied.
    pub fn narrow_batch(&self, start: usize, count: usize) -> Tensor {
        let stride: usize = self.shape[1..].iter().product();
        let range = start * stride..(start + count) * stride;
        let mut shape = self.shape.clone();
        shape[0] = count;
        let buffer = match &*self.buffer {
            Buffer::F32(v) => Buffer::F32(v[range].to_vec()),
            Buffer::Bf16(v) => Buffer::Bf16(v[range].to_vec()),
            Buffer::Unmade(dtype, counted) => {
                return Tensor::unmade(shape, *dtype, counted.meter());
            }
        };
        Tensor::new(shape, buffer)
    }
}
