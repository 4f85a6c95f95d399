//! Every field of a request is set by its flag, and by nothing else.

use std::collections::BTreeMap;

use clap::FromArgMatches;
use sdxl::Request;
use serde_json::{Value, json};

use super::GenerateArgs;
use crate::{Cli, Command};

/// The flags of a field, the value that they set, and another one that a recipe may hold.
struct Knob {
    field: &'static str,
    flags: &'static [&'static str],
    value: Value,
    other: Value,
}

fn knobs() -> Vec<Knob> {
    let knob = |field, flags: &'static [&'static str], value, other| Knob {
        field,
        flags,
        value,
        other,
    };
    vec![
        knob(
            "prompt",
            &["a cat", "a dog"],
            json!(["a cat", "a dog"]),
            json!(["x"]),
        ),
        knob("prompt_2", &["--prompt-2", "a"], json!(["a"]), json!(["b"])),
        knob(
            "negative_prompt",
            &["--negative-prompt", ""],
            json!([""]),
            json!(["b"]),
        ),
        knob(
            "negative_prompt_2",
            &["--negative-prompt-2", "a"],
            json!(["a"]),
            json!(["b"]),
        ),
        knob(
            "prompt_syntax",
            &["--prompt-syntax", "a1111"],
            json!("a1111"),
            json!("plain"),
        ),
        knob(
            "prompt_embeds",
            &["--prompt-embeds", "a"],
            json!("a"),
            json!("b"),
        ),
        knob(
            "negative_prompt_embeds",
            &["--negative-prompt-embeds", "a"],
            json!("a"),
            json!("b"),
        ),
        knob(
            "prompt_weighting",
            &["--prompt-weighting", "comfyui"],
            json!("comfyui"),
            json!("a1111"),
        ),
        knob(
            "truncate_long_prompts",
            &["--truncate-long-prompts"],
            json!(true),
            json!(false),
        ),
        knob(
            "truncate_long_prompts",
            &["--no-truncate-long-prompts"],
            json!(false),
            json!(true),
        ),
        knob(
            "pooled_from",
            &["--pooled-from", "clean"],
            json!("clean"),
            json!("raw"),
        ),
        knob("seed", &["--seed", "7"], json!([7]), json!([9])),
        knob(
            "rng",
            &["--rng", "torch-cuda"],
            json!("torch-cuda"),
            json!("torch-cpu"),
        ),
        knob("steps", &["--steps", "7"], json!(7), json!(8)),
        knob("width", &["--width", "72"], json!(72), json!(80)),
        knob("height", &["--height", "72"], json!(72), json!(80)),
        knob("aspect", &["--aspect", "16:9"], json!("16:9"), json!("4:3")),
        knob(
            "guidance_scale",
            &["--guidance-scale", "7.5"],
            json!(7.5),
            json!(2.5),
        ),
        knob(
            "guidance_schedule",
            &["--guidance-schedule", "7,3"],
            json!([7.0, 3.0]),
            json!([2.0]),
        ),
        knob(
            "guidance_interval",
            &["--guidance-interval", "0.25,0.75"],
            json!([0.25, 0.75]),
            json!([0.5, 1.0]),
        ),
        knob(
            "guidance_rescale",
            &["--guidance-rescale", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob("num_images", &["--num-images", "3"], json!(3), json!(2)),
        knob("clip_skip", &["--clip-skip", "1"], json!(1), json!(2)),
        knob(
            "original_size",
            &["--original-size", "8x16"],
            json!("8x16"),
            json!("24x8"),
        ),
        knob(
            "target_size",
            &["--target-size", "8x16"],
            json!("8x16"),
            json!("24x8"),
        ),
        knob(
            "crops_coords_top_left",
            &["--crops-coords-top-left", "8,0"],
            json!([8, 0]),
            json!([0, 8]),
        ),
        knob(
            "negative_original_size",
            &["--negative-original-size", "8x16"],
            json!("8x16"),
            json!("24x8"),
        ),
        knob(
            "negative_target_size",
            &["--negative-target-size", "8x16"],
            json!("8x16"),
            json!("24x8"),
        ),
        knob(
            "negative_crops_coords_top_left",
            &["--negative-crops-coords-top-left", "8,0"],
            json!([8, 0]),
            json!([0, 8]),
        ),
        knob(
            "scheduler",
            &["--scheduler", "ddim"],
            json!("ddim"),
            json!("euler"),
        ),
        knob(
            "scheduler_options",
            &["--scheduler-option", "use_karras_sigmas=true"],
            json!({"use_karras_sigmas": true}),
            json!({"use_karras_sigmas": false}),
        ),
        knob(
            "timesteps",
            &["--timesteps", "900,500"],
            json!([900.0, 500.0]),
            json!([100.0]),
        ),
        knob(
            "sigmas",
            &["--sigmas", "5,1,0"],
            json!([5.0, 1.0, 0.0]),
            json!([2.0, 0.0]),
        ),
        knob("eta", &["--eta", "0.5"], json!(0.5), json!(0.25)),
        knob(
            "denoising_end",
            &["--denoising-end", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob(
            "denoising_start",
            &["--denoising-start", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob(
            "denoising_fraction",
            &["--denoising-fraction", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob(
            "refiner_strength",
            &["--refiner-strength", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob(
            "aesthetic_score",
            &["--aesthetic-score", "7"],
            json!(7.0),
            json!(5.0),
        ),
        knob(
            "negative_aesthetic_score",
            &["--negative-aesthetic-score", "3"],
            json!(3.0),
            json!(1.0),
        ),
        knob(
            "init_image",
            &["--init-image", "a.png"],
            json!("a.png"),
            json!("b.png"),
        ),
        knob(
            "resize_mode",
            &["--resize-mode", "crop"],
            json!("crop"),
            json!("pad"),
        ),
        knob("strength", &["--strength", "0.5"], json!(0.5), json!(0.25)),
        knob("mask", &["--mask", "a.png"], json!("a.png"), json!("b.png")),
        knob("invert_mask", &["--invert-mask"], json!(true), json!(false)),
        knob(
            "invert_mask",
            &["--no-invert-mask"],
            json!(false),
            json!(true),
        ),
        knob("mask_blur", &["--mask-blur", "4"], json!(4.0), json!(2.0)),
        knob(
            "mask_crop_padding",
            &["--mask-crop-padding", "8"],
            json!(8),
            json!(4),
        ),
        knob(
            "keep_unmasked",
            &["--keep-unmasked"],
            json!(true),
            json!(false),
        ),
        knob(
            "keep_unmasked",
            &["--no-keep-unmasked"],
            json!(false),
            json!(true),
        ),
        knob(
            "extend",
            &["--extend", "left=8"],
            json!("left=8"),
            json!("top=8"),
        ),
        knob("upscale", &["--upscale", "2"], json!(2.0), json!(1.5)),
        knob(
            "upscale_strength",
            &["--upscale-strength", "0.5"],
            json!(0.5),
            json!(0.25),
        ),
        knob(
            "upscale_method",
            &["--upscale-method", "latent"],
            json!("latent"),
            json!("lanczos"),
        ),
        knob(
            "vae_tiling",
            &["--vae-tiling", "on"],
            json!("on"),
            json!("off"),
        ),
        knob(
            "vae_tile_size",
            &["--vae-tile-size", "128"],
            json!(128),
            json!(256),
        ),
        knob("vae_slicing", &["--vae-slicing"], json!(true), json!(false)),
        knob(
            "vae_slicing",
            &["--no-vae-slicing"],
            json!(false),
            json!(true),
        ),
        knob("watermark", &["--watermark"], json!(true), json!(false)),
        knob("watermark", &["--no-watermark"], json!(false), json!(true)),
    ]
}

/// Flags that stand for no field of a request: those of models and files beside it, and of the program.
const BESIDE: [&str; 33] = [
    "wildcards",
    "no-wildcards",
    "wildcards-dir",
    "latents",
    "refiner",
    "model",
    "variant",
    "vae",
    "unet",
    "lora",
    "lora-dir",
    "embedding",
    "precision",
    "offload",
    "device",
    "memory",
    "recipe",
    "reset",
    "output",
    "format",
    "quality",
    "output-latents",
    "state",
    "state-every",
    "dry-run",
    "profile",
    "svg",
    "c2pa-certificate",
    "c2pa-key",
    "overwrite",
    "no-overwrite",
    "json",
    "help",
];

fn parse(words: &[&str]) -> GenerateArgs {
    let words = [&["sdxl", "generate"], words].concat();
    let matches = crate::command(false).try_get_matches_from(&words);
    let matches = matches.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    match Cli::from_arg_matches(&matches).unwrap().command {
        Command::Generate(args) => *args,
        _ => panic!("another command"),
    }
}

/// The request of `words` beside a recipe with this request.
fn request(base: &Value, words: &[&str]) -> Value {
    // With a recipe no prompt is needed.
    let words = [&["--recipe", "r.json"], words].concat();
    let base = Request::from_json(base).unwrap();
    let request = parse(&words).request(base).unwrap();
    serde_json::to_value(request).unwrap()
}

fn fields(request: &Value) -> BTreeMap<String, Value> {
    let object = request.as_object().unwrap().clone();
    object.into_iter().collect()
}

#[test]
fn every_field_has_a_flag_that_sets_it_and_nothing_else() {
    let knobs = knobs();
    for field in Request::fields() {
        assert!(knobs.iter().any(|knob| knob.field == *field), "{field}");
    }
    let defaults = request(&json!({}), &[]);
    assert_eq!(defaults, serde_json::to_value(Request::default()).unwrap());
    for Knob {
        field,
        flags,
        value,
        other,
    } in &knobs
    {
        let mut wanted = fields(&defaults);
        wanted.insert(field.to_string(), value.clone());
        let set = request(&json!({}), flags);
        assert_eq!(fields(&set), wanted, "{flags:?}");
        // A recipe gives it back, and the flag wins over a recipe that holds something else.
        assert_eq!(request(&set, &[]), set, "{flags:?}");
        assert_ne!(value, other, "{field}");
        let mut recipe = json!({});
        recipe[*field] = other.clone();
        assert_eq!(fields(&request(&recipe, flags)), wanted, "{flags:?}");
        // And a recipe's value can be left out.
        let reset = request(&recipe, &["--reset", field]);
        assert_eq!(reset, defaults, "{field}");
    }
}

#[test]
fn every_flag_is_a_field_or_known_to_be_none() {
    let command = crate::command(false);
    let generate = command.find_subcommand("generate").unwrap();
    let knobs = knobs();
    for flag in generate.get_arguments().filter_map(|arg| arg.get_long()) {
        let long = format!("--{flag}");
        let sets = knobs.iter().any(|knob| knob.flags.contains(&long.as_str()));
        assert!(
            sets != BESIDE.contains(&flag),
            "{long}: a flag of a field is tested above; another one is listed here, and tested where \
             it is used"
        );
    }
    // Switches that recipes know have a negative, and the last one counts.
    for knob in knobs.iter().filter(|knob| knob.value.is_boolean()) {
        let [flag] = knob.flags else {
            panic!("{}", knob.field);
        };
        let opposite = match flag.strip_prefix("--no-") {
            Some(name) => format!("--{name}"),
            None => format!("--no-{}", &flag[2..]),
        };
        for words in [[opposite.as_str(), flag], [flag, flag]] {
            assert_eq!(
                request(&json!({}), &words)[knob.field],
                knob.value,
                "{words:?}"
            );
        }
    }
}

#[test]
fn what_stands_for_the_same_takes_a_recipes_place() {
    for (recipe, words, wanted) in [
        (
            json!({"guidance_schedule": [7.0, 3.0]}),
            &["--guidance-scale", "4"][..],
            json!({"guidance_scale": 4.0}),
        ),
        (
            json!({"guidance_scale": 4.0}),
            &["--guidance-schedule", "7"],
            json!({"guidance_schedule": [7.0]}),
        ),
        (
            json!({"width": 72, "height": 64}),
            &["--aspect", "16:9"],
            json!({"aspect": "16:9"}),
        ),
        (
            json!({"aspect": "16:9"}),
            &["--width", "72"],
            json!({"width": 72}),
        ),
        (
            json!({"timesteps": [9.0]}),
            &["--steps", "7"],
            json!({"steps": 7}),
        ),
        (
            json!({"steps": 7}),
            &["--sigmas", "5,0"],
            json!({"sigmas": [5.0, 0.0]}),
        ),
        (
            json!({"denoising_fraction": 0.5}),
            &["--denoising-end", "0.75"],
            json!({"denoising_end": 0.75}),
        ),
        (
            json!({"prompt_embeds": "a", "negative_prompt_embeds": "b"}),
            &["a cat"],
            json!({"prompt": ["a cat"]}),
        ),
        (
            json!({"prompt": ["a cat"], "prompt_2": ["b"], "negative_prompt": ["c"]}),
            &["--prompt-embeds", "d", "--negative-prompt-embeds", "e"],
            json!({"prompt_embeds": "d", "negative_prompt_embeds": "e"}),
        ),
    ] {
        let wanted = Request::from_json(&wanted).unwrap();
        assert_eq!(
            request(&recipe, words),
            serde_json::to_value(wanted).unwrap(),
            "{words:?}"
        );
    }
}

#[test]
fn wildcards_are_asked_for_or_not() {
    let prompt = |words: &[&str]| {
        let words = [&["{red|red} ball", "--seed", "1"], words].concat();
        request(&json!({}), &words)["prompt"][0].clone()
    };
    assert_eq!(prompt(&[]), "{red|red} ball");
    assert_eq!(prompt(&["--wildcards"]), "red ball");
    assert_eq!(prompt(&["--wildcards-dir", "."]), "red ball");
    assert_eq!(prompt(&["--wildcards", "--no-wildcards"]), "{red|red} ball");
    assert_eq!(
        prompt(&["--wildcards-dir", ".", "--no-wildcards"]),
        "{red|red} ball"
    );
    assert_eq!(prompt(&["--no-wildcards", "--wildcards"]), "red ball");
}

#[test]
fn seeds_are_given_drawn_or_count_the_pictures() {
    let of = |recipe: Value, words: &[&str]| {
        let words = [&["a"], words].concat();
        let request = request(&recipe, &words);
        (request["seed"].clone(), request["num_images"].clone())
    };
    let plain = || json!({});
    assert_eq!(of(plain(), &["--seed", "-2"]).0, json!([u64::MAX - 1]));
    // Drawn anew, also in the place of a recipe's.
    let recipe = json!({"seed": [7], "prompt": ["a"]});
    assert_eq!(of(recipe.clone(), &[]).0, json!([7]));
    assert_eq!(of(recipe, &["--seed", "-1"]).0, json!([]));
    let (seeds, images) = of(plain(), &["--seed", "5,-1,6"]);
    assert_eq!(
        (&seeds[0], &seeds[2], images),
        (&json!(5), &json!(6), json!(3))
    );
    assert!(seeds[1].as_u64().unwrap() < 1 << 32);
    // As many as is said, if it is said; over several prompts, if they share them.
    let (_, images) = of(plain(), &["--seed", "1,2", "--num-images", "1"]);
    assert_eq!(images, json!(1));
    assert_eq!(of(plain(), &["b", "--seed", "1,2,3,4"]).1, json!(2));
    assert_eq!(of(plain(), &["b", "--seed", "1,2,3"]).1, json!(1));
}
