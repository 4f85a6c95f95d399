//! The three parts of a UNet: the way down, the middle and the way up. A network that shares the first
//! two, as a ControlNet does, reads and runs them by themselves.

use std::fmt::Arguments;

use crate::cancel::OrCancelled;
use crate::error::Result;
use crate::model::attention::{TextStates, Transformer2D};
use crate::model::config::{Level, Middle, UNetConfig};
use crate::model::resnet::{Downsample2D, ResnetBlock2D, ResnetSizes, Upsample2D};
use crate::ops;
use crate::profile::scope;
use crate::tensor::Tensor;
use crate::weights::Loader;

/// The inputs of every block besides the feature map.
pub(super) struct BlockInputs<'a> {
    /// The embedding of timestep, pooled text and size ids after its SiLU, `[B, 4·C]`.
    pub emb: Tensor,
    /// The texts, a row an image.
    pub texts: TextStates<'a>,
}

/// The sizes that the blocks of a network have in common.
#[derive(Clone, Copy)]
pub(super) struct BlockSizes<'a> {
    config: &'a UNetConfig,
}

impl<'a> BlockSizes<'a> {
    /// The sizes that a configuration says.
    pub(super) fn new(config: &'a UNetConfig) -> Self {
        BlockSizes { config }
    }

    /// Channels of the first convolution's output.
    pub(super) fn first(self) -> usize {
        self.config.block_out_channels[0]
    }

    /// Length of the timestep's embedding.
    pub(super) fn time(self) -> usize {
        4 * self.first()
    }

    fn resnet(self, from: &Loader<'_>, c_in: usize, c_out: usize) -> Result<ResnetBlock2D> {
        let sizes = ResnetSizes {
            c_in,
            c_out,
            time: Some(self.time()),
            groups: self.config.norm_num_groups,
            eps: self.config.norm_eps,
        };
        ResnetBlock2D::load(from, sizes)
    }

    fn transformer(self, from: &Loader<'_>, level: &Level, depth: usize) -> Result<Transformer2D> {
        Transformer2D::load(
            from,
            level.channels,
            level.heads,
            depth,
            self.config.cross_attention_dim,
            self.config.norm_num_groups,
        )
    }
}

/// Channels of the skip connections, in the order in which the way down makes them: the first
/// convolution's output, and those of every resnet and downsampler.
pub(super) fn skip_channels(levels: &[Level]) -> Vec<usize> {
    let mut channels = vec![levels[0].channels];
    for (i, level) in levels.iter().enumerate() {
        let downsamplers = usize::from(i + 1 < levels.len());
        channels.extend(vec![level.channels; level.layers + downsamplers]);
    }
    channels
}

/// A resnet of a level with the attention after it, where the level has one.
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    /// Reads layer `j` of the block at `from`; `depth` counts the transformer blocks.
    fn load(
        from: &Loader<'_>,
        j: usize,
        c_in: usize,
        level: &Level,
        depth: Option<&usize>,
        sizes: BlockSizes<'_>,
    ) -> Result<Self> {
        let attention = |depth| sizes.transformer(&from.at("attentions").at(j), level, depth);
        Ok(Layer {
            resnet: sizes.resnet(&from.at("resnets").at(j), c_in, level.channels)?,
            attention: depth.copied().map(attention).transpose()?,
        })
    }

    /// Runs layer `j` of the block of that name.
    fn run(
        &self,
        x: Tensor,
        block: Arguments<'_>,
        j: usize,
        inputs: &BlockInputs<'_>,
    ) -> OrCancelled<Tensor> {
        let x = scope(format_args!("{block}.resnets.{j}"), || {
            self.resnet.forward(x, Some(&inputs.emb))
        })?;
        match &self.attention {
            Some(attention) => scope(format_args!("{block}.attentions.{j}"), || {
                attention.forward(&x, &inputs.texts)
            })?,
            None => Ok(x),
        }
    }
}

/// A level on the way down.
struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Downsample2D>,
}

/// The way down: level by level to smaller feature maps.
pub(super) struct DownPath {
    blocks: Vec<DownBlock>,
}

impl DownPath {
    /// Reads `down_blocks` at `from`.
    ///
    /// # Errors
    /// [`crate::Error::File`] for weights that are missing or have another shape; the same for the other
    /// parts.
    pub(super) fn load(from: &Loader<'_>, levels: &[Level], sizes: BlockSizes<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut c_in = sizes.first();
        for (i, level) in levels.iter().enumerate() {
            let here = from.at("down_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..level.layers {
                let depth = level.down_transformers.get(j);
                layers.push(Layer::load(&here, j, c_in, level, depth, sizes)?);
                c_in = level.channels;
            }
            let downsampler = (i + 1 < levels.len()).then(|| {
                Downsample2D::load(
                    &here.at("downsamplers.0"),
                    level.channels,
                    [sizes.config.downsample_padding; 4],
                )
            });
            blocks.push(DownBlock {
                layers,
                downsampler: downsampler.transpose()?,
            });
        }
        Ok(DownPath { blocks })
    }

    /// The attentions, in the order they run.
    pub(super) fn attentions(&self) -> impl Iterator<Item = &Transformer2D> {
        let layers = self.blocks.iter().flat_map(|block| &block.layers);
        layers.filter_map(|layer| layer.attention.as_ref())
    }

    /// Takes the first convolution's output to the smallest map, `[B, h, w, C]`, and gives the skip
    /// connections beside it, as [`skip_channels`] lists them. `observe` sees each block's output.
    ///
    /// # Errors
    /// [`crate::Cancelled`]; the same for the other parts.
    pub(super) fn run(
        &self,
        mut x: Tensor,
        inputs: &BlockInputs<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> OrCancelled<(Tensor, Vec<Tensor>)> {
        let mut skips = vec![x.clone()];
        for (i, block) in self.blocks.iter().enumerate() {
            for (j, layer) in block.layers.iter().enumerate() {
                x = layer.run(x, format_args!("down_blocks.{i}"), j, inputs)?;
                skips.push(x.clone());
            }
            if let Some(downsampler) = &block.downsampler {
                x = scope(format_args!("down_blocks.{i}.downsamplers.0"), || {
                    downsampler.forward(&x)
                })?;
                skips.push(x.clone());
            }
            observe(&format!("down_blocks.{i}"), &x);
        }
        Ok((x, skips))
    }
}

/// The middle: a resnet, and where there is attention that and a second resnet.
pub(super) struct MidBlock {
    first: ResnetBlock2D,
    attention: Option<(Transformer2D, ResnetBlock2D)>,
}

impl MidBlock {
    /// Reads `mid_block` at `from`, where a network of this middle has one; `level` is the last of the
    /// way down.
    pub(super) fn load(
        from: &Loader<'_>,
        middle: Middle,
        level: &Level,
        sizes: BlockSizes<'_>,
    ) -> Result<Option<Self>> {
        let here = from.at("mid_block");
        let resnet = |i: usize| {
            let at = here.at("resnets").at(i);
            sizes.resnet(&at, level.channels, level.channels)
        };
        Ok(match middle {
            Middle::Absent => None,
            Middle::Resnet => Some(MidBlock {
                first: resnet(0)?,
                attention: None,
            }),
            Middle::CrossAttention(depth) => Some(MidBlock {
                first: resnet(0)?,
                attention: Some((
                    sizes.transformer(&here.at("attentions.0"), level, depth)?,
                    resnet(1)?,
                )),
            }),
        })
    }

    /// The attention.
    pub(super) fn attentions(&self) -> impl Iterator<Item = &Transformer2D> {
        self.attention.iter().map(|(attention, _)| attention)
    }

    /// Takes the smallest map to one of the same shape.
    pub(super) fn run(
        &self,
        x: Tensor,
        inputs: &BlockInputs<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> OrCancelled<Tensor> {
        let mut x = scope("mid_block.resnets.0", || {
            self.first.forward(x, Some(&inputs.emb))
        })?;
        if let Some((attention, second)) = &self.attention {
            x = scope("mid_block.attentions.0", || {
                attention.forward(&x, &inputs.texts)
            })??;
            x = scope("mid_block.resnets.1", || {
                second.forward(x, Some(&inputs.emb))
            })?;
        }
        observe("mid_block", &x);
        Ok(x)
    }
}

/// A level on the way up; each resnet also sees a skip connection.
struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Upsample2D>,
}

/// The way up: level by level back to the size of the latents.
pub(super) struct UpPath {
    blocks: Vec<UpBlock>,
}

impl UpPath {
    /// Reads `up_blocks` at `from`.
    pub(super) fn load(from: &Loader<'_>, levels: &[Level], sizes: BlockSizes<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut skips = skip_channels(levels);
        let mut c_in = levels[levels.len() - 1].channels;
        for (i, level) in levels.iter().rev().enumerate() {
            let here = from.at("up_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..=level.layers {
                let skip = skips.pop().expect("one skip for each resnet");
                let depth = level.up_transformers.get(j);
                layers.push(Layer::load(&here, j, c_in + skip, level, depth, sizes)?);
                c_in = level.channels;
            }
            let upsampler = (i + 1 < levels.len())
                .then(|| Upsample2D::load(&here.at("upsamplers.0"), level.channels));
            blocks.push(UpBlock {
                layers,
                upsampler: upsampler.transpose()?,
            });
        }
        Ok(UpPath { blocks })
    }

    /// The attentions, in the order they run.
    pub(super) fn attentions(&self) -> impl Iterator<Item = &Transformer2D> {
        let layers = self.blocks.iter().flat_map(|block| &block.layers);
        layers.filter_map(|layer| layer.attention.as_ref())
    }

    /// Takes the middle's output and the skip connections to a map of the latents' size.
    ///
    /// # Panics
    /// If there are not as many skip connections as [`DownPath::run`] makes.
    pub(super) fn run(
        &self,
        mut x: Tensor,
        mut skips: Vec<Tensor>,
        inputs: &BlockInputs<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> OrCancelled<Tensor> {
        for (i, block) in self.blocks.iter().enumerate() {
            for (j, layer) in block.layers.iter().enumerate() {
                let skip = skips.pop().expect("one skip for each resnet");
                x = ops::cat_channels(&x, &skip);
                drop(skip);
                x = layer.run(x, format_args!("up_blocks.{i}"), j, inputs)?;
            }
            if let Some(upsampler) = &block.upsampler {
                // The size of the way down, not twice the size here: they differ where a side was
                // odd.
                let next = skips.last().expect("an upsampler is followed by a block");
                let (height, width) = (next.dim(1), next.dim(2));
                x = scope(format_args!("up_blocks.{i}.upsamplers.0"), || {
                    upsampler.forward(&x, height, width)
                })?;
            }
            observe(&format!("up_blocks.{i}"), &x);
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(channels: usize, layers: usize) -> Level {
        Level {
            channels,
            layers,
            heads: 1,
            down_transformers: Vec::new(),
            up_transformers: Vec::new(),
        }
    }

    #[test]
    fn every_resnet_on_the_way_up_has_a_skip() {
        let levels = [level(320, 2), level(640, 1), level(1280, 3)];
        let skips = skip_channels(&levels);
        let expected = [320, 320, 320, 320, 640, 640, 1280, 1280, 1280];
        assert_eq!(skips, expected);
        let resnets: usize = levels.iter().map(|level| level.layers + 1).sum();
        assert_eq!(skips.len(), resnets);
    }
}
