//! The operators that networks are made of: the only way a model touches numbers.
//!
//! Each operator exists once per device behind one signature. Today there is one
//! device, the CPU, whose kernels live in `sdxl-kernels`; here they are applied to
//! [`Tensor`]s and to packed weights ([`crate::weights`]). Activations are
//! channel-last throughout (see [`crate::tensor`]).
//!
//! In a rehearsal ([`crate::memory`]), where weights were not read, operators compute nothing: they
//! give tensors of the right shape, and say what memory the kernel would have worked in.

use std::sync::Arc;

use half::bf16;
use sdxl_kernels::{
    AttentionShape, ConvGeometry, Element, GroupNorm, Meter, PackedConv, PackedMatrix, Workspace,
    attention as attention_kernel, attention_workspace, conv2d_workspace, linear_workspace,
    masked_attention, normed_conv2d, norms_on_the_way,
};

pub use sdxl_kernels::Activation;

use crate::profile;
use crate::tensor::{Buffer, DType, Reused, Tensor, buffer};
use crate::weights::packed::Packed;

/// A fully connected layer: `[n_out, k_in]` weights and an optional bias.
pub struct Linear {
    pub(crate) weight: Packed<PackedMatrix>,
    /// Rows of the weights: outputs, or for GEGLU twice the outputs.
    pub(crate) n: usize,
    /// Channels of the input.
    pub(crate) k: usize,
    pub(crate) bias: Option<Vec<f32>>,
}

/// The gated feed-forward entry of a transformer block (GEGLU): a linear layer of
/// twice the width whose second half gates the first.
pub struct Geglu {
    pub(crate) weight: Packed<PackedMatrix>,
    /// Rows of the weights: outputs, or for GEGLU twice the outputs.
    pub(crate) n: usize,
    /// Channels of the input.
    pub(crate) k: usize,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A two-dimensional convolution with the padding and stride it is always used with.
pub struct Conv2d {
    pub(crate) weight: Packed<PackedConv>,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) bias: Option<Vec<f32>>,
    /// Height and width of the kernel.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows or columns of zeros added: top, left, bottom, right.
    pub(crate) padding: [usize; 4],
}

/// Scale and shift of a group norm or layer norm, with its epsilon.
pub struct Norm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) eps: f32,
    /// Number of channel groups (1 for a layer norm, where it is not used).
    pub(crate) groups: usize,
}

/// Element types of activations, seen from inside a [`Tensor`].
trait Typed: Element + Reused {
    const DTYPE: DType;
    fn slice(tensor: &Tensor) -> &[Self];
    fn wrap(values: Vec<Self>) -> Buffer;
    /// The values of a buffer of this type, taken out of it.
    fn take(buffer: &mut Buffer) -> Vec<Self>;
}

impl Typed for f32 {
    const DTYPE: DType = DType::F32;
    fn slice(tensor: &Tensor) -> &[f32] {
        match tensor.buffer() {
            Buffer::F32(v) => v,
            other => no_values(other),
        }
    }
    fn wrap(values: Vec<f32>) -> Buffer {
        Buffer::F32(values)
    }
    fn take(buffer: &mut Buffer) -> Vec<f32> {
        match buffer {
            Buffer::F32(v) => std::mem::take(v),
            other => no_values(other),
        }
    }
}

impl Typed for bf16 {
    const DTYPE: DType = DType::Bf16;
    fn slice(tensor: &Tensor) -> &[bf16] {
        match tensor.buffer() {
            Buffer::Bf16(v) => v,
            other => no_values(other),
        }
    }
    fn wrap(values: Vec<bf16>) -> Buffer {
        Buffer::Bf16(values)
    }
    fn take(buffer: &mut Buffer) -> Vec<bf16> {
        match buffer {
            Buffer::Bf16(v) => std::mem::take(v),
            other => no_values(other),
        }
    }
}

fn no_values(buffer: &Buffer) -> ! {
    match buffer {
        Buffer::Unmade(..) => panic!("an operator was given a tensor without values"),
        _ => panic!("an operator was given f32 and bf16 together"),
    }
}

/// The tensor of `shape` that `compute` writes. Where a `meter` counts, one without values: it is
/// noted, and what the work takes.
fn made<E: Typed>(
    meter: Option<&Meter>,
    shape: Vec<usize>,
    workspace: impl FnOnce() -> Workspace,
    compute: impl FnOnce(&mut [E]),
) -> Tensor {
    if let Some(meter) = meter {
        let unmade = Tensor::unmade(shape, E::DTYPE, meter);
        meter.work(&workspace());
        return unmade;
    }
    let mut out = buffer::<E>(shape.iter().product());
    compute(&mut out);
    Tensor::new(shape, E::wrap(out))
}

/// A kernel's work that takes so many bytes.
fn passing(bytes: usize) -> Workspace {
    Workspace {
        passing: bytes,
        ..Workspace::default()
    }
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

/// The weights of a layer, with the time it takes to pack them, where they are not in memory.
fn packed<T>(weights: &Packed<T>, shape: impl std::fmt::Display) -> Arc<T> {
    match weights.here() {
        Some(here) => here,
        None => profile::operator("pack", shape, 0, || weights.get()),
    }
}

/// Rows and channels, as a profile shows them.
struct Sizes<'a>(&'a Tensor);

impl std::fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
        by_type!(x, linear_typed(x, w, &weight, act, residual))
    })
}

fn linear_typed<E: Typed>(
    x: &Tensor,
    w: &Linear,
    weight: &PackedMatrix,
    act: Activation,
    residual: Option<&Tensor>,
) -> Tensor {
    let rows = x.rows();
    let workspace = || linear_workspace::<E>(rows, weight);
    made::<E>(weight.meter(), with_channels(x, w.n), workspace, |out| {
        let (bias, residual) = (w.bias.as_deref(), residual.map(E::slice));
        sdxl_kernels::linear(E::slice(x), rows, weight, bias, act, residual, out);
    })
}

/// Bytes from which on memory is spared rather than time.
const LARGE: usize = 128 << 20;

/// [`linear`] without extras. Where `x` is large, nobody else has it and the result is narrower,
/// the result takes its memory's place: at a picture's size each map has up to a gigabyte.
pub fn linear_instead(x: Tensor, w: &Linear) -> Tensor {
    if x.bytes() < LARGE || w.n >= w.k {
        return linear(&x, w, Activation::None, None);
    }
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let weight = packed(&w.weight, format_args!("{k}x{n}"));
    let shape = format_args!("{rows}x{k}x{n}");
    profile::operator("linear", shape, 2 * rows * k * n, || {
        by_type!(x, linear_instead_typed(x, w, &weight))
    })
}

fn linear_instead_typed<E: Typed>(x: Tensor, w: &Linear, weight: &PackedMatrix) -> Tensor {
    // Rows at a time: few, because their result is in memory beside them.
    const ROWS: usize = 1 << 13;
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let shape = with_channels(&x, n);
    let mut input = match x.into_buffer() {
        Ok(buffer) => buffer,
        Err(x) => return linear_typed::<E>(&x, w, weight, Activation::None, None),
    };
    if let Some(meter) = weight.meter() {
        meter.passing(ROWS.min(rows) * n * size_of::<E>());
        drop(input);
        return Tensor::unmade(shape, E::DTYPE, meter);
    }
    let mut values = E::take(&mut input);
    let mut out = buffer::<E>(ROWS.min(rows) * n);
    for first in (0..rows).step_by(ROWS) {
        let here = ROWS.min(rows - first);
        let (x, out) = (&values[first * k..(first + here) * k], &mut out[..here * n]);
        let bias = w.bias.as_deref();
        sdxl_kernels::linear(x, here, weight, bias, Activation::None, None, out);
        // In front of every row that is still to be read.
        values[first * n..(first + here) * n].copy_from_slice(out);
    }
    values.truncate(rows * n);
    values.shrink_to_fit();
    Tensor::new(shape, E::wrap(values))
}

/// GEGLU (Shazeer 2020): `hidden · gelu(gate)` of a linear layer of width
/// `2·inner`, `[.., k]` to `[.., inner]`.
pub fn geglu(x: &Tensor, w: &Geglu) -> Tensor {
    let (rows, k, n) = (x.rows(), w.k, w.n);
    let weight = packed(&w.weight, format_args!("{k}x{n}"));
    let shape = format_args!("{rows}x{k}x{n}");
    profile::operator("geglu", shape, 2 * rows * k * n, || {
        by_type!(x, geglu_typed(x, w, &weight))
    })
}

fn geglu_typed<E: Typed>(x: &Tensor, w: &Geglu, weight: &PackedMatrix) -> Tensor {
    let rows = x.rows();
    let shape = with_channels(x, w.n / 2);
    let workspace = || linear_workspace::<E>(rows, weight);
    made::<E>(weight.meter(), shape, workspace, |out| {
        sdxl_kernels::linear_geglu(E::slice(x), rows, weight, w.bias.as_deref(), out);
    })
}

/// What a convolution can do on its way, so that it is not done in another pass.
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
    let on_the_way =
        extras.upsample_to.is_none() && by_type!(x, norms_on_the_way(&geometry, &weight));
    if !on_the_way {
        let normed = group_norm(&x, norm, true);
        drop(x);
        return convolve(&normed, None, w, &weight, &geometry, extras);
    }
    let norm = profile::operator("group_norm", Sizes(&x), 0, || {
        by_type!(x, statistics(&x, norm, true))
    });
    convolve(&x, norm.as_ref(), w, &weight, &geometry, extras)
}

/// The packed weights of a convolution.
fn kernel_of(w: &Conv2d) -> Arc<PackedConv> {
    let (kernel, c_in, c_out) = (w.kernel, w.c_in, w.c_out);
    packed(&w.weight, format_args!("{kernel}x{kernel} {c_in}-{c_out}"))
}

/// How a convolution moves over `x`.
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
    norm: Option<&GroupNorm>,
    w: &Conv2d,
    weight: &PackedConv,
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
        by_type!(x, conv2d_typed(x, norm, w, weight, extras, geometry))
    })
}

fn conv2d_typed<E: Typed>(
    x: &Tensor,
    norm: Option<&GroupNorm>,
    w: &Conv2d,
    weight: &PackedConv,
    extras: ConvExtras<'_>,
    geometry: &ConvGeometry,
) -> Tensor {
    let enlarged = ([x.dim(1), x.dim(2)] != [geometry.height, geometry.width])
        .then(|| enlarge::<E>(x, geometry.height, geometry.width));
    let source = enlarged.as_ref().unwrap_or(x);
    let (height, width) = geometry.output_size(w.kernel, w.kernel);
    let shape = vec![geometry.batch, height, width, w.c_out];
    let workspace = || conv2d_workspace::<E>(geometry, weight);
    made::<E>(weight.meter(), shape, workspace, |out| {
        let source = E::slice(source);
        let bias = w.bias.as_deref();
        let time = extras.sample_bias.map(f32::slice);
        let residual = extras.residual.map(E::slice);
        match norm {
            Some(norm) => {
                normed_conv2d(source, norm, geometry, weight, bias, time, residual, out);
            }
            None => sdxl_kernels::conv2d(source, geometry, weight, bias, time, residual, out),
        }
    })
}

/// Nearest-neighbour enlargement to a size of 2n or 2n - 1: pixel `i` is `i / 2`.
/// (`floor(i * n / (2n - 1))`, what torch computes, is `i / 2` for every `i`.)
fn enlarge<E: Typed>(x: &Tensor, height: usize, width: usize) -> Tensor {
    let (batch, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let shape = vec![batch, height, width, c];
    made::<E>(x.meter(), shape, Workspace::default, |out| {
        let values = E::slice(x);
        for (pixel, out) in out.chunks_exact_mut(c).enumerate() {
            let (line, column) = (pixel / width, pixel % width);
            let (b, row) = (line / height, line % height);
            let at = ((b * h + row / 2) * w + column / 2) * c;
            out.copy_from_slice(&values[at..at + c]);
        }
    })
}

/// Group norm (Wu & He 2018) of `[B, .., C]`, followed by SiLU where asked.
pub fn group_norm(x: &Tensor, norm: &Norm, silu: bool) -> Tensor {
    profile::operator("group_norm", Sizes(x), 0, || {
        by_type!(x, group_norm_typed(x, norm, silu))
    })
}

fn group_norm_typed<E: Typed>(x: &Tensor, norm: &Norm, silu: bool) -> Tensor {
    let workspace = || passing(GroupNorm::workspace(norm_shape(x, norm)));
    made::<E>(x.meter(), x.shape().to_vec(), workspace, |out| {
        if let Some(statistics) = statistics::<E>(x, norm, silu) {
            statistics.apply(E::slice(x), out);
        }
    })
}

/// What a group norm makes of the channels of `x`, if it has values.
fn statistics<E: Typed>(x: &Tensor, norm: &Norm, silu: bool) -> Option<GroupNorm> {
    let shape = norm_shape(x, norm);
    if let Some(meter) = x.meter() {
        meter.passing(GroupNorm::workspace(shape));
        return None;
    }
    let values = E::slice(x);
    Some(GroupNorm::of(
        values,
        shape,
        norm.eps,
        &norm.gamma,
        &norm.beta,
        silu,
    ))
}

/// Images, pixels, channels and groups.
fn norm_shape(x: &Tensor, norm: &Norm) -> [usize; 4] {
    let (batch, channels) = (x.dim(0), x.channels());
    [batch, x.rows() / batch, channels, norm.groups]
}

/// Layer norm over the last axis.
pub fn layer_norm(x: &Tensor, norm: &Norm) -> Tensor {
    profile::operator("layer_norm", Sizes(x), 0, || {
        by_type!(x, layer_norm_typed(x, norm))
    })
}

fn layer_norm_typed<E: Typed>(x: &Tensor, norm: &Norm) -> Tensor {
    let shape = x.shape().to_vec();
    made::<E>(x.meter(), shape, Workspace::default, |out| {
        let (rows, channels) = (x.rows(), x.channels());
        let Norm {
            eps, gamma, beta, ..
        } = norm;
        sdxl_kernels::layer_norm(E::slice(x), rows, channels, *eps, gamma, beta, out);
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
        by_type!(qkv, self_attention_typed(qkv, heads, causal, seen))
    })
}

fn self_attention_typed<E: Typed>(
    qkv: &Tensor,
    heads: usize,
    causal: bool,
    seen: Option<&[bool]>,
) -> Tensor {
    let (batch, tokens, width) = (qkv.dim(0), qkv.dim(1), qkv.channels());
    let channels = width / 3;
    let shape = AttentionShape {
        batch,
        heads,
        head_dim: channels / heads,
        queries: tokens,
        keys: tokens,
        q_stride: width,
        kv_stride: width,
        causal,
    };
    let workspace = || passing(attention_workspace::<E>(&shape));
    made::<E>(
        qkv.meter(),
        vec![batch, tokens, channels],
        workspace,
        |out| {
            let values = E::slice(qkv);
            let (keys, states) = (&values[channels..], &values[2 * channels..]);
            match seen {
                Some(seen) => masked_attention(values, keys, states, &shape, seen, out),
                None => attention_kernel(values, keys, states, &shape, out),
            }
        },
    )
}

/// Attention of image tokens `q` `[B, N, C]` to text tokens, for each image `[M, 2·C]` of `texts`
/// (keys and values side by side), to `[B, N, C]`.
pub fn cross_attention(q: &Tensor, texts: &[&Tensor], heads: usize) -> Tensor {
    let keys = texts.first().map_or(0, |text| text.rows());
    attend("cross_attention", q.channels(), heads, q, keys, || {
        by_type!(q, cross_attention_typed(q, texts, heads))
    })
}

fn cross_attention_typed<E: Typed>(q: &Tensor, texts: &[&Tensor], heads: usize) -> Tensor {
    let (batch, queries, channels) = (q.dim(0), q.dim(1), q.channels());
    assert_eq!(batch, texts.len(), "a text an image");
    // One image's attention to its text.
    let shape_of = |text: &Tensor| AttentionShape {
        batch: 1,
        heads,
        head_dim: channels / heads,
        queries,
        keys: text.rows(),
        q_stride: channels,
        kv_stride: 2 * channels,
        causal: false,
    };
    let workspace = || {
        let bytes = texts.iter().map(|t| attention_workspace::<E>(&shape_of(t)));
        passing(bytes.max().unwrap_or(0))
    };
    made::<E>(
        q.meter(),
        vec![batch, queries, channels],
        workspace,
        |out| {
            let image = queries * channels;
            for ((q, out), text) in (E::slice(q).chunks_exact(image))
                .zip(out.chunks_exact_mut(image))
                .zip(texts)
            {
                let pairs = E::slice(text);
                attention_kernel(q, pairs, &pairs[channels..], &shape_of(text), out);
            }
        },
    )
}

/// Element-wise sum of two tensors of one shape.
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    profile::operator("add", Sizes(a), 0, || by_type!(a, add_typed(a, b)))
}

fn add_typed<E: Typed>(a: &Tensor, b: &Tensor) -> Tensor {
    made::<E>(a.meter(), a.shape().to_vec(), Workspace::default, |out| {
        sdxl_kernels::add(E::slice(a), E::slice(b), out);
    })
}

/// `x · sigmoid(x)`, element-wise.
pub fn silu(x: &Tensor) -> Tensor {
    profile::operator("silu", Sizes(x), 0, || by_type!(x, silu_typed(x)))
}

fn silu_typed<E: Typed>(x: &Tensor) -> Tensor {
    made::<E>(x.meter(), x.shape().to_vec(), Workspace::default, |out| {
        sdxl_kernels::silu(E::slice(x), out);
    })
}

/// Joins two tensors that differ in the last axis only, along that axis.
pub fn cat_channels(a: &Tensor, b: &Tensor) -> Tensor {
    let shape = format_args!("{}x({}+{})", a.rows(), a.channels(), b.channels());
    profile::operator("cat_channels", shape, 0, || {
        by_type!(a, cat_channels_typed(a, b))
    })
}

fn cat_channels_typed<E: Typed>(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.rows(), b.rows(), "{:?} beside {:?}", a.shape(), b.shape());
    let (ca, cb) = (a.channels(), b.channels());
    let shape = with_channels(a, ca + cb);
    made::<E>(a.meter(), shape, Workspace::default, |out| {
        for ((left, right), out) in (E::slice(a).chunks_exact(ca))
            .zip(E::slice(b).chunks_exact(cb))
            .zip(out.chunks_exact_mut(ca + cb))
        {
            out[..ca].copy_from_slice(left);
            out[ca..].copy_from_slice(right);
        }
    })
}
