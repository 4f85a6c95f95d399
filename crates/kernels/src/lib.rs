//! CPU kernels for Stable Diffusion XL: slices in, slices out.
