//! Latents as files: safetensors with one tensor `latents`, `f32`, in torch's order
//! `[N, C, H/8, W/8]`, so that Python reads and writes them as they are.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::files::read_bounded;
use crate::latents::Latents;

/// Most bytes a file of latents may have: thousands of pictures of 1024 x 1024.
const LIMIT: u64 = 4 << 30;

/// The bytes of a file that holds `latents`.
pub fn to_bytes(latents: &Latents) -> Result<Vec<u8>> {
    let [n, h, w, c] = latents.shape();
    let bytes: Vec<u8> = latents
        .to_nchw()
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let failed = |e| Error::machine(format!("latents cannot be written: {e}"));
    let view = TensorView::new(Dtype::F32, vec![n, c, h, w], &bytes).map_err(failed)?;
    safetensors::serialize([("latents", view)], None).map_err(failed)
}

/// Reads a file of latents.
///
/// # Errors
/// A file without a four-dimensional `f32` tensor `latents`, or with values that are
/// not finite.
pub fn read(path: &Path) -> Result<Latents> {
    let bytes = read_bounded(path, LIMIT)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::file(path, format!("this is not a whole safetensors file: {e}")))?;
    let tensor = file
        .tensor("latents")
        .map_err(|_| Error::file(path, "it has no tensor `latents`"))?;
    let &[n, c, h, w] = tensor.shape() else {
        return Err(Error::file(
            path,
            format!("`latents` must have four axes, not {:?}", tensor.shape()),
        ));
    };
    if tensor.dtype() != Dtype::F32 {
        return Err(Error::file(
            path,
            format!("`latents` must be F32, not {:?}", tensor.dtype()),
        ));
    }
    let values: Vec<f32> = (tensor.data().as_chunks::<4>().0.iter())
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
        return Err(Error::file(path, "`latents` must have finite values"));
    }
    Ok(Latents::from_nchw([n, h, w, c], &values))
}
