//! Weights: from files to layers that a device has packed.
//!
//! A [`Checkpoint`] says which parts there are and how they are built. Each part's tensors are a
//! [`TensorSet`] over mapped files, to whose values LoRAs add their changes as they are read. The
//! [`Loader`] reads layers by name, checks their shapes and has the device pack them.

#[doc(hidden)]
pub mod blocks;
mod changes;
mod checkpoint;
mod checkpoint_files;
pub mod convert;
pub mod doctor;
mod element;
mod embedding;
#[doc(hidden)]
pub mod gguf;
mod infer;
mod inversion;
mod layer_cache;
pub(crate) mod layout;
mod loader;
pub mod lora;
pub mod lower;
mod mapped_file;
mod names;
mod part;
#[doc(hidden)]
pub mod random;
pub mod recognise;
#[doc(hidden)]
pub mod replacement;
mod safetensors;
#[doc(hidden)]
pub mod same;
#[doc(hidden)]
pub mod single_file;
mod stacked_tensors;
mod stored_tensor;
mod tensor_set;
mod text_parts;
pub(crate) mod values;

pub use checkpoint::{Checkpoint, OpenOptions};
pub use checkpoint_files::CheckpointFiles;
pub use element::ElementType;
#[doc(hidden)]
pub use embedding::Embedding;
pub(crate) use inversion::Inversion;
pub use inversion::InversionFile;
pub use layout::missing_files;
#[doc(hidden)]
pub use loader::Loader;
pub use part::{CheckpointKind, Part};
pub use stored_tensor::StoredTensor;
pub use tensor_set::TensorSet;
pub use text_parts::TextCheckpoint;
