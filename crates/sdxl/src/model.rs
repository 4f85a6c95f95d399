//! The networks of SDXL, with fields named like the keys of a checkpoint.
//!
//! Activations are `[B, H, W, C]`; computation goes through [`crate::ops`] only.

pub mod attention;
pub mod config;
pub mod embeddings;
pub mod resnet;
pub mod unet;
pub mod vae;
