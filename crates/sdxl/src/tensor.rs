//! The activations of the networks: a shape, and values on a device.
//!
//! Dense, row-major, channel-last: a feature map is `[B, H, W, C]`, and the same
//! values are the token matrix `[B, H·W, C]`. Cloning shares the values. There is
//! no arithmetic here: models compute through [`crate::ops`] only. How the values lie, and whether
//! there are any, is their device's affair ([`crate::device`]). Those that are made of numbers are
//! on the CPU; the memory of values there that nobody needs any more serves the next ones
//! (`tensor/reuse.rs`).

mod dtype;
mod reuse;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::device::{Device, HostValues, Storage};

pub use dtype::DType;
pub use reuse::release_buffers;
pub(crate) use reuse::{Reused, buffer, keep};

/// Values on a device.
struct Buffer {
    device: Arc<dyn Device>,
    dtype: DType,
    storage: Storage,
}

/// A dense, immutable, shared array.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    buffer: Arc<Buffer>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Buffer { device, dtype, .. } = &*self.buffer;
        write!(f, "Tensor({:?}, {dtype:?}, {})", self.shape, device.name())
    }
}

impl Tensor {
    /// Creates a tensor over values that `device` made.
    pub fn new(
        device: &Arc<dyn Device>,
        shape: impl Into<Vec<usize>>,
        dtype: DType,
        storage: Storage,
    ) -> Self {
        Tensor {
            shape: shape.into(),
            buffer: Arc::new(Buffer {
                device: Arc::clone(device),
                dtype,
                storage,
            }),
        }
    }

    /// The device that has the values.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.buffer.device
    }

    /// The values, as [`Self::device`] knows them.
    pub fn storage(&self) -> &(dyn Any + Send + Sync) {
        &*self.buffer.storage
    }

    /// Takes the values out, where no other tensor shares them; else gives the tensor back.
    pub fn into_storage(self) -> Result<Storage, Tensor> {
        let Tensor { shape, buffer } = self;
        match Arc::try_unwrap(buffer) {
            Ok(buffer) => Ok(buffer.storage),
            Err(buffer) => Err(Tensor { shape, buffer }),
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

    /// The number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype
    }

    /// Memory the values take.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype().bytes()
    }

    /// The same values under another shape of the same size.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            self.elements(),
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
        self.device().download(self)
    }

    /// The same values on another device.
    pub fn to_device(&self, device: &Arc<dyn Device>) -> Tensor {
        if Arc::ptr_eq(self.device(), device) {
            return self.clone();
        }
        let storage = device.upload(HostValues::of(self.to_f32_vec(), self.dtype()));
        Tensor::new(device, self.shape.clone(), self.dtype(), storage)
    }

    /// The same values in element type `dtype` (rounded to nearest even).
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        let storage = self.device().cast(self, dtype);
        Tensor::new(self.device(), self.shape.clone(), dtype, storage)
    }

    /// Joins tensors of one element type along the first axis.
    pub fn cat_batch(parts: &[&Tensor]) -> Tensor {
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|p| p.shape[0]).sum();
        let device = parts[0].device();
        let parts: Vec<Tensor> = parts.iter().map(|p| p.to_device(device)).collect();
        Tensor::new(device, shape, parts[0].dtype(), device.cat(&parts))
    }

    /// `count` entries of the first axis from `start`, copied.
    pub fn narrow_batch(&self, start: usize, count: usize) -> Tensor {
        let stride: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = count;
        let device = self.device();
        let storage = device.narrow(self, start * stride..(start + count) * stride);
        Tensor::new(device, shape, self.dtype(), storage)
    }
}
