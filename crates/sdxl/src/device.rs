//! Devices: they hold tensors, pack weights and run the operators of [`crate::ops`].
//!
//! Two exist. [`Cpu`] computes with the kernels of `sdxl-kernels`; [`Meta`] (PyTorch's word: shapes
//! and no data) only counts the bytes that computing would take. Nothing above `ops` asks which
//! one it is: weights are packed by the device of their checkpoint ([`Checkpoint::on`]), an operator
//! runs where its weights are, and tensors that are elsewhere are moved there.
//!
//! To add one: implement [`Device`] in a file below this folder and name it in [`DeviceChoice`]. What
//! it keeps in memory is its own affair. Tensors ([`Storage`]) and packed weights
//! ([`PackedWeights`]) are opaque to everybody else; a device is only ever given back what it made,
//! because `ops` asks the device that a tensor or a layer names.
//!
//! [`Checkpoint::on`]: crate::weights::Checkpoint::on

mod choice;
mod cpu;
mod host;
mod meta;
mod meter;
mod stored_weights;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use sdxl_kernels::{Activation, ConvGeometry, WeightFormat};

use crate::error::Result;
use crate::tensor::{DType, Tensor};

pub use choice::DeviceChoice;
pub(crate) use cpu::pack as pack_on_cpu;
pub use cpu::{Cpu, cpu};
pub use host::{HostValues, Table};
pub use meta::Meta;
pub use meter::{CountedBytes, MemoryKind, Meter};
pub use stored_weights::{ReadingMemory, StoredWeights};

/// The values of a tensor in a device's own form.
pub type Storage = Box<dyn Any + Send + Sync>;

/// The weights of a layer in a device's own form.
pub type PackedWeights = Arc<dyn Any + Send + Sync>;

/// A layer with weights to pack: its shape, and what it will be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// A matrix `[n, k]` for [`Device::linear`].
    Matrix {
        /// Outputs.
        n: usize,
        /// Channels of the input.
        k: usize,
        /// Format of the packed weights.
        format: WeightFormat,
    },
    /// A matrix `[2 * inner, k]` for [`Device::geglu`].
    Geglu {
        /// Outputs.
        inner: usize,
        /// Channels of the input.
        k: usize,
        /// Format of the packed weights.
        format: WeightFormat,
    },
    /// Kernels `[c_out, c_in, kernel, kernel]` for [`Device::conv2d`].
    Conv {
        /// Channels of the output.
        c_out: usize,
        /// Channels of the input.
        c_in: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Format of the packed weights.
        format: WeightFormat,
        /// The inputs it is packed for.
        used: ConvUse,
    },
}

/// Inputs that a convolution is packed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvUse {
    /// Any inputs.
    Any,
    /// A kernel of 3 x 3 moves by one pixel over maps that bear a little less exactness: a device
    /// may save multiplications.
    Winograd,
    /// A kernel of 3 x 3 moves by one pixel over maps whose every pixel was doubled both ways.
    Doubled,
}

/// Scale and shift of a group norm or layer norm, with its epsilon.
#[derive(Debug)]
pub struct Norm {
    /// A scale a channel.
    pub gamma: Vec<f32>,
    /// A shift a channel.
    pub beta: Vec<f32>,
    /// Number added to the variance.
    pub eps: f32,
    /// Number of channel groups (1 for a layer norm, where it is not used).
    pub groups: usize,
}

/// A convolution beside its input.
#[derive(Clone, Copy)]
pub struct Conv<'a> {
    /// Weights that this device packed.
    pub weight: &'a PackedWeights,
    /// A shift an output channel.
    pub bias: Option<&'a [f32]>,
    /// Sizes of the input, and the steps and padding of the kernel.
    pub geometry: &'a ConvGeometry,
    /// Applied to the input as it is read: made by [`Device::norm_factors`].
    pub norm: Option<&'a Storage>,
    /// Added to every position of a batch element: `[B, c_out]`, always `f32`.
    pub sample_bias: Option<&'a Tensor>,
    /// Added to the result, whose shape it has.
    pub residual: Option<&'a Tensor>,
}

/// Memory and arithmetic of a processor.
///
/// Operators take tensors whose storage this device made, and return the storage of their result,
/// in the element type of their first tensor unless they say otherwise. Activations are channel-last
/// (see [`crate::tensor`]). A shape that does not fit is a programming error and panics.
pub trait Device: fmt::Debug + Send + Sync {
    /// The device's name, as a user would write it.
    fn name(&self) -> &'static str;

    // Weights.

    /// Reads the weights of a layer and packs them.
    ///
    /// # Errors
    /// Weights that cannot be read.
    fn pack(&self, layer: Layer, weights: &dyn StoredWeights) -> Result<PackedWeights>;

    /// Reads a bias, scale or shift, which stays on the host.
    ///
    /// # Errors
    /// Weights that cannot be read.
    fn vector(&self, weights: &dyn StoredWeights) -> Result<Vec<f32>> {
        host::vector(weights)
    }

    /// Reads a table of vectors, which stays on the host.
    ///
    /// # Errors
    /// Weights that cannot be read.
    fn table(&self, weights: &dyn StoredWeights) -> Result<Arc<dyn Table>> {
        host::table(weights)
    }

    /// Makes sure that weights can be read and packed later, without doing it.
    ///
    /// # Errors
    /// Weights that cannot be read.
    fn check(&self, weights: &dyn StoredWeights) -> Result<()> {
        weights.check()
    }

    // Tensors.

    /// Takes values from the host.
    fn upload(&self, values: HostValues) -> Storage;

    /// Gives the values of `x` to the host, as `f32`.
    fn download(&self, x: &Tensor) -> Vec<f32>;

    /// The values of `x` in another element type, rounded to nearest even.
    fn cast(&self, x: &Tensor, dtype: DType) -> Storage;

    /// A part of the values of `x`, in the order they lie.
    fn narrow(&self, x: &Tensor, values: Range<usize>) -> Storage;

    /// The values of tensors of one element type behind one another.
    fn cat(&self, parts: &[Tensor]) -> Storage;

    // Operators.

    /// `act(x · Wᵀ + bias) + residual` over the last axis, with a [`Layer::Matrix`].
    fn linear(
        &self,
        x: &Tensor,
        weight: &PackedWeights,
        bias: Option<&[f32]>,
        act: Activation,
        residual: Option<&Tensor>,
    ) -> Storage;

    /// [`Device::linear`] without extras to fewer channels than `x` has. Where nobody else has `x`,
    /// its memory may serve the result.
    fn linear_reusing(&self, x: Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage {
        self.linear(&x, weight, bias, Activation::None, None)
    }

    /// `hidden · gelu(gate)` of a linear layer with a [`Layer::Geglu`], over the last axis.
    fn geglu(&self, x: &Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage;

    /// Convolution of `[B, H, W, c_in]` to `[B, Ho, Wo, c_out]` with a [`Layer::Conv`].
    fn conv2d(&self, x: &Tensor, conv: &Conv<'_>) -> Storage;

    /// Whether [`Device::conv2d`] can apply a group norm and SiLU to such an input as it reads it.
    fn can_fuse_norm(
        &self,
        _dtype: DType,
        _weight: &PackedWeights,
        _geometry: &ConvGeometry,
    ) -> bool {
        false
    }

    /// Factors of the group norm of `x`, followed by SiLU where asked, for [`Conv::norm`]. Asked for
    /// only where [`Device::can_fuse_norm`].
    fn norm_factors(&self, _x: &Tensor, _norm: &Norm, _silu: bool) -> Storage {
        unimplemented!("{} cannot compute a norm within a convolution", self.name())
    }

    /// Group norm of `[B, .., C]`, followed by SiLU where asked.
    fn group_norm(&self, x: &Tensor, norm: &Norm, silu: bool) -> Storage;

    /// Layer norm over the last axis.
    fn layer_norm(&self, x: &Tensor, norm: &Norm) -> Storage;

    /// Nearest-neighbour enlargement of `[B, H, W, C]` to twice the height and width, or one less:
    /// pixel `i` is `i / 2`.
    fn enlarge(&self, x: &Tensor, height: usize, width: usize) -> Storage;

    /// Self-attention of `[B, N, 3·C]`, queries, keys and values side by side, to `[B, N, C]`.
    /// `causal`: a token sees only itself and what comes before it. Tokens that are false in `seen`
    /// `[B·N]` are hidden from all.
    fn self_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        causal: bool,
        seen: Option<&[bool]>,
    ) -> Storage;

    /// Attention of `q` `[B, N, C]` to a text for each image, `[M, 2·C]`, keys and values side by
    /// side, to `[B, N, C]`.
    fn cross_attention(&self, q: &Tensor, texts: &[&Tensor], heads: usize) -> Storage;

    /// Element-wise sum of two tensors of one shape.
    fn add(&self, a: &Tensor, b: &Tensor) -> Storage;

    /// `x · sigmoid(x)`, element-wise.
    fn silu(&self, x: &Tensor) -> Storage;

    /// Two tensors that differ in the last axis only, joined along that.
    fn cat_channels(&self, a: &Tensor, b: &Tensor) -> Storage;
}
