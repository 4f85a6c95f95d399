//! The tensors of a part of a checkpoint, in `.safetensors` or GGUF files: memory-mapped, checked
//! before anything is trusted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::Dtype;
use sdxl_kernels::Weights;

use super::changes::Changes;
use super::element::ElementType;
use super::layer_cache::{FileStamp, LayerCache, Origin};
use super::mapped_file::{MappedFile, map_file, release};
use super::safetensors::{begins_as_safetensors, entries_of_safetensors, is_named_pickle, pickle};
use super::stored_tensor::StoredTensor;
use super::values::to_f32;
use super::{gguf, random};
use crate::device::{Device, Meta, cpu};
use crate::error::{Error, Result};
use crate::sniff;

/// The suffix that is added to a weight's name to give the name of its scales.
pub(super) const SCALE: &str = "_scale";

/// All tensors of one part of a checkpoint, which may be spread over several files.
#[derive(Clone)]
pub struct TensorSet {
    files: Vec<Arc<MappedFile>>,
    tensors: Arc<HashMap<String, StoredTensor>>,
    /// Changes to add to what is read.
    changes: Option<Arc<dyn Changes>>,
    /// The packed layers that are in memory, to be reused.
    cache: Option<Arc<LayerCache>>,
    /// Whether values are made up instead of read: there are no files then, and tensors have
    /// the shapes they are asked for.
    random: bool,
    /// The names and shapes that were asked for, of values that are made up.
    asked: Option<Arc<Mutex<HashMap<String, StoredTensor>>>>,
    /// The device that layers are packed by.
    device: Arc<dyn Device>,
}

impl TensorSet {
    /// Maps the files and checks their headers: that they are safetensors files, that
    /// every tensor lies inside the file, and that no name occurs twice.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut set = TensorSet {
            files: Vec::new(),
            tensors: Arc::default(),
            changes: None,
            cache: None,
            random: false,
            asked: None,
            device: cpu(),
        };
        for path in paths {
            set.add(path)?;
        }
        Ok(set)
    }

    /// The set that has every tensor of SDXL base, with values from [`super::random`].
    pub fn random() -> Self {
        TensorSet {
            files: Vec::new(),
            tensors: Arc::default(),
            changes: None,
            cache: None,
            random: true,
            asked: None,
            device: cpu(),
        }
    }

    /// The tensors that `load` asks for, by their names: what a network has, without a file of it. No
    /// values are made.
    ///
    /// # Errors
    /// The errors of `load`.
    pub(super) fn asked_by(load: impl FnOnce(&TensorSet) -> Result<()>) -> Result<TensorSet> {
        let set = TensorSet {
            asked: Some(Arc::default()),
            ..TensorSet::random()
        };
        let meta: Arc<dyn Device> = Arc::new(Meta::default());
        let set = set.on(&meta);
        load(&set)?;
        let asked = set.asked.as_deref().map(Mutex::lock);
        let asked = asked.map(|asked| asked.unwrap_or_else(PoisonError::into_inner).clone());
        Ok(set.renamed(asked.unwrap_or_default()))
    }

    /// A tensor of a set of random weights.
    pub(super) fn random_tensor(&self, name: &str, shape: &[usize]) -> StoredTensor {
        let tensor = StoredTensor::random(shape);
        if let Some(asked) = &self.asked {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.insert(name.to_string(), tensor.clone());
        }
        tensor
    }

    /// Whether this is [`Self::random`].
    pub(super) fn is_random(&self) -> bool {
        self.random
    }

    /// Whether a tensor of this name can be read.
    pub(super) fn has(&self, name: &str) -> bool {
        match self.random {
            true => random::exists(name),
            false => self.tensors.contains_key(name),
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let (map, stamp) = map_file(path)?;
        // The formats that are read come first: a header's length may look like anything.
        let (entries, metadata) = if map.starts_with(gguf::MAGIC) {
            let entries = gguf::read(&map).map_err(|broken| Error::file(path, broken))?;
            (entries, HashMap::new())
        } else if begins_as_safetensors(&map) {
            entries_of_safetensors(path, &map)?
        } else if let Some(what) = sniff::impostor(&map) {
            return Err(Error::file(path, what));
        } else if sniff::is_pickle(&map) || is_named_pickle(path) {
            return Err(pickle(path));
        } else {
            entries_of_safetensors(path, &map)?
        };
        if let Some(bits) = bitsandbytes(&entries) {
            return Err(Error::file(
                path,
                format!(
                    "its weights were packed into {bits} bits by bitsandbytes, which is not read here; \
                     get the fp16 version, and choose `precision int8` if memory is short"
                ),
            ));
        }
        let tensors = Arc::make_mut(&mut self.tensors);
        for gguf::TensorEntry {
            name,
            element,
            shape,
            range: (start, end),
        } in entries
        {
            let stored = StoredTensor {
                file: self.files.len(),
                element,
                shape,
                start,
                end,
                transposed: false,
            };
            if let Some(other) = tensors.insert(name.clone(), stored) {
                return Err(Error::file(
                    path,
                    format!(
                        "tensor `{name}` is also in {}; one of the two files does not belong here",
                        self.files
                            .get(other.file)
                            .map_or(path, |f| f.path.as_path())
                            .display()
                    ),
                ));
            }
        }
        self.files.push(Arc::new(MappedFile {
            path: path.to_path_buf(),
            map,
            stamp,
            metadata,
        }));
        Ok(())
    }

    /// Other names, and other views, of tensors of this set; the files stay mapped once.
    pub(super) fn renamed(&self, tensors: HashMap<String, StoredTensor>) -> TensorSet {
        TensorSet {
            files: self.files.clone(),
            tensors: Arc::new(tensors),
            changes: None,
            cache: None,
            random: false,
            asked: None,
            device: cpu(),
        }
    }

    /// The same tensors, to be read with these changes.
    pub(super) fn with_changes(mut self, changes: Option<Arc<dyn Changes>>) -> TensorSet {
        self.changes = changes;
        self
    }

    /// The same tensors; layers packed from them are looked for in `cache` first.
    pub(super) fn with_cache(mut self, cache: &Arc<LayerCache>) -> TensorSet {
        self.cache = Some(Arc::clone(cache));
        self
    }

    /// The same tensors, whose layers `device` packs.
    pub(super) fn on(mut self, device: &Arc<dyn Device>) -> TensorSet {
        self.device = Arc::clone(device);
        self
    }

    /// The device that packs layers of these tensors.
    pub(super) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Bytes that are in memory while [`Self::read`] is at work, beside what is made of the values.
    pub(super) fn reading_bytes(&self, name: &str, tensor: &StoredTensor) -> usize {
        let changed = match self.changes(name) {
            // The values, and what is added to them.
            true => 2 * tensor.values() * size_of::<f32>(),
            false => 0,
        };
        tensor.reading_bytes() + changed
    }

    /// Gives the packed layers that are in memory, to be reused; `None` for random weights.
    pub(super) fn cache(&self) -> Option<&LayerCache> {
        self.cache.as_deref().filter(|_| !self.random)
    }

    /// The file of a tensor and its first byte.
    pub(super) fn place_of(&self, tensor: &StoredTensor) -> (FileStamp, usize) {
        (self.files[tensor.file].stamp.clone(), tensor.start)
    }

    /// Gives the origin of the values that [`Self::read`] gives.
    pub(super) fn origin_of(&self, name: &str, tensor: &StoredTensor) -> Origin {
        Origin {
            stored: self.place_of(tensor),
            added: (self.changes.as_ref()).map_or_else(Vec::new, |changes| changes.origins(name)),
        }
    }

    /// Whether LoRAs change this tensor.
    pub(super) fn changes(&self, name: &str) -> bool {
        (self.changes.as_ref()).is_some_and(|changes| changes.change(name))
    }

    /// Refuses tensors with an axis that is empty or longer than any network's: from here on
    /// shapes are multiplied without a second thought.
    ///
    /// # Errors
    /// Names the first such tensor among those that `matter`.
    pub(super) fn check_shapes(&self, matter: impl Fn(&str) -> bool) -> Result<()> {
        let odd = |t: &StoredTensor| t.shape.iter().any(|n| *n == 0 || *n > 1 << 24);
        let mut found: Vec<_> = (self.tensors.iter())
            .filter(|(name, tensor)| odd(tensor) && matter(name))
            .collect();
        found.sort_by_key(|(name, _)| name.as_str());
        match found.first() {
            Some((name, tensor)) => Err(Error::file(
                self.path_of(tensor),
                format!(
                    "tensor `{name}` has the impossible shape {:?}",
                    tensor.shape
                ),
            )),
            None => Ok(()),
        }
    }

    /// Gives the value of `key` in the metadata of the first file's header.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.first()?.metadata.get(key).map(String::as_str)
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// All tensors with their names, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// The files the tensors are read from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The file that holds `tensor`.
    pub fn path_of(&self, tensor: &StoredTensor) -> &Path {
        &self.files[tensor.file].path
    }

    /// Runs `use_values` on the values: as stored, or with the changes of LoRAs added to them.
    ///
    /// # Errors
    /// An element type that weights do not have.
    pub fn read<R>(
        &self,
        name: &str,
        tensor: &StoredTensor,
        use_values: impl FnOnce(Weights<'_>) -> R,
    ) -> Result<R> {
        let changes = self.changes.as_ref().filter(|changes| changes.change(name));
        let Some(changes) = changes else {
            return self.read_stored(name, tensor, use_values);
        };
        let mut values = self.read_stored(name, tensor, to_f32)?;
        changes.add(name, tensor.shape(), &mut values)?;
        Ok(use_values(Weights::F32(&values)))
    }

    /// Brings the file's pages of a tensor into memory, all at once: one by one, as each is looked at
    /// first, they cost more time than what is done with them. [`Self::read`] gives them back.
    pub(super) fn fetch(&self, tensor: &StoredTensor) {
        if !self.random && tensor.start < tensor.end {
            #[cfg(target_os = "linux")]
            let _ = self.files[tensor.file].map.advise_range(
                // Older systems do not know it, and go on as before.
                memmap2::Advice::PopulateRead,
                tensor.start,
                tensor.end - tensor.start,
            );
        }
    }

    /// Runs `use_values` on the stored values, then lets the system take the pages
    /// back: after loading, only the packed copies are in memory.
    fn read_stored<R>(
        &self,
        name: &str,
        tensor: &StoredTensor,
        use_values: impl FnOnce(Weights<'_>) -> R,
    ) -> Result<R> {
        if self.random {
            let values = random::values(name, tensor.shape());
            return Ok(use_values(Weights::Bf16(&values)));
        }
        let file = &self.files[tensor.file];
        let bytes = self.bytes(tensor);
        // A header may leave values unaligned; those are copied first.
        let (f32s, f16s, bf16s, scales);
        let dtype = match tensor.element {
            ElementType::Plain(dtype) => dtype,
            ElementType::Blocks(block) => {
                let result = use_values(Weights::F32(&block.decode(&bytes)));
                release(&file.map, tensor.start, tensor.end);
                return Ok(result);
            }
        };
        // A number, or a list of numbers, such as a LoRA's alpha: no weights of a layer.
        let numbers = (tensor.shape.len() < 2).then(|| whole_numbers(dtype, &bytes));
        let values = if let Some(numbers) = numbers.flatten() {
            f32s = numbers;
            Weights::F32(&f32s)
        } else {
            match dtype {
                Dtype::F32 => match bytemuck::try_cast_slice(&bytes) {
                    Ok(slice) => Weights::F32(slice),
                    Err(_) => {
                        f32s = copied(&bytes, f32::from_le_bytes);
                        Weights::F32(&f32s)
                    }
                },
                Dtype::F16 => match bytemuck::try_cast_slice(&bytes) {
                    Ok(slice) => Weights::F16(slice),
                    Err(_) => {
                        f16s = copied(&bytes, f16::from_le_bytes);
                        Weights::F16(&f16s)
                    }
                },
                Dtype::BF16 => match bytemuck::try_cast_slice(&bytes) {
                    Ok(slice) => Weights::Bf16(slice),
                    Err(_) => {
                        bf16s = copied(&bytes, bf16::from_le_bytes);
                        Weights::Bf16(&bf16s)
                    }
                },
                // Bytes and scales of another kind: a factor for the whole tensor.
                Dtype::F8_E4M3 | Dtype::F8_E5M2
                    if self.tensors.contains_key(&format!("{name}{SCALE}")) =>
                {
                    return Err(Error::file(
                        &file.path,
                        format!(
                            "tensor `{name}` is to be multiplied by `{name}{SCALE}`, which is done for \
                         I8 only; get the f16 version of the checkpoint"
                        ),
                    ));
                }
                // Both have fewer bits than f16 in every field, so nothing is rounded.
                Dtype::F8_E4M3 => {
                    f16s = bytes.iter().map(|b| f8_e4m3(*b)).collect();
                    Weights::F16(&f16s)
                }
                Dtype::F8_E5M2 => {
                    f16s = copied(&bytes, |[b]| f16::from_bits(u16::from(b) << 8));
                    Weights::F16(&f16s)
                }
                Dtype::F64 => {
                    f32s = copied(&bytes, |b| f64::from_le_bytes(b) as f32);
                    Weights::F32(&f32s)
                }
                Dtype::I8 => {
                    scales = self.scales(name, tensor)?;
                    Weights::Int8 {
                        bytes: bytemuck::cast_slice(&bytes),
                        scales: &scales,
                    }
                }
                other => {
                    return Err(Error::file(
                        &file.path,
                        format!(
                            "tensor `{name}` is stored as {other:?}; weights must be F64, F32, F16, \
                         BF16, F8_E4M3, F8_E5M2, or I8 with scales"
                        ),
                    ));
                }
            }
        };
        let result = use_values(values);
        release(&file.map, tensor.start, tensor.end);
        Ok(result)
    }

    /// Reads the scales of a matrix of bytes, by which the bytes of each row are multiplied: the
    /// values of `X.weight_scale`, of shape `[n, 1]` or `[n]`, beside `X.weight`. These are the
    /// names of the compressed-tensors format (strategy "channel"), which other programs write too.
    ///
    /// # Errors
    /// Bytes without scales, or with others than one a row, finite and not negative.
    fn scales(&self, name: &str, tensor: &StoredTensor) -> Result<Vec<f32>> {
        let scale = format!("{name}{SCALE}");
        let broken = |what: String| {
            let path = &self.files[tensor.file].path;
            Error::file(path, format!("tensor `{name}` is stored as I8, {what}"))
        };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        let Some(found) = self.tensors.get(&scale) else {
            return Err(broken(format!("and `{scale}` is not there, its scales")));
        };
        let float = matches!(
            found.element,
            ElementType::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16)
        );
        if !float || found.values() != rows || tensor.values() == 0 || tensor.transposed {
            return Err(broken(format!(
                "and `{scale}` is {} of shape {:?}; one float is needed for each of {rows} rows",
                found.element, found.shape
            )));
        }
        let scales = self.read_stored(&scale, found, to_f32)?;
        match scales.iter().find(|s| !s.is_finite() || **s < 0.0) {
            Some(odd) => Err(broken(format!(
                "and `{scale}` has the impossible value {odd}"
            ))),
            None => Ok(scales),
        }
    }

    /// The values as stored, in the order of the tensor's shape.
    pub fn bytes(&self, tensor: &StoredTensor) -> Cow<'_, [u8]> {
        let stored = &self.files[tensor.file].map[tensor.start..tensor.end];
        let [rows, columns] = tensor.shape[..] else {
            return Cow::Borrowed(stored);
        };
        if !tensor.transposed || stored.is_empty() {
            return Cow::Borrowed(stored);
        }
        let size = stored.len() / (rows * columns);
        let mut turned = Vec::with_capacity(stored.len());
        for row in 0..rows {
            for column in 0..columns {
                let at = (column * rows + row) * size;
                turned.extend_from_slice(&stored[at..at + size]);
            }
        }
        Cow::Owned(turned)
    }
}

/// An 8-bit float with 4 bits of exponent (bias 7) and 3 of mantissa, without infinities
/// (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; torch's `float8_e4m3fn`).
fn f8_e4m3(bits: u8) -> f16 {
    let (exponent, mantissa) = ((bits >> 3) & 15, f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(i32::from(exponent) - 10),
    };
    f16::from_f32(if bits < 128 { magnitude } else { -magnitude })
}

/// Whole numbers and switches as `f32`; `None` for other types.
fn whole_numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::I8 => copied(bytes, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => copied(bytes, |[b]| f32::from(b)),
        Dtype::I16 => copied(bytes, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::U16 => copied(bytes, |b| f32::from(u16::from_le_bytes(b))),
        Dtype::I32 => copied(bytes, |b| i32::from_le_bytes(b) as f32),
        Dtype::U32 => copied(bytes, |b| u32::from_le_bytes(b) as f32),
        Dtype::I64 => copied(bytes, |b| i64::from_le_bytes(b) as f32),
        Dtype::U64 => copied(bytes, |b| u64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// The number of bits that bitsandbytes packed weights into, told by what it stores beside them.
fn bitsandbytes(entries: &[gguf::TensorEntry]) -> Option<u32> {
    entries.iter().find_map(|entry| match entry.name.as_str() {
        name if name.contains(".quant_state.bitsandbytes") || name.ends_with(".absmax") => Some(4),
        name if name.ends_with(".SCB") => Some(8),
        _ => None,
    })
}

fn copied<T, const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|chunk| decode(*chunk))
        .collect()
}
