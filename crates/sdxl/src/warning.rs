//! Something to know about a run that can be made all the same.

use std::fmt;

use serde::Serialize;

use crate::hint::then;

/// Something to know about a run, a prompt or a file that is used all the same.
///
/// It has the parts of an [`Error`](crate::Error), and its hint names fields as those of
/// [errors](crate::error) do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The kind, for programs.
    pub kind: WarningKind,
    /// The field that it is about, where it is about one: by its name in the request's JSON, or of
    /// what is given beside a request.
    pub field: Option<&'static str>,
    /// The message: what there is to know.
    pub message: String,
    /// The hint: what to do about it.
    pub hint: Option<String>,
}

/// The kinds of warnings, each with a word that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WarningKind {
    /// A field has no effect in this request. Message and hint have fields in backticks, the first
    /// that field.
    NoEffect,
    /// A prompt was cut at the end of the text encoder's chunk.
    PromptCut,
    /// A prompt has a LoRA's sign of another language, where it is text.
    LoraSyntax,
    /// A prompt asks for a LoRA that the checkpoint was opened without.
    LoraMissing,
    /// A negative prompt asks for a LoRA, which does nothing.
    LoraInNegativePrompt,
    /// Weights of a LoRA have no place in the checkpoint.
    LoraPartlyUsed,
    /// No prompt says the word of a textual inversion.
    EmbeddingUnused,
    /// The picture's size is far from those of the training.
    Size,
    /// The precision costs time on this processor.
    Precision,
    /// For want of memory the run takes longer.
    Slow,
    /// For want of memory the VAE works tile by tile, which changes the picture a little.
    Tiled,
    /// The picture's format has no room for a text.
    TextLeftOut,
    /// The machine, the version or a file is not what a recipe was made with.
    RecipeDiffers,
    /// A recipe names no weight files, because they could not be hashed.
    RecipeWithoutHashes,
    /// A picture is elsewhere than it was to be.
    PictureElsewhere,
    /// A run's state could not be written while it goes on.
    StateNotWritten,
}

impl Warning {
    /// A warning about a field, or about none; [`Warning::with_hint`] says what to do.
    pub fn new(
        kind: WarningKind,
        field: impl Into<Option<&'static str>>,
        message: impl Into<String>,
    ) -> Self {
        Warning {
            kind,
            field: field.into(),
            message: message.into(),
            hint: None,
        }
    }

    /// The warning with what to do about it, which continues the sentence.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Warning {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.message, then(&self.hint))
    }
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A kind without fields is a string in JSON.
        self.serialize(f)
    }
}
