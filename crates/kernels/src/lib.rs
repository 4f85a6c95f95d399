//! CPU kernels for Stable Diffusion XL: slices in, slices out.
//!
//! Activations are `f32` or `bf16` ([`Element`]) and channel-last: `[batch, height, width,
//! channels]`, which is also `[batch, tokens, channels]`. Weights are packed once
//! ([`PackedMatrix`], [`PackedConv`]) for the instruction set in use ([`Isa`]). Work is
//! spread over rayon's current thread pool; results do not depend on its size. Kernels that take
//! long can be stopped from another thread ([`stoppable`]).
//!
//! A slice of the wrong length is a programming error: every function panics on it.

#![warn(unreachable_pub)]

mod attention;
mod conv;
mod disjoint;
mod dispatch;
mod element;
mod elementwise;
mod gemm;
mod geometry;
mod heap;
mod int8;
mod isa;
mod linear;
mod math;
mod norm;
mod pack;
mod panels;
mod peak;
mod scratch;
mod simd;
mod stop;
#[cfg(test)]
mod test;
mod tile;
mod weights;
mod winograd;
mod workspace;

pub use attention::{AttentionShape, attention, attention_workspace, masked_attention};
pub use conv::{can_fuse_norm, conv2d, conv2d_workspace, normed_conv2d};
pub use element::Element;
pub use elementwise::{add, silu};
pub use geometry::ConvGeometry;
pub use heap::fix_mmap_threshold;
pub use int8::quantise_rows;
pub use isa::Isa;
pub use linear::{linear, linear_geglu, linear_workspace};
pub use math::Activation;
pub use norm::{GroupNorm, group_norm, layer_norm};
pub use pack::{ConvLayout, MatrixLayout, PackedConv, PackedMatrix};
pub use peak::{Arithmetic, peak_flops};
pub use scratch::release_scratch;
pub use stop::{is_stopped, stoppable};
pub use weights::{WeightFormat, Weights};
pub use workspace::Workspace;
