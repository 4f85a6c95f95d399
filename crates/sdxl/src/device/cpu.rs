//! The device that computes with the kernels of `sdxl-kernels`.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::bf16;
use sdxl_kernels::{
    AttentionShape, Element, GroupNorm, PackedConv, PackedMatrix, Weights,
    attention as attention_kernel, can_fuse_norm, masked_attention, normed_conv2d,
};

use super::host::{HostValues, read};
use super::{
    Activation, Conv, ConvGeometry, ConvUse, Device, Layer, Norm, PackedWeights, Storage,
    StoredWeights,
};
use crate::error::Result;
use crate::tensor::{DType, Reused, Tensor, buffer};

/// This machine's processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

/// The one CPU, which also holds the tensors that were made of values.
pub fn cpu() -> Arc<dyn Device> {
    static CPU: OnceLock<Arc<dyn Device>> = OnceLock::new();
    Arc::clone(CPU.get_or_init(|| Arc::new(Cpu)))
}

/// Element types of activations, seen from inside a [`Tensor`].
trait Typed: Element + Reused {
    fn of(values: &HostValues) -> Option<&[Self]>;
    fn wrap(values: Vec<Self>) -> HostValues;
    /// The values of this type, taken out.
    fn take(values: &mut HostValues) -> Option<Vec<Self>>;
}

impl Typed for f32 {
    fn of(values: &HostValues) -> Option<&[f32]> {
        match values {
            HostValues::F32(v) => Some(v),
            HostValues::Bf16(_) => None,
        }
    }
    fn wrap(values: Vec<f32>) -> HostValues {
        HostValues::F32(values)
    }
    fn take(values: &mut HostValues) -> Option<Vec<f32>> {
        match values {
            HostValues::F32(v) => Some(std::mem::take(v)),
            HostValues::Bf16(_) => None,
        }
    }
}

impl Typed for bf16 {
    fn of(values: &HostValues) -> Option<&[bf16]> {
        match values {
            HostValues::Bf16(v) => Some(v),
            HostValues::F32(_) => None,
        }
    }
    fn wrap(values: Vec<bf16>) -> HostValues {
        HostValues::Bf16(values)
    }
    fn take(values: &mut HostValues) -> Option<Vec<bf16>> {
        match values {
            HostValues::Bf16(v) => Some(std::mem::take(v)),
            HostValues::F32(_) => None,
        }
    }
}

const ONE_TYPE: &str = "an operator's tensors have one element type";
const OWN: &str = "what this device made: `ops` asks the device that a tensor or layer names";

fn host(x: &Tensor) -> &HostValues {
    x.storage().downcast_ref().expect(OWN)
}

fn slice<E: Typed>(x: &Tensor) -> &[E] {
    E::of(host(x)).expect(ONE_TYPE)
}

fn matrix(weight: &PackedWeights) -> &PackedMatrix {
    weight.downcast_ref().expect(OWN)
}

fn kernels(weight: &PackedWeights) -> &PackedConv {
    weight.downcast_ref().expect(OWN)
}

/// The `len` values that `compute` writes.
fn made<E: Typed>(len: usize, compute: impl FnOnce(&mut [E])) -> Storage {
    let mut out = buffer::<E>(len);
    compute(&mut out);
    Box::new(E::wrap(out))
}

/// Calls the generic function with the element type of the first tensor.
macro_rules! by_type {
    ($x:expr, $function:ident ( $($argument:expr),* )) => {
        match $x.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::Bf16 => $function::<bf16>($($argument),*),
        }
    };
}

impl Tensor {
    /// Creates a tensor of `f32` values, as many as the product of `shape`, on the CPU.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        let len = shape.iter().product::<usize>();
        assert_eq!(values.len(), len, "shape {shape:?}");
        let device = cpu();
        let storage = device.upload(HostValues::F32(values));
        Tensor::new(&device, shape, DType::F32, storage)
    }
}

/// Packs weights that are in memory.
pub(crate) fn pack(layer: Layer, w: Weights<'_>) -> PackedWeights {
    match layer {
        Layer::Matrix { n, k, format } => Arc::new(PackedMatrix::pack(w, n, k, format)),
        Layer::Geglu { inner, k, format } => {
            Arc::new(PackedMatrix::pack_geglu(w, inner, k, format))
        }
        Layer::Conv {
            c_out,
            c_in,
            kernel,
            format,
            used,
        } => Arc::new(match used {
            ConvUse::Any => PackedConv::pack(w, c_out, c_in, kernel, kernel, format),
            ConvUse::Winograd => PackedConv::pack_winograd(w, c_out, c_in, format),
            ConvUse::Doubled => PackedConv::pack_upsampled(w, c_out, c_in, format),
        }),
    }
}

impl Device for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn pack(&self, layer: Layer, weights: &dyn StoredWeights) -> Result<PackedWeights> {
        read(weights, |w| pack(layer, w))
    }

    fn upload(&self, values: HostValues) -> Storage {
        Box::new(values)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        match host(x) {
            HostValues::F32(v) => v.clone(),
            HostValues::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        }
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Storage {
        Box::new(match (host(x), dtype) {
            (HostValues::F32(v), DType::Bf16) => {
                HostValues::Bf16(v.iter().map(|&x| bf16::from_f32(x)).collect())
            }
            (HostValues::Bf16(v), DType::F32) => {
                HostValues::F32(v.iter().map(|x| x.to_f32()).collect())
            }
            (HostValues::F32(v), DType::F32) => HostValues::F32(v.clone()),
            (HostValues::Bf16(v), DType::Bf16) => HostValues::Bf16(v.clone()),
        })
    }

    fn narrow(&self, x: &Tensor, values: Range<usize>) -> Storage {
        Box::new(match host(x) {
            HostValues::F32(v) => HostValues::F32(v[values].to_vec()),
            HostValues::Bf16(v) => HostValues::Bf16(v[values].to_vec()),
        })
    }

    fn cat(&self, parts: &[Tensor]) -> Storage {
        fn joined<E: Typed>(parts: &[Tensor]) -> Storage {
            let parts: Vec<&[E]> = parts.iter().map(slice::<E>).collect();
            Box::new(E::wrap(parts.concat()))
        }
        by_type!(parts[0], joined(parts))
    }

    fn linear(
        &self,
        x: &Tensor,
        weight: &PackedWeights,
        bias: Option<&[f32]>,
        act: Activation,
        residual: Option<&Tensor>,
    ) -> Storage {
        fn typed<E: Typed>(
            x: &Tensor,
            w: &PackedMatrix,
            bias: Option<&[f32]>,
            act: Activation,
            residual: Option<&Tensor>,
        ) -> Storage {
            let rows = x.rows();
            made::<E>(rows * w.n(), |out| {
                let residual = residual.map(slice::<E>);
                sdxl_kernels::linear(slice(x), rows, w, bias, act, residual, out);
            })
        }
        by_type!(x, typed(x, matrix(weight), bias, act, residual))
    }

    fn linear_reusing(&self, x: Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage {
        by_type!(x, linear_reusing_typed(x, weight, bias))
    }

    fn geglu(&self, x: &Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage {
        fn typed<E: Typed>(x: &Tensor, w: &PackedMatrix, bias: Option<&[f32]>) -> Storage {
            let rows = x.rows();
            made::<E>(rows * w.n() / 2, |out| {
                sdxl_kernels::linear_geglu(slice(x), rows, w, bias, out);
            })
        }
        by_type!(x, typed(x, matrix(weight), bias))
    }

    fn conv2d(&self, x: &Tensor, conv: &Conv<'_>) -> Storage {
        fn typed<E: Typed>(x: &Tensor, conv: &Conv<'_>, w: &PackedConv) -> Storage {
            let Conv { bias, geometry, .. } = *conv;
            let (height, width) = w.output_size(geometry);
            made::<E>(geometry.batch * height * width * w.c_out(), |out| {
                let x = slice::<E>(x);
                let time = conv.sample_bias.map(slice::<f32>);
                let residual = conv.residual.map(slice::<E>);
                match conv.norm {
                    Some(norm) => {
                        let norm: &GroupNorm = norm.downcast_ref().expect(OWN);
                        normed_conv2d(x, norm, geometry, w, bias, time, residual, out);
                    }
                    None => sdxl_kernels::conv2d(x, geometry, w, bias, time, residual, out),
                }
            })
        }
        by_type!(x, typed(x, conv, kernels(conv.weight)))
    }

    fn can_fuse_norm(&self, dtype: DType, weight: &PackedWeights, geometry: &ConvGeometry) -> bool {
        match dtype {
            DType::F32 => can_fuse_norm::<f32>(geometry, kernels(weight)),
            DType::Bf16 => can_fuse_norm::<bf16>(geometry, kernels(weight)),
        }
    }

    fn norm_factors(&self, x: &Tensor, norm: &Norm, silu: bool) -> Storage {
        Box::new(by_type!(x, statistics(x, norm, silu)))
    }

    fn group_norm(&self, x: &Tensor, norm: &Norm, silu: bool) -> Storage {
        fn typed<E: Typed>(x: &Tensor, norm: &Norm, silu: bool) -> Storage {
            let values = slice::<E>(x);
            made::<E>(values.len(), |out| {
                statistics::<E>(x, norm, silu).apply(values, out);
            })
        }
        by_type!(x, typed(x, norm, silu))
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm) -> Storage {
        fn typed<E: Typed>(x: &Tensor, norm: &Norm) -> Storage {
            let Norm {
                eps, gamma, beta, ..
            } = norm;
            let (rows, channels) = (x.rows(), x.channels());
            made::<E>(rows * channels, |out| {
                sdxl_kernels::layer_norm(slice(x), rows, channels, *eps, gamma, beta, out);
            })
        }
        by_type!(x, typed(x, norm))
    }

    fn enlarge(&self, x: &Tensor, height: usize, width: usize) -> Storage {
        // `floor(i * n / (2n - 1))`, what torch computes, is `i / 2` for every `i`.
        fn typed<E: Typed>(x: &Tensor, height: usize, width: usize) -> Storage {
            let (batch, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
            let values = slice::<E>(x);
            made::<E>(batch * height * width * c, |out| {
                for (pixel, out) in out.chunks_exact_mut(c).enumerate() {
                    let (line, column) = (pixel / width, pixel % width);
                    let (b, row) = (line / height, line % height);
                    let at = ((b * h + row / 2) * w + column / 2) * c;
                    out.copy_from_slice(&values[at..at + c]);
                }
            })
        }
        by_type!(x, typed(x, height, width))
    }

    fn self_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        causal: bool,
        seen: Option<&[bool]>,
    ) -> Storage {
        fn typed<E: Typed>(
            qkv: &Tensor,
            heads: usize,
            causal: bool,
            seen: Option<&[bool]>,
        ) -> Storage {
            let shape = self_attention_shape(qkv, heads, causal);
            let channels = qkv.channels() / 3;
            let values = slice::<E>(qkv);
            let (keys, states) = (&values[channels..], &values[2 * channels..]);
            made::<E>(values.len() / 3, |out| match seen {
                Some(seen) => masked_attention(values, keys, states, &shape, seen, out),
                None => attention_kernel(values, keys, states, &shape, out),
            })
        }
        by_type!(qkv, typed(qkv, heads, causal, seen))
    }

    fn cross_attention(&self, q: &Tensor, texts: &[&Tensor], heads: usize) -> Storage {
        fn typed<E: Typed>(q: &Tensor, texts: &[&Tensor], heads: usize) -> Storage {
            assert_eq!(q.dim(0), texts.len(), "a text an image");
            let channels = q.channels();
            let image = q.dim(1) * channels;
            let values = slice::<E>(q);
            made::<E>(values.len(), |out| {
                for ((image_q, out), text) in (values.chunks_exact(image))
                    .zip(out.chunks_exact_mut(image))
                    .zip(texts)
                {
                    let pairs = slice::<E>(text);
                    let shape = cross_attention_shape(q, text, heads);
                    attention_kernel(image_q, pairs, &pairs[channels..], &shape, out);
                }
            })
        }
        by_type!(q, typed(q, texts, heads))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Storage {
        fn typed<E: Typed>(a: &Tensor, b: &Tensor) -> Storage {
            let (a, b) = (slice::<E>(a), slice::<E>(b));
            made::<E>(a.len(), |out| sdxl_kernels::add(a, b, out))
        }
        by_type!(a, typed(a, b))
    }

    fn silu(&self, x: &Tensor) -> Storage {
        fn typed<E: Typed>(x: &Tensor) -> Storage {
            let x = slice::<E>(x);
            made::<E>(x.len(), |out| sdxl_kernels::silu(x, out))
        }
        by_type!(x, typed(x))
    }

    fn cat_channels(&self, a: &Tensor, b: &Tensor) -> Storage {
        fn typed<E: Typed>(a: &Tensor, b: &Tensor) -> Storage {
            let (ca, cb) = (a.channels(), b.channels());
            let (left, right) = (slice::<E>(a), slice::<E>(b));
            made::<E>(left.len() + right.len(), |out| {
                for ((left, right), out) in (left.chunks_exact(ca))
                    .zip(right.chunks_exact(cb))
                    .zip(out.chunks_exact_mut(ca + cb))
                {
                    out[..ca].copy_from_slice(left);
                    out[ca..].copy_from_slice(right);
                }
            })
        }
        by_type!(a, typed(a, b))
    }
}

fn linear_reusing_typed<E: Typed>(
    x: Tensor,
    weight: &PackedWeights,
    bias: Option<&[f32]>,
) -> Storage {
    let w = matrix(weight);
    let (rows, k, n) = (x.rows(), w.k(), w.n());
    let storage = match x.into_storage() {
        Ok(storage) => storage,
        Err(x) => return Cpu.linear(&x, weight, bias, Activation::None, None),
    };
    let mut host: Box<HostValues> = storage.downcast().expect(OWN);
    let mut values = E::take(&mut host).expect(ONE_TYPE);
    let mut out = buffer::<E>(REUSED_ROWS.min(rows) * n);
    for first in (0..rows).step_by(REUSED_ROWS) {
        let here = REUSED_ROWS.min(rows - first);
        let (x, out) = (&values[first * k..(first + here) * k], &mut out[..here * n]);
        sdxl_kernels::linear(x, here, w, bias, Activation::None, None, out);
        // In front of every row that is still to be read.
        values[first * n..(first + here) * n].copy_from_slice(out);
    }
    values.truncate(rows * n);
    values.shrink_to_fit();
    Box::new(E::wrap(values))
}

/// Rows at a time where a result takes its input's memory: few, because they are in memory beside
/// that.
pub(super) const REUSED_ROWS: usize = 1 << 13;

/// Factors that a group norm gives the channels of `x`.
fn statistics<E: Typed>(x: &Tensor, norm: &Norm, silu: bool) -> GroupNorm {
    let Norm {
        eps, gamma, beta, ..
    } = norm;
    GroupNorm::new(slice::<E>(x), norm_shape(x, norm), *eps, gamma, beta, silu)
}

/// Images, pixels, channels and groups.
pub(super) fn norm_shape(x: &Tensor, norm: &Norm) -> [usize; 4] {
    let (batch, channels) = (x.dim(0), x.channels());
    [batch, x.rows() / batch, channels, norm.groups]
}

/// The attention of tokens `[B, N, 3·C]` to one another.
pub(super) fn self_attention_shape(qkv: &Tensor, heads: usize, causal: bool) -> AttentionShape {
    let (tokens, width) = (qkv.dim(1), qkv.channels());
    AttentionShape {
        batch: qkv.dim(0),
        heads,
        head_dim: width / 3 / heads,
        queries: tokens,
        keys: tokens,
        q_stride: width,
        kv_stride: width,
        causal,
    }
}

/// The attention of one image of `q` to its text.
pub(super) fn cross_attention_shape(q: &Tensor, text: &Tensor, heads: usize) -> AttentionShape {
    let channels = q.channels();
    AttentionShape {
        batch: 1,
        heads,
        head_dim: channels / heads,
        queries: q.dim(1),
        keys: text.rows(),
        q_stride: channels,
        kv_stride: 2 * channels,
        causal: false,
    }
}
