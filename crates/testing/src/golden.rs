//! Files of golden tensors, which the scripts in `tools/golden` make.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// A file of golden tensors, in torch's axis order.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    /// Opens a file below the repository's `golden/`.
    pub fn open(path: &str) -> Golden {
        Golden::open_at(&crate::golden(path))
    }

    /// Opens a file by its whole path.
    pub fn open_at(path: &Path) -> Golden {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { bytes }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    /// The sides of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name).shape().to_vec()
    }

    /// The JSON that describes the cases of the file, under `golden` in its header.
    pub fn about(&self) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        metadata.metadata().as_ref().unwrap()["golden"].clone()
    }

    /// The values of a tensor of `f32`, in file order.
    pub fn flat(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensor_of(name, Dtype::F32);
        let (values, _) = tensor.data().as_chunks::<4>();
        values.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// The values of a tensor of `f32` or `f64`, in file order.
    pub fn wide(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensor(name);
        match tensor.dtype() {
            Dtype::F32 => self.flat(name).into_iter().map(f64::from).collect(),
            Dtype::F64 => (tensor.data().as_chunks::<8>().0.iter())
                .map(|b| f64::from_le_bytes(*b))
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// The values of a tensor of bytes, in file order.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensor_of(name, Dtype::U8).data().to_vec()
    }

    /// The values of a tensor of whole numbers, in file order.
    pub fn whole(&self, name: &str) -> Vec<u64> {
        let tensor = self.tensor_of(name, Dtype::I64);
        let (values, _) = tensor.data().as_chunks::<8>();
        values.iter().map(|b| u64::from_le_bytes(*b)).collect()
    }

    /// Rows of token ids.
    pub fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let tensor = self.tensor(name);
        let values: Vec<u32> = match tensor.dtype() {
            Dtype::I64 => (tensor.data().as_chunks::<8>().0.iter())
                .map(|b| i64::from_le_bytes(*b) as u32)
                .collect(),
            Dtype::I32 => (tensor.data().as_chunks::<4>().0.iter())
                .map(|b| i32::from_le_bytes(*b) as u32)
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        values
            .chunks_exact(tensor.shape()[1])
            .map(<[u32]>::to_vec)
            .collect()
    }

    fn tensor(&self, name: &str) -> TensorView<'_> {
        let tensor = self.file().tensor(name);
        tensor.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn tensor_of(&self, name: &str, dtype: Dtype) -> TensorView<'_> {
        let tensor = self.tensor(name);
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor
    }
}
