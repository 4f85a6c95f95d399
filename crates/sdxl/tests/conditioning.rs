//! Prompts to conditioning against the Compel library: relative L2 of 1e-5; whole runs 1e-4.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::prompt::{Join, Prompt, ResolvedContent, ResolvedPart, ResolvedPrompt, WeightedSpan};
use sdxl::text::embeds_file::Embeds;
use sdxl::text::{Conditioning, TextEncoders, TextInput, TextOptions};
use sdxl::weights::TextCheckpoint;
use sdxl::{Inputs, Pipeline, PooledFrom, Precision, PromptSyntax, PromptWeighting, Request};
use sdxl_testing::{Golden, assert_close, copy_folder, golden, relative_l2};
use serde_json::{Value, json};
use support::{GoldenTensors, encode, generate, load};
use tempfile::TempDir;

const BAR: f64 = 1e-5;
const RUN_BAR: f64 = 1e-4;

fn span(value: &Value) -> WeightedSpan {
    let text = &value["text"];
    WeightedSpan::Text {
        text: text["text"].as_str().unwrap().to_string(),
        weight: text["weight"].as_f64().unwrap(),
    }
}

fn spans(value: &Value) -> Vec<WeightedSpan> {
    value.as_array().unwrap().iter().map(span).collect()
}

/// A [`ResolvedPrompt`] as the golden file writes it.
fn resolved(value: &Value) -> ResolvedPrompt {
    assert_eq!(value["join"], "concat");
    let content = |content: &Value| match content.get("blend") {
        Some(blend) => ResolvedContent::Blend {
            members: (blend["members"].as_array().unwrap().iter())
                .map(|m| (spans(&m[0]), m[1].as_f64().unwrap()))
                .collect(),
            normalize: blend["normalize"].as_bool().unwrap(),
        },
        None => ResolvedContent::Text(spans(&content["text"])),
    };
    let part = |part: &Value| ResolvedPart {
        content: content(&part["content"]),
        weight: part["weight"].as_f64().unwrap(),
    };
    ResolvedPrompt {
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
    TextEncoders::load(
        &TextCheckpoint::open(root, None).unwrap(),
        Precision::F32,
        false,
    )
    .unwrap()
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
        copy_folder(&golden("base").join(encoder), &dir.path().join(encoder));
        copy_folder(&golden("base").join(tokenizer), &dir.path().join(tokenizer));
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
        let read = Prompt::parse(raw, PromptSyntax::Compel).unwrap();
        assert_eq!(read.at(0, 1), resolved, "{raw:?}");
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
            assert_close(&what, &made.context, &states, BAR);
            assert_close(&what, &made.pooled, &pooled, BAR);
            worst = worst.max(relative_l2(&what, &made.context, &states));
        }
    }
    println!("worst relative L2 of the states: {worst:.1e}");
}

#[test]
fn a_text_without_end_is_refused() {
    let text = encoders(&golden("base"));
    let prompt = "cat ".repeat(75 * 101);
    let resolved = Prompt::parse(&prompt, PromptSyntax::Plain)
        .unwrap()
        .at(0, 1);
    let input = TextInput {
        raw: &prompt,
        parts: &resolved.parts,
    };
    let error = text
        .encode(input, input, &options(false), &mut |_| {})
        .unwrap_err();
    assert!(error.to_string().contains("101 chunks"), "{error}");
    text.encode(input, input, &options(true), &mut |_| {})
        .unwrap();
}

/// Prompts where the library fails by accident do what they plainly mean.
#[test]
fn where_the_library_fails() {
    let text = encoders(&golden("base"));
    let compel = Request::default();
    let empty = encode(&text, "", &compel);
    for nothing in ["()", "withLora(x, 0.5)"] {
        let made = encode(&text, nothing, &compel);
        assert_eq!(made.context, empty.context, "{nothing}");
    }
    // An empty fragment has no tokens to hide.
    let made = encode(&text, "(\"\")0.5 x", &compel);
    assert_eq!(made.context, encode(&text, "x", &compel).context);
    // A start token at the start of a text that is cut is found all the same.
    let cut = Request {
        truncate_long_prompts: Some(true),
        ..Request::default()
    };
    let made = encode(&text, "(<|startoftext|>a)0.5 cat", &cut);
    assert!(made.context.iter().all(|v| v.is_finite()));
    assert_ne!(
        made.context,
        encode(&text, "<|startoftext|>a cat", &cut).context
    );
}

#[test]
fn a_prompt_is_encoded_once() {
    let text = encoders(&golden("base"));
    let request = Request::default();
    let first = encode(&text, "a (red)1.2 fox", &request);
    let runs = text.runs();
    assert!(Arc::ptr_eq(
        &first,
        &encode(&text, "a (red)1.2 fox", &request)
    ));
    assert_eq!(text.runs(), runs);
    for other in [
        Request {
            prompt_syntax: PromptSyntax::Plain,
            ..Request::default()
        },
        Request {
            pooled_from: Some(PooledFrom::Clean),
            ..Request::default()
        },
        Request {
            prompt_weighting: PromptWeighting::A1111,
            ..Request::default()
        },
        Request {
            clip_skip: Some(1),
            ..Request::default()
        },
    ] {
        assert_ne!(first, encode(&text, "a (red)1.2 fox", &other), "{other:?}");
    }
    assert!(Arc::ptr_eq(
        &first,
        &encode(&text, "a (red)1.2 fox", &request)
    ));
}

/// What the text encoders have read is counted: pictures that differ in something else than their
/// prompts take no more of it.
#[test]
fn a_run_encodes_nothing_twice() {
    let pipeline = load(golden("base"), Precision::F32);
    let request = Request {
        prompt: vec!["a (red)1.2 fox, (fog)0.5".into()],
        negative_prompt: vec!["rain".into()],
        seed: vec![1],
        steps: 1,
        ..Request::default()
    };
    let read = |request: &Request| {
        let before = pipeline.text_encoders().unwrap().runs();
        latents(&pipeline, request);
        pipeline.text_encoders().unwrap().runs() - before
    };
    let first = read(&request);
    // Each encoder: the prompt, the prompt without its fog, the empty text, and the negative
    // prompt; the second also the prompt with its signs for the pooled vector.
    assert_eq!(first, 2 * 4 + 1);
    let again = [
        request.clone(),
        Request {
            seed: vec![2],
            steps: 2,
            width: Some(72),
            guidance_scale: 3.0,
            ..request.clone()
        },
        Request {
            num_images: 3,
            ..request.clone()
        },
        Request {
            prompt: vec![request.prompt[0].clone(); 2],
            ..request.clone()
        },
    ];
    for request in again {
        assert_eq!(read(&request), 0, "{request:?}");
    }
    // Only what is new is read: once by each encoder.
    let prompt = vec![request.prompt[0].clone(), "a dog".into()];
    let other = Request {
        prompt,
        ..request.clone()
    };
    assert_eq!(read(&other), 2);
    // Both sides of an edit, at whatever step it is.
    let edited = |prompt: &str| Request {
        prompt: vec![prompt.into()],
        prompt_syntax: PromptSyntax::A1111,
        steps: 4,
        ..request.clone()
    };
    read(&edited("a [cat:dog:0.5]"));
    assert_eq!(read(&edited("a [cat:dog:0.5]")), 0);
}

#[test]
fn the_clean_pooled_vector_knows_no_signs() {
    let text = encoders(&golden("base"));
    let clean = Request {
        pooled_from: Some(PooledFrom::Clean),
        ..Request::default()
    };
    let (weighted, plain) = ("a (red)1.4 fox", "a red fox");
    let raw = encode(&text, weighted, &Request::default());
    assert_eq!(
        encode(&text, weighted, &clean).pooled,
        encode(&text, plain, &clean).pooled
    );
    assert_ne!(raw.pooled, encode(&text, weighted, &clean).pooled);
    // A1111 has it so by itself.
    let a1111 = Request {
        prompt_syntax: PromptSyntax::A1111,
        ..Request::default()
    };
    let made = encode(&text, "a (red:1.4) fox", &a1111);
    assert_eq!(made.pooled, encode(&text, plain, &clean).pooled);
    // A blend's is a blend.
    let blend = encode(&text, "(\"a cat\", \"a dog\").blend(1, 3)", &clean)
        .pooled
        .clone();
    let (cat, dog) = (
        encode(&text, "a cat", &clean),
        encode(&text, "a dog", &clean),
    );
    for (i, value) in blend.iter().enumerate() {
        let expected = 0.25 * cat.pooled[i] + 0.75 * dog.pooled[i];
        assert!((value - expected).abs() < 1e-6);
    }
}

/// Texts without weights are the same in all languages, and weights in one of them are what the
/// arithmetic chosen makes of them.
#[test]
fn weights_follow_the_arithmetic_that_is_asked_for() {
    let text = encoders(&golden("base"));
    let with = |syntax, weighting| Request {
        prompt_syntax: syntax,
        prompt_weighting: weighting,
        ..Request::default()
    };
    let a1111 = |weighting| with(PromptSyntax::A1111, weighting);
    let compel = with(PromptSyntax::Compel, PromptWeighting::Auto);
    let auto = a1111(PromptWeighting::Auto);
    let prompt = "a red fox in snow";
    let states = encode(&text, prompt, &compel);
    for request in [
        &auto,
        &a1111(PromptWeighting::ComfyUi),
        &with(PromptSyntax::Plain, PromptWeighting::Auto),
    ] {
        assert_eq!(encode(&text, prompt, request).context, states.context);
    }

    let weighted = "a red (fox:1.5) in snow";
    let no_norm = encode(&text, weighted, &a1111(PromptWeighting::A1111NoNorm));
    let (before, now) = (&states.context, &no_norm.context);
    let channels = text.channels();
    for token in 0..77 {
        let factor = if token == 3 { 1.5 } else { 1.0 };
        for c in 0..channels {
            let at = token * channels + c;
            assert!(
                (now[at] - factor * before[at]).abs() < 1e-6,
                "token {token}"
            );
        }
    }
    // Each encoder's mean is restored on its own.
    let normed = encode(&text, weighted, &auto);
    for range in [0..8, 8..channels] {
        let part = |states: &[f32]| -> Vec<f64> {
            let tokens = states.chunks_exact(channels);
            tokens
                .flat_map(|t| t[range.clone()].iter().map(|v| f64::from(*v)))
                .collect()
        };
        let (a, b, c) = (part(before), part(now), part(&normed.context));
        let ratio = a.iter().sum::<f64>() / b.iter().sum::<f64>();
        for (b, c) in b.iter().zip(&c) {
            assert!((b * ratio - c).abs() < 1e-5 * ratio.abs().max(1.0));
        }
    }

    // ComfyUI's is Compel's without the hidden words: the same above 1, not below.
    let comfy = a1111(PromptWeighting::ComfyUi);
    let own = a1111(PromptWeighting::Compel);
    assert_eq!(
        encode(&text, weighted, &comfy).context,
        encode(&text, weighted, &own).context
    );
    let less = "a red (fox:0.5) in snow";
    assert_ne!(
        encode(&text, less, &comfy).context,
        encode(&text, less, &own).context
    );
}

#[test]
fn a1111_divides_at_breaks_and_moves_what_follows_a_comma() {
    let text = encoders(&golden("base"));
    let request = Request {
        prompt_syntax: PromptSyntax::A1111,
        ..Request::default()
    };
    let chunk = 77 * text.channels();
    let cat = encode(&text, "a cat", &request);
    let dog = encode(&text, "a dog", &request);
    let both = encode(&text, "a cat BREAK a dog", &request);
    assert_eq!(both.context[..chunk], cat.context);
    assert_eq!(both.context[chunk..], dog.context);

    // 68 words and a comma leave room for 6 of the 10 that follow; they go on together.
    let (first, second) = ("word ".repeat(68) + ",", "cat ".repeat(10));
    let long = encode(&text, &format!("{first} {second}"), &request);
    assert_eq!(long.context.len(), 2 * chunk);
    assert_eq!(
        long.context[..chunk],
        encode(&text, &first, &request).context
    );
    assert_eq!(
        long.context[chunk..],
        encode(&text, &second, &request).context
    );
    // A comma further back than 20 tokens does not count.
    let (first, second) = ("word ".repeat(40) + ",", "cat ".repeat(40));
    let long = encode(&text, &format!("{first} {second}"), &request);
    let fits = encode(&text, &format!("{first} {}", "cat ".repeat(34)), &request);
    assert_eq!(long.context[..chunk], fits.context);
}

fn latents(pipeline: &Pipeline, request: &Request) -> Vec<f32> {
    generate(pipeline, request).latents.data().to_vec()
}

#[test]
fn prompts_change_by_step_and_sum_by_part() {
    let pipeline = load(golden("base"), Precision::F32);
    let request = |prompt: &str| Request {
        prompt: vec![prompt.into()],
        prompt_syntax: PromptSyntax::A1111,
        negative_prompt: vec!["rain".into()],
        seed: vec![3],
        steps: 4,
        ..Request::default()
    };
    let run = |prompt: &str| latents(&pipeline, &request(prompt));
    let (cat, dog) = (run("a cat"), run("a dog"));
    let changed = run("a [cat:dog:0.5]");
    assert!(changed != cat && changed != dog);
    // All of the steps see one side of it.
    assert_eq!(run("a [cat:dog:4]"), cat);
    assert_eq!(run("a [cat:dog:0]"), dog);
    let alternating = run("a [cat|dog]");
    assert!(alternating != cat && alternating != dog && alternating != changed);

    // Two halves are a whole, up to rounding; another part is another picture.
    let halves = run("a cat :0.5 AND a cat :0.5");
    assert!(relative_l2("halves", &halves, &cat) < 1e-5);
    let summed = run("a cat AND a dog :0.6");
    assert!(relative_l2("summed", &summed, &cat) > 1e-3);
    // A prompt of several parts does not disturb its neighbours, nor longer ones theirs.
    let long = "a long prompt ".repeat(30);
    let together = latents(
        &pipeline,
        &Request {
            prompt: ["a cat AND a dog :0.6", "a dog", &long]
                .map(str::to_string)
                .to_vec(),
            seed: vec![3, 3, 3],
            ..request("")
        },
    );
    let one = cat.len();
    assert_eq!(together[..one], summed);
    assert_eq!(together[one..2 * one], dog);
    assert_eq!(together[2 * one..], run(&long));

    // Without guidance two halves are the prompt itself.
    let unguided = |prompt: &str| {
        latents(
            &pipeline,
            &Request {
                guidance_scale: 1.0,
                ..request(prompt)
            },
        )
    };
    let halves = unguided("a cat :0.5 AND a cat :0.5");
    assert!(relative_l2("unguided", &halves, &unguided("a cat")) < 1e-5);
}

#[test]
fn encoded_prompts_stand_in_for_their_texts() {
    let pipeline = load(golden("base"), Precision::F32);
    let text = encoders(&golden("base"));
    let request = Request {
        prompt: vec!["a (red)1.3 fox".into()],
        negative_prompt: vec!["rain, ".repeat(60)],
        seed: vec![3],
        steps: 2,
        ..Request::default()
    };
    let positive = encode(&text, &request.prompt[0], &request);
    let negative = encode(&text, &request.negative_prompt[0], &request);
    let inputs = Inputs {
        embeds: Some(Embeds {
            channels: text.channels(),
            positive: vec![Conditioning::clone(&positive)],
            negative: vec![Conditioning::clone(&negative)],
        }),
        ..Inputs::default()
    };
    let encoded = Request {
        prompt: vec![String::new()],
        negative_prompt: Vec::new(),
        ..request.clone()
    };
    let run = pipeline.prepare(&encoded, inputs.clone()).unwrap();
    let made = run.start(&mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(made.latents.data(), latents(&pipeline, &request));

    // Two prompts for one picture are refused.
    let mut two = inputs.clone();
    let embeds = two.embeds.as_mut().unwrap();
    embeds.positive.push(Conditioning::clone(&positive));
    let Err(error) = pipeline.prepare(&encoded, two) else {
        panic!("two encoded prompts for one");
    };
    assert!(error.to_string().contains("2 given for 1"), "{error}");
}

#[test]
fn runs_of_compel_and_diffusers() {
    let file: Value = read_json(&golden("conditioning/runs.json")).unwrap();
    let pipeline = load(golden("base"), Precision::F32);
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
        let output = generate(&pipeline, &request);
        let expected = Golden::open(&format!("conditioning/{name}.safetensors"));
        let reference = expected.channel_last("latents").to_f32_vec();
        assert_close(name, output.latents.data(), &reference, RUN_BAR);
    }
}
