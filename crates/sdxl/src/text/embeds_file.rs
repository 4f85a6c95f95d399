//! Encoded prompts as files: safetensors with `prompt_embeds` `[N, tokens, channels]` and
//! `pooled_prompt_embeds` `[N, dim]`, and the same under `negative_`: what diffusers' pipelines take
//! under these names.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Conditioning;
use crate::error::{Error, Result};
use crate::recipe::read_bounded;

/// Most bytes such a file may have: thousands of long prompts.
const LIMIT: u64 = 4 << 30;

/// Prompts encoded elsewhere or before.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeds {
    /// One conditioning a prompt, all of one length; at least one.
    pub positive: Vec<Conditioning>,
    /// One a prompt or one for all; none if the file has none.
    pub negative: Vec<Conditioning>,
}

impl Embeds {
    /// Reads a file. Every state has `channels` channels and every pooled vector `dim`.
    ///
    /// # Errors
    /// [`Error::File`] that names the tensor which is missing or has another shape or type, or
    /// values that are not finite.
    pub fn read(path: &Path, channels: usize, dim: usize) -> Result<Embeds> {
        let bytes = read_bounded(path, LIMIT)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::file(path, format!("this is not a whole safetensors file: {e}")))?;
        let positive = read_side(&file, path, "", channels, dim)?;
        let negative = match file.tensor("negative_prompt_embeds") {
            Ok(_) => read_side(&file, path, "negative_", channels, dim)?,
            Err(_) => Vec::new(),
        };
        if negative.len() > 1 && negative.len() != positive.len() {
            return Err(Error::file(
                path,
                format!(
                    "it has {} prompts and {} negative ones; there must be one, or one for each",
                    positive.len(),
                    negative.len()
                ),
            ));
        }
        Ok(Embeds { positive, negative })
    }

    /// Takes the negative side from another file: its `negative_` tensors, or its plain ones
    /// where it has no others.
    ///
    /// # Errors
    /// As [`Embeds::read`], and a number of prompts that does not fit.
    pub fn read_negative(&mut self, path: &Path, channels: usize, dim: usize) -> Result<()> {
        let bytes = read_bounded(path, LIMIT)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::file(path, format!("this is not a whole safetensors file: {e}")))?;
        let prefix = match file.tensor("negative_prompt_embeds") {
            Ok(_) => "negative_",
            Err(_) => "",
        };
        let negative = read_side(&file, path, prefix, channels, dim)?;
        if negative.len() > 1 && negative.len() != self.positive.len() {
            return Err(Error::file(
                path,
                format!(
                    "it has {} negative prompts for {} prompts; give one, or one for each",
                    negative.len(),
                    self.positive.len()
                ),
            ));
        }
        self.negative = negative;
        Ok(())
    }
}

fn read_side(
    file: &SafeTensors<'_>,
    path: &Path,
    prefix: &str,
    channels: usize,
    dim: usize,
) -> Result<Vec<Conditioning>> {
    let get = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = file
            .tensor(name)
            .map_err(|_| Error::file(path, format!("it has no tensor `{name}`")))?;
        let data = tensor.data();
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => (data.as_chunks::<4>().0.iter())
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Dtype::F16 => (data.as_chunks::<2>().0.iter())
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::BF16 => (data.as_chunks::<2>().0.iter())
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
            other => {
                return Err(Error::file(
                    path,
                    format!("`{name}` must be F32, F16 or BF16, not {other:?}"),
                ));
            }
        };
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::file(
                path,
                format!("`{name}` has values that are not finite"),
            ));
        }
        Ok((tensor.shape().to_vec(), values))
    };
    let (name, pooled_name) = (
        format!("{prefix}prompt_embeds"),
        format!("{prefix}pooled_prompt_embeds"),
    );
    let (shape, states) = get(&name)?;
    let (pooled_shape, pooled) = get(&pooled_name)?;
    let &[prompts, tokens, width] = &shape[..] else {
        return Err(Error::file(
            path,
            format!("`{name}` must have three axes, not {shape:?}"),
        ));
    };
    if prompts == 0 || tokens == 0 || width != channels {
        return Err(Error::file(
            path,
            format!(
                "`{name}` has the shape {shape:?}, but this checkpoint takes [prompts, tokens, \
                 {channels}]; it was made with another kind of model"
            ),
        ));
    }
    if pooled_shape != [prompts, dim] {
        return Err(Error::file(
            path,
            format!(
                "`{pooled_name}` has the shape {pooled_shape:?}, but [{prompts}, {dim}] goes with \
                 this checkpoint and `{name}`"
            ),
        ));
    }
    Ok((states.chunks_exact(tokens * width))
        .zip(pooled.chunks_exact(dim))
        .map(|(context, pooled)| Conditioning {
            context: context.to_vec(),
            pooled: pooled.to_vec(),
        })
        .collect())
}

/// The bytes of a file with `prompts` of one length as its positive side, `f32`.
///
/// # Errors
/// None that the arguments can cause.
pub fn to_bytes(prompts: &[&Conditioning], channels: usize) -> Result<Vec<u8>> {
    let failed = |e| Error::Machine(format!("the encoded prompt cannot be written: {e}"));
    let first = prompts.first();
    let tokens = first.map_or(0, |c| c.tokens(channels));
    let dim = first.map_or(0, |c| c.pooled.len());
    let bytes = |part: fn(&Conditioning) -> &[f32]| -> Vec<u8> {
        let values = prompts.iter().flat_map(|c| part(c).iter());
        values.flat_map(|v| v.to_le_bytes()).collect()
    };
    let (states, pooled) = (bytes(|c| &c.context), bytes(|c| &c.pooled));
    let views = [
        (
            "prompt_embeds",
            TensorView::new(Dtype::F32, vec![prompts.len(), tokens, channels], &states)
                .map_err(failed)?,
        ),
        (
            "pooled_prompt_embeds",
            TensorView::new(Dtype::F32, vec![prompts.len(), dim], &pooled).map_err(failed)?,
        ),
    ];
    safetensors::serialize(views, None).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditioning(start: f32) -> Conditioning {
        Conditioning {
            context: (0..12).map(|i| start + i as f32).collect(),
            pooled: vec![start, -start],
        }
    }

    #[test]
    fn a_file_reads_back_and_wrong_shapes_are_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a.safetensors");
        let both = [conditioning(1.0), conditioning(2.0)];
        std::fs::write(&path, to_bytes(&[&both[0], &both[1]], 4).unwrap()).unwrap();
        let read = Embeds::read(&path, 4, 2).unwrap();
        assert_eq!(read.positive, both);
        assert!(read.negative.is_empty());
        for (channels, dim) in [(6, 2), (4, 3)] {
            let error = Embeds::read(&path, channels, dim).unwrap_err();
            assert!(error.is_usage(), "{error}");
            assert!(error.to_string().contains("has the shape"), "{error}");
        }

        let mut one = read.clone();
        one.positive.truncate(1);
        // Its plain tensors serve as negatives, but not two for one.
        let error = one.read_negative(&path, 4, 2).unwrap_err();
        assert!(error.to_string().contains("2 negative prompts"), "{error}");
        let mut two = read.clone();
        two.read_negative(&path, 4, 2).unwrap();
        assert_eq!(two.negative, both);

        std::fs::write(&path, to_bytes(&[&conditioning(f32::INFINITY)], 4).unwrap()).unwrap();
        assert!(Embeds::read(&path, 4, 2).is_err());
        std::fs::write(&path, b"no tensors").unwrap();
        assert!(Embeds::read(&path, 4, 2).is_err());
    }
}
