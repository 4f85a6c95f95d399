use std::collections::BTreeSet;

use sdxl_testing::golden;
use serde_json::json;

use super::*;
use crate::image::Pixels;
use crate::pipeline::Pipeline;
use crate::precision::Precision;
use crate::text::Conditioning;
use crate::text::embeds_file::Embeds;

/// Fields that are never said, and why.
const NEVER: [(&str, &str); 28] = [
    ("prompt", "it is what is made"),
    ("prompt_embeds", "it is what is made"),
    ("seed", "it names pictures, and is in their recipes"),
    ("rng", "it says what seeds are for"),
    ("steps", "another number than that of a list is refused"),
    ("width", "it is the picture's"),
    ("height", "it is the picture's"),
    ("aspect", "it is refused beside a width or a height"),
    ("guidance_schedule", "it decides whether there is guidance"),
    ("num_images", "it is done"),
    ("original_size", "every network is conditioned on it"),
    (
        "crops_coords_top_left",
        "every network is conditioned on it",
    ),
    ("scheduler", "it is taken"),
    (
        "scheduler_options",
        "those that a scheduler has not are refused",
    ),
    ("timesteps", "they are visited"),
    ("sigmas", "they are visited"),
    ("denoising_end", "it is where the run ends, or hands over"),
    ("denoising_start", "it is refused without a start"),
    ("denoising_fraction", "it is refused without a refiner"),
    ("refiner_strength", "it is refused without a refiner"),
    ("strength", "it is refused without a picture or latents"),
    ("mask_crop_padding", "it is refused without a mask"),
    ("keep_unmasked", "it is refused without a mask"),
    ("extend", "it is refused without a picture"),
    ("upscale", "it is done"),
    (
        "vae_tiling",
        "pictures smaller than a tile are whole anyway",
    ),
    ("vae_slicing", "one picture is decoded in one anyway"),
    ("watermark", "small pictures are without one anyway"),
];

#[test]
fn every_field_is_decided_about() {
    let ruled: BTreeSet<&str> = RULES
        .iter()
        .flat_map(|r| r.fields.iter().copied())
        .collect();
    let never: BTreeSet<&str> = NEVER.iter().map(|(field, _)| *field).collect();
    for field in Request::fields() {
        assert!(
            ruled.contains(field) != never.contains(field),
            "{field}: either it may be without an effect, and a rule says when, or it says here why \
             not"
        );
    }
    let known = |field: &&str| Request::fields().contains(field);
    assert!(ruled.iter().chain(&never).all(known));
}

/// The pipelines that a case may be about.
struct Pipelines {
    base: Pipeline,
    refined: Pipeline,
    refiner: Pipeline,
    /// The base, whose empty negative prompt is a text.
    texts: Pipeline,
}

impl Pipelines {
    fn open() -> Pipelines {
        let checkpoint = |name: &str| Checkpoint::open(&golden(name), None).unwrap();
        let lazy = |checkpoint| {
            let opening = Pipeline::open(checkpoint).precision(Precision::F32);
            opening.lazy().unwrap()
        };
        let refined = Pipeline::open(checkpoint("base")).refiner(checkpoint("refiner"));
        let mut texts = checkpoint("base");
        texts.force_zeros_for_empty_prompt = false;
        let mut base = checkpoint("base");
        base.force_zeros_for_empty_prompt = true;
        Pipelines {
            base: lazy(base),
            refined: refined.precision(Precision::F32).lazy().unwrap(),
            refiner: lazy(checkpoint("refiner")),
            texts: lazy(texts),
        }
    }

    fn of(&self, name: &str) -> &Pipeline {
        match name {
            "base" => &self.base,
            "refined" => &self.refined,
            "refiner" => &self.refiner,
            "texts" => &self.texts,
            other => panic!("{other}"),
        }
    }

    /// Inputs by their names, with spaces between them.
    fn inputs(&self, names: &str) -> Inputs {
        let mut inputs = Inputs::default();
        let unet = &self.base.checkpoint.unet;
        let conditioning = Conditioning {
            context: vec![0.5; 77 * unet.cross_attention_dim],
            pooled: vec![0.5; self.base.checkpoint.text_encoder_2.projection_dim],
        };
        for name in names.split_whitespace() {
            match name {
                "picture" => {
                    inputs.init_image = Some(Pixels::new(64, 64, 3, vec![99; 64 * 64 * 3]));
                }
                "mask" => {
                    let half = [vec![255; 32 * 64], vec![0; 32 * 64]].concat();
                    inputs.mask = Some(Pixels::new(64, 64, 1, half));
                }
                "embeds" | "both_embeds" => {
                    inputs.embeds = Some(Embeds {
                        channels: unet.cross_attention_dim,
                        positive: vec![conditioning.clone()],
                        negative: match name {
                            "embeds" => Vec::new(),
                            _ => vec![conditioning.clone()],
                        },
                    });
                }
                other => panic!("{other}"),
            }
        }
        inputs
    }

    /// The warnings of fields without an effect.
    fn said(&self, pipeline: &str, inputs: &str, request: Value) -> Vec<Warning> {
        let mut request = request;
        let inputs = self.inputs(inputs);
        if inputs.embeds.is_none() {
            let fields = request.as_object_mut().unwrap();
            fields.entry("prompt").or_insert(json!(["a cat"]));
        } else {
            request["prompt_embeds"] = json!("embeds.safetensors");
        }
        request["seed"] = json!([1]);
        let asked = Request::from_json(&request).unwrap();
        let run = self.of(pipeline).prepare(&asked, inputs);
        let run = run.unwrap_or_else(|error| panic!("{request}: {error}"));
        let warnings = run.warnings().iter().cloned();
        warnings
            .filter(|warning| warning.kind == WarningKind::NoEffect)
            .collect()
    }
}

#[test]
fn what_does_nothing_is_said_with_what_leaves_it_nothing() {
    let pipelines = Pipelines::open();
    // Pipeline, inputs, the field, and the request, whose first field that is.
    let off = |field: &str, value: Value| {
        let mut request = json!({"guidance_scale": 1.0});
        request[field] = value;
        request
    };
    let with = |field: &str, value: Value| {
        let mut request = json!({});
        request[field] = value;
        request
    };
    let cases: Vec<(&str, &str, &str, Value)> = vec![
        ("base", "", "init_image", json!({"init_image": "a.png"})),
        ("base", "", "mask", json!({"mask": "a.png"})),
        ("base", "embeds", "prompt_2", json!({"prompt_2": ["a dog"]})),
        ("base", "embeds", "clip_skip", json!({"clip_skip": 1})),
        (
            "base",
            "",
            "negative_prompt",
            off("negative_prompt", json!(["rain"])),
        ),
        (
            "texts",
            "",
            "negative_prompt_2",
            off("negative_prompt_2", json!(["rain"])),
        ),
        (
            "base",
            "both_embeds",
            "negative_prompt_embeds",
            off("negative_prompt_embeds", json!("n.safetensors")),
        ),
        (
            "refined",
            "",
            "negative_aesthetic_score",
            off("negative_aesthetic_score", json!(3.0)),
        ),
        (
            "base",
            "",
            "negative_original_size",
            off("negative_original_size", json!("8x8")),
        ),
        (
            "base",
            "",
            "negative_target_size",
            off("negative_target_size", json!("8x8")),
        ),
        (
            "base",
            "",
            "negative_crops_coords_top_left",
            off("negative_crops_coords_top_left", json!([8, 0])),
        ),
        (
            "base",
            "",
            "guidance_rescale",
            off("guidance_rescale", json!(0.7)),
        ),
        (
            "base",
            "",
            "guidance_interval",
            off("guidance_interval", json!([0.2, 0.8])),
        ),
        (
            "base",
            "",
            "guidance_scale",
            json!({"guidance_scale": 7.0, "guidance_schedule": [7.0, 3.0]}),
        ),
        (
            "texts",
            "both_embeds",
            "negative_prompt",
            json!({"negative_prompt": ["rain"]}),
        ),
        (
            "texts",
            "both_embeds",
            "negative_prompt_2",
            json!({"negative_prompt_2": ["rain"]}),
        ),
        (
            "refiner",
            "picture",
            "prompt_2",
            json!({"prompt_2": ["a dog"]}),
        ),
        (
            "refiner",
            "picture",
            "negative_prompt_2",
            json!({"negative_prompt_2": ["rain"]}),
        ),
        (
            "base",
            "",
            "negative_prompt_2",
            json!({"negative_prompt_2": ["rain"]}),
        ),
        (
            "base",
            "embeds",
            "prompt_syntax",
            with("prompt_syntax", json!("a1111")),
        ),
        (
            "base",
            "embeds",
            "prompt_weighting",
            with("prompt_weighting", json!("a1111")),
        ),
        (
            "base",
            "both_embeds",
            "truncate_long_prompts",
            with("truncate_long_prompts", json!(false)),
        ),
        (
            "base",
            "embeds",
            "pooled_from",
            with("pooled_from", json!("clean")),
        ),
        (
            "base",
            "",
            "prompt_weighting",
            json!({"prompt_weighting": "comfyui", "prompt_syntax": "plain"}),
        ),
        (
            "refiner",
            "picture",
            "target_size",
            with("target_size", json!("8x8")),
        ),
        (
            "refiner",
            "picture",
            "negative_target_size",
            with("negative_target_size", json!("8x8")),
        ),
        (
            "base",
            "",
            "negative_original_size",
            with("negative_original_size", json!("8x8")),
        ),
        (
            "base",
            "",
            "negative_target_size",
            with("negative_target_size", json!("8x8")),
        ),
        (
            "base",
            "picture",
            "negative_crops_coords_top_left",
            with("negative_crops_coords_top_left", json!([8, 0])),
        ),
        (
            "base",
            "",
            "negative_crops_coords_top_left",
            with("negative_crops_coords_top_left", json!([8, 0])),
        ),
        ("base", "", "eta", with("eta", json!(0.5))),
        (
            "base",
            "",
            "aesthetic_score",
            with("aesthetic_score", json!(7.0)),
        ),
        (
            "base",
            "",
            "negative_aesthetic_score",
            with("negative_aesthetic_score", json!(3.0)),
        ),
        (
            "base",
            "",
            "resize_mode",
            with("resize_mode", json!("crop")),
        ),
        (
            "base",
            "picture mask",
            "resize_mode",
            json!({"resize_mode": "crop", "mask_crop_padding": 8}),
        ),
        ("base", "", "invert_mask", with("invert_mask", json!(true))),
        ("base", "", "mask_blur", with("mask_blur", json!(4.0))),
        (
            "base",
            "",
            "upscale_strength",
            with("upscale_strength", json!(0.7)),
        ),
        (
            "base",
            "",
            "upscale_method",
            with("upscale_method", json!("latent")),
        ),
        (
            "base",
            "",
            "vae_tile_size",
            json!({"vae_tile_size": 128, "vae_tiling": "off"}),
        ),
    ];
    let mut seen: BTreeSet<(&str, String)> = BTreeSet::new();
    for (pipeline, inputs, field, request) in cases {
        let said = pipelines.said(pipeline, inputs, request.clone());
        let [warning] = &said[..] else {
            panic!("{pipeline}, {inputs}: {request}: {said:?}");
        };
        assert_eq!(warning.field, Some(field), "{request}: {warning}");
        let whole = warning.to_string();
        assert!(
            whole.starts_with(&format!("`{field}` has no effect: ")),
            "{whole}"
        );
        seen.insert((field, warning.message.clone()));
    }
    for rule in RULES {
        for field in rule.fields {
            let message = format!("`{field}` has no effect: {}", rule.why);
            assert!(
                seen.contains(&(*field, message.clone())),
                "no case: {message}"
            );
        }
    }
}

#[test]
fn what_has_an_effect_is_not_said() {
    let pipelines = Pipelines::open();
    let cases = [
        ("base", "", json!({})),
        (
            "base",
            "",
            json!({"prompt_2": ["x"], "negative_prompt": ["y"], "negative_prompt_2": ["z"],
                "clip_skip": 1, "guidance_rescale": 0.5, "guidance_interval": [0.2, 0.8],
                "prompt_syntax": "a1111", "prompt_weighting": "comfyui", "pooled_from": "raw",
                "truncate_long_prompts": true, "scheduler": "ddim", "eta": 0.5}),
        ),
        ("texts", "", json!({"negative_prompt_2": ["y"]})),
        // Distilled models: an empty negative prompt says nothing.
        (
            "base",
            "",
            json!({"guidance_scale": 0.0, "negative_prompt": [""]}),
        ),
        (
            "base",
            "",
            json!({"guidance_schedule": [7.0, 1.0], "negative_prompt": ["y"]}),
        ),
        // A sum of predictions is taken from the negative side, guided or not.
        (
            "base",
            "",
            json!({"prompt": ["a cat AND a dog"], "prompt_syntax": "a1111",
                "guidance_scale": 1.0, "negative_prompt": ["y"]}),
        ),
        (
            "base",
            "",
            json!({"original_size": "8x8", "target_size": "8x8", "negative_original_size": "8x8",
                "negative_target_size": "8x8", "negative_crops_coords_top_left": [8, 0]}),
        ),
        // One of them counts where a run does not begin with noise.
        (
            "base",
            "picture",
            json!({"strength": 0.6, "resize_mode": "crop", "negative_original_size": "8x8"}),
        ),
        (
            "base",
            "",
            json!({"upscale": 1.5, "negative_target_size": "8x8"}),
        ),
        (
            "base",
            "picture mask",
            json!({"mask_blur": 2.0, "invert_mask": true, "keep_unmasked": true,
                "resize_mode": "stretch"}),
        ),
        (
            "base",
            "picture mask",
            json!({"mask_crop_padding": 8, "mask_blur": 2.0}),
        ),
        (
            "base",
            "picture",
            json!({"extend": "left=16", "mask_blur": 2.0}),
        ),
        (
            "refined",
            "",
            json!({"aesthetic_score": 7.0, "negative_aesthetic_score": 2.0, "target_size": "8x8",
                "denoising_fraction": 0.7, "negative_crops_coords_top_left": [8, 0]}),
        ),
        (
            "refined",
            "",
            json!({"refiner_strength": 0.3, "aesthetic_score": 7.0}),
        ),
        (
            "refiner",
            "picture",
            json!({"aesthetic_score": 7.0, "negative_original_size": "8x8"}),
        ),
        (
            "base",
            "",
            json!({"upscale": 1.5, "upscale_strength": 0.5, "upscale_method": "latent"}),
        ),
        (
            "base",
            "",
            json!({"vae_tile_size": 128, "vae_slicing": false, "watermark": false}),
        ),
        (
            "texts",
            "embeds",
            json!({"negative_prompt": ["y"], "prompt_syntax": "a1111"}),
        ),
        (
            "base",
            "both_embeds",
            json!({"negative_prompt_embeds": "n.safetensors"}),
        ),
    ];
    for (pipeline, inputs, request) in cases {
        let said = pipelines.said(pipeline, inputs, request.clone());
        assert!(said.is_empty(), "{pipeline}, {inputs}: {request}: {said:?}");
    }
}
