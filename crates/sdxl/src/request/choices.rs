//! Fields of a request whose values are words.

use serde::{Deserialize, Serialize};

use crate::named::named;

/// The syntax in which prompts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// The language of the Compel library: `word+`, `(some words)1.3`, `("a", "b").blend(0.3, 0.7)`.
    #[default]
    Compel,
    /// The language of AUTOMATIC1111's web UI: `(some words:1.3)`, `[from:to:0.4]`, `AND`.
    A1111,
    /// As they stand, without weights: what diffusers does.
    Plain,
}

named! { PromptSyntax:
    Compel, "compel", "Compel's: `word+`, `(some words)1.3`, `(\"a\", \"b\").blend(0.3, 0.7)`";
    A1111, "a1111", "AUTOMATIC1111's: `(some words:1.3)`, `[from:to:0.4]`, `AND`";
    Plain, "plain", "None: the prompt as it stands";
}

/// The effect of weights in prompts on the text encoders' states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptWeighting {
    /// The effect that goes with the syntax: A1111's with A1111's syntax, else Compel's.
    #[default]
    Auto,
    /// Away from the empty text by the weight; below 1, towards the prompt without the words.
    Compel,
    /// States times weight, each chunk then brought back to its mean.
    A1111,
    /// States times weight.
    A1111NoNorm,
    /// Away from the empty text by the weight, or towards it.
    #[serde(rename = "comfyui")]
    ComfyUi,
}

named! { PromptWeighting:
    Auto, "auto", "The method that goes with the syntax";
    Compel, "compel", "Away from the empty text; below 1, towards the prompt without the words";
    A1111, "a1111", "Multiplied, and each chunk brought back to its mean";
    A1111NoNorm, "a1111-no-norm", "Multiplied";
    ComfyUi, "comfyui", "Away from the empty text, or towards it";
}

/// Which text the pooled vector is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PooledFrom {
    /// The prompt as written, signs of its language included.
    Raw,
    /// The words alone, and at their end also where there are textual inversions, at which the
    /// reference takes it otherwise.
    Clean,
}

named! { PooledFrom:
    Raw, "raw", "The prompt as written, signs included";
    Clean, "clean", "The words alone";
}

/// When the VAE works tile by tile (slower at the seams, bounded memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaeTiling {
    /// Only where the whole picture would not fit in memory.
    #[default]
    Auto,
    /// Always (for pictures larger than a tile).
    On,
    /// Never.
    Off,
}

named! { VaeTiling:
    Auto, "auto", "Only if the picture would not fit in memory otherwise";
    On, "on", "Always, for pictures larger than a tile";
    Off, "off", "Never";
}
