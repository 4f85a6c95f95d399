//! The configuration files of a checkpoint that has none, from the shapes of its tensors.
//!
//! Single files hold tensors only. Sizes and depths can be read off them; what cannot
//! (head size 64, 32 groups, epsilons) is the same in every published SDXL model.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Shape of a tensor by its original name.
pub(super) type Shapes<'a> = &'a dyn Fn(&str) -> Option<Vec<usize>>;

/// Channels of each attention head in all SDXL models.
const HEAD: usize = 64;

/// `unet/config.json`; names without `model.diffusion_model.`.
///
/// # Errors
/// Names the tensor that is missing or that no network of the family has.
pub(super) fn unet(shapes: Shapes<'_>, path: &Path) -> Result<Value> {
    let dim = |name: &str, axis: usize| -> Result<usize> {
        let shape = shapes(name);
        shape.and_then(|s| s.get(axis).copied()).ok_or_else(|| {
            let text = format!("tensor `{name}` is missing or has no axis {axis}: no SDXL UNet");
            Error::file(path, text)
        })
    };
    let exists = |name: &str| shapes(name).is_some();
    let depth = |at: &str| -> usize {
        let here = |n: &usize| exists(&format!("{at}.transformer_blocks.{n}.norm1.weight"));
        (0..).take_while(here).count()
    };
    let first = dim("input_blocks.0.0.weight", 0)?;

    // Level by level: channels, and the depth of the attention after each resnet.
    let mut down: Vec<(usize, Vec<usize>)> = vec![(first, Vec::new())];
    for block in 1.. {
        let at = format!("input_blocks.{block}");
        if exists(&format!("{at}.0.op.weight")) {
            down.push((0, Vec::new()));
        } else if exists(&format!("{at}.0.in_layers.2.weight")) {
            let last = down.len() - 1;
            down[last].0 = dim(&format!("{at}.0.in_layers.2.weight"), 0)?;
            down[last].1.push(depth(&format!("{at}.1")));
        } else {
            break;
        }
    }
    let levels = down.len();
    let layers: Vec<usize> = down.iter().map(|(_, depths)| depths.len()).collect();
    if layers.contains(&0) {
        return Err(Error::file(
            path,
            "its UNet has a level without layers: it is incomplete, or no SDXL UNet",
        ));
    }
    // The same for the way up, lowest level first, with one layer more each.
    let mut block = 0;
    let up: Vec<Vec<usize>> = (layers.iter().rev())
        .map(|layers| {
            let depths = (block..=block + layers).map(|b| depth(&format!("output_blocks.{b}.1")));
            let depths = depths.collect();
            block += layers + 1;
            depths
        })
        .collect();

    let attends = |depths: &[usize]| depths.iter().any(|d| *d > 0);
    let uniform = |depths: &[usize]| depths.iter().all(|d| *d == depths[0]);
    // What a level without attention is said to have does not matter; 1, as published.
    let entry = |depths: &[usize]| -> Value {
        if uniform(depths) {
            Value::from(depths[0].max(1))
        } else {
            Value::from(depths.to_vec())
        }
    };
    let mirrored = (down.iter().zip(up.iter().rev()))
        .all(|((_, down), up)| uniform(down) && uniform(up) && down[0] == up[0]);
    let attending: Vec<usize> = (down.iter())
        .filter(|(_, depths)| attends(depths))
        .map(|(_, depths)| depths[0])
        .collect();
    let transformers: Value = if mirrored && !attending.is_empty() && uniform(&attending) {
        Value::from(attending[0])
    } else {
        down.iter().map(|(_, depths)| entry(depths)).collect()
    };

    let channels: Vec<usize> = down.iter().map(|(channels, _)| *channels).collect();
    if let Some(odd) = channels.iter().find(|c| *c % HEAD != 0) {
        return Err(Error::file(
            path,
            format!(
                "its UNet has {odd} channels at one level, which heads of {HEAD} do not divide: no \
                 published SDXL model, and the file does not say how it is to be read"
            ),
        ));
    }
    let kind = |depths: &[usize], direction: &str| {
        let cross = if attends(depths) { "CrossAttn" } else { "" };
        format!("{cross}{direction}Block2D")
    };
    let context = (1..)
        .take(64)
        .find_map(|block| {
            let name = format!("input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight");
            shapes(&name)?.get(1).copied()
        })
        .ok_or_else(|| Error::file(path, "its UNet never looks at the text: no SDXL UNet"))?;
    let middle = if depth("middle_block.1") > 0 {
        Value::from("UNetMidBlock2DCrossAttn")
    } else if exists("middle_block.0.in_layers.2.weight") {
        Value::from("UNetMidBlock2D")
    } else {
        Value::Null
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": channels.iter().map(|c| c / HEAD).collect::<Vec<_>>(),
        "block_out_channels": channels,
        "cross_attention_dim": context,
        "down_block_types": down.iter().map(|(_, d)| kind(d, "Down")).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": dim("input_blocks.0.0.weight", 1)?,
        "layers_per_block": if uniform(&layers) { Value::from(layers[0]) } else { layers.into() },
        "mid_block_type": middle,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": dim("out.2.weight", 0)?,
        "projection_class_embeddings_input_dim": dim("label_emb.0.0.weight", 1)?,
        "sample_size": 128,
        "transformer_layers_per_block": transformers,
        "up_block_types": up.iter().map(|d| kind(d, "Up")).collect::<Vec<_>>(),
        "use_linear_projection": true,
    });
    if !mirrored {
        config["reverse_transformer_layers_per_block"] = up.iter().map(|d| entry(d)).collect();
    }
    debug_assert_eq!(levels, up.len());
    Ok(config)
}

/// `vae/config.json`; names without `first_stage_model.`.
///
/// # Errors
/// Names the tensor that is missing.
pub(super) fn vae(shapes: Shapes<'_>, path: &Path) -> Result<Value> {
    let missing = |name: &str| {
        Error::file(
            path,
            format!("tensor `{name}` is missing: the VAE is incomplete, or of another kind"),
        )
    };
    let mut channels = Vec::new();
    loop {
        let name = format!("encoder.down.{}.block.0.conv1.weight", channels.len());
        let Some(shape) = shapes(&name) else { break };
        channels.push(*shape.first().ok_or_else(|| missing(&name))?);
    }
    if channels.is_empty() {
        return Err(missing("encoder.down.0.block.0.conv1.weight"));
    }
    let here = |n: &usize| shapes(&format!("encoder.down.0.block.{n}.conv1.weight")).is_some();
    let layers = (0..).take_while(here).count();
    let name = "decoder.conv_in.weight";
    let latents = shapes(name).and_then(|s| s.get(1).copied());
    let levels = channels.len();
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": true,
        "in_channels": 3,
        "latent_channels": latents.ok_or_else(|| missing(name))?,
        "layers_per_block": layers,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
    }))
}

/// `text_encoder/config.json`; names as in the folder.
///
/// # Errors
/// Names the tensor that is missing.
pub(super) fn text_encoder(shapes: Shapes<'_>, path: &Path) -> Result<Value> {
    clip(shapes, path, "quick_gelu", None)
}

/// `text_encoder_2/config.json`; names as in the folder.
///
/// # Errors
/// Names the tensor that is missing.
pub(super) fn text_encoder_2(shapes: Shapes<'_>, path: &Path) -> Result<Value> {
    let projection = shapes("text_projection.weight").and_then(|s| s.first().copied());
    if projection.is_none() {
        return Err(Error::file(
            path,
            "the second text encoder has no text_projection: it is not that of SDXL",
        ));
    }
    clip(shapes, path, "gelu", projection)
}

fn clip(
    shapes: Shapes<'_>,
    path: &Path,
    activation: &str,
    projection: Option<usize>,
) -> Result<Value> {
    let dim = |name: &str, axis: usize| -> Result<usize> {
        let shape = shapes(name);
        shape.and_then(|s| s.get(axis).copied()).ok_or_else(|| {
            let text = format!("tensor `{name}` of a text encoder is missing");
            Error::file(path, text)
        })
    };
    let tokens = "text_model.embeddings.token_embedding.weight";
    let layer = |n: usize, name: &str| format!("text_model.encoder.layers.{n}.{name}");
    let here = |n: &usize| shapes(&layer(*n, "layer_norm1.weight")).is_some();
    let width = dim(tokens, 1)?;
    if width % HEAD != 0 {
        return Err(Error::file(
            path,
            format!(
                "a text encoder is {width} wide, which heads of {HEAD} do not divide: no published \
                 SDXL model, and the file does not say how it is to be read"
            ),
        ));
    }
    let class = match projection {
        Some(_) => "CLIPTextModelWithProjection",
        None => "CLIPTextModel",
    };
    Ok(json!({
        "architectures": [class],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": dim(&layer(0, "mlp.fc1.weight"), 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": dim("text_model.embeddings.position_embedding.weight", 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": width / HEAD,
        "num_hidden_layers": (0..).take_while(here).count(),
        "pad_token_id": 1,
        "projection_dim": projection.unwrap_or(width),
        "vocab_size": dim(tokens, 0)?,
    }))
}

/// `model_index.json` of the published base model, or of the refiner.
pub(super) fn model_index(refiner: bool) -> Map<String, Value> {
    let clip = |class: &str| json!(["transformers", class]);
    let none = json!([null, null]);
    let mut index = json!({
        "_class_name": if refiner {
            "StableDiffusionXLImg2ImgPipeline"
        } else {
            "StableDiffusionXLPipeline"
        },
        "force_zeros_for_empty_prompt": !refiner,
        "add_watermarker": null,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": if refiner { none.clone() } else { clip("CLIPTextModel") },
        "text_encoder_2": clip("CLIPTextModelWithProjection"),
        "tokenizer": if refiner { none } else { clip("CLIPTokenizer") },
        "tokenizer_2": clip("CLIPTokenizer"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    if refiner {
        index["requires_aesthetics_score"] = true.into();
    }
    object(index)
}

/// `scheduler_config.json` of the published models, changed for networks that predict v and
/// for those trained down to a signal-to-noise ratio of zero (Lin et al. 2024).
pub(super) fn scheduler(v_prediction: bool, zero_snr: bool) -> Map<String, Value> {
    let mut config = json!({
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": if v_prediction { "v_prediction" } else { "epsilon" },
        "sample_max_value": 1.0,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
        "use_karras_sigmas": false,
    });
    if zero_snr {
        config["rescale_betas_zero_snr"] = true.into();
        config["timestep_spacing"] = "trailing".into();
    }
    object(config)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::files::read_json;
    use crate::model::config::UNetConfig;
    use crate::weights::TensorSet;
    use crate::weights::names::Names;

    /// Distilled UNets have other depths on the way up, and middles of their own.
    #[test]
    fn layers_of_distilled_networks() {
        for name in ["ssd-1b", "vega", "no-mid", "cross-mid"] {
            let root = sdxl_testing::golden("unets").join(name);
            let path = root.join("config.json");
            let wanted: UNetConfig = read_json(&path).unwrap();
            let names = Names::unet(&wanted, &path).unwrap();
            let weights = root.join("diffusion_pytorch_model.safetensors");
            let set = TensorSet::open(&[weights]).unwrap();
            // As wide as heads of 64 channels need it.
            let shapes: HashMap<String, Vec<usize>> = (set.iter())
                .map(|(name, tensor)| {
                    let shape = tensor.shape().iter().map(|n| n * HEAD).collect();
                    (names.to_original(name).unwrap(), shape)
                })
                .collect();
            let told = unet(&|name| shapes.get(name).cloned(), &path).unwrap();
            let told: UNetConfig = serde_json::from_value(told).unwrap();
            let depths = |config: &UNetConfig| -> Vec<_> {
                let levels = config.levels(&path).unwrap();
                let each = levels.into_iter();
                each.map(|l| (l.layers, l.down_transformers, l.up_transformers))
                    .collect()
            };
            assert_eq!(depths(&told), depths(&wanted), "{name}");
            assert_eq!(
                told.middle(&path).unwrap(),
                wanted.middle(&path).unwrap(),
                "{name}"
            );
        }
    }

    #[test]
    fn networks_of_odd_widths_are_refused() {
        let shapes = |name: &str| match name {
            "input_blocks.0.0.weight" => Some(vec![100, 4, 3, 3]),
            "input_blocks.1.0.in_layers.2.weight" => Some(vec![100, 100, 3, 3]),
            _ => None,
        };
        let error = unet(&shapes, Path::new("file")).err().unwrap().to_string();
        assert!(error.contains("100 channels"), "{error}");
        let error = unet(&|_| None, Path::new("file"))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("input_blocks.0.0.weight"), "{error}");
    }
}
