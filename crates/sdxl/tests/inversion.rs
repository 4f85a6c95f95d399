//! Textual inversions in files of their own, against diffusers and Compel, and files that do not
//! fit.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use sdxl::files::read_json;
use sdxl::text::TextEncoders;
use sdxl::weights::TextCheckpoint;
use sdxl::{Checkpoint, InversionFile, OpenOptions, Pipeline, Precision, PromptSyntax, Request};
use sdxl_testing::{Golden, assert_close, golden};
use serde_json::{Value, json};
use support::{encode, generate, load};
use tempfile::TempDir;

const BAR: f64 = 1e-5;
const RUN_BAR: f64 = 1e-4;

fn file(name: &str, token: Option<&str>) -> InversionFile {
    InversionFile {
        file: golden("inversion").join(name),
        token: token.map(str::to_string),
    }
}

/// All files of the goldens. Their tokens are those that the files have by themselves, but for
/// one.
fn all() -> Vec<InversionFile> {
    vec![
        file("toy.safetensors", Some("<cat-toy>")),
        file("OldStyle.safetensors", None),
        file("learned_embeds.safetensors", None),
        file("learned_embeds_2.safetensors", None),
    ]
}

fn options(embeddings: Vec<InversionFile>) -> OpenOptions {
    OpenOptions {
        embeddings,
        ..OpenOptions::default()
    }
}

fn encoders(embeddings: Vec<InversionFile>) -> TextEncoders {
    let parts = TextCheckpoint::open_with(&golden("base"), &options(embeddings)).unwrap();
    TextEncoders::load(&parts, Precision::F32, false).unwrap()
}

fn cases() -> Value {
    read_json(&golden("inversion/cases.json")).unwrap()
}

fn in_syntax(prompt_syntax: PromptSyntax) -> Request {
    Request {
        prompt_syntax,
        ..Request::default()
    }
}

#[test]
fn prompts_are_encoded_as_by_compel_and_diffusers() {
    let (cases, expected) = (cases(), Golden::open("inversion/states.safetensors"));
    let text = encoders(all());
    let list = |key: &str| cases[key].as_array().unwrap();
    let words = |case: &Value, key: &str| case[key].as_str().unwrap().to_string();
    assert!(list("compel").len() >= 16 && list("plain").len() >= 4);
    for case in list("compel") {
        let prompt = words(case, "prompt");
        for (mode, truncate) in [("truncated", true), ("whole", false)] {
            let request = Request {
                truncate_long_prompts: Some(truncate),
                ..Request::default()
            };
            let made = encode(&text, &prompt, &request);
            let what = format!("{prompt:?} {mode}");
            let states = expected.flat(&words(case, mode));
            assert_close(&what, &made.context, &states, BAR);
            let pooled = expected.flat(&words(case, "pooled"));
            assert_close(&what, &made.pooled, &pooled, BAR);
        }
    }
    for case in list("plain") {
        for (prompt, prefix) in [("prompt", ""), ("negative_prompt", "negative_")] {
            let made = encode(&text, &words(case, prompt), &in_syntax(PromptSyntax::Plain));
            let what = format!("{case} {prompt}");
            let of = |name: &str| expected.flat(&words(case, &format!("{prefix}{name}")));
            assert_close(&what, &made.context, &of("states"), BAR);
            assert_close(&what, &made.pooled, &of("pooled"), BAR);
        }
    }
}

#[test]
fn all_languages_know_the_words() {
    let text = encoders(all());
    let prompt = "a photo of <cat-toy> in OldStyle";
    let encoded = |prompt: &str, syntax| encode(&text, prompt, &in_syntax(syntax));
    let plain = encoded(prompt, PromptSyntax::Plain);
    assert_eq!(encoded(prompt, PromptSyntax::Compel).context, plain.context);
    assert_eq!(encoded(prompt, PromptSyntax::A1111).context, plain.context);
    // A weight in brackets is that of all vectors of the word.
    let weighted = encoded(
        "a photo of (<cat-toy>:1.3) in OldStyle",
        PromptSyntax::A1111,
    );
    let channels = text.channels();
    let differs = |token: usize| {
        let range = token * channels..(token + 1) * channels;
        let (a, b) = (&weighted.context[range.clone()], &plain.context[range]);
        let ratio = a[0] / b[0];
        let mean = weighted.context[0] / plain.context[0];
        (ratio / mean - 1.3).abs() < 1e-3
    };
    let differing: Vec<usize> = (0..77).filter(|t| differs(*t)).collect();
    assert_eq!(differing, [4, 5, 6]);
    // Without the files the words are text.
    let bare = encode(
        &encoders(Vec::new()),
        prompt,
        &in_syntax(PromptSyntax::Plain),
    );
    assert_ne!(bare.context, plain.context);
}

/// The reference takes the pooled vector at the largest id: at the textual inversion, which knows
/// nothing of what follows it. The clean one is taken at the end, as in A1111.
#[test]
fn the_pooled_vector_is_taken_where_the_language_takes_it() {
    let text = encoders(all());
    let pooled = |prompt: &str, syntax| encode(&text, prompt, &in_syntax(syntax)).pooled.clone();
    for (syntax, blind) in [
        (PromptSyntax::Compel, true),
        (PromptSyntax::Plain, true),
        (PromptSyntax::A1111, false),
    ] {
        let (short, long) = (
            pooled("a <cat-toy>", syntax),
            pooled("a <cat-toy> on a table", syntax),
        );
        assert_eq!(short == long, blind, "{syntax:?}");
    }
}

/// A request of a golden run, and its final latents in torch's order.
fn latents(pipeline: &Pipeline, request: &Request) -> (Vec<f32>, Vec<String>) {
    let made = generate(pipeline, request);
    let warnings = made.warnings.iter().map(ToString::to_string).collect();
    (made.latents.to_nchw(), warnings)
}

#[test]
fn runs_of_diffusers() {
    let (cases, expected) = (cases(), Golden::open("inversion/states.safetensors"));
    let checkpoint = Checkpoint::open_with(&golden("base"), &options(all())).unwrap();
    let pipeline = load(checkpoint, Precision::F32);
    for run in cases["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let mut fields = run["request"].clone();
        for key in ["prompt", "negative_prompt", "seed"] {
            fields[key] = json!([fields[key].clone()]);
        }
        let request: Request = serde_json::from_value(fields).unwrap();
        let (made, warnings) = latents(&pipeline, &request);
        assert_close(name, &made, &expected.flat(name), RUN_BAR);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    // A word that nobody uses is mentioned.
    let request = Request {
        prompt: vec!["a <CAT-TOY>".into()],
        negative_prompt: vec!["oldstyle".into()],
        seed: vec![1],
        steps: 1,
        ..Request::default()
    };
    let (_, warnings) = latents(&pipeline, &request);
    assert!(
        matches!(&warnings[..], [one] if one.contains("<sks>")),
        "{warnings:?}"
    );
}

#[test]
fn a_refiner_reads_the_second_half() {
    let open = |folder: &str, embeddings| {
        Checkpoint::open_with(&golden(folder), &options(embeddings)).unwrap()
    };
    let refiner = open("refiner", all());
    let parts = refiner.text_parts();
    let alone = TextEncoders::load(&parts, Precision::F32, false).unwrap();
    let both = encoders(all());
    let prompt = "a <cat-toy> in OldStyle, <sks>";
    let request = Request::default();
    let (made, whole) = (
        encode(&alone, prompt, &request),
        encode(&both, prompt, &request),
    );
    assert_eq!(made.pooled, whole.pooled);
    // Both have one text encoder in memory, unless the words differ.
    let same = |base: &Checkpoint, refiner: &Checkpoint| {
        sdxl::weights::same::same_part(base, refiner, sdxl::Part::TextEncoder2).unwrap()
    };
    assert!(same(&open("base", all()), &refiner));
    assert!(!same(&open("base", Vec::new()), &refiner));
}

type Tensors<'a> = &'a [(&'a str, &'a [usize])];

fn write(path: &Path, tensors: Tensors) {
    let values: Vec<u8> = (0..4096).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = 4 * shape.iter().product::<usize>();
        (
            *name,
            TensorView::new(Dtype::F32, shape.to_vec(), &values[..bytes]).unwrap(),
        )
    });
    let written = safetensors::serialize(views, None).unwrap();
    fs::write(path, written).unwrap();
}

/// What is said of files that cannot be used.
#[test]
fn files_that_do_not_fit_are_named_with_their_keys() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let refused = |files: Vec<InversionFile>| -> String {
        let parts = TextCheckpoint::open_with(&golden("base"), &options(files));
        let loaded = parts.and_then(|parts| TextEncoders::load(&parts, Precision::F32, false));
        match loaded {
            Ok(_) => panic!("taken"),
            Err(error) => {
                assert!(error.is_usage());
                error.to_string()
            }
        }
    };
    let given = |name: &str, token: Option<&str>| InversionFile {
        file: path(name),
        token: token.map(str::to_string),
    };
    let cases: [(&str, Tensors, &[&str]); 14] = [
        (
            "l.safetensors",
            &[("clip_l", &[2, 8])],
            &["`clip_l`", "no `clip_g`", "SDXL"],
        ),
        (
            "g.safetensors",
            &[("clip_g", &[2, 16])],
            &["`clip_g`", "no `clip_l`"],
        ),
        (
            "wide.safetensors",
            &[("clip_l", &[2, 12]), ("clip_g", &[2, 16])],
            &["`clip_l`", "12 values", "first", "takes 8"],
        ),
        (
            "wide_g.safetensors",
            &[("clip_l", &[2, 8]), ("clip_g", &[2, 12])],
            &["`clip_g`", "12 values", "second", "takes 16"],
        ),
        (
            "counts.safetensors",
            &[("clip_l", &[2, 8]), ("clip_g", &[3, 16])],
            &["`clip_l` has 2", "`clip_g` has 3"],
        ),
        (
            "many.safetensors",
            &[("clip_l", &[76, 8]), ("clip_g", &[76, 16])],
            &["76 vectors", "75"],
        ),
        (
            "deep.safetensors",
            &[("clip_l", &[1, 1, 8]), ("clip_g", &[1, 16])],
            &["`clip_l`", "[1, 1, 8]"],
        ),
        (
            "sd1.safetensors",
            &[("emb_params", &[2, 768])],
            &["`emb_params`", "768", "Stable Diffusion 1", "8 and 16"],
        ),
        (
            "half.safetensors",
            &[("emb_params", &[2, 8])],
            &["`clip_g`", "8 values"],
        ),
        (
            "half_2.safetensors",
            &[("<x>", &[16])],
            &["`clip_l`", "16 values"],
        ),
        (
            "vae.safetensors",
            &[("decoder.conv_in.weight", &[4]), ("x", &[1])],
            &["clip_l", "a VAE alone", "decoder.conv_in.weight"],
        ),
        ("scalar.safetensors", &[("x", &[])], &["clip_l", "are x"]),
        (
            "empty.safetensors",
            &[("clip_l", &[0, 8]), ("clip_g", &[0, 16])],
            &["impossible shape [0, "],
        ),
        (
            "photo.safetensors",
            &[("clip_l", &[1, 8]), ("clip_g", &[1, 16])],
            &["`photo`", "vocabulary", "photo.safetensors:<photo>"],
        ),
    ];
    for (name, tensors, said) in cases {
        write(&path(name), tensors);
        let error = refused(vec![given(name, None)]);
        for word in [&["safetensors"], said].concat() {
            assert!(error.contains(word), "{name}: {error:?} lacks {word:?}");
        }
        assert!(error.contains(name), "{error}");
    }

    // The doctor knows the published model's sizes.
    for (name, tensors, fits) in [
        (
            "xl.safetensors",
            [("clip_l", &[1, 768][..]), ("clip_g", &[1, 1280])].as_slice(),
            true,
        ),
        ("sd1.safetensors", &[("emb_params", &[1, 768])], false),
    ] {
        write(&path(name), tensors);
        let found = sdxl::weights::doctor::examine(&path(name), None);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].problem, !fits, "{found:?}");
        let said = if fits {
            "`embeddings`"
        } else {
            "Stable Diffusion 1"
        };
        assert!(found[0].text.contains(said), "{found:?}");
    }

    // The name of a later vector is taken; so is one in other capitals.
    write(
        &path("one.safetensors"),
        &[("clip_l", &[1, 8]), ("clip_g", &[1, 16])],
    );
    write(
        &path("two.safetensors"),
        &[("clip_l", &[2, 8]), ("clip_g", &[2, 16])],
    );
    let pair = |token| {
        vec![
            given("two.safetensors", Some("xyz")),
            given("one.safetensors", Some(token)),
        ]
    };
    for token in ["xyz", "xyz_1", "XYZ"] {
        let error = refused(pair(token));
        assert!(
            error.contains(token) && error.contains("two.safetensors"),
            "{error}"
        );
    }
    encoders(pair("xyz_2"));
    let trained: Tensors = &[("text_encoders_0", &[2, 8]), ("text_encoders_1", &[2, 16])];
    write(&path("pivotal.safetensors"), trained);
    encoders(vec![given("pivotal.safetensors", Some("<s0>"))]);
    let error = refused(vec![given("absent.safetensors", None)]);
    assert!(error.contains("absent.safetensors"), "{error}");
    fs::write(path("old.pt"), b"\x80\x02}q").unwrap();
    let error = refused(vec![given("old.pt", None)]);
    assert!(error.contains("pickle"), "{error}");
    // Halves of different lengths.
    write(&path("l2.safetensors"), &[("<x>", &[2, 8])]);
    let error = refused(vec![
        given("l2.safetensors", None),
        given("half_2.safetensors", None),
    ]);
    assert!(error.contains("not halves"), "{error}");
}
