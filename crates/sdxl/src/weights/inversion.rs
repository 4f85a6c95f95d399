//! Textual inversions (Gal et al. 2022): files with vectors for a new word, one or several for
//! each text encoder, which stand in a prompt where the word does.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lora::Bundle;
use super::recognise::FileKind;
use crate::error::{Error, Result};
use crate::weights::Part;
use crate::weights::TensorSet;
use crate::weights::values::to_f32;

/// A file, and the word that stands for its vectors in prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InversionFile {
    /// The `.safetensors` file.
    pub file: PathBuf,
    /// The word; nothing means the one that the file was trained for, where it says so, else the
    /// file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl std::str::FromStr for InversionFile {
    type Err = String;

    /// `FILE` or `FILE:TOKEN`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // Both may have colons of their own, so the file's ending decides where it can.
        let lower = text.to_ascii_lowercase();
        let endings = [".safetensors", ".pt", ".bin", ".ckpt", ".pth"];
        let known = (endings.iter())
            .filter_map(|ending| Some(lower.find(&format!("{ending}:"))? + ending.len()))
            .min();
        let whole = endings.iter().any(|ending| lower.ends_with(ending));
        let (file, token) = match known.or_else(|| text.rfind(':').filter(|_| !whole)) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        if file.is_empty() || token.is_some_and(|t| t.trim().is_empty()) {
            return Err("name a file, as in FILE or FILE:TOKEN".to_string());
        }
        Ok(InversionFile {
            file: file.into(),
            token: token.map(|t| t.trim().to_string()),
        })
    }
}

/// A word and its vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Inversion {
    /// The word.
    pub token: String,
    /// The file, or the first of its two halves.
    pub file: PathBuf,
    /// The number of tokens that the word becomes, one for each vector.
    pub vectors: usize,
    /// `[vectors, hidden_size]` for the first text encoder; a refiner has none.
    first: Option<Vec<f32>>,
    /// The same for the second.
    second: Option<Vec<f32>>,
}

impl Inversion {
    /// The vectors for a text encoder, `[vectors, hidden_size]`.
    pub fn rows(&self, part: Part) -> &[f32] {
        let rows = match part {
            Part::TextEncoder => &self.first,
            _ => &self.second,
        };
        rows.as_deref().unwrap_or_default()
    }

    /// The names of its tokens: the word, then `word_1`, `word_2` and so on, as diffusers has
    /// them.
    pub fn names(&self) -> impl Iterator<Item = String> {
        (0..self.vectors).map(|i| match i {
            0 => self.token.clone(),
            i => format!("{}_{i}", self.token),
        })
    }
}

/// Opened textual inversions, in the order in which they were named.
#[derive(Debug, Default, PartialEq)]
pub struct Inversions {
    files: Vec<InversionFile>,
    words: Vec<Inversion>,
}

/// Vectors that one word may have: as many as fit in a sequence.
const MAX_VECTORS: usize = 75;

/// Lengths of the vectors that text encoders take; a refiner has the second only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub first: Option<usize>,
    pub second: usize,
}

impl Inversions {
    /// Reads the files, for text encoders of these `widths`.
    ///
    /// # Errors
    /// A file that is no textual inversion, lacks one of the text encoders, or was made for
    /// others; a word that two files claim.
    pub(super) fn open(
        files: &[InversionFile],
        bundles: &[Bundle],
        widths: Widths,
    ) -> Result<Inversions> {
        let mut all = Inversions::default();
        for given in files {
            let word = read(given, widths)?;
            all.files.push(InversionFile {
                file: given.file.clone(),
                token: Some(word.token.clone()),
            });
            let halves = |a: &Inversion, b: &Inversion| {
                a.token == b.token
                    && (a.first.is_none() && b.second.is_none()
                        || a.second.is_none() && b.first.is_none())
            };
            // diffusers' trainer writes one file for each text encoder
            match all.words.iter_mut().find(|other| halves(other, &word)) {
                Some(other) => other.join(word)?,
                None => all.words.push(word),
            }
        }
        for bundle in bundles {
            let token = Some(bundle.word.as_str());
            let word = read_word(&bundle.tensors, &bundle.file, token, widths)?;
            // The same LoRA twice, or the same words beside another file of it.
            let again = |other: &Inversion| {
                Inversion {
                    file: other.file.clone(),
                    ..word.clone()
                } == *other
            };
            if !all.words.iter().any(again) {
                all.words.push(word);
            }
        }
        for word in &all.words {
            word.check_whole(widths)?;
        }
        for (i, word) in all.words.iter().enumerate() {
            for other in &all.words[..i] {
                let taken = |name: &String| other.names().any(|n| n.eq_ignore_ascii_case(name));
                if let Some(name) = word.names().find(taken) {
                    return Err(Error::file(
                        &word.file,
                        format!(
                            "{} has the token `{name}` too; name another one, as in FILE:TOKEN",
                            other.file.display()
                        ),
                    ));
                }
            }
        }
        Ok(all)
    }

    /// The files, with the words that stand for them.
    pub fn files(&self) -> &[InversionFile] {
        &self.files
    }

    /// The words.
    pub fn words(&self) -> &[Inversion] {
        &self.words
    }
}

impl Inversion {
    /// Puts the other half beside this one.
    fn join(&mut self, other: Inversion) -> Result<()> {
        if self.vectors != other.vectors {
            return Err(Error::file(
                &other.file,
                format!(
                    "it has {} vectors for `{}` and {} has {}; they are not halves of one",
                    other.vectors,
                    self.token,
                    self.file.display(),
                    self.vectors
                ),
            ));
        }
        self.first = self.first.take().or(other.first);
        self.second = self.second.take().or(other.second);
        Ok(())
    }

    /// Refuses a word that a text encoder knows nothing of.
    fn check_whole(&self, widths: Widths) -> Result<()> {
        let (key, encoder, rows) = match (&self.first, &self.second) {
            (Some(rows), None) => ("clip_g", "second", rows),
            (None, Some(rows)) if widths.first.is_some() => ("clip_l", "first", rows),
            _ => return Ok(()),
        };
        let width = rows.len() / self.vectors.max(1);
        let advice = match width {
            768 => {
                "it may be one for Stable Diffusion 1, which this model cannot use; one for SDXL by \
                 diffusers' trainer has a second file (learned_embeds_2.safetensors) to give too"
            }
            _ => "if those are in a file of their own, give both files, under one TOKEN",
        };
        Err(Error::file(
            &self.file,
            format!(
                "it has vectors of {width} values for one text encoder and none (`{key}`) for the \
                 {encoder}, so it is no textual inversion for this model: {advice}"
            ),
        ))
    }
}

/// The names that tensors for the first and the second text encoder have.
const PAIRS: [[&str; 2]; 2] = [
    ["clip_l", "clip_g"],
    // early versions of diffusers' DreamBooth trainer
    ["text_encoders_0", "text_encoders_1"],
];

fn read(given: &InversionFile, widths: Widths) -> Result<Inversion> {
    let set = TensorSet::open(std::slice::from_ref(&given.file))?;
    read_word(&set, &given.file, given.token.as_deref(), widths)
}

/// Reads the word of a file's tensors. `token`: the name that it is given.
fn read_word(
    set: &TensorSet,
    path: &Path,
    token: Option<&str>,
    widths: Widths,
) -> Result<Inversion> {
    set.check_shapes(|_| true)?;
    let named = |trained: Option<&str>| -> String {
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy();
        let token = token.or(trained);
        token.map_or_else(|| stem().into_owned(), str::to_string)
    };
    let word = |token, vectors, first, second| Inversion {
        token,
        file: path.to_path_buf(),
        vectors,
        first,
        second,
    };
    if let Some([l, g]) = (PAIRS.iter()).find(|pair| pair.iter().any(|key| set.get(key).is_some()))
    {
        for key in [l, g] {
            let needed = key == g || widths.first.is_some();
            if needed && set.get(key).is_none() {
                let other = if key == l { g } else { l };
                return Err(Error::file(
                    path,
                    format!(
                        "it has `{other}` and no `{key}`, so it says nothing to one of SDXL's two text \
                         encoders; get a textual inversion that was trained for SDXL"
                    ),
                ));
            }
        }
        let (count, second) = vectors(set, g, path, "second", widths.second)?;
        let first = (widths.first)
            .map(|width| vectors(set, l, path, "first", width))
            .transpose()?;
        if let Some((other, _)) = &first
            && *other != count
        {
            return Err(Error::file(
                path,
                format!("`{l}` has {other} vectors and `{g}` has {count}; they must be as many"),
            ));
        }
        return Ok(word(named(None), count, first.map(|f| f.1), Some(second)));
    }
    // One tensor: `emb_params` as A1111 has it, or named by its word as diffusers has it.
    let only: Vec<_> = set.iter().collect();
    let [(key, tensor)] = only[..] else {
        return Err(no_inversion(set, path));
    };
    let ([width] | [_, width]) = *tensor.shape() else {
        return Err(no_inversion(set, path));
    };
    if key.ends_with(".weight") {
        return Err(no_inversion(set, path));
    }
    let token = named((key != "emb_params").then_some(key));
    if width == widths.second {
        let (count, rows) = vectors(set, key, path, "second", width)?;
        return Ok(word(token, count, None, Some(rows)));
    }
    let Some(first) = widths.first else {
        // Beside its other half it may be for a base model, which a refiner runs beside.
        let (count, rows) = vectors(set, key, path, "first", width)?;
        return Ok(word(token, count, Some(rows), None));
    };
    if first != width {
        let model = match width {
            768 => ": Stable Diffusion 1's has that many",
            1024 => ": Stable Diffusion 2's has that many",
            1280 => ": SDXL's second has that many",
            _ => "",
        };
        return Err(Error::file(
            path,
            format!(
                "`{key}` holds vectors of {width} values for one text encoder{model}; this \
                 checkpoint's text encoders take {first} and {}, so it needs a textual inversion \
                 trained for it, with `clip_l` and `clip_g`",
                widths.second
            ),
        ));
    }
    let (count, rows) = vectors(set, key, path, "first", first)?;
    Ok(word(token, count, Some(rows), None))
}

fn no_inversion(set: &TensorSet, path: &Path) -> Error {
    let mut names: Vec<&str> = set.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    let what = match FileKind::of(set) {
        FileKind::Unknown | FileKind::Embedding => String::new(),
        kind => format!(": it is {}", kind.describe()),
    };
    let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    Error::file(
        path,
        format!(
            "it has no `clip_l` and `clip_g`, which SDXL's textual inversions have{what}; its tensors \
             are {shown}{}",
            if names.len() > 3 { ", ..." } else { "" }
        ),
    )
}

/// The number of vectors in the tensor `key`, and their values.
fn vectors(
    set: &TensorSet,
    key: &str,
    path: &Path,
    which: &str,
    width: usize,
) -> Result<(usize, Vec<f32>)> {
    let wrong = |text: String| Err(Error::file(path, format!("`{key}` {text}")));
    let Some(tensor) = set.get(key) else {
        return wrong("is missing".into());
    };
    let count = match *tensor.shape() {
        [w] if w == width => 1,
        [n, w] if w == width => n,
        [.., w] if tensor.shape().len() <= 2 => {
            return wrong(format!(
                "has vectors of {w} values; the {which} text encoder of this checkpoint takes {width}, \
                 so it was made for another model"
            ));
        }
        _ => {
            return wrong(format!(
                "has the shape {:?}, not [vectors, {width}]",
                tensor.shape()
            ));
        }
    };
    if count > MAX_VECTORS {
        return wrong(format!(
            "has {count} vectors; a sequence has room for {MAX_VECTORS}"
        ));
    }
    let values = set.read(key, tensor, to_f32)?;
    if values.iter().any(|v| !v.is_finite()) {
        return wrong("has values that are infinite or no numbers; the file is broken".into());
    }
    Ok((count, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_and_without_a_token() {
        let parse = |text: &str| text.parse::<InversionFile>().map(|f| (f.file, f.token));
        let file =
            |file: &str, token: Option<&str>| Ok((PathBuf::from(file), token.map(str::to_string)));
        assert_eq!(parse("a.safetensors"), file("a.safetensors", None));
        assert_eq!(
            parse("a.safetensors:sks"),
            file("a.safetensors", Some("sks"))
        );
        assert_eq!(
            parse("a.safetensors:<a:b>"),
            file("a.safetensors", Some("<a:b>"))
        );
        assert_eq!(parse("b:a.SafeTensors"), file("b:a.SafeTensors", None));
        assert_eq!(parse("b:a.pt: sks "), file("b:a.pt", Some("sks")));
        assert_eq!(parse("file:sks"), file("file", Some("sks")));
        assert!(parse("").is_err() && parse("a.safetensors:").is_err() && parse(":b").is_err());
    }
}
