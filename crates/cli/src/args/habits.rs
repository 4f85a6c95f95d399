//! Flags that people know from other programs, and the ones that are meant.

use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Flags of diffusers' scripts, stable-diffusion.cpp, A1111 and InvokeAI that have another name here.
const FOREIGN: [(&str, &str); 31] = [
    ("--cfg-scale", "--guidance-scale"),
    ("--cfg", "--guidance-scale"),
    ("--guidance", "--guidance-scale"),
    ("--sampler", "--scheduler"),
    ("--sampler-name", "--scheduler"),
    ("--sampling-method", "--scheduler"),
    ("--num-inference-steps", "--steps"),
    ("--num-steps", "--steps"),
    ("--batch-size", "--num-images"),
    ("--batch-count", "--num-images"),
    ("--n-iter", "--num-images"),
    ("--num-images-per-prompt", "--num-images"),
    ("-n", "--num-images"),
    ("-b", "--num-images"),
    ("-W", "--width"),
    ("-H", "--height"),
    ("-s", "--seed"),
    ("-S", "--seed"),
    ("-m", "--model"),
    ("-i", "--init-image"),
    ("--ckpt", "--model"),
    ("--checkpoint", "--model"),
    ("--negative", "--negative-prompt"),
    ("--image", "--init-image"),
    ("--init-img", "--init-image"),
    ("--mask-image", "--mask"),
    ("--denoising-strength", "--strength"),
    ("--hires-fix", "--upscale"),
    ("--out", "--output"),
    ("--output-dir", "--output"),
    ("--outdir", "--output"),
];

/// The error with the flag that is meant, where an unknown one is another program's, or ours with an
/// underscore. `command`: the whole command line's.
pub(crate) fn with_meant(mut error: Error, command: &Command) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = given.split(['=', ' ']).next().unwrap_or(given);
    if let Some(meant) = meant(flag).filter(|meant| exists(command, meant)) {
        let meant = ContextValue::String(meant);
        error.insert(ContextKind::SuggestedArg, meant);
        // What follows a `--` is a prompt: no flag was meant so.
        error.remove(ContextKind::Suggested);
    }
    error
}

fn meant(flag: &str) -> Option<String> {
    let hyphens = match flag.starts_with("--") {
        true => flag.replace('_', "-"),
        false => flag.to_string(),
    };
    let foreign = FOREIGN.iter().find(|(foreign, _)| *foreign == hyphens);
    let ours = foreign.map(|(_, ours)| (*ours).to_string());
    ours.or_else(|| (hyphens != flag).then_some(hyphens))
}

/// Whether some command has the flag.
fn exists(command: &Command, flag: &str) -> bool {
    let name = flag.trim_start_matches('-');
    let has = |command: &Command| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name))
    };
    has(command) || command.get_subcommands().any(|inner| exists(inner, flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_other_programs_name_ours() {
        let command = crate::command(false);
        for (flag, ours) in FOREIGN {
            assert!(exists(&command, ours), "{ours}");
            assert!(!exists(&command, flag), "{flag} is one of ours");
        }
        for (given, ours) in [
            ("--cfg-scale=7", "--guidance-scale"),
            ("--cfg_scale", "--guidance-scale"),
            ("-W", "--width"),
            ("--num_images", "--num-images"),
            ("--guidance_scale", "--guidance-scale"),
        ] {
            let words = ["sdxl", "generate", "a star", given];
            let error = command.clone().try_get_matches_from(words).unwrap_err();
            let text = with_meant(error, &command).to_string();
            assert!(text.contains(&format!("'{ours}'")), "{given}: {text}");
        }
        let words = ["sdxl", "generate", "a star", "--no_such_flag"];
        let error = command.clone().try_get_matches_from(words).unwrap_err();
        let text = with_meant(error, &command).to_string();
        assert!(!text.contains("--no-such-flag'"), "{text}");
    }
}
