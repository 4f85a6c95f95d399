//! The operators that networks are made of: the only way a model touches numbers.
//!
//! An operator runs on the device of its weights, or without weights on that of its tensors
//! ([`crate::device`]). Here it is given what is elsewhere, named for a profile, and its result gets
//! its shape. Activations are channel-last throughout (see [`crate::tensor`]).

mod packed;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use crate::device::{Activation, Norm};
use crate::device::{Conv, ConvGeometry, Device, PackedWeights, Storage, cpu};
use crate::profile;
use crate::tensor::Tensor;

pub(crate) use packed::Packed;

/// A fully connected layer: `[n_out, k_in]` weights and an optional bias.
pub struct Linear {
    pub(crate) weight: Packed,
    /// Rows of the weights: outputs, or for GEGLU twice the outputs.
    pub(crate) n: usize,
    /// Channels of the input.
    pub(crate) k: usize,
    pub(crate) bias: Option<Vec<f32>>,
}

/// The gated feed-forward entry of a transformer block (GEGLU): a linear layer of
/// twice the width whose second half gates the first.
pub struct Geglu {
    pub(crate) weight: Packed,
    /// Rows of the weights: outputs, or for GEGLU twice the outputs.
    pub(crate) n: usize,
    /// Channels of the input.
    pub(crate) k: usize,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A two-dimensional convolution with the padding and stride it is always used with.
pub struct Conv2d {
    pub(crate) weight: Packed,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) bias: Option<Vec<f32>>,
    /// Height and width of the kernel.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows or columns of zeros added: top, left, bottom, right.
    pub(crate) padding: [usize; 4],
}

/// The tensor on `device`: itself, or its values moved there.
fn on<'a>(device: &Arc<dyn Device>, x: &'a Tensor) -> Cow<'a, Tensor> {
    match Arc::ptr_eq(device, x.device()) {
        true => Cow::Borrowed(x),
        false => Cow::Owned(x.to_device(device)),
    }
}

/// The device of these tensors: where some are on the CPU, as all are that were made of numbers,
/// that of the others.
fn device_of(tensors: &[&Tensor]) -> Arc<dyn Device> {
    let host = cpu();
    let mut devices = tensors.iter().map(|x| x.device());
    let other = devices.find(|device| !Arc::ptr_eq(device, &host));
    other.map_or(host, Arc::clone)
}

/// The result of an operator on `x`, of its element type.
fn result(x: &Tensor, shape: impl Into<Vec<usize>>, storage: Storage) -> Tensor {
    Tensor::new(x.device(), shape, x.dtype(), storage)
}

/// The weights of a layer, with the time it takes to pack them, where they are not in memory.
fn packed(weights: &Packed, shape: impl fmt::Display) -> PackedWeights {
    match weights.here() {
        Some(here) => here,
        None => profile::operator("pack", shape, 0, || weights.get()),
    }
}

/// Rows and channels, as a profile shows them.
struct Sizes<'a>(&'a Tensor);

impl fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.0.rows(), self.0.channels())
    }
}

/// An attention of `q` to so many `keys`, as a profile counts it: every pair of tokens, seen or not.
fn attend(
    name: &'static str,
    channels: usize,
    heads: usize,
    q: &Tensor,
    keys: usize,
    run: impl FnOnce() -> Tensor,
) -> Tensor {
    let (batch, queries, head) = (q.dim(0), q.dim(1), channels / heads);
    let shape = format_args!("{batch}x{heads} {queries}x{keys}x{head}");
    profile::operator(name, shape, 4 * batch * queries * keys * channels, run)
}

fn with_channels(x: &Tensor, channels: usize) -> Vec<usize> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = channels;
    }
    shape
}

/// `act(x · Wᵀ + bias) + residual` over the last axis: `[.., k]` to `[.., n]`.
pub fn linear(x: &Tensor, w: &Linear, act: Activation, residual: Option<&Tensor>) -> Tensor {
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let weight = packed(&w.weight, format_args!("{k}x{n}"));
    let shape = format_args!("{rows}x{k}x{n}");
    profile::operator("linear", shape, 2 * rows * k * n, || {
        let device = w.weight.device();
        let x = on(device, x);
        let residual = residual.map(|x| on(device, x));
        let out = device.linear(&x, &weight, w.bias.as_deref(), act, residual.as_deref());
        result(&x, with_channels(&x, n), out)
    })
}

/// Bytes from which on memory is spared rather than time.
const LARGE: usize = 128 << 20;

/// [`linear`] without extras. Where `x` is large, nobody else has it and the result is narrower,
/// the result takes its memory's place: at a picture's size each map has up to a gigabyte.
pub fn linear_reusing_input(x: Tensor, w: &Linear) -> Tensor {
    if x.bytes() < LARGE || w.n >= w.k {
        return linear(&x, w, Activation::None, None);
    }
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let weight = packed(&w.weight, format_args!("{k}x{n}"));
    let shape = format_args!("{rows}x{k}x{n}");
    profile::operator("linear", shape, 2 * rows * k * n, || {
        let device = w.weight.device();
        let x = match Arc::ptr_eq(device, x.device()) {
            true => x,
            false => x.to_device(device),
        };
        let (shape, dtype) = (with_channels(&x, n), x.dtype());
        let out = device.linear_reusing(x, &weight, w.bias.as_deref());
        Tensor::new(device, shape, dtype, out)
    })
}

/// GEGLU (Shazeer 2020): `hidden · gelu(gate)` of a linear layer of width
/// `2·inner`, `[.., k]` to `[.., inner]`.
pub fn geglu(x: &Tensor, w: &Geglu) -> Tensor {
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let weight = packed(&w.weight, format_args!("{k}x{n}"));
    let shape = format_args!("{rows}x{k}x{n}");
    profile::operator("geglu", shape, 2 * rows * k * n, || {
        let device = w.weight.device();
        let x = on(device, x);
        let out = device.geglu(&x, &weight, w.bias.as_deref());
        result(&x, with_channels(&x, n / 2), out)
    })
}

/// The further operations that a convolution can do in the same pass over its data, so that none of
/// them needs another pass.
#[derive(Default, Clone, Copy)]
pub struct ConvExtras<'a> {
    /// Added to every position of a batch element: `[B, c_out]`, always `f32`.
    pub sample_bias: Option<&'a Tensor>,
    /// Added to the result: same shape as the output.
    pub residual: Option<&'a Tensor>,
    /// The input is first enlarged to this height and width by repeating pixels
    /// (at most twice the size; one less where the target is odd).
    pub upsample_to: Option<(usize, usize)>,
}

/// Convolution of `[B, H, W, c_in]` to `[B, Ho, Wo, c_out]`.
pub fn conv2d(x: &Tensor, w: &Conv2d, extras: ConvExtras<'_>) -> Tensor {
    let weight = kernel_of(w);
    convolve(x, None, w, &weight, &geometry(x, w, &extras), extras)
}

/// [`group_norm`] with SiLU, then a convolution of the same size. `x` is given up as soon as it can
/// be; where the convolution norms what it reads, the normed map is never made.
pub fn norm_conv2d(x: Tensor, norm: &Norm, w: &Conv2d, extras: ConvExtras<'_>) -> Tensor {
    let geometry = geometry(&x, w, &extras);
    let weight = kernel_of(w);
    let device = w.weight.device();
    let on_the_way =
        extras.upsample_to.is_none() && device.can_fuse_norm(x.dtype(), &weight, &geometry);
    if !on_the_way {
        let normed = group_norm(&x, norm, true);
        drop(x);
        return convolve(&normed, None, w, &weight, &geometry, extras);
    }
    let factors = profile::operator("group_norm", Sizes(&x), 0, || {
        device.norm_factors(&on(device, &x), norm, true)
    });
    convolve(&x, Some(&factors), w, &weight, &geometry, extras)
}

/// The packed weights of a convolution.
fn kernel_of(w: &Conv2d) -> PackedWeights {
    let (kernel, c_in, c_out) = (w.kernel, w.c_in, w.c_out);
    packed(&w.weight, format_args!("{kernel}x{kernel} {c_in}-{c_out}"))
}

/// The way that a convolution moves over `x`.
fn geometry(x: &Tensor, w: &Conv2d, extras: &ConvExtras<'_>) -> ConvGeometry {
    let own = (x.dim(1), x.dim(2));
    let size = extras.upsample_to.unwrap_or(own);
    // The kernel doubles pixels itself; other sizes are made for it.
    let upsample = extras.upsample_to.is_some() && size == (2 * own.0, 2 * own.1);
    let (height, width) = if upsample { own } else { size };
    let [pad_top, pad_left, pad_bottom, pad_right] = w.padding;
    ConvGeometry {
        batch: x.dim(0),
        height,
        width,
        stride: w.stride,
        pad_top,
        pad_left,
        pad_bottom,
        pad_right,
        upsample,
    }
}

fn convolve(
    x: &Tensor,
    norm: Option<&Storage>,
    w: &Conv2d,
    weight: &PackedWeights,
    geometry: &ConvGeometry,
    extras: ConvExtras<'_>,
) -> Tensor {
    let (kernel, c_in, c_out) = (w.kernel, w.c_in, w.c_out);
    // Counted as the definition has it, with the taps on the zeros around and on repeated pixels.
    let (height, width) = geometry.output_size(kernel, kernel);
    let pixels = geometry.batch * height * width;
    let shape = format_args!(
        "{}x{height}x{width} {kernel}x{kernel} {c_in}-{c_out}",
        geometry.batch
    );
    let flop = 2 * pixels * kernel * kernel * c_in * c_out;
    profile::operator("conv2d", shape, flop, || {
        let device = w.weight.device();
        let mut x = on(device, x);
        let size = [geometry.height, geometry.width];
        if [x.dim(1), x.dim(2)] != size {
            let enlarged = device.enlarge(&x, size[0], size[1]);
            let shape = [x.dim(0), size[0], size[1], c_in];
            x = Cow::Owned(result(&x, shape, enlarged));
        }
        let time = extras.sample_bias.map(|x| on(device, x));
        let residual = extras.residual.map(|x| on(device, x));
        let conv = Conv {
            weight,
            bias: w.bias.as_deref(),
            geometry,
            norm,
            sample_bias: time.as_deref(),
            residual: residual.as_deref(),
        };
        let out = device.conv2d(&x, &conv);
        result(&x, [geometry.batch, height, width, c_out], out)
    })
}

/// Group norm (Wu & He 2018) of `[B, .., C]`, followed by SiLU where asked.
pub fn group_norm(x: &Tensor, norm: &Norm, silu: bool) -> Tensor {
    profile::operator("group_norm", Sizes(x), 0, || {
        result(x, x.shape(), x.device().group_norm(x, norm, silu))
    })
}

/// Layer norm over the last axis.
pub fn layer_norm(x: &Tensor, norm: &Norm) -> Tensor {
    profile::operator("layer_norm", Sizes(x), 0, || {
        result(x, x.shape(), x.device().layer_norm(x, norm))
    })
}

/// Self-attention from one tensor that holds queries, keys and values side by
/// side: `[B, N, 3·C]` to `[B, N, C]`, `heads` heads of size `C / heads`.
/// With `causal`, a token sees only itself and what comes before it.
pub fn self_attention(qkv: &Tensor, heads: usize, causal: bool) -> Tensor {
    attend_to_self(qkv, heads, causal, None)
}

/// Causal [`self_attention`] that hides tokens from all others and from themselves:
/// those that are false in `seen` `[B·N]`.
pub fn masked_self_attention(qkv: &Tensor, heads: usize, seen: &[bool]) -> Tensor {
    attend_to_self(qkv, heads, true, Some(seen))
}

fn attend_to_self(qkv: &Tensor, heads: usize, causal: bool, seen: Option<&[bool]>) -> Tensor {
    let (channels, keys) = (qkv.channels() / 3, qkv.dim(1));
    attend("self_attention", channels, heads, qkv, keys, || {
        let out = qkv.device().self_attention(qkv, heads, causal, seen);
        result(qkv, with_channels(qkv, channels), out)
    })
}

/// Attention of image tokens `q` `[B, N, C]` to text tokens, for each image `[M, 2·C]` of `texts`
/// (keys and values side by side), to `[B, N, C]`.
pub fn cross_attention(q: &Tensor, texts: &[&Tensor], heads: usize) -> Tensor {
    let keys = texts.first().expect("a text an image").rows();
    attend("cross_attention", q.channels(), heads, q, keys, || {
        let device = device_of(&[&[q], texts].concat());
        let q = on(&device, q);
        let texts: Vec<_> = texts.iter().map(|text| on(&device, text)).collect();
        let texts: Vec<&Tensor> = texts.iter().map(|text| &**text).collect();
        let out = device.cross_attention(&q, &texts, heads);
        result(&q, q.shape(), out)
    })
}

/// Element-wise sum of two tensors of one shape.
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    profile::operator("add", Sizes(a), 0, || {
        let device = device_of(&[a, b]);
        let (a, b) = (on(&device, a), on(&device, b));
        result(&a, a.shape(), device.add(&a, &b))
    })
}

/// `x · sigmoid(x)`, element-wise.
pub fn silu(x: &Tensor) -> Tensor {
    profile::operator("silu", Sizes(x), 0, || {
        result(x, x.shape(), x.device().silu(x))
    })
}

/// Joins two tensors that differ in the last axis only, along that axis.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.rows(), b.rows(), "{:?} beside {:?}", a.shape(), b.shape());
    let shape = format_args!("{}x({}+{})", a.rows(), a.channels(), b.channels());
    profile::operator("cat_channels", shape, 0, || {
        let device = device_of(&[a, b]);
        let (a, b) = (on(&device, a), on(&device, b));
        let shape = with_channels(&a, a.channels() + b.channels());
        result(&a, shape, device.cat_channels(&a, &b))
    })
}
