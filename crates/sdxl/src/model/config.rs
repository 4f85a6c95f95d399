//! The contents of the `config.json` files: the only source of architecture numbers.
//!
//! Keys and defaults are those of diffusers (`UNet2DConditionModel`,
//! `AutoencoderKL`) and transformers (`CLIPTextConfig`). Unknown keys are ignored;
//! keys that would change the computation in a way not implemented are refused.

use std::path::Path;

/// Pixels of a picture's side for one of its latents: the VAE halves the side three times.
/// [`VaeConfig::check`] refuses VAEs of another depth.
pub const VAE_FACTOR: usize = 8;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// A value given once for all levels, or level by level.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerLevel<T> {
    /// The same everywhere.
    All(T),
    /// One value a level, from the highest resolution down.
    Each(Vec<T>),
}

impl<T: Clone> PerLevel<T> {
    fn expand(&self, levels: usize, key: &str, path: &Path) -> Result<Vec<T>> {
        match self {
            PerLevel::All(value) => Ok(vec![value.clone(); levels]),
            PerLevel::Each(values) if values.len() == levels => Ok(values.clone()),
            PerLevel::Each(values) => Err(Error::file(
                path,
                format!(
                    "`{key}` has {} values for {levels} levels (block_out_channels)",
                    values.len()
                ),
            )),
        }
    }
}

fn unsupported(path: &Path, key: &str, value: impl std::fmt::Display) -> Error {
    Error::file(
        path,
        format!("`{key}` is {value}, which this program does not implement"),
    )
}

/// Every level's channels must fall into the group norms' groups.
fn check_groups(channels: &[usize], groups: usize, path: &Path) -> Result<()> {
    if groups > 0 && channels.iter().all(|c| *c > 0 && c.is_multiple_of(groups)) {
        return Ok(());
    }
    Err(Error::file(
        path,
        format!("block_out_channels {channels:?} cannot be split into norm_num_groups {groups}"),
    ))
}

/// `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ClipConfig {
    /// Number of tokens known.
    pub vocab_size: usize,
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Length of the pooled, projected vector.
    #[serde(default = "projection_dim")]
    pub projection_dim: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Longest token sequence.
    #[serde(default = "max_positions")]
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of the layer norms.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f32,
    /// The id of the token at which the pooled vector is taken: the value 2 of the published
    /// files is historical and means "at the largest token id".
    #[serde(default = "eos_token_id")]
    pub eos_token_id: u32,
}

fn projection_dim() -> usize {
    512
}
fn max_positions() -> usize {
    77
}
fn layer_norm_eps() -> f32 {
    1e-5
}
fn eos_token_id() -> u32 {
    49407
}

impl ClipConfig {
    /// Refuses values that cannot be computed with.
    pub fn check(&self, path: &Path) -> Result<()> {
        if !["quick_gelu", "gelu"].contains(&self.hidden_act.as_str()) {
            return Err(unsupported(path, "hidden_act", &self.hidden_act));
        }
        if self.num_attention_heads == 0
            || !self.hidden_size.is_multiple_of(self.num_attention_heads)
        {
            return Err(Error::file(
                path,
                format!(
                    "hidden_size {} cannot be split into num_attention_heads {}",
                    self.hidden_size, self.num_attention_heads
                ),
            ));
        }
        if self.num_hidden_layers < 2 {
            return Err(Error::file(
                path,
                "SDXL takes the last layer but one, so num_hidden_layers must be 2 or more",
            ));
        }
        Ok(())
    }
}

/// `unet/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct UNetConfig {
    /// Latent size the model was trained at (1/8 of the picture's).
    pub sample_size: Option<PerLevel<usize>>,
    /// Channels of the input.
    #[serde(default = "four")]
    pub in_channels: usize,
    /// Channels of the output.
    #[serde(default = "four")]
    pub out_channels: usize,
    /// Channels of every level.
    pub block_out_channels: Vec<usize>,
    /// Kind of every level on the way down.
    pub down_block_types: Vec<String>,
    /// Kind of the middle; null where there is none.
    #[serde(default = "mid_block_type")]
    pub mid_block_type: Option<String>,
    /// Kind of every level on the way up.
    pub up_block_types: Vec<String>,
    /// Resnets a level (on the way up one more).
    #[serde(default = "two_per_level")]
    pub layers_per_block: PerLevel<usize>,
    /// Transformer blocks in each attention; nested lists give it resnet by resnet.
    #[serde(default = "one_value")]
    transformer_layers_per_block: Value,
    /// The same for the way up, where it is not the mirror image.
    #[serde(default)]
    reverse_transformer_layers_per_block: Value,
    /// In published files, despite the name, the *number* of heads.
    #[serde(default = "eight_per_level")]
    attention_head_dim: PerLevel<usize>,
    #[serde(default)]
    num_attention_heads: Option<PerLevel<usize>>,
    /// Channels of the text states.
    pub cross_attention_dim: usize,
    /// Length of each size id's embedding.
    #[serde(default = "addition_time_embed_dim")]
    pub addition_time_embed_dim: usize,
    /// Pooled text and size ids together.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: usize,
    /// Groups of the group norms.
    #[serde(default = "norm_num_groups")]
    pub norm_num_groups: usize,
    /// Epsilon of the group norms.
    #[serde(default = "norm_eps")]
    pub norm_eps: f32,
    /// Whether the timestep embedding starts with cosines.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Offset in the exponent of the timestep embedding's frequencies.
    #[serde(default)]
    pub freq_shift: f32,
    /// Zeros around the strided convolutions on the way down.
    #[serde(default = "one")]
    pub downsample_padding: usize,
    #[serde(default)]
    addition_embed_type: Option<String>,
    /// Everything else, looked at only to refuse what would change the numbers.
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

fn one() -> usize {
    1
}
fn four() -> usize {
    4
}
fn yes() -> bool {
    true
}
fn two_per_level() -> PerLevel<usize> {
    PerLevel::All(2)
}
fn eight_per_level() -> PerLevel<usize> {
    PerLevel::All(8)
}
fn one_value() -> Value {
    Value::from(1)
}
fn mid_block_type() -> Option<String> {
    Some("UNetMidBlock2DCrossAttn".into())
}
fn addition_time_embed_dim() -> usize {
    256
}
fn norm_num_groups() -> usize {
    32
}
fn norm_eps() -> f32 {
    1e-5
}

/// One level of the UNet, with every default filled in.
#[derive(Debug, Clone)]
pub struct Level {
    /// Channels of the level's output.
    pub channels: usize,
    /// Resnets on the way down.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks after each resnet on the way down; empty without attention.
    pub down_transformers: Vec<usize>,
    /// Transformer blocks after each resnet on the way up (`layers + 1` of them);
    /// empty without attention.
    pub up_transformers: Vec<usize>,
}

/// The middle of the UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Middle {
    /// Resnet, attention with so many transformer blocks, resnet.
    CrossAttention(usize),
    /// A single resnet.
    Resnet,
    /// Nothing.
    Absent,
}

impl UNetConfig {
    /// Values that would change the computation and are not implemented, with the
    /// one value that is.
    const FIXED: [(&'static str, &'static str); 17] = [
        ("act_fn", "\"silu\""),
        ("attention_type", "\"default\""),
        ("center_input_sample", "false"),
        ("class_embed_type", "null"),
        ("class_embeddings_concat", "false"),
        ("conv_in_kernel", "3"),
        ("conv_out_kernel", "3"),
        ("dual_cross_attention", "false"),
        ("encoder_hid_dim_type", "null"),
        ("mid_block_only_cross_attention", "null"),
        ("mid_block_scale_factor", "1"),
        ("only_cross_attention", "false"),
        ("resnet_skip_time_act", "false"),
        ("resnet_time_scale_shift", "\"default\""),
        ("time_cond_proj_dim", "null"),
        ("time_embedding_act_fn", "null"),
        ("time_embedding_type", "\"positional\""),
    ];

    /// Refuses what is not implemented and lists that do not fit one another.
    pub fn check(&self, path: &Path) -> Result<()> {
        for (key, only) in Self::FIXED {
            let Some(value) = self.rest.get(key) else {
                continue;
            };
            let same = match (value, serde_json::from_str(only)) {
                (Value::Number(a), Ok(Value::Number(b))) => a.as_f64() == b.as_f64(),
                (a, Ok(b)) => *a == b,
                (_, Err(_)) => false,
            };
            if !same && !value.is_null() {
                return Err(unsupported(path, key, value));
            }
        }
        if self.addition_embed_type.as_deref() != Some("text_time") {
            return Err(Error::file(
                path,
                "`addition_embed_type` is not \"text_time\", so this UNet is not of the SDXL family",
            ));
        }
        check_groups(&self.block_out_channels, self.norm_num_groups, path)?;
        for level in self.levels(path)? {
            if level.heads == 0 || level.channels % level.heads != 0 {
                return Err(Error::file(
                    path,
                    format!(
                        "{} channels cannot be split into {} heads (attention_head_dim)",
                        level.channels, level.heads
                    ),
                ));
            }
        }
        self.middle(path)?;
        Ok(())
    }

    /// The levels, from the highest resolution down.
    pub fn levels(&self, path: &Path) -> Result<Vec<Level>> {
        let count = self.block_out_channels.len();
        if count == 0 || self.down_block_types.len() != count || self.up_block_types.len() != count
        {
            return Err(Error::file(
                path,
                "block_out_channels, down_block_types and up_block_types differ in length",
            ));
        }
        let heads = self
            .num_attention_heads
            .as_ref()
            .unwrap_or(&self.attention_head_dim)
            .expand(count, "attention_head_dim", path)?;
        let layers = self
            .layers_per_block
            .expand(count, "layers_per_block", path)?;
        let depths = |value: &Value, level: usize, resnets: usize, key: &str| {
            depths_of(value, level, count, resnets).ok_or_else(|| unsupported(path, key, value))
        };
        let key = "transformer_layers_per_block";
        let mut levels = Vec::new();
        for i in 0..count {
            let down_attention = attends(&self.down_block_types[i], "Down", path)?;
            let up_attention = attends(&self.up_block_types[count - 1 - i], "Up", path)?;
            let down = if down_attention {
                depths(&self.transformer_layers_per_block, i, layers[i], key)?
            } else {
                Vec::new()
            };
            // The way up is the mirror image, unless it has a list of its own,
            // which is ordered from the lowest resolution up.
            let up = if !up_attention {
                Vec::new()
            } else if self.reverse_transformer_layers_per_block.is_null() {
                let nested = self.transformer_layers_per_block.get(i);
                if nested.is_some_and(Value::is_array) {
                    return Err(Error::file(
                        path,
                        format!("with a nested `{key}`, `reverse_{key}` must be given"),
                    ));
                }
                depths(&self.transformer_layers_per_block, i, layers[i] + 1, key)?
            } else {
                depths(
                    &self.reverse_transformer_layers_per_block,
                    count - 1 - i,
                    layers[i] + 1,
                    "reverse_transformer_layers_per_block",
                )?
            };
            levels.push(Level {
                channels: self.block_out_channels[i],
                layers: layers[i],
                heads: heads[i],
                down_transformers: down,
                up_transformers: up,
            });
        }
        Ok(levels)
    }

    /// Gives the kind of the middle block, between the down blocks and the up blocks.
    pub fn middle(&self, path: &Path) -> Result<Middle> {
        match self.mid_block_type.as_deref() {
            None => Ok(Middle::Absent),
            Some("UNetMidBlock2D") => Ok(Middle::Resnet),
            Some("UNetMidBlock2DCrossAttn") => {
                let value = &self.transformer_layers_per_block;
                let last = match value {
                    Value::Array(list) => list.last().unwrap_or(&Value::Null),
                    single => single,
                };
                last.as_u64()
                    .map(|n| Middle::CrossAttention(n as usize))
                    .ok_or_else(|| unsupported(path, "transformer_layers_per_block", value))
            }
            Some(other) => Err(unsupported(path, "mid_block_type", other)),
        }
    }

    /// The picture's default height and width in latents, from `sample_size`.
    pub fn default_latent_size(&self) -> (usize, usize) {
        match &self.sample_size {
            Some(PerLevel::All(size)) => (*size, *size),
            Some(PerLevel::Each(sizes)) if sizes.len() == 2 => (sizes[0], sizes[1]),
            // What diffusers assumes.
            _ => (128, 128),
        }
    }

    /// Pixels of the pictures that the network was trained on.
    pub fn native_pixels(&self) -> usize {
        let (height, width) = self.default_latent_size();
        VAE_FACTOR * height * VAE_FACTOR * width
    }
}

/// The transformer depths after each of a level's `resnets`: from a number for all
/// levels, a list with a number a level, or a list with a list a level.
fn depths_of(value: &Value, level: usize, levels: usize, resnets: usize) -> Option<Vec<usize>> {
    let here = match value {
        Value::Array(list) if list.len() == levels => &list[level],
        Value::Array(_) => return None,
        single => single,
    };
    match here {
        Value::Array(list) => {
            let depths: Option<Vec<usize>> = list
                .iter()
                .map(|v| v.as_u64().map(|n| n as usize))
                .collect();
            depths.filter(|d| d.len() == resnets)
        }
        single => single.as_u64().map(|n| vec![n as usize; resnets]),
    }
}

fn attends(kind: &str, direction: &str, path: &Path) -> Result<bool> {
    match kind.strip_prefix("CrossAttn") {
        Some(rest) if rest == format!("{direction}Block2D") => Ok(true),
        None if kind == format!("{direction}Block2D") => Ok(false),
        _ => Err(unsupported(path, "block type", kind)),
    }
}

/// `vae/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VaeConfig {
    /// Channels of every level, from the picture's resolution down.
    pub block_out_channels: Vec<usize>,
    /// Resnets a level in the encoder (one more in the decoder).
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Channels of the latents.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Groups of the group norms.
    #[serde(default = "norm_num_groups")]
    pub norm_num_groups: usize,
    /// Latents for the UNet are the VAE's times this.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f32,
    /// Whether the decoder breaks in 16-bit precision and must run in `f32`.
    #[serde(default = "yes")]
    pub force_upcast: bool,
    /// Picture size the VAE was trained at; tiles have this size.
    #[serde(default)]
    pub sample_size: Option<usize>,
    /// Mean of each latent channel, in newer finetunes.
    #[serde(default)]
    pub latents_mean: Option<Vec<f32>>,
    /// Standard deviation of each latent channel.
    #[serde(default)]
    pub latents_std: Option<Vec<f32>>,
    /// Whether there is a 1x1 convolution after the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether there is a 1x1 convolution before the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle has an attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    #[serde(default)]
    act_fn: Option<String>,
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
}

fn three() -> usize {
    3
}
fn scaling_factor() -> f32 {
    0.18215
}

impl VaeConfig {
    /// A value of `channel` of the UNet's latents, in the scale of the VAE.
    pub fn unscaled(&self, value: f32, channel: usize) -> f32 {
        match (&self.latents_mean, &self.latents_std) {
            (Some(mean), Some(std)) => value * std[channel] / self.scaling_factor + mean[channel],
            _ => value / self.scaling_factor,
        }
    }

    /// Refuses what is not implemented.
    pub fn check(&self, path: &Path) -> Result<()> {
        if let Some(act) = &self.act_fn
            && act != "silu"
        {
            return Err(unsupported(path, "act_fn", act));
        }
        for kind in &self.down_block_types {
            if kind != "DownEncoderBlock2D" {
                return Err(unsupported(path, "down_block_types", kind));
            }
        }
        for kind in &self.up_block_types {
            if kind != "UpDecoderBlock2D" {
                return Err(unsupported(path, "up_block_types", kind));
            }
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            return Err(unsupported(path, "in_channels", self.in_channels));
        }
        if self.block_out_channels.len() != 4 {
            return Err(Error::file(
                path,
                format!(
                    "block_out_channels has {} levels; SDXL's VAE has 4 (latents are 1/8 of the \
                     picture)",
                    self.block_out_channels.len()
                ),
            ));
        }
        check_groups(&self.block_out_channels, self.norm_num_groups, path)?;
        for (key, list) in [
            ("latents_mean", &self.latents_mean),
            ("latents_std", &self.latents_std),
        ] {
            if list
                .as_ref()
                .is_some_and(|l| l.len() != self.latent_channels)
            {
                return Err(Error::file(
                    path,
                    format!("`{key}` must have {} values", self.latent_channels),
                ));
            }
        }
        Ok(())
    }
}
