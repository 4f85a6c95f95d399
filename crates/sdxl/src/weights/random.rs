//! SDXL base 1.0 without its weights: random ones of the same shapes, for benchmarks.
//!
//! Values are made when a layer asks for them and dropped when it is packed, as those of a file
//! are, so a run takes the memory of a real one. A tensor's values depend on its name alone,
//! and are numbers of bf16, so that every precision starts from the same ones.

use half::bf16;
use serde_json::{Map, Value, json};

use super::infer;
use crate::noise::roughly_normal;
use crate::weights::Part;
use crate::weights::part::config_key;

/// The name that errors give in the place of a file's path.
pub const NAME: &str = "random weights";

/// The configuration files of SDXL base 1.0, by their paths in its folder.
pub fn base_configs() -> Map<String, Value> {
    let clip = |hidden: usize, layers: usize, projection: usize, act: &str| {
        json!({
            "eos_token_id": 2,
            "hidden_act": act,
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "num_attention_heads": hidden / 64,
            "num_hidden_layers": layers,
            "projection_dim": projection,
            "vocab_size": 49408,
        })
    };
    let unet = json!({
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": true,
    });
    let vae = json!({
        "block_out_channels": [128, 256, 512, 512],
        "force_upcast": true,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    });
    let files = [
        ("model_index.json".into(), infer::model_index(false).into()),
        (
            "scheduler/scheduler_config.json".into(),
            infer::scheduler(false, false).into(),
        ),
        (
            config_key(Part::TextEncoder),
            clip(768, 12, 768, "quick_gelu"),
        ),
        (config_key(Part::TextEncoder2), clip(1280, 32, 1280, "gelu")),
        (config_key(Part::UNet), unet),
        (config_key(Part::Vae), vae),
    ];
    files.into_iter().collect()
}

/// Whether a tensor asked for by this name is there: all are, but for the biases that SDXL's
/// layers do not have and the names of other exports.
pub fn exists(name: &str) -> bool {
    let unbiased = ["attn1.to_", "attn2.to_", "text_projection."]
        .iter()
        .any(|layer| name.contains(layer))
        && !name.contains("to_out");
    let other_names = name.starts_with("embeddings.") || name.contains(".query.");
    !(other_names || unbiased && name.ends_with(".bias"))
}

/// The values of the tensor `name`: matrices and kernels scaled so that layers keep the size
/// of what goes through them, scales about 1, biases about 0.
pub fn values(name: &str, shape: &[usize]) -> Vec<bf16> {
    let inputs: usize = shape.iter().skip(1).product();
    let (mean, deviation) = match shape.len() {
        1 if name.ends_with(".weight") => (1.0, 0.1),
        1 => (0.0, 0.05),
        _ if name.contains("embedding.") => (0.0, 0.05),
        _ => (0.0, 0.8 / (inputs as f32).sqrt()),
    };
    // FNV-1a.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut values = vec![bf16::ZERO; shape.iter().product()];
    roughly_normal(seed, &mut values, |z| bf16::from_f32(mean + deviation * z));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_the_name_alone() {
        let name = "mid_block.resnets.0.conv1.weight";
        let long = values(name, &[64, 8, 3, 3]);
        assert_eq!(long, values(name, &[64, 8, 3, 3]));
        assert_ne!(
            long,
            values("mid_block.resnets.1.conv1.weight", &[64, 8, 3, 3])
        );
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(long, pool.install(|| values(name, &[64, 8, 3, 3])));
    }

    #[test]
    fn what_sdxl_has_not_is_not_made_up() {
        for absent in [
            "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.bias",
            "text_projection.bias",
            "embeddings.token_embedding.weight",
            "decoder.mid_block.attentions.0.query.weight",
        ] {
            assert!(!exists(absent), "{absent}");
        }
        for there in [
            "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
            "decoder.mid_block.attentions.0.to_q.bias",
            "text_model.embeddings.token_embedding.weight",
            "text_projection.weight",
        ] {
            assert!(exists(there), "{there}");
        }
    }
}
