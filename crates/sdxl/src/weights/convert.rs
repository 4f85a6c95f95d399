//! A checkpoint from one layout into the other, without changing a bit of its weights.
//!
//! Values are written as they are stored, tensor by tensor from the mapped files. A single
//! file keeps the folder's configuration files in its header, so that a folder made of it
//! is the same again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};

use super::folder::{Checkpoint, Part, read_json};
use super::names::Names;
use super::safetensors::{ElementType, StoredTensor, TensorSet};
use super::single_file::{CONFIGS, config_key, prefix};
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;
use crate::text::vocabulary;

/// Tensors of a set, one after the other under one name.
struct Laid<'a> {
    set: &'a TensorSet,
    parts: Vec<StoredTensor>,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl View for Laid<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.parts.as_slice() {
            [one] => self.set.bytes(one),
            many => {
                let all = many.iter().map(|t| self.set.bytes(t));
                Cow::Owned(all.flat_map(Cow::into_owned).collect())
            }
        }
    }

    fn data_len(&self) -> usize {
        self.parts.iter().map(StoredTensor::byte_len).sum()
    }
}

/// Writes the checkpoint as one file with the names of the original implementation.
///
/// # Errors
/// A tensor that has no place there, a tokenizer that is not CLIP's (a single file has
/// none), and what the disk refuses. `to` must not exist.
pub fn to_single_file(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    for part in [Part::TextEncoder, Part::TextEncoder2] {
        if checkpoint.has(part) {
            check_tokenizer(checkpoint, part)?;
        }
    }
    let parts: Vec<Part> = own_parts(checkpoint).collect();
    let sets: Vec<TensorSet> = (parts.iter())
        .map(|part| checkpoint.tensors(*part))
        .collect::<Result<_>>()?;
    let mut laid: Vec<(String, Laid<'_>)> = Vec::new();
    for (part, set) in parts.iter().zip(&sets) {
        let prefix = prefix(checkpoint.family(), *part);
        for (name, tensor) in lay_out(checkpoint, *part, set)? {
            laid.push((format!("{prefix}{name}"), tensor));
        }
    }
    let configs = Value::Object(configs(checkpoint)?).to_string();
    let metadata = HashMap::from([(CONFIGS.to_string(), configs)]);
    write_beside(to, |path| write(laid, metadata, path))
}

/// Writes the checkpoint as a folder, with the names of diffusers and CLIP's tokenizers where
/// it has none of its own.
///
/// # Errors
/// What the disk refuses. `to` must not exist.
pub fn to_folder(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    let configs = configs(checkpoint)?;
    write_beside(to, |root| {
        let text = |path: PathBuf, text: &str| -> Result<()> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|e| unwritten(to, &e))?;
            }
            fs::write(&path, text).map_err(|e| unwritten(to, &e))
        };
        for (path, config) in &configs {
            text(root.join(path), &format!("{config:#}\n"))?;
        }
        for part in own_parts(checkpoint) {
            let set = checkpoint.tensors(part)?;
            let laid: Vec<_> = (set.iter())
                .map(|(name, tensor)| {
                    let laid = Laid {
                        set: &set,
                        parts: vec![tensor.clone()],
                        shape: tensor.shape().to_vec(),
                        dtype: plain(&set, name, tensor)?,
                    };
                    Ok((name.to_string(), laid))
                })
                .collect::<Result<_>>()?;
            let file = format!("{}/{}.safetensors", part.folder(), part.file_stem());
            // What torch's own writer puts there, and its readers ask for.
            let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
            write(laid, metadata, &root.join(file))?;
            if matches!(part, Part::TextEncoder | Part::TextEncoder2) {
                let name = part.folder().replace("text_encoder", "tokenizer");
                write_tokenizer(checkpoint, part, &root.join(name), &text)?;
            }
        }
        Ok(())
    })
}

fn own_parts(checkpoint: &Checkpoint) -> impl Iterator<Item = Part> {
    Part::ALL.into_iter().filter(|part| checkpoint.has(*part))
}

fn write(
    tensors: Vec<(String, Laid<'_>)>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<()> {
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|e| Error::Machine(format!("{}: it was not written: {e}", path.display())))
}

fn unwritten(to: &Path, error: &std::io::Error) -> Error {
    Error::Machine(format!("{}: it was not written: {error}", to.display()))
}

/// Makes the file or folder under another name first: what bears the name `to` is whole.
fn write_beside(to: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if to.exists() {
        return Err(Error::file(
            to,
            "there is something of this name already, which is left alone; name a new one",
        ));
    }
    let mut name = to.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let beside = to.with_file_name(name);
    let remove = || {
        let _ = fs::remove_file(&beside);
        let _ = fs::remove_dir_all(&beside);
    };
    remove();
    let made = make(&beside).and_then(|()| fs::rename(&beside, to).map_err(|e| unwritten(to, &e)));
    if made.is_err() {
        remove();
    }
    made
}

/// The configuration files by their paths in a folder.
fn configs(checkpoint: &Checkpoint) -> Result<Map<String, Value>> {
    let files = checkpoint.files();
    let mut configs = match &files.single {
        Some(single) => single.configs().clone(),
        None => {
            let mut paths = vec![
                "model_index.json".to_string(),
                "scheduler/scheduler_config.json".to_string(),
            ];
            paths.extend(own_parts(checkpoint).map(config_key));
            for part in [Part::Vae, Part::UNet] {
                if files.replacement(part).is_some() {
                    paths.retain(|path| *path != config_key(part));
                }
            }
            let mut configs = Map::new();
            for path in paths {
                let value = read_json(&files.root().join(&path))?;
                configs.insert(path, value);
            }
            configs
        }
    };
    for part in [Part::Vae, Part::UNet] {
        if let Some(other) = files.replacement(part) {
            configs.insert(config_key(part), other.config_json().clone());
            if let Some(scheduler) = other.scheduler() {
                let key = "scheduler/scheduler_config.json".to_string();
                configs.insert(key, scheduler.clone().into());
            }
        }
    }
    Ok(configs)
}

/// The type of a tensor's values, which are to be written as they are stored.
fn plain(set: &TensorSet, name: &str, tensor: &StoredTensor) -> Result<Dtype> {
    match tensor.element() {
        ElementType::Plain(dtype) => Ok(dtype),
        ElementType::Blocks(block) => Err(Error::file(
            set.path_of(tensor),
            format!(
                "tensor `{name}` is stored in blocks of {block}, for which safetensors has no place; \
                 convert the checkpoint that the GGUF file was made from"
            ),
        )),
    }
}

/// A part's tensors as a single file has them, without the part's prefix.
fn lay_out<'a>(
    checkpoint: &Checkpoint,
    part: Part,
    set: &'a TensorSet,
) -> Result<Vec<(String, Laid<'a>)>> {
    let path = checkpoint.config_path(part);
    let names = match part {
        Part::UNet => Some(Names::unet(&checkpoint.unet, &path)?),
        Part::Vae => Some(Names::vae(&checkpoint.vae)),
        Part::TextEncoder2 => Some(Names::open_clip(
            checkpoint.text_encoder_2.num_hidden_layers,
        )),
        Part::TextEncoder => None,
    };
    let odd = |name: &str, tensor: &StoredTensor| {
        Error::file(
            set.path_of(tensor),
            format!("tensor `{name}` has no place in a single file; leave it a folder"),
        )
    };
    let mut laid = Vec::new();
    for (stored_name, tensor) in set.iter() {
        let (name, mut parts) = (usual_name(part, stored_name), vec![tensor.clone()]);
        let mut shape = tensor.shape().to_vec();
        let original = match (part, &names) {
            (_, None) => name.clone(),
            // A list of numbers from 0 that old exports kept.
            (Part::TextEncoder2, _) if name.ends_with(".position_ids") => continue,
            (Part::TextEncoder2, _) if name == "text_projection.weight" => {
                let turned = tensor.transpose().ok_or_else(|| odd(&name, tensor))?;
                shape = turned.shape().to_vec();
                parts = vec![turned];
                "text_projection".to_string()
            }
            (Part::TextEncoder2, _) if name.contains(".self_attn.q_proj.") => {
                for letter in ["k", "v"] {
                    let other = stored_name.replace("q_proj", &format!("{letter}_proj"));
                    let same = set
                        .get(&other)
                        .filter(|t| t.element() == tensor.element() && t.shape() == tensor.shape());
                    parts.push(same.ok_or_else(|| odd(&other, tensor))?.clone());
                }
                shape[0] *= 3;
                name.replace("text_model.encoder.layers.", "transformer.resblocks.")
                    .replace(".self_attn.q_proj.", ".attn.in_proj_")
            }
            (Part::TextEncoder2, _)
                if name.contains(".self_attn.k_proj.") || name.contains(".self_attn.v_proj.") =>
            {
                continue;
            }
            (_, Some(names)) => names.to_original(&name).ok_or_else(|| odd(&name, tensor))?,
        };
        if part == Part::Vae && name.contains(".attentions.") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
        let dtype = plain(set, &name, tensor)?;
        laid.push((
            original,
            Laid {
                set,
                parts,
                shape,
                dtype,
            },
        ));
    }
    Ok(laid)
}

/// The name a tensor has in today's folders: older and newer ones leave a prefix out, or
/// call the VAE's attention by other names.
fn usual_name(part: Part, name: &str) -> String {
    match part {
        Part::TextEncoder | Part::TextEncoder2 if !name.starts_with("text_") => {
            format!("text_model.{name}")
        }
        Part::Vae if name.contains(".attentions.") => name
            .replace(".query.", ".to_q.")
            .replace(".key.", ".to_k.")
            .replace(".value.", ".to_v.")
            .replace(".proj_attn.", ".to_out.0."),
        _ => name.to_string(),
    }
}

const TOKENIZER_FILES: [&str; 4] = [
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// A single file has no tokenizer: CLIP's is meant.
fn check_tokenizer(checkpoint: &Checkpoint, part: Part) -> Result<()> {
    let Some(folder) = checkpoint.files().tokenizer_folder(part) else {
        return Ok(());
    };
    let own = Tokenizer::of(checkpoint.files(), part)?;
    let clip = Tokenizer::of_clip(part == Part::TextEncoder, &folder)?;
    let ends = |t: &Tokenizer| (t.bos(), t.eos(), t.pad(), t.max_length(), t.vocab_size());
    let same_tokens = ends(&own) == ends(&clip)
        && (0..own.vocab_size() as u32).all(|id| own.token(id) == clip.token(id));
    let merges = fs::read_to_string(folder.join("merges.txt")).unwrap_or_default();
    let lines = |text: &str| vocabulary::merges(text);
    if same_tokens && lines(&merges) == lines(&vocabulary::merges_txt()) {
        return Ok(());
    }
    Err(Error::file(
        folder,
        "its vocabulary is not CLIP's, which is the one that a single file means; leave the \
         checkpoint a folder",
    ))
}

fn write_tokenizer(
    checkpoint: &Checkpoint,
    part: Part,
    to: &Path,
    write: &dyn Fn(PathBuf, &str) -> Result<()>,
) -> Result<()> {
    if let Some(folder) = checkpoint.files().tokenizer_folder(part) {
        for name in TOKENIZER_FILES.iter().chain(&["added_tokens.json"]) {
            let from = folder.join(name);
            if from.is_file() {
                let text = fs::read_to_string(&from).map_err(|e| Error::read(&from, &e))?;
                write(to.join(name), &text)?;
            }
        }
        return Ok(());
    }
    let merges = vocabulary::merges_txt();
    let tokens = vocabulary::tokens(&vocabulary::merges(&merges));
    let vocab: Map<String, Value> = (tokens.into_iter().zip(0..))
        .map(|(token, id)| (token, Value::from(id)))
        .collect();
    let config = vocabulary::tokenizer_config(part == Part::TextEncoder);
    let special = |key: &str| -> Value {
        let mut token = config.get(key).cloned().unwrap_or_default();
        if let Some(token) = token.as_object_mut() {
            token.remove("__type");
        }
        token
    };
    let map = json!({
        "bos_token": special("bos_token"),
        "eos_token": special("eos_token"),
        "pad_token": special("pad_token"),
        "unk_token": special("unk_token"),
    });
    let contents = [
        format!("{}\n", Value::Object(vocab)),
        merges,
        format!("{:#}\n", Value::Object(config.clone())),
        format!("{map:#}\n"),
    ];
    for (name, text) in TOKENIZER_FILES.iter().zip(&contents) {
        write(to.join(name), text)?;
    }
    Ok(())
}
