//! Which files of a repository a run needs: the few of many.
//!
//! The same rules read a hub's list of files and what is in the cache, of which it cannot be said
//! whether it is all there is.

use serde_json::{Map, Value};

use super::error::HubError;
use super::name::ModelName;
use crate::error::Result;
use crate::precision::Precision;
use crate::weights::Part;
use crate::weights::layout::{check_index, named_class, shards, weight_names};

/// The purpose for which a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To make pictures with.
    Checkpoint,
    /// The model's VAE alone.
    Vae,
    /// Whatever it is.
    Any,
}

/// The requirements on a model of a hub: which of its files are wanted.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The purpose for which the model is wanted.
    pub purpose: Purpose,
    /// The precision of the run: for 16 bits and less, weights of variant `fp16` are taken where
    /// there are some, or else the plain ones; for 32 bits the other way round.
    pub precision: Precision,
    /// Weights of this variant instead, and plain ones of parts that lack it.
    pub variant: Option<String>,
    /// Parts that come from elsewhere: their weights are not wanted.
    pub replaced: Vec<Part>,
}

impl FetchOptions {
    /// Variants in the order in which they are liked; `None` is the plain one.
    fn liked(&self) -> [Option<&str>; 2] {
        match &self.variant {
            Some(variant) => [Some(variant), None],
            None if self.halved() => [Some("fp16"), None],
            None => [None, Some("fp16")],
        }
    }

    fn halved(&self) -> bool {
        self.precision.bytes() < 4
    }

    /// Whether what comes second may be taken while it is not known that there is no first. Plain
    /// weights can be halved when they are loaded; the other way round something is lost.
    fn takes_any(&self) -> bool {
        self.variant.is_none() && self.halved()
    }
}

/// A repository as the rules see it.
pub(super) struct View<'a> {
    pub name: &'a ModelName,
    /// The files that are known to be there.
    pub files: &'a [String],
    /// Whether it is known that there is no such file.
    pub lacks: &'a dyn Fn(&str) -> bool,
    /// The contents of a small file.
    pub read: &'a dyn Fn(&str) -> Result<Map<String, Value>>,
}

/// The files that a run needs.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// The files that are there.
    pub files: Vec<String>,
    /// The files that are not there, or not known to be.
    pub missing: Vec<String>,
    /// The files that would have been taken if they existed.
    pub absent: Vec<String>,
    /// The variant to open the folder with.
    pub variant: Option<String>,
    /// The one file that is the checkpoint, where it is not the folder.
    pub single: Option<String>,
}

/// Applies the rules.
///
/// # Errors
/// A repository that cannot be what it is wanted for.
pub(super) fn select(want: &FetchOptions, view: &View<'_>) -> Result<Selection> {
    let mut found = Selection {
        variant: want.variant.clone(),
        ..Selection::default()
    };
    if let Some(file) = &view.name.file {
        view.need(file, &mut found);
        // A VAE in the names of a folder is described beside it.
        let beside = match file.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/config.json"),
            None => "config.json".to_string(),
        };
        view.like(&beside, &mut found);
        found.single = Some(file.clone());
    } else if view.has("model_index.json") {
        of_folder(want, view, &mut found)?;
    } else if view.has("config.json") && view.files.iter().any(|f| is_part(f)) {
        of_part(want, view, &mut found)?;
    } else if (view.lacks)("model_index.json") {
        of_files(view, &mut found)?;
    } else {
        found.missing.push("model_index.json".to_string());
    }
    Ok(found)
}

fn of_folder(want: &FetchOptions, view: &View<'_>, found: &mut Selection) -> Result<()> {
    view.need("model_index.json", found);
    let index = (view.read)("model_index.json")?;
    let parts = match want.purpose {
        Purpose::Vae => vec![Part::Vae],
        Purpose::Checkpoint | Purpose::Any => Part::ALL.to_vec(),
    };
    if want.purpose != Purpose::Vae {
        check_index(format!("{}/model_index.json", view.name).as_ref(), &index)?;
        view.need("scheduler/scheduler_config.json", found);
    }
    let mut taken = Vec::new();
    for part in parts {
        if named_class(&index, part).is_none() {
            continue;
        }
        let folder = format!("{}/", part.folder());
        if want.replaced.contains(&part) {
            // A UNet that stands in may be built as the one in whose place it stands.
            if part == Part::UNet {
                view.need(&format!("{folder}config.json"), found);
            }
            continue;
        }
        view.need(&format!("{folder}config.json"), found);
        taken.push(weights(want, view, &folder, part, found)?);
        if let Part::TextEncoder | Part::TextEncoder2 = part {
            let folder = part.folder().replace("text_encoder", "tokenizer");
            let pair = ["vocab.json", "merges.txt"].map(|file| format!("{folder}/{file}"));
            // transformers 5 writes one file in the place of the two.
            let both = format!("{folder}/tokenizer.json");
            if view.has(&both) && !pair.iter().all(|file| view.has(file)) {
                view.need(&both, found);
            } else {
                for file in &pair {
                    view.need(file, found);
                }
            }
            for file in [
                "special_tokens_map.json",
                "tokenizer_config.json",
                "added_tokens.json",
            ] {
                view.like(&format!("{folder}/{file}"), found);
            }
        }
    }
    settle(want, view, &taken, found)
}

/// A repository that is one part of a checkpoint.
fn of_part(want: &FetchOptions, view: &View<'_>, found: &mut Selection) -> Result<()> {
    view.need("config.json", found);
    let config = (view.read)("config.json")?;
    let class = config.get("_class_name").and_then(Value::as_str);
    let (what, hint) = match (class, want.purpose) {
        (Some("AutoencoderKL") | None, Purpose::Vae | Purpose::Any) => {
            let taken = weights(want, view, "", Part::Vae, found)?;
            return settle(want, view, &[taken], found);
        }
        (Some("AutoencoderKL") | None, _) => {
            let hint = "give a checkpoint as the model and this with `vae`";
            ("is a VAE alone".to_string(), hint)
        }
        (Some(class), _) => {
            let hint = "give the model that it was made for";
            (format!("is a part alone ({class}), not a checkpoint"), hint)
        }
    };
    Err(view.not_a_checkpoint(what, Some(hint.to_string())))
}

/// A repository without a folder layout.
fn of_files(view: &View<'_>, found: &mut Selection) -> Result<()> {
    let single = |f: &&String| f.ends_with(".safetensors") && !f.contains('/');
    let files: Vec<&String> = view.files.iter().filter(single).collect();
    let (what, hint) = match files.as_slice() {
        [one] => {
            view.need(one, found);
            view.like("config.json", found);
            found.absent.push("model_index.json".to_string());
            found.single = Some(one.to_string());
            return Ok(());
        }
        [] => {
            let pickled = |f: &&String| f.ends_with(".ckpt") || f.ends_with(".bin");
            let what = match view.files.iter().find(pickled) {
                Some(file) => format!(
                    "has neither model_index.json nor a .safetensors file; {file} is a pickle, \
                     which can run any program when opened and is never read"
                ),
                None => "has neither model_index.json nor a .safetensors file, so it is no \
                         checkpoint of Stable Diffusion XL"
                    .to_string(),
            };
            (what, None)
        }
        several => {
            let names: Vec<&str> = several.iter().map(|f| f.as_str()).collect();
            (
                format!(
                    "has no model_index.json and several checkpoints: {}",
                    names.join(", ")
                ),
                Some(format!(
                    "name one of them, as in {}/{}",
                    view.name.repo, names[0]
                )),
            )
        }
    };
    Err(view.not_a_checkpoint(what, hint))
}

/// In which variant a part's weights were taken.
#[derive(PartialEq)]
enum Taken {
    Nothing,
    Plain,
    Variant(String),
}

/// Takes a part's weights in the variant that is liked best, and says which it was.
fn weights(
    want: &FetchOptions,
    view: &View<'_>,
    folder: &str,
    part: Part,
    found: &mut Selection,
) -> Result<Taken> {
    let named = |variant| weight_names(part.file_stem(), variant).map(|f| format!("{folder}{f}"));
    for variant in want.liked() {
        let [whole, index] = named(variant);
        let taken = variant.map_or(Taken::Plain, |v| Taken::Variant(v.to_string()));
        if view.has(&whole) {
            view.need(&whole, found);
            return Ok(taken);
        }
        if view.has(&index) {
            view.need(&index, found);
            let map = (view.read)(&index)?;
            let path = format!("{}/{index}", view.name);
            for shard in shards(path.as_ref(), &map)? {
                view.need(&format!("{folder}{shard}"), found);
            }
            return Ok(taken);
        }
        let known = (view.lacks)(&whole) && (view.lacks)(&index);
        if known {
            found.absent.extend([whole, index]);
        } else if !want.takes_any() {
            found.missing.push(whole);
            return Ok(Taken::Nothing);
        }
    }
    let [mut whole, _] = named(want.liked()[0]);
    if (view.lacks)(&whole) {
        [whole, _] = named(None);
    }
    found.missing.push(whole);
    Ok(Taken::Nothing)
}

/// Which variant to open the folder with.
fn settle(
    want: &FetchOptions,
    view: &View<'_>,
    taken: &[Taken],
    found: &mut Selection,
) -> Result<()> {
    let is = |variant: &str| taken.contains(&Taken::Variant(variant.to_string()));
    match &want.variant {
        Some(variant) if found.missing.is_empty() && !is(variant) => {
            let repo = view.name.repo.clone();
            let file = format!("weights of variant `{variant}`");
            let hint = Some("leave out `variant` to use those that it has".to_string());
            Err(HubError::NoFile { repo, file, hint }.into())
        }
        None if want.halved() && is("fp16") => {
            found.variant = Some("fp16".to_string());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether a file at the root holds the weights of a part of a checkpoint.
fn is_part(file: &str) -> bool {
    let stem = Part::Vae.file_stem();
    !file.contains('/') && file.starts_with(stem) && file.contains(".safetensors")
}

impl View<'_> {
    fn has(&self, file: &str) -> bool {
        self.files.iter().any(|f| f == file)
    }

    fn need(&self, file: &str, found: &mut Selection) {
        match self.has(file) {
            true => found.files.push(file.to_string()),
            false => found.missing.push(file.to_string()),
        }
    }

    fn like(&self, file: &str, found: &mut Selection) {
        if self.has(file) {
            found.files.push(file.to_string());
        }
    }

    fn not_a_checkpoint(&self, what: String, hint: Option<String>) -> crate::Error {
        let repo = self.name.repo.clone();
        HubError::NotACheckpoint { repo, what, hint }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The files of a repository like SDXL's, the parts in these variants.
    fn repository(variants: &[Option<&str>]) -> Vec<String> {
        let mut files: Vec<String> = [
            "README.md",
            "01.png",
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "sd_xl_base_1.0_0.9vae.safetensors",
            "scheduler/scheduler_config.json",
            "unet/model.onnx",
            "unet/openvino_model.bin",
            "vae_1_0/diffusion_pytorch_model.safetensors",
        ]
        .map(str::to_string)
        .to_vec();
        for part in Part::ALL {
            let folder = part.folder();
            files.push(format!("{folder}/config.json"));
            for variant in variants {
                let [whole, _] = weight_names(part.file_stem(), *variant);
                files.push(format!("{folder}/{whole}"));
            }
        }
        for folder in ["tokenizer", "tokenizer_2"] {
            for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
                files.push(format!("{folder}/{file}"));
            }
        }
        files
    }

    fn want(purpose: Purpose, precision: Precision, variant: Option<&str>) -> FetchOptions {
        FetchOptions {
            purpose,
            precision,
            variant: variant.map(str::to_string),
            replaced: Vec::new(),
        }
    }

    /// `whole`: the list is all there is.
    fn of(want: &FetchOptions, name: &str, files: &[String], whole: bool) -> Result<Selection> {
        let read = |file: &str| -> Result<Map<String, Value>> {
            let value = match file {
                "model_index.json" => json!({
                    "_class_name": "StableDiffusionXLPipeline",
                    "text_encoder": ["transformers", "CLIPTextModel"],
                    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                    "unet": ["diffusers", "UNet2DConditionModel"],
                    "vae": ["diffusers", "AutoencoderKL"],
                }),
                "config.json" => json!({ "_class_name": "AutoencoderKL" }),
                _ => json!({ "weight_map": { "a": "s-1.safetensors", "b": "s-2.safetensors" } }),
            };
            Ok(value.as_object().unwrap().clone())
        };
        let view = View {
            name: &ModelName::parse(name).unwrap(),
            files,
            lacks: &|file| whole && !files.iter().any(|f| f == file),
            read: &read,
        };
        select(want, &view)
    }

    fn weights_of(found: &Selection) -> Vec<&str> {
        let weights = found.files.iter().filter(|f| f.contains(".safetensors"));
        weights.map(String::as_str).collect()
    }

    const BOTH: [Option<&str>; 2] = [None, Some("fp16")];

    #[test]
    fn of_a_large_repository_only_what_runs_is_taken() {
        let files = repository(&BOTH);
        let want = want(Purpose::Checkpoint, Precision::Bf16, None);
        let found = of(&want, "a/b", &files, true).unwrap();
        assert!(found.missing.is_empty());
        assert_eq!(found.variant.as_deref(), Some("fp16"));
        assert_eq!(
            found.files,
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.fp16.safetensors",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                "tokenizer/tokenizer_config.json",
                "text_encoder_2/config.json",
                "text_encoder_2/model.fp16.safetensors",
                "tokenizer_2/vocab.json",
                "tokenizer_2/merges.txt",
                "tokenizer_2/tokenizer_config.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.fp16.safetensors",
            ]
        );
    }

    #[test]
    fn the_variant_follows_the_precision() {
        let (half, full) = (Precision::F16, Precision::F32);
        for (there, precision, taken) in [
            (&BOTH[..], half, "fp16."),
            (&BOTH[..], full, ""),
            (&BOTH[..1], half, ""),
            (&BOTH[1..], full, "fp16."),
        ] {
            let want = want(Purpose::Vae, precision, None);
            let found = of(&want, "a/b", &repository(there), true).unwrap();
            let file = format!("vae/diffusion_pytorch_model.{taken}safetensors");
            assert_eq!(weights_of(&found), [file]);
            assert!(found.missing.is_empty());
        }
        // The one that is named, whatever the precision.
        let named = want(Purpose::Vae, full, Some("fp16"));
        let found = of(&named, "a/b", &repository(&BOTH), true).unwrap();
        assert!(weights_of(&found)[0].contains("fp16"));
        let other = want(Purpose::Vae, full, Some("bf16"));
        let error = of(&other, "a/b", &repository(&BOTH), true).unwrap_err();
        assert!(error.to_string().contains("variant `bf16`"), "{error}");
    }

    #[test]
    fn of_a_cache_nothing_is_taken_for_all_there_is() {
        let (half, full) = (Precision::Bf16, Precision::F32);
        // Plain weights do for a run of 16 bits, whatever else the hub may have.
        let plain = repository(&BOTH[..1]);
        let found = of(&want(Purpose::Vae, half, None), "a/b", &plain, false).unwrap();
        assert!(found.missing.is_empty() && found.variant.is_none());
        // Half of the bits do not for one of 32, unless there is nothing better.
        let halves = repository(&BOTH[1..]);
        let found = of(&want(Purpose::Vae, full, None), "a/b", &halves, false).unwrap();
        assert_eq!(found.missing, ["vae/diffusion_pytorch_model.safetensors"]);
        // Nor does another variant than the one named.
        let named = want(Purpose::Vae, half, Some("bf16"));
        let found = of(&named, "a/b", &plain, false).unwrap();
        assert_eq!(
            found.missing,
            ["vae/diffusion_pytorch_model.bf16.safetensors"]
        );
        // A file at the root may be one of several, and not the checkpoint.
        let file = ["x.safetensors".to_string()];
        let any = want(Purpose::Any, half, None);
        let found = of(&any, "a/b", &file, false).unwrap();
        assert_eq!(found.missing, ["model_index.json"]);
        assert!(
            of(&any, "a/b/x.safetensors", &file, false)
                .unwrap()
                .missing
                .is_empty()
        );
    }

    #[test]
    fn shards_come_with_their_index() {
        let mut files = repository(&[]);
        let stem = "vae/diffusion_pytorch_model.safetensors.index.fp16.json";
        files.extend([stem, "vae/s-1.safetensors"].map(str::to_string));
        let want = want(Purpose::Vae, Precision::F16, None);
        let found = of(&want, "a/b", &files, true).unwrap();
        assert_eq!(weights_of(&found), [stem, "vae/s-1.safetensors"]);
        assert_eq!(found.missing, ["vae/s-2.safetensors"]);
        assert_eq!(found.variant.as_deref(), Some("fp16"));
    }

    #[test]
    fn other_kinds_of_repositories() {
        let any = want(Purpose::Any, Precision::F32, None);
        let names = |list: &[&str]| -> Vec<String> { list.iter().map(|f| f.to_string()).collect() };
        let one = of(&any, "a/b", &names(&["README.md", "x.safetensors"]), true).unwrap();
        assert_eq!(one.single.as_deref(), Some("x.safetensors"));
        let said = |want: &FetchOptions, list: &[&str]| {
            of(want, "a/b", &names(list), true).unwrap_err().to_string()
        };
        let several = said(&any, &["x.safetensors", "y.safetensors"]);
        assert!(several.contains("as in a/b/x.safetensors"), "{several}");
        assert!(said(&any, &["x.ckpt"]).contains("pickle"));
        assert!(said(&any, &["README.md"]).contains("no checkpoint"));

        let vae = ["config.json", "diffusion_pytorch_model.safetensors"];
        let found = of(&any, "a/b", &names(&vae), true).unwrap();
        assert_eq!(found.files, vae);
        let checkpoint = want(Purpose::Checkpoint, Precision::F32, None);
        assert!(said(&checkpoint, &vae).contains("`vae`"));

        let without = FetchOptions {
            replaced: vec![Part::Vae],
            ..want(Purpose::Checkpoint, Precision::F32, None)
        };
        let found = of(&without, "a/b", &repository(&BOTH), true).unwrap();
        assert!(!found.files.iter().any(|f| f.starts_with("vae")));
        assert_eq!(weights_of(&found).len(), 3);
    }
}
