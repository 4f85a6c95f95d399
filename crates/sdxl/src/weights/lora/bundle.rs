//! Textual inversions that a LoRA brings along, as A1111 and OneTrainer store them: tensors named
//! `bundle_emb.WORD.clip_l` and `.clip_g`, or `bundle_emb.WORD.string_to_param.*`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::weights::{StoredTensor, TensorSet};

const PREFIX: &str = "bundle_emb.";

/// A word and its tensors, named as in a file of their own.
#[derive(Clone)]
pub(in crate::weights) struct Bundle {
    /// The word that stands for the vectors in prompts.
    pub word: String,
    /// The LoRA's file.
    pub file: PathBuf,
    /// The vectors, as stored.
    pub tensors: TensorSet,
}

/// Whether a tensor is one of a bundled textual inversion.
pub(super) fn is_bundled(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The textual inversions in `set`, a LoRA's file.
pub(super) fn bundles(set: &TensorSet, file: &Path) -> Vec<Bundle> {
    let mut words: BTreeMap<&str, HashMap<String, StoredTensor>> = BTreeMap::new();
    for (name, tensor) in set.iter() {
        let Some((word, key)) = name
            .strip_prefix(PREFIX)
            .and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let key = match key.strip_prefix("string_to_param.") {
            Some(_) => "emb_params",
            None => key,
        };
        (words.entry(word).or_default()).insert(key.to_string(), tensor.clone());
    }
    (words.into_iter())
        .map(|(word, tensors)| Bundle {
            word: word.to_string(),
            file: file.to_path_buf(),
            tensors: set.renamed(tensors),
        })
        .collect()
}
