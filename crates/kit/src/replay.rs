//! A recipe made again: which of its files must be the same, what is unlike the machine or the files
//! that it was made with, and which picture is wanted.

use std::path::Path;

use sdxl::files::{self, FileHash};
use sdxl::recipe::Recipe;
use sdxl::warning::WarningKind;
use sdxl::{Inputs, Request, Warning, latents_file};

use crate::error::{Error, Result};

/// Reads what a request starts from: the files that it names, and the latents of a file.
///
/// # Errors
/// A file that is not there, or not what it should be.
pub fn read_inputs(request: &Request, latents: Option<&Path>) -> Result<Inputs> {
    let mut inputs = Inputs::read(request)?;
    if let Some(path) = latents {
        inputs.latents = Some(latents_file::read(path)?);
        inputs.latents_sha256 = Some(files::hash_file(path)?.1);
    }
    Ok(inputs)
}

/// Refuses a recipe whose latents file was not given, and one of whose pictures has changed since,
/// unless another one was named on purpose: `renamed` is asked for the fields of those that differ. A
/// file that the recipe's request names, and this one's does not, is not missed.
///
/// # Errors
/// [`Error::NoLatents`], [`Error::ChangedInput`] and [`Error::InputNotNamed`].
pub fn check_inputs(was: &Recipe, inputs: &Inputs, renamed: &dyn Fn(&str) -> bool) -> Result<()> {
    if let (None, Some(sha256)) = (&inputs.latents_sha256, &was.latents_sha256) {
        let sha256 = sha256.clone();
        return Err(Error::NoLatents { sha256 });
    }
    for before in &was.inputs {
        match inputs.files.iter().find(|now| now.field == before.field) {
            Some(now) if now.sha256 == before.sha256 || renamed(&before.field) => {}
            Some(now) => {
                return Err(Error::ChangedInput {
                    field: before.field.clone(),
                    path: now.path.clone(),
                    sha256: before.sha256.clone(),
                });
            }
            // Something else was asked for in its place.
            None if names_file(&was.request, &before.field) => {}
            // Its path is in the recipe's request too, unless somebody wrote the recipe by hand.
            None => {
                return Err(Error::InputNotNamed {
                    field: before.field.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Whether a request names the file of an input.
fn names_file(request: &Request, field: &str) -> bool {
    let file = match field {
        "init_image" => &request.init_image,
        "mask" => &request.mask,
        "prompt_embeds" => &request.prompt_embeds,
        "negative_prompt_embeds" => &request.negative_prompt_embeds,
        _ => &None,
    };
    file.is_some()
}

/// Lists what here is unlike the machine or the files that a recipe was made with, as warnings.
pub fn differences(was: &Recipe, inputs: &Inputs) -> Vec<Warning> {
    let mut found = Vec::new();
    let differs = |field: Option<&'static str>, message: String| {
        Warning::new(WarningKind::RecipeDiffers, field, message)
    };
    let isa = sdxl_kernels::Isa::current().to_string();
    let version = crate::VERSION;
    if was.isa != isa {
        let message = format!(
            "the recipe was made with {} instructions and this is {isa}: the last bits may differ",
            was.isa
        );
        found.push(differs(None, message));
    }
    if was.version != version {
        let message = format!(
            "the recipe was made by version {} and this is {version}: the picture may differ",
            was.version
        );
        found.push(differs(None, message));
    }
    if inputs.latents_sha256.is_some() && was.latents_sha256 != inputs.latents_sha256 {
        let message = "these are not the latents that the recipe started from";
        found.push(differs(Some("latents"), message.to_string()));
    }
    for now in &inputs.files {
        let before = was.inputs.iter().find(|f| f.field == now.field);
        if before.is_none_or(|f| f.sha256 != now.sha256) {
            let field = &now.field;
            let message = format!("this is not the {field} that the recipe was made with");
            let known = Request::fields().iter().find(|known| **known == *field);
            found.push(differs(known.copied(), message));
        }
    }
    found
}

/// Lists the weights that are unlike those that a recipe was made with, as warnings: of the
/// checkpoint and of the refiner.
pub fn weight_differences(was: &Recipe, now: &Recipe) -> Vec<Warning> {
    let of_refiner = |r: &Recipe| -> Vec<FileHash> {
        (r.refiner.as_ref()).map_or_else(Vec::new, |r| r.files.clone())
    };
    let both = [
        (was.files.clone(), now.files.clone()),
        (of_refiner(was), of_refiner(now)),
    ];
    let differ = both.iter().filter(|(was, now)| was != now);
    let said = differ.map(|(was, now)| {
        let changed: Vec<&str> = (now.iter().filter(|f| !was.contains(f)))
            .map(|f| f.name.as_str())
            .collect();
        let message = format!(
            "the recipe was made with other weights, so the picture may differ; changed: {}",
            changed.join(", ")
        );
        Warning::new(WarningKind::RecipeDiffers, "model", message)
    });
    said.collect()
}

/// The one picture (from 0) that a replay writes: that of the recipe, unless `request` asks for
/// other pictures than the recipe did.
pub fn only_picture(was: &Recipe, request: &Request) -> Option<usize> {
    let same = was.request.prompt == request.prompt && was.request.num_images == request.num_images;
    Some(was.image_index).filter(|index| same && *index < request.images())
}

#[cfg(test)]
mod tests {
    use sdxl::inputs::InputFile;

    use super::*;

    fn recipe() -> Recipe {
        let json = serde_json::json!({
            "version": crate::VERSION, "model": "m", "precision": "f32",
            "isa": sdxl_kernels::Isa::current().to_string(),
            "files": [{"name": "unet/a", "bytes": 1, "sha256": "11"}],
            "scheduler_class": "EulerDiscreteScheduler", "image_index": 1,
            "request": {"prompt": ["a cat"], "seed": [7], "num_images": 2},
        });
        serde_json::from_value(json).unwrap()
    }

    fn inputs(latents_sha256: Option<&str>, files: &[InputFile]) -> Inputs {
        Inputs {
            files: files.to_vec(),
            latents_sha256: latents_sha256.map(str::to_string),
            ..Inputs::default()
        }
    }

    fn input(field: &str, sha256: &str) -> InputFile {
        InputFile {
            field: field.into(),
            path: format!("{field}.png").into(),
            sha256: sha256.into(),
        }
    }

    #[test]
    fn changed_inputs_are_refused_unless_others_were_named() {
        let mut was = recipe();
        was.inputs = vec![input("init_image", "aa")];
        let check =
            |files: &[InputFile], renamed| check_inputs(&was, &inputs(None, files), &|_| renamed);
        check(&[input("init_image", "aa"), input("mask", "bb")], false).unwrap();
        let other = [input("init_image", "cc")];
        let error = check(&other, false).unwrap_err();
        assert!(
            matches!(&error, Error::ChangedInput { path, .. } if path.ends_with("init_image.png"))
        );
        assert_eq!(error.field(), Some("init_image"));
        assert!(error.to_string().contains("aa"), "{error}");
        check(&other, true).unwrap();
        let error = check(&[], true).unwrap_err();
        assert!(matches!(error, Error::InputNotNamed { .. }));
        // Left out on purpose: the recipe's request names it, and this one does not.
        let mut named = was.clone();
        named.request.init_image = Some("init_image.png".into());
        check_inputs(&named, &inputs(None, &[]), &|_| false).unwrap();
        was.latents_sha256 = Some("dd".into());
        let error = check_inputs(&was, &inputs(None, &was.inputs), &|_| true).unwrap_err();
        assert!(matches!(error, Error::NoLatents { .. }));
        check_inputs(&was, &inputs(Some("ee"), &was.inputs), &|_| true).unwrap();
    }

    #[test]
    fn what_is_unlike_the_recipe_is_said() {
        let mut was = recipe();
        assert!(differences(&was, &inputs(None, &[])).is_empty());
        was.isa = "abacus".into();
        was.version = "0.0.1".into();
        let found = differences(&was, &inputs(Some("ee"), &[input("mask", "bb")]));
        for (warning, word) in found.iter().zip(["abacus", "0.0.1", "latents", "mask"]) {
            assert!(warning.message.contains(word), "{warning}");
        }
        assert_eq!(found[3].field, Some("mask"));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn other_weights_are_said_by_name() {
        let was = recipe();
        assert!(weight_differences(&was, &was).is_empty());
        let mut now = was.clone();
        now.files[0].sha256 = "22".into();
        now.refiner = Some(sdxl::recipe::RefinerRecipe {
            model: "r".into(),
            files: vec![FileHash {
                name: "unet/r".into(),
                bytes: 1,
                sha256: "33".into(),
            }],
        });
        let said = weight_differences(&was, &now);
        assert!(said[0].message.ends_with("changed: unet/a"), "{said:?}");
        assert!(said[1].message.ends_with("changed: unet/r"), "{said:?}");
    }

    #[test]
    fn a_replay_is_of_one_picture() {
        let was = recipe();
        assert_eq!(only_picture(&was, &was.request), Some(1));
        let mut more = was.request.clone();
        more.num_images = 3;
        assert_eq!(only_picture(&was, &more), None);
        let mut other = was.clone();
        other.image_index = 2;
        assert_eq!(only_picture(&other, &was.request), None, "there is none");
    }
}
