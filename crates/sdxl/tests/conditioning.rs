//! Prompts to conditioning against the Compel library: relative L2 of 1e-5; whole runs 1e-4.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sdxl::prompt::{Content, Join, Part, Resolved, Span};
use sdxl::text::{TextEncoders, TextInput, TextOptions};
use sdxl::weights::folder::{TextParts, read_json};
use sdxl::{LoadOptions, Pipeline, PooledFrom, Precision, PromptSyntax, PromptWeighting, Request};
use serde_json::{Value, json};
use support::{Golden, close_values, copy, golden, relative_l2};
use tempfile::TempDir;

const BAR: f64 = 1e-5;
const RUN_BAR: f64 = 1e-4;

fn span(value: &Value) -> Span {
    let text = &value["text"];
    Span::Text {
        text: text["text"].as_str().unwrap().to_string(),
        weight: text["weight"].as_f64().unwrap(),
    }
}

fn spans(value: &Value) -> Vec<Span> {
    value.as_array().unwrap().iter().map(span).collect()
}

/// `Resolved` as the golden file writes it.
fn resolved(value: &Value) -> Resolved {
    assert_eq!(value["join"], "concat");
    let content = |content: &Value| match content.get("blend") {
        Some(blend) => Content::Blend {
            members: (blend["members"].as_array().unwrap().iter())
                .map(|m| (spans(&m[0]), m[1].as_f64().unwrap()))
                .collect(),
            normalize: blend["normalize"].as_bool().unwrap(),
        },
        None => Content::Text(spans(&content["text"])),
    };
    let part = |part: &Value| Part {
        content: content(&part["content"]),
        weight: part["weight"].as_f64().unwrap(),
    };
    Resolved {
        parts: value["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(part)
            .collect(),
        join: Join::Concat,
    }
}

fn encoders(root: &Path) -> TextEncoders {
    TextEncoders::load(&TextParts::open(root, None).unwrap(), Precision::F32).unwrap()
}

fn options(truncate: bool) -> TextOptions {
    TextOptions::of(&Request {
        truncate_long_prompts: Some(truncate),
        ..Request::default()
    })
}

/// Only the text parts of the tiny checkpoint, with textual inversions added as Python's
/// tokenizers and text encoders save them.
fn with_inversions(names: &[Value], expected: &Golden) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (number, (encoder, tokenizer)) in [
        ("text_encoder", "tokenizer"),
        ("text_encoder_2", "tokenizer_2"),
    ]
    .into_iter()
    .enumerate()
    {
        copy(&golden("base").join(encoder), &dir.path().join(encoder));
        copy(&golden("base").join(tokenizer), &dir.path().join(tokenizer));
        let first = 49408;
        let ids = |i: usize| first + i;
        if number == 0 {
            let listed: serde_json::Map<String, Value> = (names.iter().enumerate())
                .map(|(i, n)| (n.as_str().unwrap().to_string(), json!(ids(i))))
                .collect();
            let text = Value::Object(listed).to_string();
            std::fs::write(dir.path().join(tokenizer).join("added_tokens.json"), text).unwrap();
        } else {
            let path = dir.path().join(tokenizer).join("tokenizer_config.json");
            let mut config: Value = read_json(&path).unwrap();
            let mut decoder = serde_json::Map::new();
            // The vocabulary's own special tokens are listed too.
            decoder.insert(
                "0".into(),
                json!({ "content": "!", "special": true, "normalized": false }),
            );
            for (i, name) in names.iter().enumerate() {
                let entry = json!({ "content": name, "special": false, "normalized": true });
                decoder.insert(ids(i).to_string(), entry);
            }
            config["added_tokens_decoder"] = Value::Object(decoder);
            std::fs::write(&path, config.to_string()).unwrap();
        }
        let path = dir.path().join(encoder).join("config.json");
        let mut config: Value = read_json(&path).unwrap();
        config["vocab_size"] = json!(first + names.len());
        std::fs::write(&path, config.to_string()).unwrap();

        let path = dir.path().join(encoder).join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let table = "text_model.embeddings.token_embedding.weight";
        let rows = expected.flat(&format!("token_embedding.{}", number + 1));
        let mut extended = file.tensor(table).unwrap().data().to_vec();
        extended.extend(rows.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        let views = file.iter().map(|(name, tensor)| {
            if name == table {
                let shape = vec![first + names.len(), tensor.shape()[1]];
                return (name, TensorView::new(Dtype::F16, shape, &extended).unwrap());
            }
            (name, tensor)
        });
        let written = safetensors::serialize(views, None).unwrap();
        std::fs::write(&path, written).unwrap();
    }
    dir
}

#[test]
fn states_and_pooled_vectors_are_compels() {
    let file: Value = read_json(&golden("conditioning/cases.json")).unwrap();
    let expected = Golden::open("conditioning/states.safetensors");
    let plain = encoders(&golden("base"));
    let folder = with_inversions(file["inversion"].as_array().unwrap(), &expected);
    let inverted = encoders(folder.path());
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 60);
    let mut worst = 0f64;
    for case in cases {
        let text = if case.get("inversion").is_some() {
            &inverted
        } else {
            &plain
        };
        let raw = case["prompt"].as_str().unwrap();
        let resolved = resolved(&case["resolved"]);
        let input = TextInput {
            raw,
            parts: &resolved.parts,
        };
        for (mode, truncate) in [("truncated", true), ("whole", false)] {
            let mut silent = |_| {};
            let made = text
                .encode(input, input, &options(truncate), &mut silent)
                .unwrap();
            let name = case[mode].as_str().unwrap();
            let what = format!("{raw:?} {mode}");
            let (states, pooled) = (
                expected.flat(name),
                expected.flat(case["pooled"].as_str().unwrap()),
            );
            close_values(&what, &made.context, &states, BAR);
            close_values(&what, &made.pooled, &pooled, BAR);
            worst = worst.max(relative_l2(&what, &made.context, &states));
        }
    }
    println!("worst relative L2 of the states: {worst:.1e}");
}

#[test]
fn runs_of_compel_and_diffusers() {
    let file: Value = read_json(&golden("conditioning/runs.json")).unwrap();
    let options = LoadOptions {
        variant: None,
        precision: Some(Precision::F32),
    };
    let pipeline = Pipeline::load(&golden("base"), &options).unwrap();
    for run in file["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let mut fields = run["request"].clone();
        for key in ["prompt", "negative_prompt", "seed"] {
            if let Some(value) = fields.get_mut(key)
                && !value.is_array()
            {
                *value = json!([value.clone()]);
            }
        }
        let request: Request = serde_json::from_value(fields).unwrap();
        let mut silent = |_: sdxl::Event<'_>| ControlFlow::Continue(());
        let output = pipeline.generate(&request, None, &mut silent).unwrap();
        let expected = Golden::open(&format!("conditioning/{name}.safetensors"));
        let reference = expected.channel_last("latents").to_f32_vec();
        close_values(name, output.latents.data(), &reference, RUN_BAR);
    }
}
