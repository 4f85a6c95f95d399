//! Knobs as a user meets them: flags, recipes and help of the program itself. That every field of a
//! request has its flag, `src/args/tests.rs` goes through.

mod support;

use std::fs;
use std::path::Path;

use sdxl_testing::golden;
use serde_json::{Value, json};
use support::{sdxl, text};
use tempfile::TempDir;

fn words(line: &str) -> Vec<String> {
    let place = |word: &str| match word.strip_prefix('@') {
        Some(path) => golden(path).to_str().unwrap().to_string(),
        None => word.to_string(),
    };
    line.split(' ').map(place).collect()
}

/// The answer of `sdxl plan --json` to a line, in which `@` stands for the folder of golden files.
fn plan(dir: &Path, line: &str) -> Value {
    let words = words(&format!("plan {line} --json"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let planned = sdxl(dir, &words);
    assert!(
        planned.status.success(),
        "{line}: {}",
        text(&planned.stderr)
    );
    serde_json::from_slice(&planned.stdout).unwrap()
}

/// A recipe of a request, as a picture has it.
fn write_recipe(dir: &Path, model: &str, refiner: Option<&str>, request: &Value) {
    let mut recipe = json!({
        "version": "0", "model": golden(model), "precision": "f32", "isa": "none", "files": [],
        "scheduler_class": "none", "image_index": 0, "request": request,
    });
    if let Some(refiner) = refiner {
        recipe["refiner"] = json!({"model": golden(refiner), "files": []});
    }
    fs::write(dir.join("r.json"), recipe.to_string()).unwrap();
}

#[test]
fn flags_are_in_the_request_and_a_recipe_gives_them_back() {
    let dir = TempDir::new().unwrap();
    let cases = [
        (
            "x --model @base --prompt-2 a --negative-prompt b --negative-prompt-2 c --prompt-syntax a1111 \
             --prompt-weighting comfyui --truncate-long-prompts --pooled-from raw --clip-skip 1 --seed 7,8 \
             --num-images 2 --rng torch-cuda --steps 7 --width 72 --height 64 --guidance-scale 7.5 \
             --guidance-interval 0.25,0.75 --guidance-rescale 0.5 --original-size 8x16 --target-size 16x8 \
             --crops-coords-top-left 8,0 --negative-original-size 24x8 --negative-target-size 8x24 \
             --negative-crops-coords-top-left 0,8 --scheduler ddim --eta 0.5 \
             --scheduler-option timestep_spacing=trailing --vae-tiling on --vae-tile-size 128 \
             --no-vae-slicing --no-watermark --upscale 1.5 --upscale-strength 0.5 --upscale-method latent",
            None,
            json!({
                "prompt": ["x"], "prompt_2": ["a"], "negative_prompt": ["b"],
                "negative_prompt_2": ["c"], "prompt_syntax": "a1111", "prompt_weighting": "comfyui",
                "truncate_long_prompts": true, "pooled_from": "raw", "clip_skip": 1, "seed": [7, 8],
                "num_images": 2, "rng": "torch-cuda", "steps": 7, "width": 72, "height": 64,
                "guidance_scale": 7.5, "guidance_interval": [0.25, 0.75], "guidance_rescale": 0.5,
                "original_size": "8x16", "target_size": "16x8", "crops_coords_top_left": [8, 0],
                "negative_original_size": "24x8", "negative_target_size": "8x24",
                "negative_crops_coords_top_left": [0, 8], "scheduler": "ddim", "eta": 0.5,
                "scheduler_options": {"timestep_spacing": "trailing"}, "vae_tiling": "on",
                "vae_tile_size": 128, "vae_slicing": false, "watermark": false, "upscale": 1.5,
                "upscale_strength": 0.5, "upscale_method": "latent",
            }),
        ),
        (
            "x --model @base --seed 1 --aspect 16:9 --sigmas 9,3,1,0 --guidance-schedule 7,3 \
             --denoising-end 0.5",
            None,
            json!({
                "width": 88, "sigmas": [9.0, 3.0, 1.0, 0.0], "guidance_schedule": [7.0, 3.0],
                "denoising_end": 0.5,
            }),
        ),
        (
            "x --model @base --seed 1 --init-image @refined/square.png --mask @refined/square_mask.png \
             --strength 0.5 --invert-mask --mask-blur 2 --mask-crop-padding 8 --keep-unmasked",
            None,
            json!({
                "strength": 0.5, "invert_mask": true, "mask_blur": 2.0, "mask_crop_padding": 8,
                "keep_unmasked": true,
            }),
        ),
        (
            "x --model @base --seed 1 --init-image @refined/wide.png --extend left=8,top=16 --width 64 \
             --height 64 --resize-mode crop --timesteps 900,500",
            None,
            json!({
                "extend": "left=8,top=16", "resize_mode": "crop", "timesteps": [900.0, 500.0],
            }),
        ),
        (
            "x --model @base --refiner @refiner --seed 1 --denoising-fraction 0.5 --aesthetic-score 7 \
             --negative-aesthetic-score 3",
            Some("refiner"),
            json!({
                "denoising_fraction": 0.5, "aesthetic_score": 7.0, "negative_aesthetic_score": 3.0,
            }),
        ),
    ];
    for (line, refiner, wanted) in cases {
        let planned = plan(dir.path(), line);
        let request = &planned["request"];
        for (field, value) in wanted.as_object().unwrap() {
            assert_eq!(&request[field], value, "{field}: {line}");
        }
        let without = |warning: &&Value| warning.as_str().unwrap().contains("no effect");
        let said = planned["warnings"].as_array().unwrap().iter();
        assert_eq!(said.filter(without).count(), 0, "{planned}");
        write_recipe(dir.path(), "base", refiner, request);
        assert_eq!(
            &plan(dir.path(), "--recipe r.json")["request"],
            request,
            "{line}"
        );
    }
}

#[test]
fn a_flag_wins_over_a_recipe_also_to_switch_something_off() {
    let dir = TempDir::new().unwrap();
    let line = "x --model @base --seed 1 --init-image @refined/square.png --mask \
                @refined/square_mask.png --keep-unmasked --invert-mask --truncate-long-prompts \
                --no-watermark --no-vae-slicing --negative-prompt rain --steps 7";
    let request = plan(dir.path(), line)["request"].clone();
    write_recipe(dir.path(), "base", None, &request);
    let changed = |flags: &str, wanted: Value| {
        let mut all = request.clone();
        for (field, value) in wanted.as_object().unwrap() {
            assert_ne!(&all[field], value, "{field}");
            all[field] = value.clone();
        }
        let got = plan(dir.path(), &format!("--recipe r.json {flags}"));
        assert_eq!(got["request"], all, "{flags}");
    };
    changed(
        "--no-keep-unmasked --no-invert-mask --no-truncate-long-prompts --watermark --vae-slicing",
        json!({
            "keep_unmasked": false, "invert_mask": false, "truncate_long_prompts": false,
            "watermark": true, "vae_slicing": true,
        }),
    );
    // The last one counts.
    changed(
        "--watermark --no-watermark --watermark",
        json!({"watermark": true}),
    );
    // As scripts wrote it before.
    changed(
        "--vae-slicing on --truncate-long-prompts false",
        json!({"vae_slicing": true, "truncate_long_prompts": false}),
    );
    // What has no opposite is left out.
    changed(
        "--reset mask,keep-unmasked,--invert_mask --reset negative_prompt",
        json!({
            "mask": null, "keep_unmasked": false, "invert_mask": false, "negative_prompt": [],
        }),
    );
    // A refiner too, with what says where it takes over.
    let line = "x --model @base --refiner @refiner --seed 1 --denoising-fraction 0.5";
    let mut request = plan(dir.path(), line)["request"].clone();
    write_recipe(dir.path(), "base", Some("refiner"), &request);
    let stages = |line: &str| {
        let planned = plan(dir.path(), line);
        (
            planned["unet_rows"].as_array().unwrap().len(),
            planned["request"].clone(),
        )
    };
    assert_eq!(stages("--recipe r.json"), (2, request.clone()));
    request["denoising_fraction"] = Value::Null;
    assert_eq!(stages("--recipe r.json --reset refiner"), (1, request));
    let refused = sdxl(
        dir.path(),
        &["plan", "--recipe", "r.json", "--reset", "masc"],
    );
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("`mask`"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn a_flag_without_an_effect_is_said_with_the_one_that_it_needs() {
    let dir = TempDir::new().unwrap();
    let args = [
        "x",
        "--eta",
        "0.5",
        "--upscale-strength",
        "0.5",
        "--seed",
        "1",
    ];
    let said = "warning: --eta has no effect: the scheduler does not use it; choose one that does, such \
                as --scheduler ddim\n";
    let second = "warning: --upscale-strength has no effect: there is no second pass; ask for one with \
                  --upscale 2\n";
    let dry = sdxl(
        dir.path(),
        &[&["generate", "--dry-run"], &args[..]].concat(),
    );
    let stderr = text(&dry.stderr);
    assert!(stderr.contains(said) && stderr.contains(second), "{stderr}");
    // Programs are told of fields.
    let made = ["generate", "--steps", "1", "--json", "--output", "a.png"];
    let made = sdxl(dir.path(), &[&made[..], &args].concat());
    let object: Value = serde_json::from_slice(&made.stdout).unwrap();
    let warnings = object["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{object}");
    assert!(
        warnings[0]
            .as_str()
            .unwrap()
            .starts_with("`eta` has no effect"),
        "{object}"
    );
    assert!(text(&made.stderr).contains(said));
}

#[test]
fn wrong_words_are_answered_with_the_right_ones() {
    let dir = TempDir::new().unwrap();
    for (flag, word, all) in [
        ("--prompt-syntax", "compell", "compel, a1111, plain"),
        (
            "--prompt-weighting",
            "a111",
            "auto, compel, a1111, a1111-no-norm, comfyui",
        ),
        ("--pooled-from", "row", "raw, clean"),
        ("--vae-tiling", "of", "auto, on, off"),
        ("--resize-mode", "strech", "stretch, crop, pad"),
        ("--upscale-method", "latents", "lanczos, latent"),
        ("--rng", "torch-cuba", "torch-cpu, torch-cuda"),
        ("--precision", "bf61", "f32, bf16, f16, int8"),
        ("--offload", "modell", "none, model, sequential"),
        ("--format", "jpg2", "png, jpeg, webp"),
    ] {
        let refused = sdxl(dir.path(), &["generate", "x", flag, word]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("[possible values: {all}]")),
            "{said}"
        );
        assert!(said.contains("a similar value exists"), "{flag}: {said}");
    }
    // As files' names say it.
    let made = ["plan", "x", "--format", "JPG", "--output", "a.jpg"];
    assert!(sdxl(dir.path(), &made).status.success());
}

/// The flags that a help text describes, in its order.
fn flags(help: &str) -> Vec<String> {
    let described = help.lines().filter_map(|line| {
        let start = line.trim_start();
        let start = start.strip_prefix("-o, ").unwrap_or(start);
        let start = start.strip_prefix("-h, ").unwrap_or(start);
        (line.starts_with("  ") && line.len() - start.len() <= 6)
            .then(|| start.strip_prefix("--"))
            .flatten()
    });
    let names = described.map(|flag| flag.split([' ', '\n']).next().unwrap().to_string());
    names.collect()
}

#[test]
fn short_help_has_twenty_flags_in_the_order_in_which_people_use_them() {
    let dir = TempDir::new().unwrap();
    let usual = [
        "model",
        "output",
        "steps",
        "width",
        "height",
        "aspect",
        "seed",
        "num-images",
        "negative-prompt",
        "guidance-scale",
        "scheduler",
        "init-image",
        "strength",
        "mask",
        "lora",
        "refiner",
        "upscale",
        "precision",
        "memory",
        "recipe",
        "help",
    ];
    for command in ["generate", "plan"] {
        let short = text(&sdxl(dir.path(), &[command, "-h"]).stdout);
        assert_eq!(flags(&short), usual, "{short}");
        assert!(
            short.contains("[PROMPT]...") && short.contains("[default: 50]"),
            "{short}"
        );
        let last = short.trim_end().lines().last().unwrap();
        assert_eq!(last, "--help shows all flags, in groups");
    }
}

#[test]
fn long_help_has_all_flags_in_groups() {
    let dir = TempDir::new().unwrap();
    let long = text(&sdxl(dir.path(), &["generate", "--help"]).stdout);
    let headings: Vec<&str> = (long.lines())
        .filter(|line| line.ends_with(':') && !line.starts_with(' '))
        .collect();
    assert_eq!(
        headings,
        [
            "Arguments:",
            "Options:",
            "Prompt:",
            "Picture:",
            "Sampling:",
            "From a picture:",
            "Refiner:",
            "Second pass:",
            "Size conditioning:",
            "Checkpoint and machine:",
            "Output:",
        ]
    );
    let all = flags(&long);
    assert!(all.len() > 75, "{}: {all:?}", all.len());
    assert!(!all.iter().any(|flag| flag.starts_with("no-")), "{all:?}");
    for text in [
        "[default: on; negative: --no-watermark]",
        "[default: off; negative: --no-invert-mask]",
        "- a1111-no-norm: Multiplied",
        "[default: torch-cpu]",
        "[default: 0.4]",
        "[default: 0,0]",
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&long).contains(text), "`{text}` not in:\n{long}");
    }
}
