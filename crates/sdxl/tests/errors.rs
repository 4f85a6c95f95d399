//! Errors that a program can read: every field of a request has its own.

use std::collections::BTreeSet;

use sdxl::error::Class;
use sdxl::prompt::Prompt;
use sdxl::request::aspect;
use sdxl::{Error, Inputs, Pipeline, PromptSyntax, Request, Size, WarningKind};
use sdxl_testing::golden;
use serde_json::{Value, json};

/// For each field an object with a value that cannot be used. Where any value of the field's kind
/// can be, one of another kind.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("prompt", json!({"prompt": []})),
        ("prompt_2", json!({"prompt_2": ["a", "b"]})),
        ("negative_prompt", json!({"negative_prompt": ["a", "b"]})),
        (
            "negative_prompt_2",
            json!({"negative_prompt_2": ["a", "b"]}),
        ),
        ("prompt_syntax", json!({"prompt_syntax": "latin"})),
        ("prompt_embeds", json!({"prompt_embeds": "e.safetensors"})),
        (
            "negative_prompt_embeds",
            json!({"negative_prompt_embeds": "e.safetensors"}),
        ),
        ("prompt_weighting", json!({"prompt_weighting": "heavy"})),
        (
            "truncate_long_prompts",
            json!({"truncate_long_prompts": "yes"}),
        ),
        ("pooled_from", json!({"pooled_from": "dirty"})),
        ("seed", json!({"seed": [1, 2]})),
        ("rng", json!({"rng": "numpy"})),
        ("steps", json!({"steps": 0})),
        ("width", json!({"width": 1001})),
        ("height", json!({"height": 0})),
        ("aspect", json!({"aspect": "1:1", "width": 64})),
        ("guidance_scale", json!({"guidance_scale": 1e300})),
        ("guidance_schedule", json!({"guidance_schedule": [1e300]})),
        (
            "guidance_interval",
            json!({"guidance_interval": [0.8, 0.2]}),
        ),
        ("guidance_rescale", json!({"guidance_rescale": 2})),
        ("num_images", json!({"num_images": 0})),
        ("clip_skip", json!({"clip_skip": 40})),
        ("original_size", json!({"original_size": "0x8"})),
        ("target_size", json!({"target_size": "8x0"})),
        (
            "crops_coords_top_left",
            json!({"crops_coords_top_left": [-1, 0]}),
        ),
        (
            "negative_original_size",
            json!({"negative_original_size": "0x8"}),
        ),
        (
            "negative_target_size",
            json!({"negative_target_size": "0x8"}),
        ),
        (
            "negative_crops_coords_top_left",
            json!({"negative_crops_coords_top_left": [0]}),
        ),
        ("scheduler", json!({"scheduler": "magic"})),
        (
            "scheduler_options",
            json!({"scheduler_options": {"use_karas_sigmas": true}}),
        ),
        ("timesteps", json!({"timesteps": [-1]})),
        ("sigmas", json!({"sigmas": [-1]})),
        ("eta", json!({"eta": 2})),
        ("denoising_end", json!({"denoising_end": 0})),
        ("denoising_start", json!({"denoising_start": 1})),
        ("denoising_fraction", json!({"denoising_fraction": 1})),
        ("refiner_strength", json!({"refiner_strength": 0})),
        ("aesthetic_score", json!({"aesthetic_score": 1e300})),
        (
            "negative_aesthetic_score",
            json!({"negative_aesthetic_score": 1e300}),
        ),
        ("init_image", json!({"init_image": 3})),
        ("resize_mode", json!({"resize_mode": "melt"})),
        ("strength", json!({"strength": 0})),
        ("mask", json!({"mask": 3})),
        ("invert_mask", json!({"invert_mask": 3})),
        ("mask_blur", json!({"mask_blur": -1})),
        ("mask_crop_padding", json!({"mask_crop_padding": 8})),
        ("keep_unmasked", json!({"keep_unmasked": true})),
        ("extend", json!({"extend": "left=99999"})),
        ("upscale", json!({"upscale": 20})),
        ("upscale_strength", json!({"upscale_strength": 0})),
        ("upscale_method", json!({"upscale_method": "magic"})),
        ("vae_tiling", json!({"vae_tiling": "sometimes"})),
        ("vae_tile_size", json!({"vae_tile_size": 100})),
        ("vae_slicing", json!({"vae_slicing": 3})),
        ("watermark", json!({"watermark": 3})),
    ]
}

/// Reads `json`, with a prompt where it has none, and decides what is left open in it.
fn resolve(mut json: Value) -> sdxl::Result<Request> {
    let object = json.as_object_mut().unwrap();
    object.entry("prompt").or_insert(json!(["a cat"]));
    let request = Request::from_json(&json)?;
    let pipeline = Pipeline::open(golden("base")).offload_by_run().load()?;
    let run = pipeline.prepare(&request, Inputs::default())?;
    Ok(run.request().clone())
}

/// The parts of the error of `json`: its field, its message with its hint.
fn error(json: Value) -> (Option<&'static str>, String) {
    let error = resolve(json.clone()).expect_err(&format!("{json} was taken"));
    assert_eq!(error.class(), Class::Request, "{json}: {error}");
    assert!(error.is_usage());
    let (message, hint) = (error.message(), error.hint());
    assert!(!message.is_empty(), "{json}");
    // People are told all that programs are, in one sentence.
    let text = error.to_string();
    assert!(text.contains(&message), "{text} lacks {message}");
    if let Some(hint) = &hint {
        assert!(text.ends_with(&**hint), "{text} lacks {hint}");
        assert!(!hint.contains("--"), "a flag in: {hint}");
    }
    let all = format!("{message}; {}", hint.unwrap_or_default());
    (error.field(), all)
}

/// The fields of a request, with the one that is left out of JSON where it is not set.
fn fields() -> BTreeSet<String> {
    let json = serde_json::to_value(Request::default()).unwrap();
    let mut keys: BTreeSet<String> = json.as_object().unwrap().keys().cloned().collect();
    keys.insert("vae_tile_size".into());
    keys
}

#[test]
fn the_names_of_the_fields_are_those_in_json() {
    let named: BTreeSet<String> = Request::fields().iter().map(|f| f.to_string()).collect();
    assert_eq!(named, fields());
    assert_eq!(named.len(), Request::fields().len());
}

#[test]
fn every_field_has_its_error() {
    let cases = refused();
    let listed: BTreeSet<String> = cases.iter().map(|(field, _)| field.to_string()).collect();
    assert_eq!(listed, fields());
    // Each says what is possible, or what to do.
    let possible = [
        "use ",
        "give ",
        "expected",
        "must be",
        "it has: ",
        "did you mean",
        "say what",
        "is usual",
        "leave",
    ];
    for (field, json) in cases {
        let (named, text) = error(json.clone());
        assert_eq!(named, Some(field), "{json}: {text}");
        assert!(
            possible.iter().any(|words| text.contains(words)),
            "{field}: what is possible? {text}"
        );
    }
}

#[test]
fn a_value_of_another_kind_is_refused_with_its_field() {
    for field in fields() {
        let json = json!({ &field: [[]] });
        let (named, text) = error(json);
        assert_eq!(named, Some(field.as_str()), "{text}");
        assert!(
            text.contains("expected") || text.contains("invalid"),
            "{text}"
        );
    }
    let (field, text) = error(json!({"timesteps": "soon"}));
    assert_eq!(field, Some("timesteps"));
    assert!(text.contains("`ays`"), "{text}");
}

#[test]
fn an_unknown_field_is_named_with_its_neighbour() {
    let (field, text) = error(json!({"widht": 8}));
    assert_eq!(field, None);
    assert!(
        text.contains("`widht`") && text.contains("`width`"),
        "{text}"
    );
    let text = Request::from_json(&json!([])).unwrap_err().to_string();
    assert!(text.contains("object"), "{text}");
}

#[test]
fn fields_that_stand_for_others_are_named() {
    let few = |more: Value| {
        let mut json = json!({"steps": 2});
        json.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        error(json).0
    };
    let second_pass = json!({"upscale": 2, "upscale_strength": 0.1});
    assert_eq!(few(second_pass), Some("upscale_strength"));
    assert_eq!(few(json!({"strength": 0.5})), Some("strength"));
    assert_eq!(
        few(json!({"denoising_start": 0.5})),
        Some("denoising_start")
    );
    assert_eq!(
        few(json!({"refiner_strength": 0.5})),
        Some("refiner_strength")
    );
    // A prompt that cannot be read is named by the list that it is in.
    let broken = "(a)1.0".to_string() + &"(".repeat(400) + &")".repeat(400);
    for field in ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"] {
        assert_eq!(error(json!({ field: [broken] })).0, Some(field));
    }
}

#[test]
fn classes_have_words_that_stay() {
    let words = [
        (Class::Request, "request"),
        (Class::File, "file"),
        (Class::Machine, "machine"),
        (Class::Cancelled, "cancelled"),
    ];
    for (class, word) in words {
        assert_eq!(class.to_string(), word);
        assert_eq!(serde_json::to_value(class).unwrap(), word);
    }
    let file = Error::file("a/b", "it is broken").with_hint("get another");
    assert_eq!((file.class(), file.field()), (Class::File, None));
    assert_eq!(file.to_string(), "a/b: it is broken; get another");
    assert_eq!(file.message(), "a/b: it is broken");
    assert_eq!(file.hint().as_deref(), Some("get another"));
    let machine = Error::machine("the disk is full");
    assert_eq!(
        (machine.class(), machine.is_usage()),
        (Class::Machine, false)
    );
    assert_eq!(Error::Cancelled.class(), Class::Cancelled);
    assert!(!Error::Cancelled.is_usage());
}

#[test]
fn warnings_have_the_same_parts() {
    let size = Size {
        width: 4096,
        height: 4096,
    };
    let warning = aspect::warning(size, 1024 * 1024).unwrap();
    assert_eq!(
        (warning.kind, warning.field),
        (WarningKind::Size, Some("width"))
    );
    let text = warning.to_string();
    assert!(text.starts_with(&warning.message) && text.ends_with("with `upscale`"));
    let json = serde_json::to_value(&warning).unwrap();
    assert_eq!(
        (&json["kind"], &json["field"]),
        (&"size".into(), &"width".into())
    );

    let warning = Prompt::warning("a <lora:x:1>", PromptSyntax::Compel).unwrap();
    assert_eq!(warning.kind.to_string(), "lora-syntax");
    assert!(warning.hint.unwrap().contains("`prompt_syntax a1111`"));
    assert_eq!(Prompt::warning("a cat", PromptSyntax::Compel), None);
}
