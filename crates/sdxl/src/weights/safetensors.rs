//! The header of a `.safetensors` file: checked before anything is trusted.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{SafeTensorError, SafeTensors};

use super::element::ElementType;
use super::gguf;
use crate::error::{Error, Result};

/// The tensors of a `.safetensors` file, and what else its header says.
pub(super) fn entries_of_safetensors(
    path: &Path,
    map: &[u8],
) -> Result<(Vec<gguf::TensorEntry>, HashMap<String, String>)> {
    let (header, metadata) =
        SafeTensors::read_metadata(map).map_err(|e| Error::file(path, explain(&e, map)))?;
    let data = header + 8;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let range = (data + info.data_offsets.0, data + info.data_offsets.1);
        if range.1 > map.len() {
            return Err(Error::file(path, truncated(map.len(), range.1)));
        }
        entries.push(gguf::TensorEntry {
            name,
            element: ElementType::Plain(info.dtype),
            shape: info.shape.clone(),
            range,
        });
    }
    Ok((entries, metadata.metadata().clone().unwrap_or_default()))
}

/// Whether a file begins as a `.safetensors` file: a length that leaves room for data, and a JSON
/// object.
pub(super) fn begins_as_safetensors(map: &[u8]) -> bool {
    header_end(map).is_some_and(|end| end <= map.len()) && map.get(8) == Some(&b'{')
}

/// Whether a file's name is one that files of Python's pickle have.
pub(super) fn is_named_pickle(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    ["ckpt", "bin", "pt", "pth", "pkl"].contains(&extension.as_str())
}

pub(super) fn pickle(path: &Path) -> Error {
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
