//! Tensors in files, `.safetensors` and GGUF: memory-mapped, checked before anything is trusted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use sdxl_kernels::Weights;

use super::blocks::BlockType;
use super::kept::{Kept, Origin, Stamp};
use super::lora::{self, Update, Updates};
use super::{gguf, random, to_f32};
use crate::device::{Device, cpu};
use crate::error::{Error, Result};

/// The suffix that is added to a weight's name to give the name of its scales.
pub const SCALE: &str = "_scale";

/// The storage format of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// One by one.
    Plain(Dtype),
    /// In blocks that share scales.
    Blocks(BlockType),
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElementType::Plain(dtype) => write!(f, "{dtype:?}"),
            ElementType::Blocks(block) => write!(f, "{block}"),
        }
    }
}

/// One tensor of a file, as stored.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    file: usize,
    element: ElementType,
    shape: Vec<usize>,
    /// Byte range inside the file.
    start: usize,
    end: usize,
    /// Whether the file has rows and columns the other way round than `shape` says.
    transposed: bool,
}

impl StoredTensor {
    /// One of a set of random weights.
    pub(super) fn random(shape: &[usize]) -> StoredTensor {
        StoredTensor {
            file: 0,
            element: ElementType::Plain(Dtype::BF16),
            shape: shape.to_vec(),
            start: 0,
            end: 0,
            transposed: false,
        }
    }

    /// The shape as stored (torch's axis order).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type as stored, shown in the words of the file format (`F32`, `BF16`,
    /// `Q8_0`, ...).
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Bytes it takes as stored.
    pub fn byte_len(&self) -> usize {
        self.end - self.start
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of a value once it is read: bits that weights have not are widened.
    pub(super) fn value_bytes(&self) -> usize {
        match self.element {
            ElementType::Plain(Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2) => 2,
            _ => 4,
        }
    }

    /// Bytes that are in memory while it is read, and given back then: of the file, and of the
    /// values where they are not used as they are.
    fn reading_bytes(&self) -> usize {
        let file = self.byte_len();
        let widened = match self.element {
            ElementType::Plain(Dtype::F8_E4M3 | Dtype::F8_E5M2) | ElementType::Blocks(_) => true,
            ElementType::Plain(_) => self.transposed || file == 0,
        };
        file + if widened {
            self.values() * self.value_bytes()
        } else {
            0
        }
    }

    /// The same values under another shape.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> StoredTensor {
        debug_assert_eq!(shape.iter().product::<usize>(), self.values());
        StoredTensor {
            shape,
            ..self.clone()
        }
    }

    /// Part `index` of `count` equal parts along the first axis; nothing where it cannot be
    /// divided so.
    pub(super) fn slice(&self, index: usize, count: usize) -> Option<StoredTensor> {
        let rows = *self.shape.first()?;
        let bytes = self.end - self.start;
        // Rows hold whole blocks, so only a tensor with one axis can be cut inside of one.
        let cut = matches!(self.element, ElementType::Blocks(_)) && self.shape.len() == 1;
        let even = rows.is_multiple_of(count) && bytes.is_multiple_of(count) && !cut;
        if self.transposed || index >= count || !even {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] = rows / count;
        let start = self.start + index * (bytes / count);
        Some(StoredTensor {
            shape,
            start,
            end: start + bytes / count,
            ..self.clone()
        })
    }

    /// The matrix with rows and columns exchanged; nothing where it is no matrix.
    pub(super) fn transpose(&self) -> Option<StoredTensor> {
        let ([rows, columns], ElementType::Plain(_)) = (&self.shape[..], self.element) else {
            return None;
        };
        let (rows, columns) = (*rows, *columns);
        Some(StoredTensor {
            shape: vec![columns, rows],
            transposed: !self.transposed,
            ..self.clone()
        })
    }
}

struct MappedFile {
    path: PathBuf,
    map: Mmap,
    stamp: Stamp,
    metadata: HashMap<String, String>,
}

/// All tensors of one part of a checkpoint, which may be spread over several files.
#[derive(Clone)]
pub struct TensorSet {
    files: Vec<Arc<MappedFile>>,
    tensors: Arc<HashMap<String, StoredTensor>>,
    /// Changes to add to what is read.
    updates: Option<Arc<Updates>>,
    /// The packed layers that are in memory, to be reused.
    kept: Option<Arc<Kept>>,
    /// Whether values are made up instead of read: there are no files then, and tensors have
    /// the shapes they are asked for.
    random: bool,
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
            updates: None,
            kept: None,
            random: false,
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
            updates: None,
            kept: None,
            random: true,
            device: cpu(),
        }
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
        refuse_pickle(path)?;
        let (map, stamp) = map_file(path)?;
        if map.starts_with(b"version https://git-lfs") {
            return Err(Error::file(
                path,
                "this is a Git LFS pointer, not the weights themselves; run `git lfs pull` in \
                 the checkpoint's folder or download the file again",
            ));
        }
        if map.starts_with(b"PK\x03\x04") || map.starts_with(b"\x80\x02") {
            return Err(pickle(path));
        }
        let (entries, metadata) = if map.starts_with(gguf::MAGIC) {
            let entries = gguf::read(&map).map_err(|broken| Error::file(path, broken))?;
            (entries, HashMap::new())
        } else {
            entries_of_safetensors(path, &map)?
        };
        let tensors = Arc::make_mut(&mut self.tensors);
        for gguf::Entry {
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
            updates: None,
            kept: None,
            random: false,
            device: cpu(),
        }
    }

    /// The same tensors, to be read with these changes.
    pub(super) fn with_updates(mut self, updates: Option<&Arc<Updates>>) -> TensorSet {
        self.updates = updates.cloned();
        self
    }

    /// The same tensors; layers packed from them are looked for in `kept` first.
    pub(super) fn with_kept(mut self, kept: &Arc<Kept>) -> TensorSet {
        self.kept = Some(Arc::clone(kept));
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
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_deref().filter(|_| !self.random)
    }

    /// The file of a tensor and its first byte.
    pub(super) fn place_of(&self, tensor: &StoredTensor) -> (Stamp, usize) {
        (self.files[tensor.file].stamp.clone(), tensor.start)
    }

    /// Gives the origin of the values that [`Self::read`] gives.
    pub(super) fn origin_of(&self, name: &str, tensor: &StoredTensor) -> Origin {
        let updates = self.updates.as_ref().and_then(|all| all.get(name));
        Origin {
            stored: self.place_of(tensor),
            added: (updates.into_iter().flatten())
                .map(Update::origin)
                .collect(),
        }
    }

    /// Whether LoRAs change this tensor.
    pub(super) fn changes(&self, name: &str) -> bool {
        (self.updates.as_ref()).is_some_and(|all| all.contains_key(name))
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
        let updates = self.updates.as_ref().and_then(|all| all.get(name));
        let Some(updates) = updates else {
            return self.read_stored(name, tensor, use_values);
        };
        let mut values = self.read_stored(name, tensor, to_f32)?;
        lora::apply(updates, name, tensor.shape(), &mut values)?;
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
        let (floats, halves, brains, scales);
        let dtype = match tensor.element {
            ElementType::Plain(dtype) => dtype,
            ElementType::Blocks(block) => {
                let result = use_values(Weights::F32(&block.decode(&bytes)));
                release(&file.map, tensor.start, tensor.end);
                return Ok(result);
            }
        };
        let values = match dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(&bytes) {
                Ok(slice) => Weights::F32(slice),
                Err(_) => {
                    floats = copied(&bytes, f32::from_le_bytes);
                    Weights::F32(&floats)
                }
            },
            Dtype::F16 => match bytemuck::try_cast_slice(&bytes) {
                Ok(slice) => Weights::F16(slice),
                Err(_) => {
                    halves = copied(&bytes, f16::from_le_bytes);
                    Weights::F16(&halves)
                }
            },
            Dtype::BF16 => match bytemuck::try_cast_slice(&bytes) {
                Ok(slice) => Weights::Bf16(slice),
                Err(_) => {
                    brains = copied(&bytes, bf16::from_le_bytes);
                    Weights::Bf16(&brains)
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
                halves = bytes.iter().map(|b| f8_e4m3(*b)).collect();
                Weights::F16(&halves)
            }
            Dtype::F8_E5M2 => {
                halves = copied(&bytes, |[b]| f16::from_bits(u16::from(b) << 8));
                Weights::F16(&halves)
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
                        "tensor `{name}` is stored as {other:?}; weights must be F32, F16, BF16, \
                         F8_E4M3, F8_E5M2, or I8 with scales"
                    ),
                ));
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

/// The tensors of a `.safetensors` file, and what else its header says.
fn entries_of_safetensors(
    path: &Path,
    map: &[u8],
) -> Result<(Vec<gguf::Entry>, HashMap<String, String>)> {
    let (header, metadata) =
        SafeTensors::read_metadata(map).map_err(|e| Error::file(path, explain(&e, map)))?;
    let data = header + 8;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let range = (data + info.data_offsets.0, data + info.data_offsets.1);
        if range.1 > map.len() {
            return Err(Error::file(path, truncated(map.len(), range.1)));
        }
        entries.push(gguf::Entry {
            name,
            element: ElementType::Plain(info.dtype),
            shape: info.shape.clone(),
            range,
        });
    }
    Ok((entries, metadata.metadata().clone().unwrap_or_default()))
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

fn copied<T, const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|chunk| decode(*chunk))
        .collect()
}

/// Refuses files that only Python's pickle can read, by their name.
pub fn refuse_pickle(path: &Path) -> Result<()> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if ["ckpt", "bin", "pt", "pth", "pkl"].contains(&extension.as_str()) {
        return Err(pickle(path));
    }
    Ok(())
}

fn pickle(path: &Path) -> Error {
    Error::file(
        path,
        "this is a pickle file, which can run any program when it is opened, so it is never \
         read; get the `.safetensors` version of the checkpoint, or convert it on a machine \
         you can lose with `safetensors.torch.save_file` in Python",
    )
}

fn truncated(have: usize, need: usize) -> String {
    format!(
        "the file is cut short: it has {have} bytes and its header speaks of {need}; download it again"
    )
}

/// Says what is wrong with a file, in the words of someone who wants to use it.
fn explain(error: &SafeTensorError, map: &[u8]) -> String {
    use SafeTensorError as E;
    match error {
        E::HeaderTooSmall | E::InvalidHeaderLength => {
            "the file is cut short before the end of its header; download it again".to_string()
        }
        E::MetadataIncompleteBuffer => {
            let need = header_end(map).map_or(map.len(), |end| end);
            format!(
                "the file is cut short or has bytes left over ({} bytes; the header alone takes \
                 {need}); download it again",
                map.len()
            )
        }
        E::HeaderTooLarge | E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) => {
            "this is not a safetensors file: its header does not make sense".to_string()
        }
        other => format!("the safetensors header contradicts itself ({other})"),
    }
}

fn header_end(map: &[u8]) -> Option<usize> {
    let length = u64::from_le_bytes(map.get(..8)?.try_into().ok()?);
    usize::try_from(length).ok()?.checked_add(8)
}

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<(Mmap, Stamp)> {
    let file = File::open(path).map_err(|e| Error::read(path, &e))?;
    let metadata = file.metadata().map_err(|e| Error::read(path, &e))?;
    let length = metadata.len();
    if length < 8 {
        return Err(Error::file(
            path,
            format!(
                "the file has only {length} bytes, so it cannot hold weights; download it again"
            ),
        ));
    }
    let stamp = Stamp {
        path: path.to_path_buf(),
        bytes: length,
        modified: metadata.modified().ok(),
    };
    // SAFETY: the map is read-only and private to this module. If another program
    // changes or shortens the file while it is mapped, values change or the process
    // gets a bus error; checkpoints are written once, and every native loader takes
    // this risk for the sake of not reading 7 GB twice.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::read(path, &e))?;
    Ok((map, stamp))
}

/// Tells the system that these bytes of the file are not needed again soon.
#[allow(unsafe_code)]
fn release(map: &Mmap, start: usize, end: usize) {
    #[cfg(unix)]
    if end > start {
        // SAFETY: the mapping is shared, read-only and backed by a file, so dropped
        // pages come back with the same contents at the next access.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
    }
    #[cfg(not(unix))]
    let _ = (map, start, end);
}
