//! The two sets of names that SDXL's weights go by: those of the original implementation
//! (`input_blocks.4.1`, in single files and in some LoRAs) and those of diffusers
//! (`down_blocks.1.attentions.0`, in folders), which all other code here uses.
//!
//! A table of modules, made for the sizes at hand, is read in either direction. What
//! stands behind a module's name (`.transformer_blocks.0.attn1.to_q.weight`) is the same
//! in both. Source: the layer order of `sgm.modules.diffusionmodules.openaimodel` and
//! `model`, and of `open_clip.transformer`.

use std::collections::HashMap;
use std::path::Path;

use crate::error::Result;
use crate::model::config::{Middle, UNetConfig, VaeConfig};

/// Modules by both of their names.
pub(super) struct Names {
    to_folder: HashMap<String, String>,
    to_original: HashMap<String, String>,
}

impl Names {
    fn new(pairs: Vec<(String, String)>) -> Names {
        Names {
            to_folder: pairs.iter().cloned().collect(),
            to_original: pairs.into_iter().map(|(a, b)| (b, a)).collect(),
        }
    }

    /// The name in a folder of a tensor or module of the original implementation.
    pub(super) fn to_folder(&self, original: &str) -> Option<String> {
        translate(&self.to_folder, original)
    }

    /// The name in the original implementation of a folder's tensor or module.
    pub(super) fn to_original(&self, name: &str) -> Option<String> {
        translate(&self.to_original, name)
    }

    /// All modules, with their original names first.
    pub(super) fn modules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.to_folder.iter().map(|(a, b)| (a.as_str(), b.as_str()))
    }

    /// The UNet's, without `model.diffusion_model.`.
    pub(super) fn unet(config: &UNetConfig, path: &Path) -> Result<Names> {
        let levels = config.levels(path)?;
        let mut pairs = Vec::new();
        for (original, name) in [
            ("time_embed.0", "time_embedding.linear_1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("label_emb.0.0", "add_embedding.linear_1"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("input_blocks.0.0", "conv_in"),
            ("out.0", "conv_norm_out"),
            ("out.2", "conv_out"),
        ] {
            pairs.push((original.to_string(), name.to_string()));
        }
        let resnet = |original: String, name: String, pairs: &mut Vec<_>| {
            for (a, b) in [
                ("in_layers.0", "norm1"),
                ("in_layers.2", "conv1"),
                ("emb_layers.1", "time_emb_proj"),
                ("out_layers.0", "norm2"),
                ("out_layers.3", "conv2"),
                ("skip_connection", "conv_shortcut"),
            ] {
                pairs.push((format!("{original}.{a}"), format!("{name}.{b}")));
            }
        };
        let mut block = 1;
        for (i, level) in levels.iter().enumerate() {
            let down = format!("down_blocks.{i}");
            for j in 0..level.layers {
                let at = format!("input_blocks.{block}");
                resnet(format!("{at}.0"), format!("{down}.resnets.{j}"), &mut pairs);
                if !level.down_transformers.is_empty() {
                    pairs.push((format!("{at}.1"), format!("{down}.attentions.{j}")));
                }
                block += 1;
            }
            if i + 1 < levels.len() {
                pairs.push((
                    format!("input_blocks.{block}.0.op"),
                    format!("{down}.downsamplers.0.conv"),
                ));
                block += 1;
            }
        }
        let middle = config.middle(path)?;
        let at_middle = |index: usize, resnets: usize, pairs: &mut Vec<_>| {
            resnet(
                format!("middle_block.{index}"),
                format!("mid_block.resnets.{resnets}"),
                pairs,
            );
        };
        if middle != Middle::Absent {
            at_middle(0, 0, &mut pairs);
        }
        if let Middle::CrossAttention(_) = middle {
            pairs.push(("middle_block.1".into(), "mid_block.attentions.0".into()));
            at_middle(2, 1, &mut pairs);
        }
        let mut block = 0;
        for (i, level) in levels.iter().rev().enumerate() {
            let up = format!("up_blocks.{i}");
            let attends = !level.up_transformers.is_empty();
            for j in 0..=level.layers {
                let at = format!("output_blocks.{block}");
                resnet(format!("{at}.0"), format!("{up}.resnets.{j}"), &mut pairs);
                if attends {
                    pairs.push((format!("{at}.1"), format!("{up}.attentions.{j}")));
                }
                if j == level.layers && i + 1 < levels.len() {
                    pairs.push((
                        format!("{at}.{}.conv", if attends { 2 } else { 1 }),
                        format!("{up}.upsamplers.0.conv"),
                    ));
                }
                block += 1;
            }
        }
        Ok(Names::new(pairs))
    }

    /// The VAE's, without `first_stage_model.`. The original counts the decoder's levels
    /// from the picture's resolution down, a folder in the order in which they run.
    pub(super) fn vae(config: &VaeConfig) -> Names {
        let levels = config.block_out_channels.len();
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut pair = |a: String, b: String| pairs.push((a, b));
        for name in ["quant_conv", "post_quant_conv"] {
            pair(name.into(), name.into());
        }
        for half in ["encoder", "decoder"] {
            for name in ["conv_in", "conv_out"] {
                pair(format!("{half}.{name}"), format!("{half}.{name}"));
            }
            pair(format!("{half}.norm_out"), format!("{half}.conv_norm_out"));
            for i in 0..2 {
                pair(
                    format!("{half}.mid.block_{}", i + 1),
                    format!("{half}.mid_block.resnets.{i}"),
                );
            }
            for (a, b) in [
                ("norm", "group_norm"),
                ("q", "to_q"),
                ("k", "to_k"),
                ("v", "to_v"),
                ("proj_out", "to_out.0"),
            ] {
                pair(
                    format!("{half}.mid.attn_1.{a}"),
                    format!("{half}.mid_block.attentions.0.{b}"),
                );
            }
            let (original, name, layers) = match half {
                "encoder" => ("down", "down", config.layers_per_block),
                _ => ("up", "up", config.layers_per_block + 1),
            };
            for i in 0..levels {
                let counted = if half == "encoder" { i } else { levels - 1 - i };
                let at = format!("{half}.{original}.{counted}");
                let to = format!("{half}.{name}_blocks.{i}");
                for j in 0..layers {
                    let (at, to) = (format!("{at}.block.{j}"), format!("{to}.resnets.{j}"));
                    pair(format!("{at}.nin_shortcut"), format!("{to}.conv_shortcut"));
                    pair(at, to);
                }
                pair(
                    format!("{at}.{original}sample"),
                    format!("{to}.{name}samplers.0"),
                );
            }
        }
        Names::new(pairs)
    }

    /// OpenCLIP's text transformer of so many layers, without `model.`; queries, keys and
    /// values, which it keeps in one tensor, are not in the table.
    pub(super) fn open_clip(layers: usize) -> Names {
        let pair = |(a, b): (&str, &str)| (a.to_string(), b.to_string());
        let mut pairs: Vec<(String, String)> = [
            (
                "positional_embedding",
                "text_model.embeddings.position_embedding.weight",
            ),
            ("token_embedding", "text_model.embeddings.token_embedding"),
            ("ln_final", "text_model.final_layer_norm"),
            ("text_projection", "text_projection.weight"),
        ]
        .map(pair)
        .into();
        for i in 0..layers {
            for (a, b) in [
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("attn.out_proj", "self_attn.out_proj"),
            ] {
                pairs.push((
                    format!("transformer.resblocks.{i}.{a}"),
                    format!("text_model.encoder.layers.{i}.{b}"),
                ));
            }
        }
        Names::new(pairs)
    }
}

/// Replaces the longest start of `name` that is a module of the table.
fn translate(table: &HashMap<String, String>, name: &str) -> Option<String> {
    let mut end = name.len();
    loop {
        if let Some(module) = table.get(&name[..end]) {
            return Some(format!("{module}{}", &name[end..]));
        }
        end = name[..end].rfind('.')?;
    }
}
