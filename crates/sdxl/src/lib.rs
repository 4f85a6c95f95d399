//! Stable Diffusion XL image generation with the numbers of the diffusers library.
