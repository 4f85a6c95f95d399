//! A checkpoint from one layout into the other, without changing a bit of its weights, or with
//! fewer bits ([`mod@lower`]).
//!
//! Values are written tensor by tensor from the mapped files. A single
//! file keeps the folder's configuration files in its header, so that a folder made of it
//! is the same again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use sdxl_kernels::{Weights, quantise_rows};
use serde_json::{Map, Value, json};

use super::gguf;
use super::lower::{self, Ledger, Report, StoredAs, Target};
use super::names::Names;
use super::single_file::{CONFIGS, prefix};
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::text::tokenizer::Tokenizer;
use crate::text::tokenizer_files::TokenizerFiles;
use crate::text::vocabulary;
use crate::weights::part::config_key;
use crate::weights::tensor_set::SCALE;
use crate::weights::values::to_f32;
use crate::weights::{Checkpoint, Part};
use crate::weights::{ElementType, StoredTensor, TensorSet};

/// Tensors of a set, one after the other under one name.
struct Laid<'a> {
    set: &'a TensorSet,
    /// Each with its name in the set.
    parts: Vec<(String, StoredTensor)>,
    shape: Vec<usize>,
    dtype: Dtype,
    /// The format that the tensors are converted to, if they are not written as they are stored.
    lowered: Option<(StoredAs, &'a Lowering)>,
}

/// A conversion to fewer bits.
struct Lowering {
    target: Target,
    ledger: Ledger,
}

impl Laid<'_> {
    /// The values as they are written, and for bytes what their scales are.
    fn encoded(&self, storage: StoredAs, lowering: &Lowering) -> Result<(Vec<u8>, Vec<f32>)> {
        let mut values = Vec::new();
        for (name, tensor) in &self.parts {
            values.extend(self.set.read(name, tensor, to_f32)?);
        }
        let before = values.clone();
        let (bytes, scales, after) = match storage {
            StoredAs::AsStored => unreachable!("handled before"),
            StoredAs::Floats(dtype) => {
                let (bytes, after) = lower::floats(values, dtype);
                (bytes, Vec::new(), after)
            }
            StoredAs::Bytes => lower::bytes(Weights::F32(&values), self.shape[0]),
            StoredAs::Blocks(block) => {
                let bytes = block.encode(&values);
                let after = block.decode(&bytes);
                (bytes, Vec::new(), after)
            }
        };
        let (name, tensor) = &self.parts[0];
        let path = self.set.path_of(tensor);
        (lowering.ledger).note(path, name, &before, &after, lowering.target)?;
        Ok((bytes, scales))
    }
}

impl View for Laid<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let Some((storage, lowering)) = self.lowered {
            // There is no way to fail here: the file is removed when all is written.
            return Cow::Owned(match self.encoded(storage, lowering) {
                Ok((bytes, _)) => bytes,
                Err(error) => {
                    lowering.ledger.fail(error);
                    vec![0; self.data_len()]
                }
            });
        }
        match self.parts.as_slice() {
            [(_, one)] => self.set.bytes(one),
            many => {
                let all = many.iter().map(|(_, t)| self.set.bytes(t));
                Cow::Owned(all.flat_map(Cow::into_owned).collect())
            }
        }
    }

    fn data_len(&self) -> usize {
        match self.lowered {
            Some(_) => self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8,
            None => self.parts.iter().map(|(_, t)| t.byte_len()).sum(),
        }
    }
}

/// An entry of a `.safetensors` file to be written.
enum Entry<'a> {
    Tensor(Laid<'a>),
    /// The scales of bytes: `[n, 1]`.
    Scales(Laid<'a>, [usize; 2]),
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Entry::Tensor(laid) => laid.dtype(),
            Entry::Scales(..) => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Entry::Tensor(laid) => laid.shape(),
            Entry::Scales(_, shape) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Entry::Tensor(laid) => laid.data(),
            Entry::Scales(laid, shape) => {
                let of = |(name, t): &(String, StoredTensor)| {
                    let scales = |w: Weights<'_>| quantise_rows(w, shape[0]).1;
                    laid.set.read(name, t, scales)
                };
                // What fails here has failed with the bytes.
                let scales = of(&laid.parts[0]).unwrap_or_else(|_| vec![0.0; shape[0]]);
                Cow::Owned(scales.iter().flat_map(|s| s.to_le_bytes()).collect())
            }
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Entry::Tensor(laid) => laid.data_len(),
            Entry::Scales(_, shape) => 4 * shape[0],
        }
    }
}

/// The entries of laid tensors: bytes get their scales beside them.
fn entries<'a>(laid: impl IntoIterator<Item = (String, Laid<'a>)>) -> Vec<(String, Entry<'a>)> {
    let mut entries = Vec::new();
    for (name, laid) in laid {
        if let Some((StoredAs::Bytes, _)) = laid.lowered {
            let scales = Laid {
                parts: laid.parts.clone(),
                shape: laid.shape.clone(),
                ..laid
            };
            let shape = [laid.shape[0], 1];
            entries.push((format!("{name}{SCALE}"), Entry::Scales(scales, shape)));
        }
        entries.push((name, Entry::Tensor(laid)));
    }
    entries
}

/// Writes the checkpoint with fewer bits: `to` a name that ends in `.safetensors` becomes one file,
/// `.gguf` (for [`Target::Blocks`]) one of the UNet, any other a folder.
///
/// # Errors
/// As [`to_single_file`] and [`to_folder`]; a weight that the target has no number for; a name
/// that does not go with the target.
pub fn to_lower_precision(checkpoint: &Checkpoint, target: Target, to: &Path) -> Result<Report> {
    check_name(target, to)?;
    let lowering = Lowering {
        target,
        ledger: Ledger::default(),
    };
    match to.extension().and_then(|e| e.to_str()) {
        Some("gguf") => gguf_file(checkpoint, &lowering, to)?,
        Some("safetensors") => single_file(checkpoint, to, Some(&lowering))?,
        _ => folder(checkpoint, to, Some(&lowering))?,
    }
    Ok(lowering.ledger.report(bytes_below(to)))
}

/// Refuses a name that does not go with the target, or that something has already.
///
/// # Errors
/// Says which name would do.
pub fn check_name(target: Target, to: &Path) -> Result<()> {
    let gguf = to.extension().is_some_and(|e| e == "gguf");
    match target {
        Target::Blocks(_) if !gguf => Err(Error::file(
            to,
            format!("{target} is a format of GGUF files"),
        )
        .with_hint("name one that ends in .gguf, which gets the UNet and is used with `unet`")),
        Target::F16 | Target::Bf16 | Target::Int8 if gguf => Err(Error::file(
            to,
            "a GGUF file is for q8_0, q6_k, q5_1, q5_0, q4_1 and q4_0",
        )
        .with_hint(format!(
            "for {target} name a folder or a file that ends in .safetensors"
        ))),
        _ => free(to),
    }
}

fn bytes_below(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(inside) => inside.flatten().map(|e| bytes_below(&e.path())).sum(),
        Err(_) => fs::metadata(path).map_or(0, |m| m.len()),
    }
}

/// The UNet as GGUF, with the original names and no prefix: what ComfyUI's nodes and
/// stable-diffusion.cpp (`--diffusion-model`) read too.
fn gguf_file(checkpoint: &Checkpoint, lowering: &Lowering, to: &Path) -> Result<()> {
    let set = checkpoint.tensors(Part::UNet)?;
    let mut laid = lay_out(checkpoint, Part::UNet, &set, Some(lowering))?;
    laid.sort_by(|a, b| a.0.cmp(&b.0));
    let mut tensors = Vec::new();
    for (name, laid) in &laid {
        tensors.push(gguf::NewTensor {
            name: name.clone(),
            element: match laid.lowered {
                Some((StoredAs::Blocks(block), _)) => ElementType::Blocks(block),
                _ => ElementType::Plain(laid.dtype),
            },
            shape: laid.shape.clone(),
        });
    }
    // Markers, as single files have them: their names say it, not their values.
    let scheduler = &checkpoint.scheduler;
    let v = scheduler.get("prediction_type").and_then(Value::as_str) == Some("v_prediction");
    let zero = scheduler.get("rescale_betas_zero_snr") == Some(&true.into());
    for (name, there) in [("v_pred", v), ("ztsnr", zero)] {
        if there {
            tensors.push(gguf::NewTensor {
                name: name.to_string(),
                element: ElementType::Plain(Dtype::F32),
                shape: vec![1],
            });
        }
    }
    let keys = [
        ("general.architecture", gguf::HeaderValue::Text("sdxl")),
        ("general.quantization_version", gguf::HeaderValue::Number(2)),
    ];
    let (header, lengths) =
        gguf::header(&keys, &tensors).map_err(|broken| Error::file(to, broken))?;
    write_beside(to, |path| {
        let unwritten = |e: std::io::Error| unwritten(to, &e);
        let mut file = std::io::BufWriter::new(fs::File::create(path).map_err(unwritten)?);
        file.write_all(&header).map_err(unwritten)?;
        for (i, length) in lengths.iter().enumerate() {
            let mut data = match laid.get(i) {
                Some((_, laid)) => laid.data().into_owned(),
                None => 1f32.to_le_bytes().to_vec(),
            };
            lowering.ledger.check()?;
            data.resize(length.next_multiple_of(gguf::ALIGNMENT), 0);
            file.write_all(&data).map_err(unwritten)?;
        }
        file.flush().map_err(unwritten)
    })
}

/// Writes the checkpoint as one file with the names of the original implementation.
///
/// # Errors
/// A tensor that has no place there, a tokenizer that is not CLIP's (a single file has
/// none), and what the disk refuses. `to` must not exist.
pub fn to_single_file(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    single_file(checkpoint, to, None)
}

fn single_file(checkpoint: &Checkpoint, to: &Path, lowering: Option<&Lowering>) -> Result<()> {
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
        for (name, tensor) in lay_out(checkpoint, *part, set, lowering)? {
            laid.push((format!("{prefix}{name}"), tensor));
        }
    }
    let configs = Value::Object(configs(checkpoint)?).to_string();
    let metadata = HashMap::from([(CONFIGS.to_string(), configs)]);
    write_beside(to, |path| {
        write(entries(laid), metadata, path)?;
        lowering.map_or(Ok(()), |l| l.ledger.check())
    })
}

/// Writes the checkpoint as a folder, with the names of diffusers and CLIP's tokenizers where
/// it has none of its own.
///
/// # Errors
/// Files that cannot be written. `to` must not exist.
pub fn to_folder(checkpoint: &Checkpoint, to: &Path) -> Result<()> {
    folder(checkpoint, to, None)
}

fn folder(checkpoint: &Checkpoint, to: &Path, lowering: Option<&Lowering>) -> Result<()> {
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
            let mut laid = Vec::new();
            for (name, tensor) in set.iter() {
                if is_dropped(&set, name, lowering) {
                    continue;
                }
                let usual = usual_name(part, name);
                let (dtype, lowered) = stored_as(&set, part, name, &usual, tensor, lowering)?;
                let tensor = Laid {
                    set: &set,
                    parts: vec![(name.to_string(), tensor.clone())],
                    shape: tensor.shape().to_vec(),
                    dtype,
                    lowered,
                };
                laid.push((name.to_string(), tensor));
            }
            let file = format!("{}/{}.safetensors", part.folder(), part.file_stem());
            // What torch's own writer puts there, and its readers ask for.
            let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
            write(entries(laid), metadata, &root.join(file))?;
            lowering.map_or(Ok(()), |l| l.ledger.check())?;
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
    tensors: Vec<(String, Entry<'_>)>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<()> {
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|e| Error::machine(format!("{}: it was not written: {e}", path.display())))
}

fn unwritten(to: &Path, error: &std::io::Error) -> Error {
    Error::machine(format!("{}: it was not written: {error}", to.display()))
}

/// Refuses the name of something that is there.
fn free(to: &Path) -> Result<()> {
    if to.exists() {
        return Err(Error::file(
            to,
            "there is something of this name already, which is left alone; name a new one",
        ));
    }
    Ok(())
}

/// Makes the file or folder under another name first: what bears the name `to` is whole.
fn write_beside(to: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    free(to)?;
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
            if let Some(config) = other.config_json() {
                configs.insert(config_key(part), config.clone());
            }
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

/// The type that a tensor is written as, and how, if not as it is stored.
fn stored_as<'a>(
    set: &TensorSet,
    part: Part,
    name: &str,
    usual: &str,
    tensor: &StoredTensor,
    lowering: Option<&'a Lowering>,
) -> Result<(Dtype, Option<(StoredAs, &'a Lowering)>)> {
    let storage = lowering.map(|l| (l.target.storage(part, usual, tensor), l));
    Ok(match storage {
        None | Some((StoredAs::AsStored, _)) => (plain(set, name, tensor)?, None),
        Some((StoredAs::Floats(dtype), l)) => (dtype, Some((StoredAs::Floats(dtype), l))),
        Some((StoredAs::Bytes, l)) => (Dtype::I8, Some((StoredAs::Bytes, l))),
        // Of GGUF, where this says nothing.
        Some((blocks, l)) => (Dtype::U8, Some((blocks, l))),
    })
}

/// Whether a tensor holds the scales of bytes that become something else.
fn is_dropped(set: &TensorSet, name: &str, lowering: Option<&Lowering>) -> bool {
    let weight = name.strip_suffix(SCALE).and_then(|weight| set.get(weight));
    let of_bytes = weight.is_some_and(|t| t.element() == ElementType::Plain(Dtype::I8));
    of_bytes && lowering.is_some_and(|l| l.target != Target::Int8)
}

/// A part's tensors as a single file has them, without the part's prefix.
fn lay_out<'a>(
    checkpoint: &Checkpoint,
    part: Part,
    set: &'a TensorSet,
    lowering: Option<&'a Lowering>,
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
        if is_dropped(set, stored_name, lowering) {
            continue;
        }
        let name = usual_name(part, stored_name);
        let mut parts = vec![(stored_name.to_string(), tensor.clone())];
        let mut shape = tensor.shape().to_vec();
        let original = match (part, &names) {
            (_, None) => name.clone(),
            // A list of numbers from 0 that old exports kept.
            (Part::TextEncoder2, _) if name.ends_with(".position_ids") => continue,
            (Part::TextEncoder2, _) if name == "text_projection.weight" => {
                let turned = tensor.transpose().ok_or_else(|| odd(&name, tensor))?;
                shape = turned.shape().to_vec();
                parts = vec![(stored_name.to_string(), turned)];
                "text_projection".to_string()
            }
            (Part::TextEncoder2, _) if name.contains(".self_attn.q_proj.") => {
                for letter in ["k", "v"] {
                    let other = stored_name.replace("q_proj", &format!("{letter}_proj"));
                    let same = set
                        .get(&other)
                        .filter(|t| t.element() == tensor.element() && t.shape() == tensor.shape());
                    let same = same.ok_or_else(|| odd(&other, tensor))?.clone();
                    parts.push((other, same));
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
        let (dtype, lowered) = stored_as(set, part, &name, &name, tensor, lowering)?;
        laid.push((
            original,
            Laid {
                set,
                parts,
                shape,
                dtype,
                lowered,
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
    let merges = TokenizerFiles::read(&folder)?.merges;
    if same_tokens && merges == vocabulary::merges(&vocabulary::merges_txt()) {
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
        for name in TOKENIZER_FILES
            .iter()
            .chain(&["added_tokens.json", "tokenizer.json"])
        {
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
