//! Reading layers: from names in a checkpoint to layers that a device has packed.

use std::borrow::Cow;
use std::sync::Arc;

use sdxl_kernels::WeightFormat;

use super::embedding::{Embedding, Vectors};
use super::layer_cache::LayerKey;
use super::stacked_tensors::StackedTensors;
use super::stored_tensor::StoredTensor;
use super::tensor_set::TensorSet;
use crate::cancel;
use crate::device::{ConvUse, Layer, PackedWeights, Table};
use crate::error::{Error, Result};
use crate::ops::{Conv2d, Geglu, Linear, Norm, Packed};
use crate::precision::Precision;

/// A place in a checkpoint's tree of names (`down_blocks.1.attentions.0`), from which
/// layers are read by their own name and checked against the shape they must have.
///
/// Every layer asks the token of the thread that reads ([`Cancel`](crate::Cancel)): where it was cancelled,
/// reading ends with [`Error::Cancelled`].
#[derive(Clone)]
pub struct Loader<'a> {
    tensors: &'a TensorSet,
    prefix: String,
    precision: Precision,
    /// Whether layers stay in the files.
    streamed: bool,
}

/// Gives what was read, or [`Error::Cancelled`] if the run was cancelled meanwhile: the products
/// that add a LoRA may then have been cut short, and a layer may be kept for other runs.
fn whole<R>(read: Result<R>) -> Result<R> {
    cancel::check()?;
    read
}

impl<'a> Loader<'a> {
    /// The root of the names of `tensors`.
    pub fn new(tensors: &'a TensorSet, precision: Precision) -> Self {
        Loader {
            tensors,
            prefix: String::new(),
            precision,
            streamed: false,
        }
    }

    /// The same place, for layers that are packed anew whenever they work, if `streamed`: the
    /// network takes next to no memory and more time.
    pub fn streamed(self, streamed: bool) -> Loader<'a> {
        Loader { streamed, ..self }
    }

    /// The place called `name` below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Loader<'a> {
        Loader {
            prefix: format!("{}{name}.", self.prefix),
            ..self.clone()
        }
    }

    /// The precision that layers are packed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same place, for layers that int8 would make too inexact: `bf16` where others are `int8`.
    pub fn keep_bf16(&self) -> Loader<'a> {
        let precision = match self.precision {
            Precision::Int8 => Precision::Bf16,
            other => other,
        };
        Loader {
            precision,
            ..self.clone()
        }
    }

    /// Whether a tensor of this name exists here.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(&format!("{}{name}", self.prefix))
    }

    fn find(&self, name: &str) -> Result<(String, &'a StoredTensor)> {
        let full = format!("{}{name}", self.prefix);
        match self.tensors.get(&full) {
            Some(tensor) => Ok((full, tensor)),
            None => {
                let path = self.tensors.paths().next().unwrap_or("checkpoint".as_ref());
                Err(Error::file(
                    path,
                    format!(
                        "tensor `{full}` is missing; the weights do not fit the config.json beside \
                         them (another model, or an incomplete file)"
                    ),
                ))
            }
        }
    }

    /// The tensor `name`, whose shape must be one of `shapes`. All that is read is looked up here
    /// first, so here a cancelled run ends.
    fn checked(&self, name: &str, shapes: &[&[usize]]) -> Result<(String, Cow<'a, StoredTensor>)> {
        cancel::check()?;
        if self.tensors.is_random() {
            let full = format!("{}{name}", self.prefix);
            let tensor = self.tensors.random_tensor(&full, shapes[0]);
            return Ok((full, Cow::Owned(tensor)));
        }
        let (full, tensor) = self.find(name)?;
        if shapes.iter().any(|s| *s == tensor.shape()) {
            return Ok((full, Cow::Borrowed(tensor)));
        }
        Err(Error::file(
            self.tensors.path_of(tensor),
            format!(
                "tensor `{full}` has shape {:?}, but by config.json it must be {:?}; weights and \
                 config belong to different models",
                tensor.shape(),
                shapes[0]
            ),
        ))
    }

    /// The values of a one-dimensional tensor (bias, scale, shift), as `f32`.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (full, tensor) = self.checked(name, &[&[len]])?;
        let source = StackedTensors::of_one(self.tensors, &full, tensor.into_owned());
        whole(self.tensors.device().vector(&source))
    }

    /// The stacked rows of these tensors.
    fn source(&self, found: Vec<(String, Cow<'_, StoredTensor>)>) -> StackedTensors {
        StackedTensors {
            tensors: self.tensors.clone(),
            found: (found.into_iter())
                .map(|(name, tensor)| (name, tensor.into_owned()))
                .collect(),
        }
    }

    /// The layer that the device packs of the stacked rows of these tensors: one that is in
    /// memory, or read now, or (streamed) whenever it works.
    fn layer(&self, found: Vec<(String, Cow<'_, StoredTensor>)>, layer: Layer) -> Result<Packed> {
        let source = self.source(found);
        let device = Arc::clone(self.tensors.device());
        if self.streamed {
            device.check(&source)?;
            let packs = Arc::clone(&device);
            return Ok(Packed::in_files(device, move || packs.pack(layer, &source)));
        }
        let packed = self.cached(&source, Some(layer), || device.pack(layer, &source))?;
        Ok(Packed::in_memory(device, packed))
    }

    /// Finds the layer of `source` that is in memory, or has `read` make it.
    fn cached(
        &self,
        source: &StackedTensors,
        layer: Option<Layer>,
        read: impl FnOnce() -> Result<PackedWeights>,
    ) -> Result<PackedWeights> {
        let Some(cache) = self.tensors.cache() else {
            return whole(read());
        };
        let key = LayerKey {
            names: source.found.iter().map(|(name, _)| name.clone()).collect(),
            origins: (source.found.iter())
                .map(|(name, tensor)| self.tensors.origin_of(name, tensor))
                .collect(),
            layer,
        };
        cache.layer(key, || whole(read()))
    }

    fn bias(&self, name: &str, len: usize, present: bool) -> Result<Option<Vec<f32>>> {
        present.then(|| self.vector(name, len)).transpose()
    }

    /// The fully connected layer `name` from `k` to `n` channels; a bias is used where
    /// the file has one. 1x1 convolutions are stored with two more axes and are the
    /// same thing.
    pub fn linear(&self, name: &str, k: usize, n: usize) -> Result<Linear> {
        self.linear_stacked(&[name], k, n)
    }

    /// Several layers of one shape, stacked into one that computes all their outputs
    /// side by side.
    pub fn linear_stacked(&self, names: &[&str], k: usize, n: usize) -> Result<Linear> {
        let total = n * names.len();
        let has_bias = self.has(&format!("{}.bias", names[0]));
        let mut bias = Vec::new();
        for name in names {
            if has_bias {
                bias.extend(self.vector(&format!("{name}.bias"), n)?);
            }
        }
        let mut found = Vec::new();
        for name in names {
            found.push(self.checked(&format!("{name}.weight"), &[&[n, k], &[n, k, 1, 1]])?);
        }
        let format = self.precision.weight_format();
        let matrix = Layer::Matrix {
            n: total,
            k,
            format,
        };
        Ok(Linear {
            weight: self.layer(found, matrix)?,
            n: total,
            k,
            bias: has_bias.then_some(bias),
        })
    }

    /// The GEGLU layer `name` from `k` channels to `inner`, stored as one of `2·inner`.
    pub fn geglu(&self, name: &str, k: usize, inner: usize) -> Result<Geglu> {
        let n = 2 * inner;
        let bias = self.bias(
            &format!("{name}.bias"),
            n,
            self.has(&format!("{name}.bias")),
        )?;
        let found = vec![self.checked(&format!("{name}.weight"), &[&[n, k]])?];
        let format = self.precision.weight_format();
        let weight = self.layer(found, Layer::Geglu { inner, k, format })?;
        Ok(Geglu { weight, n, k, bias })
    }

    /// The convolution `name` with a square kernel. `padding`: top, left, bottom, right.
    ///
    /// `int8` keeps it in `bf16`: its taps mix the pixels, so an image would have one scale, and
    /// its largest value would cost all others their digits. On the demo, bytes in nothing but the
    /// residual blocks' first convolutions put one call of the UNet 1.8e-2 from `f32`; bytes in all
    /// transformers, 0.7e-2.
    pub fn conv2d(
        &self,
        name: &str,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        padding: [usize; 4],
    ) -> Result<Conv2d> {
        let sizes = [c_out, c_in, kernel];
        let conv = self.convolution(name, sizes, ConvUse::Any)?;
        Ok(Conv2d {
            stride,
            padding,
            ..conv
        })
    }

    /// A convolution of stride 1 with a pixel of zeros around, its weights packed for `used`.
    fn convolution(
        &self,
        name: &str,
        [c_out, c_in, kernel]: [usize; 3],
        used: ConvUse,
    ) -> Result<Conv2d> {
        let has_bias = self.has(&format!("{name}.bias"));
        let bias = self.bias(&format!("{name}.bias"), c_out, has_bias)?;
        let shape: &[usize] = &[c_out, c_in, kernel, kernel];
        let found = vec![self.checked(&format!("{name}.weight"), &[shape])?];
        let format = self.keep_bf16().precision.weight_format();
        let conv = Layer::Conv {
            c_out,
            c_in,
            kernel,
            format,
            used,
        };
        Ok(Conv2d {
            weight: self.layer(found, conv)?,
            c_in,
            c_out,
            bias,
            kernel,
            stride: 1,
            padding: [1; 4],
        })
    }

    /// The 3x3 convolution `name`, of stride 1 and with one pixel of zeros around, that in `bf16` takes
    /// 4/9 of the multiplications and a little of the exactness ([`ConvUse::Winograd`]).
    pub fn conv_winograd(&self, name: &str, c_in: usize, c_out: usize) -> Result<Conv2d> {
        self.convolution(name, [c_out, c_in, 3], ConvUse::Winograd)
    }

    /// The usual 3x3 convolution: stride 1, one pixel of zeros around.
    pub fn conv3x3(&self, name: &str, c_in: usize, c_out: usize) -> Result<Conv2d> {
        self.conv2d(name, c_in, c_out, 3, 1, [1; 4])
    }

    /// The 3x3 convolution `name` packed for inputs whose every pixel is doubled both ways, which
    /// then takes 4/9 of the work. Nothing for formats whose usual packing is as quick.
    pub fn conv_doubled(&self, name: &str, c_in: usize, c_out: usize) -> Result<Option<Conv2d>> {
        let format = self.keep_bf16().precision.weight_format();
        if matches!(format, WeightFormat::F32 | WeightFormat::F16) {
            return Ok(None);
        }
        let conv = self.convolution(name, [c_out, c_in, 3], ConvUse::Doubled)?;
        Ok(Some(conv))
    }

    /// The group norm (or, with one group, layer norm) `name`.
    pub fn norm(&self, name: &str, channels: usize, groups: usize, eps: f32) -> Result<Norm> {
        Ok(Norm {
            gamma: self.vector(&format!("{name}.weight"), channels)?,
            beta: self.vector(&format!("{name}.bias"), channels)?,
            eps,
            groups,
        })
    }

    /// The table `name` of `rows` vectors of length `width`.
    pub fn embedding(&self, name: &str, rows: usize, width: usize) -> Result<Embedding> {
        let (full, tensor) = self.checked(&format!("{name}.weight"), &[&[rows, width]])?;
        let in_files =
            self.streamed && !self.tensors.changes(&full) && tensor.slice(0, rows).is_some();
        let source = self.source(vec![(full, tensor)]);
        let device = self.tensors.device();
        if in_files {
            device.check(&source)?;
            let place = Vectors::Files { source, rows };
            return Ok(Embedding { width, place });
        }
        // A table is read whole and read often: it stays in memory where it is not in the files.
        let table = self.cached(&source, None, || Ok(Arc::new(device.table(&source)?)))?;
        let table = table.downcast::<Arc<dyn Table>>();
        let place = Vectors::Memory(table.expect("a key without a layer is that of a table"));
        Ok(Embedding { width, place })
    }
}
