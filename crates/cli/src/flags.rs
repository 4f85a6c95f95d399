//! The library's hints in this program's words: a field in backticks becomes its flag.

use clap::CommandFactory;
use sdxl::{Error, Warning, WarningKind};

/// Knobs whose flag has another name: lists of which one is given at a time.
const OTHERS: [(&str, &str); 3] = [
    ("loras", "lora"),
    ("embeddings", "embedding"),
    ("scheduler_options", "scheduler-option"),
];

/// An error with whatever was being done, in one line. Where it ends in a hint of the library,
/// that has flags.
pub(crate) fn of_chain(error: &anyhow::Error) -> String {
    let texts = error.chain().map(|cause| {
        let of_kit = cause.downcast_ref::<sdxl_kit::Error>();
        match (cause.downcast_ref(), of_kit) {
            (Some(error), _) => of_error(error),
            (None, Some(error)) => with_hint(error.to_string(), error.hint().as_deref()),
            (None, None) => cause.to_string(),
        }
    });
    texts.collect::<Vec<_>>().join(": ")
}

/// An error of the library, with flags in its hint.
pub(crate) fn of_error(error: &Error) -> String {
    with_hint(error.to_string(), error.hint().as_deref())
}

/// A warning of the library as a line, with flags in its hint; one of a field without an effect has
/// nothing but fields in backticks.
pub(crate) fn of_warning(warning: &Warning) -> String {
    let whole = warning.to_string();
    let text = match warning.kind {
        WarningKind::NoEffect => named(&whole),
        _ => with_hint(whole, warning.hint.as_deref()),
    };
    format!("warning: {text}")
}

/// `text`, which ends in `hint` where there is one.
fn with_hint(text: String, hint: Option<&str>) -> String {
    match hint.and_then(|hint| Some((text.strip_suffix(hint)?, hint))) {
        Some((message, hint)) => format!("{message}{}", named(hint)),
        None => text,
    }
}

/// A hint with flags: `` `offload sequential` `` becomes `--offload sequential`. What is in
/// backticks and no field of this program stays.
pub(crate) fn named(hint: &str) -> String {
    let cli = crate::Cli::command();
    let flags: Vec<&str> = (cli.find_subcommand("generate").into_iter())
        .flat_map(|generate| generate.get_arguments())
        .filter_map(|argument| argument.get_long())
        .collect();
    let flag = |knob: &str| -> Option<String> {
        let other = OTHERS.iter().find(|(field, _)| *field == knob);
        let name = other.map_or_else(|| knob.replace('_', "-"), |(_, flag)| flag.to_string());
        flags.contains(&name.as_str()).then(|| format!("--{name}"))
    };
    let mut out = String::with_capacity(hint.len());
    let mut rest = hint;
    while let Some((before, after)) = rest.split_once('`') {
        let Some((inside, behind)) = after.split_once('`') else {
            break;
        };
        out.push_str(before);
        let (knob, value) = match inside.split_once(' ') {
            Some((knob, value)) => (knob, Some(value)),
            None => (inside, None),
        };
        let has_negative = flag(&format!("no_{knob}")).is_some();
        match (flag(knob), value) {
            (Some(flag), Some("true" | "on")) if has_negative => out.push_str(&flag),
            (Some(_), Some("false" | "off")) if has_negative => {
                out.push_str(&format!("--no-{}", knob.replace('_', "-")));
            }
            (Some(flag), Some(value)) => out.push_str(&format!("{flag} {value}")),
            (Some(flag), None) => out.push_str(&flag),
            (None, _) => out.push_str(&format!("`{inside}`")),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_request_has_a_flag() {
        // The prompt is what is typed without a flag.
        for field in sdxl::Request::fields().iter().filter(|f| **f != "prompt") {
            let flag = named(&format!("`{field}`"));
            assert!(flag.starts_with("--"), "{field}: {flag}");
        }
        for knob in [
            "model",
            "refiner",
            "variant",
            "vae",
            "unet",
            "loras",
            "lora_dir",
            "embeddings",
            "precision",
            "offload",
            "memory",
            "latents",
            "output_latents",
            "quality",
            "format",
        ] {
            assert!(named(&format!("`{knob}`")).starts_with("--"), "{knob}");
        }
    }

    #[test]
    fn only_fields_in_hints_become_flags() {
        assert_eq!(
            named("use `precision bf16`, f16 or `truncate_long_prompts true`; not `euler` or `a"),
            "use --precision bf16, f16 or --truncate-long-prompts; not `euler` or `a"
        );
        assert_eq!(
            named("`vae_slicing off`, `vae_tiling off` or `watermark`"),
            "--no-vae-slicing, --vae-tiling off or --watermark"
        );
        let error = Error::file("l.safetensors", "it has no tensor `latents`")
            .with_hint("give others with `latents`");
        assert_eq!(
            of_error(&error),
            "l.safetensors: it has no tensor `latents`; give others with --latents"
        );
        let warning = Warning::new(
            WarningKind::NoEffect,
            "eta",
            "`eta` has no effect: it is not used",
        )
        .with_hint("choose `scheduler ddim`");
        assert_eq!(
            of_warning(&warning),
            "warning: --eta has no effect: it is not used; choose --scheduler ddim"
        );
        let chain = anyhow::Error::from(error).context("picture `1`");
        assert!(of_chain(&chain).starts_with("picture `1`: l.safetensors: "));
        assert!(of_chain(&chain).ends_with("with --latents"));
    }
}
