//! GGUF files: which tensors a header says the file holds, how stored, and where; and writing one.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3,
//! little-endian. Nothing in a header is trusted: every length is checked against the file
//! before it is used.

use std::collections::HashMap;

use safetensors::Dtype;

use super::blocks::BlockType;
use crate::weights::ElementType;

/// First bytes of a GGUF file.
pub const MAGIC: &[u8] = b"GGUF";
/// More than any checkpoint has; a header that claims more is broken.
const MAX_ENTRIES: u64 = 1 << 20;
/// ComfyUI's converter stores some convolutions as matrices, so that blocks fit them, and
/// keeps their shapes under this key and the tensor's name.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// The block types by ggml's numbers.
const BLOCKS: [(u32, BlockType); 10] = [
    (2, BlockType::Q4_0),
    (3, BlockType::Q4_1),
    (6, BlockType::Q5_0),
    (7, BlockType::Q5_1),
    (8, BlockType::Q8_0),
    (10, BlockType::Q2K),
    (11, BlockType::Q3K),
    (12, BlockType::Q4K),
    (13, BlockType::Q5K),
    (14, BlockType::Q6K),
];

/// The header's entry for one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The tensor's name.
    pub name: String,
    /// The storage format of the values.
    pub element: ElementType,
    /// Torch's order of axes: the last one is contiguous.
    pub shape: Vec<usize>,
    /// The byte range of the data in the file: the first byte, and the one after the last.
    pub range: (usize, usize),
}

/// A message that says what is wrong with a header: the end of a sentence about the file.
type Broken = String;

/// Reads the header of `file`.
///
/// # Errors
/// Says what is wrong, for a sentence that begins with the file's name.
pub fn read(file: &[u8]) -> Result<Vec<TensorEntry>, Broken> {
    let mut at = Cursor { file, at: 0 };
    if at.take(4)? != MAGIC {
        return Err("this is no GGUF file".into());
    }
    match at.u32()? {
        2 | 3 => {}
        version => {
            return Err(format!(
                "it is of version {version} of GGUF; versions 2 and 3, little-endian, are read"
            ));
        }
    }
    let tensors = at.count("tensors")?;
    let keys = at.count("keys")?;
    let mut alignment = 32;
    let mut shapes: HashMap<String, Vec<usize>> = HashMap::new();
    for _ in 0..keys {
        let key = at.string()?;
        let kind = at.u32()?;
        if key == "general.alignment" && kind == 4 {
            alignment = at.u32()? as usize;
            if alignment == 0 || alignment > 1 << 20 {
                return Err(format!("its alignment of {alignment} bytes is impossible"));
            }
        } else if let Some(name) = key.strip_prefix(ORIGINAL_SHAPE) {
            shapes.insert(name.to_string(), at.integers(kind)?);
        } else {
            at.skip_value(kind)?;
        }
    }
    let mut entries = Vec::new();
    for _ in 0..tensors {
        let name = at.string()?;
        let axes = at.u32()?;
        if axes > 8 {
            return Err(format!("tensor `{name}` has {axes} axes"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(at.size()?);
        }
        // ggml names the contiguous axis first.
        shape.reverse();
        let kind = at.u32()?;
        let offset = at.size()?;
        let (element, bytes) = stored(&name, kind, &shape)?;
        if let Some(original) = shapes.remove(&name) {
            if product(&original) != product(&shape) {
                return Err(format!(
                    "tensor `{name}` of shape {shape:?} cannot have had the shape {original:?}"
                ));
            }
            shape = original;
        }
        entries.push(TensorEntry {
            name,
            element,
            shape,
            range: (offset, bytes),
        });
    }
    let data = at.at.next_multiple_of(alignment);
    for entry in &mut entries {
        let (offset, bytes) = entry.range;
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        entry.range = match (start, end) {
            (Some(start), Some(end)) if end <= file.len() => (start, end),
            _ => {
                return Err(format!(
                    "tensor `{}` lies beyond the end of the file, which was cut off; download it \
                     again",
                    entry.name
                ));
            }
        };
    }
    Ok(entries)
}

/// A tensor of a file to be written.
pub struct NewTensor {
    /// The tensor's name.
    pub name: String,
    /// The format in which the values are to be stored: `F32`, `F16` or blocks.
    pub element: ElementType,
    /// Torch's order of axes. Rows hold whole blocks.
    pub shape: Vec<usize>,
}

/// Bytes between tensors are filled up to a multiple of this.
pub const ALIGNMENT: usize = 32;

/// The header of a file of version 3, up to where the data begin, and the bytes that each tensor's
/// data take, to be filled up to a multiple of [`ALIGNMENT`] one after the other.
///
/// # Errors
/// A tensor that cannot be stored so.
pub fn header(
    keys: &[(&str, HeaderValue<'_>)],
    tensors: &[NewTensor],
) -> Result<(Vec<u8>, Vec<usize>), Broken> {
    fn text(header: &mut Vec<u8>, text: &str) {
        header.extend((text.len() as u64).to_le_bytes());
        header.extend(text.as_bytes());
    }
    let mut header = MAGIC.to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut header, key);
        match value {
            HeaderValue::Number(number) => {
                header.extend(4u32.to_le_bytes());
                header.extend(number.to_le_bytes());
            }
            HeaderValue::Text(words) => {
                header.extend(8u32.to_le_bytes());
                text(&mut header, words);
            }
        }
    }
    let mut offset = 0;
    let mut lengths = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let kind = match tensor.element {
            ElementType::Plain(Dtype::F32) => Some(0),
            ElementType::Plain(Dtype::F16) => Some(1),
            ElementType::Plain(_) => None,
            ElementType::Blocks(block) => (BLOCKS.iter()).find(|b| b.1 == block).map(|b| b.0),
        };
        let kind = kind.ok_or_else(|| format!("GGUF has no tensors of {}", tensor.element))?;
        let (_, length) = stored(&tensor.name, kind, &tensor.shape)?;
        text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for axis in tensor.shape.iter().rev() {
            header.extend((*axis as u64).to_le_bytes());
        }
        header.extend(kind.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += length.next_multiple_of(ALIGNMENT);
        lengths.push(length);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    Ok((header, lengths))
}

/// A value of a key in a file's header.
pub enum HeaderValue<'a> {
    /// An unsigned integer of 32 bits.
    Number(u32),
    /// Text.
    Text(&'a str),
}

fn product(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, axis| n.checked_mul(*axis))
}

/// The element type of ggml's number `kind`, and the bytes of a tensor of this shape.
fn stored(name: &str, kind: u32, shape: &[usize]) -> Result<(ElementType, usize), Broken> {
    let block = match kind {
        0 => return plain(name, Dtype::F32, 4, shape),
        1 => return plain(name, Dtype::F16, 2, shape),
        30 => return plain(name, Dtype::BF16, 2, shape),
        _ => match BLOCKS.iter().find(|(number, _)| *number == kind) {
            Some((_, block)) => *block,
            None => {
                return Err(format!(
                    "tensor `{name}` is stored in a way (ggml type {kind}) that is not read here; \
                 F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are"
                ));
            }
        },
    };
    let row = shape.last().copied().unwrap_or(1);
    let rows = product(&shape[..shape.len().saturating_sub(1)]);
    let bytes = rows.and_then(|rows| {
        rows.checked_mul(row / block.values())?
            .checked_mul(block.bytes())
    });
    match bytes {
        Some(bytes) if row.is_multiple_of(block.values()) => {
            Ok((ElementType::Blocks(block), bytes))
        }
        _ => Err(format!(
            "tensor `{name}` of shape {shape:?} cannot be stored in blocks of {block}"
        )),
    }
}

fn plain(
    name: &str,
    dtype: Dtype,
    size: usize,
    shape: &[usize],
) -> Result<(ElementType, usize), Broken> {
    match product(shape).and_then(|n| n.checked_mul(size)) {
        Some(bytes) => Ok((ElementType::Plain(dtype), bytes)),
        None => Err(format!(
            "tensor `{name}` has the impossible shape {shape:?}"
        )),
    }
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Broken> {
        let taken = (self.file.get(self.at..)).and_then(|rest| rest.get(..bytes));
        match taken {
            Some(taken) => {
                self.at += bytes;
                Ok(taken)
            }
            None => Err("its header was cut off; download it again".into()),
        }
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn size(&mut self) -> Result<usize, Broken> {
        let size = self.u64()?;
        usize::try_from(size).map_err(|_| format!("its header speaks of {size} bytes"))
    }

    fn count(&mut self, what: &str) -> Result<u64, Broken> {
        match self.u64()? {
            count if count <= MAX_ENTRIES => Ok(count),
            count => Err(format!("its header claims to have {count} {what}")),
        }
    }

    fn string(&mut self) -> Result<String, Broken> {
        let length = self.size()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name in its header is not UTF-8".into())
    }

    /// Bytes of a value of a fixed size.
    fn width(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), Broken> {
        if let Some(width) = Self::width(kind) {
            self.take(width)?;
        } else if kind == 8 {
            let length = self.size()?;
            self.take(length)?;
        } else if kind == 9 {
            let inner = self.u32()?;
            let length = self.size()?;
            if let Some(width) = Self::width(inner) {
                let bytes = length.checked_mul(width);
                self.take(bytes.ok_or("its header has an impossible list")?)?;
            } else if inner == 8 {
                for _ in 0..length {
                    self.skip_value(8)?;
                }
            } else {
                return Err(format!("its header has a list of values of kind {inner}"));
            }
        } else {
            return Err(format!("its header has a value of kind {kind}"));
        }
        Ok(())
    }

    /// A short list of sizes.
    fn integers(&mut self, kind: u32) -> Result<Vec<usize>, Broken> {
        let broken = || "its header has an impossible shape".to_string();
        if kind != 9 {
            return Err(broken());
        }
        let inner = self.u32()?;
        let length = self.size()?;
        if length > 8 {
            return Err(broken());
        }
        (0..length)
            .map(|_| match inner {
                4 => Ok(self.u32()? as usize),
                5 => usize::try_from(self.u32()? as i32).map_err(|_| broken()),
                10 => self.size(),
                11 => usize::try_from(self.u64()? as i64).map_err(|_| broken()),
                _ => Err(broken()),
            })
            .collect()
    }
}
