//! Stable Diffusion XL image generation with the numbers of the diffusers library.

pub mod latents;
pub mod noise;
pub mod schedule;
pub mod scheduler;
