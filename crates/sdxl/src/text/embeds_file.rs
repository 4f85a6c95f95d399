//! Encoded prompts as files: safetensors with `prompt_embeds` `[N, tokens, channels]` and
//! `pooled_prompt_embeds` `[N, dim]`, and the same under `negative_`: what diffusers' pipelines take
//! under these names.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Conditioning;
use crate::error::{Error, Result};

/// Prompts encoded elsewhere or before.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeds {
    /// Channels of a token's state.
    pub channels: usize,
    /// One conditioning a prompt, all of one length; at least one.
    pub positive: Vec<Conditioning>,
    /// One a prompt or one for all; none if nothing was given.
    pub negative: Vec<Conditioning>,
}

impl Embeds {
    /// Reads the contents of a file that is called `path`.
    ///
    /// # Errors
    /// [`Error::File`] that names the tensor which is missing or has a shape or type that cannot
    /// be, or values that are not finite.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Embeds> {
        let file = open(bytes, path)?;
        let (channels, positive) = read_side(&file, path, "")?;
        let negative = if file.tensor("negative_prompt_embeds").is_ok() {
            read_side(&file, path, "negative_")?
        } else {
            (channels, Vec::new())
        };
        let mut embeds = Embeds {
            channels,
            positive,
            negative: Vec::new(),
        };
        embeds.set_negative(negative, path)?;
        Ok(embeds)
    }

    /// Takes the negative side from another file: its `negative_` tensors, or its plain ones
    /// where it has no others.
    ///
    /// # Errors
    /// As [`Embeds::read`], and tensors that do not go with the positive side.
    pub fn read_negative(&mut self, bytes: &[u8], path: &Path) -> Result<()> {
        let file = open(bytes, path)?;
        let has_negative = file.tensor("negative_prompt_embeds").is_ok();
        let prefix = if has_negative { "negative_" } else { "" };
        self.set_negative(read_side(&file, path, prefix)?, path)
    }

    fn set_negative(&mut self, side: (usize, Vec<Conditioning>), path: &Path) -> Result<()> {
        let (channels, negative) = side;
        let prompts = self.positive.len();
        if negative.len() > 1 && negative.len() != prompts {
            return Err(Error::file(
                path,
                format!(
                    "it has {} negative prompts for {prompts} prompts; give one, or one for each",
                    negative.len()
                ),
            ));
        }
        let dims = |side: &[Conditioning]| side.first().map(|c| c.pooled.len());
        let other = dims(&negative).is_some_and(|dim| Some(dim) != dims(&self.positive));
        if channels != self.channels || other {
            return Err(Error::file(
                path,
                "its negative prompts have other sizes than the prompts; they were made with \
                 another model",
            ));
        }
        self.negative = negative;
        Ok(())
    }

    /// Refuses sizes that a model does not take: `channels` a token, `dim` a pooled vector.
    ///
    /// # Errors
    /// [`Error::Request`] with both.
    pub fn check(&self, channels: usize, dim: usize) -> Result<()> {
        let pooled = self.positive.first().map_or(0, |c| c.pooled.len());
        if (self.channels, pooled) == (channels, dim) {
            return Ok(());
        }
        let message = format!(
            "{} channels and {pooled} pooled ones are given, but this checkpoint takes {channels} \
             and {dim}",
            self.channels
        );
        Err(Error::request("prompt_embeds", message)
            .with_hint("they were made with another kind of model; make them with this one"))
    }
}

fn open<'a>(bytes: &'a [u8], path: &Path) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| Error::file(path, format!("this is not a whole safetensors file: {e}")))
}

/// Channels, and one conditioning a prompt.
fn read_side(
    file: &SafeTensors<'_>,
    path: &Path,
    prefix: &str,
) -> Result<(usize, Vec<Conditioning>)> {
    let (name, pooled_name) = (
        format!("{prefix}prompt_embeds"),
        format!("{prefix}pooled_prompt_embeds"),
    );
    let (shape, states) = values(file, path, &name)?;
    let (pooled_shape, pooled) = values(file, path, &pooled_name)?;
    let ([prompts, tokens, channels], [others, dim]) = (&shape[..], &pooled_shape[..]) else {
        return Err(Error::file(
            path,
            format!(
                "`{name}` must have three axes and `{pooled_name}` two, not {shape:?} and \
                 {pooled_shape:?}"
            ),
        ));
    };
    if prompts != others || [prompts, tokens, channels, dim].contains(&&0) {
        return Err(Error::file(
            path,
            format!(
                "`{name}` {shape:?} and `{pooled_name}` {pooled_shape:?} do not go together; they \
                 must be [prompts, tokens, channels] and [prompts, dim]"
            ),
        ));
    }
    let all = (states.chunks_exact(tokens * channels))
        .zip(pooled.chunks_exact(*dim))
        .map(|(context, pooled)| Conditioning {
            context: context.to_vec(),
            pooled: pooled.to_vec(),
        });
    Ok((*channels, all.collect()))
}

/// Shape and values of a tensor.
fn values(file: &SafeTensors<'_>, path: &Path, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
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
            let text = format!("`{name}` must be F32, F16 or BF16, not {other:?}");
            return Err(Error::file(path, text));
        }
    };
    if values.iter().any(|v| !v.is_finite()) {
        let text = format!("`{name}` has values that are not finite");
        return Err(Error::file(path, text));
    }
    Ok((tensor.shape().to_vec(), values))
}

/// The bytes of a file with `prompts` of one length as its positive side, `f32`.
///
/// # Errors
/// None that the arguments can cause.
pub fn to_bytes(prompts: &[&Conditioning], channels: usize) -> Result<Vec<u8>> {
    let failed = |e| Error::machine(format!("the encoded prompt cannot be written: {e}"));
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
    fn a_file_reads_back_and_what_does_not_fit_is_refused() {
        let path = Path::new("a.safetensors");
        let both = [conditioning(1.0), conditioning(2.0)];
        let bytes = to_bytes(&[&both[0], &both[1]], 4).unwrap();
        let read = Embeds::read(&bytes, path).unwrap();
        assert_eq!(read.positive, both);
        assert!(read.negative.is_empty());
        read.check(4, 2).unwrap();
        for (channels, dim) in [(6, 2), (4, 3)] {
            let error = read.check(channels, dim).unwrap_err();
            assert!(error.to_string().contains("another kind"), "{error}");
        }

        let mut one = read.clone();
        one.positive.truncate(1);
        // A file's plain tensors serve as negatives, but not two for one.
        let error = one.read_negative(&bytes, path).unwrap_err();
        assert!(error.to_string().contains("2 negative prompts"), "{error}");
        let mut two = read.clone();
        two.read_negative(&bytes, path).unwrap();
        assert_eq!(two.negative, both);
        let narrow = to_bytes(&[&both[0]], 2).unwrap();
        let error = two.read_negative(&narrow, path).unwrap_err();
        assert!(error.to_string().contains("other sizes"), "{error}");

        let endless = to_bytes(&[&conditioning(f32::INFINITY)], 4).unwrap();
        let error = Embeds::read(&endless, path).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
        assert!(Embeds::read(&bytes[..bytes.len() - 1], path).is_err());
    }
}
