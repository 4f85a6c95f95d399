//! The device that computes nothing: tensors have a shape and no data, as PyTorch's meta tensors.
//!
//! Networks run on it with their own code, from reading the weights to the last operator. Their
//! tensors and packed weights are bytes that a [`Meter`] counts, and each operator notes what the
//! CPU's kernel would work in; so the most that the meter has seen is what a run on the CPU takes.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use sdxl_kernels::{
    ConvLayout, GroupNorm, MatrixLayout, Workspace, attention_workspace, can_fuse_norm,
    conv2d_workspace, linear_workspace,
};

use super::cpu::{REUSED_ROWS, cross_attention_shape, norm_shape, self_attention_shape};
use super::{
    Activation, Conv, ConvGeometry, ConvUse, CountedBytes, Device, HostValues, Layer, MemoryKind,
    Meter, Norm, PackedWeights, Storage, Table,
};
use crate::device::StoredWeights;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Shapes without data, and the count of their bytes.
#[derive(Debug, Default)]
pub struct Meta {
    meter: Meter,
}

/// Weights without values.
struct MetaWeights {
    layout: WeightLayout,
    _bytes: CountedBytes,
}

enum WeightLayout {
    Matrix(MatrixLayout),
    Conv(ConvLayout),
}

const OWN: &str = "what this device made: `ops` asks the device that a tensor or layer names";

fn matrix(weight: &PackedWeights) -> &MatrixLayout {
    match weight.downcast_ref().expect(OWN) {
        MetaWeights {
            layout: WeightLayout::Matrix(layout),
            ..
        } => layout,
        _ => panic!("a linear operator has a matrix"),
    }
}

fn kernels(weight: &PackedWeights) -> &ConvLayout {
    match weight.downcast_ref().expect(OWN) {
        MetaWeights {
            layout: WeightLayout::Conv(layout),
            ..
        } => layout,
        _ => panic!("a convolution has kernels"),
    }
}

fn layout(layer: Layer) -> WeightLayout {
    match layer {
        Layer::Matrix { n, k, format } => WeightLayout::Matrix(MatrixLayout::new(n, k, format)),
        Layer::Geglu { inner, k, format } => {
            WeightLayout::Matrix(MatrixLayout::geglu(inner, k, format))
        }
        Layer::Conv {
            c_out,
            c_in,
            kernel,
            format,
            used,
        } => WeightLayout::Conv(match used {
            ConvUse::Any => ConvLayout::new([c_out, c_in, kernel, kernel], format),
            ConvUse::Winograd => ConvLayout::winograd(c_out, c_in, format),
            ConvUse::Doubled => ConvLayout::upsampled(c_out, c_in, format),
        }),
    }
}

/// A kernel's work that takes so many bytes.
fn temporary(bytes: usize) -> Workspace {
    Workspace {
        temporary: bytes,
        ..Workspace::default()
    }
}

/// Calls the kernel's function with an element type.
macro_rules! by_type {
    ($dtype:expr, $function:ident ( $($argument:expr),* )) => {
        match $dtype {
            DType::F32 => $function::<f32>($($argument),*),
            DType::Bf16 => $function::<bf16>($($argument),*),
        }
    };
}

impl Meta {
    /// The count of what is on this device.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A tensor of this device.
    pub fn tensor(self: &Arc<Self>, shape: &[usize], dtype: DType) -> Tensor {
        let storage = self.values(shape.iter().product(), dtype);
        let device: Arc<dyn Device> = Arc::clone(self) as Arc<dyn Device>;
        Tensor::new(&device, shape, dtype, storage)
    }

    fn values(&self, len: usize, dtype: DType) -> Storage {
        Box::new(self.meter.count(MemoryKind::Tensor, len * dtype.bytes()))
    }

    /// The result of an operator, of `len` values as `x` has them, and its work.
    fn made(&self, x: &Tensor, len: usize, workspace: &Workspace) -> Storage {
        let values = self.values(len, x.dtype());
        self.meter.work(workspace);
        values
    }

    /// A result as large as `x`, for which nothing else is needed.
    fn same(&self, x: &Tensor) -> Storage {
        self.made(x, x.elements(), &Workspace::default())
    }
}

impl Device for Meta {
    fn name(&self) -> &'static str {
        "meta"
    }

    fn pack(&self, layer: Layer, weights: &dyn StoredWeights) -> Result<PackedWeights> {
        let reading = weights.memory();
        self.meter.temporary(reading.gathering);
        let layout = layout(layer);
        let (bytes, packing) = match &layout {
            WeightLayout::Matrix(layout) => (layout.bytes(), 0),
            WeightLayout::Conv(layout) => (layout.bytes(), layout.packing_bytes()),
        };
        let _bytes = self.meter.count(MemoryKind::Weights, bytes);
        self.meter.temporary(packing);
        self.meter.temporary(reading.packing);
        Ok(Arc::new(MetaWeights { layout, _bytes }))
    }

    fn vector(&self, weights: &dyn StoredWeights) -> Result<Vec<f32>> {
        self.meter.temporary(weights.memory().packing);
        Ok(vec![0.0; weights.len()])
    }

    fn table(&self, weights: &dyn StoredWeights) -> Result<Arc<dyn Table>> {
        let bytes = weights.len() * weights.value_bytes();
        let table = MetaTable(self.meter.count(MemoryKind::Weights, bytes));
        self.meter.temporary(weights.memory().packing);
        Ok(Arc::new(table))
    }

    fn check(&self, weights: &dyn StoredWeights) -> Result<()> {
        self.meter.temporary(weights.memory().checking);
        Ok(())
    }

    /// Not counted: numbers on their way into a network are small beside it.
    fn upload(&self, _values: HostValues) -> Storage {
        Box::new(())
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        vec![0.0; x.elements()]
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Storage {
        self.values(x.elements(), dtype)
    }

    fn narrow(&self, x: &Tensor, values: Range<usize>) -> Storage {
        self.values(values.len(), x.dtype())
    }

    fn cat(&self, parts: &[Tensor]) -> Storage {
        let len = parts.iter().map(Tensor::elements).sum();
        self.values(len, parts[0].dtype())
    }

    fn linear(
        &self,
        x: &Tensor,
        weight: &PackedWeights,
        _bias: Option<&[f32]>,
        _act: Activation,
        _residual: Option<&Tensor>,
    ) -> Storage {
        let (rows, w) = (x.rows(), matrix(weight));
        let workspace = by_type!(x.dtype(), linear_workspace(rows, w));
        self.made(x, rows * w.n(), &workspace)
    }

    fn linear_reusing(&self, x: Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage {
        let (rows, n, dtype) = (x.rows(), matrix(weight).n(), x.dtype());
        match x.into_storage() {
            Ok(storage) => {
                let few = REUSED_ROWS.min(rows) * n * dtype.bytes();
                self.meter.temporary(few);
                drop(storage);
                self.values(rows * n, dtype)
            }
            Err(x) => self.linear(&x, weight, bias, Activation::None, None),
        }
    }

    fn geglu(&self, x: &Tensor, weight: &PackedWeights, _bias: Option<&[f32]>) -> Storage {
        let (rows, w) = (x.rows(), matrix(weight));
        let workspace = by_type!(x.dtype(), linear_workspace(rows, w));
        self.made(x, rows * w.n() / 2, &workspace)
    }

    fn conv2d(&self, x: &Tensor, conv: &Conv<'_>) -> Storage {
        let (g, w) = (conv.geometry, kernels(conv.weight));
        let (height, width) = w.output_size(g);
        let workspace = by_type!(x.dtype(), conv2d_workspace(g, w));
        self.made(x, g.batch * height * width * w.c_out(), &workspace)
    }

    fn can_fuse_norm(&self, dtype: DType, weight: &PackedWeights, geometry: &ConvGeometry) -> bool {
        by_type!(dtype, can_fuse_norm(geometry, kernels(weight)))
    }

    fn norm_factors(&self, x: &Tensor, norm: &Norm, _silu: bool) -> Storage {
        self.meter
            .temporary(GroupNorm::workspace(norm_shape(x, norm)));
        Box::new(())
    }

    fn group_norm(&self, x: &Tensor, norm: &Norm, _silu: bool) -> Storage {
        let workspace = GroupNorm::workspace(norm_shape(x, norm));
        self.made(x, x.elements(), &temporary(workspace))
    }

    fn layer_norm(&self, x: &Tensor, _norm: &Norm) -> Storage {
        self.same(x)
    }

    fn enlarge(&self, x: &Tensor, height: usize, width: usize) -> Storage {
        let len = x.dim(0) * height * width * x.channels();
        self.made(x, len, &Workspace::default())
    }

    fn self_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        causal: bool,
        _seen: Option<&[bool]>,
    ) -> Storage {
        let shape = self_attention_shape(qkv, heads, causal);
        let workspace = by_type!(qkv.dtype(), attention_workspace(&shape));
        self.made(qkv, qkv.elements() / 3, &temporary(workspace))
    }

    fn cross_attention(&self, q: &Tensor, texts: &[&Tensor], heads: usize) -> Storage {
        assert_eq!(q.dim(0), texts.len(), "a text an image");
        let bytes = texts.iter().map(|text| {
            let shape = cross_attention_shape(q, text, heads);
            by_type!(q.dtype(), attention_workspace(&shape))
        });
        let workspace = temporary(bytes.max().unwrap_or(0));
        self.made(q, q.elements(), &workspace)
    }

    fn add(&self, a: &Tensor, _b: &Tensor) -> Storage {
        self.same(a)
    }

    fn silu(&self, x: &Tensor) -> Storage {
        self.same(x)
    }

    fn cat_channels(&self, a: &Tensor, b: &Tensor) -> Storage {
        self.made(a, a.elements() + b.elements(), &Workspace::default())
    }
}

/// A table without values, whose bytes are counted.
struct MetaTable(#[expect(dead_code, reason = "counts as long as it is there")] CountedBytes);

impl Table for MetaTable {
    fn append_row(&self, _index: usize, width: usize, out: &mut Vec<f32>) {
        out.extend(std::iter::repeat_n(0.0, width));
    }
}
