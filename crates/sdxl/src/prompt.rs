//! Prompts: three languages, one tree.
//!
//! [`Prompt::parse`] reads a text in one of the languages of [`PromptSyntax`]; [`Prompt::at`] says
//! what to encode at a step ([`ResolvedPrompt`]: weighted texts, and how they join); [`Prompt::print`]
//! writes the tree in any of the languages, which is how prompts are translated. What weights do to
//! the numbers is not decided here but where texts are encoded ([`crate::text`]).
//!
//! Wildcards ([`wildcards`]) are no language: they are replaced in the text before it is read.

mod a1111;
mod a1111_print;
mod compel;
mod compel_print;
mod python;
mod resolve;
pub mod wildcards;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::request::PromptSyntax;
use crate::warning::{Warning, WarningKind};

/// Brackets inside brackets, at most. Nobody writes more, and a tree of bounded depth can be walked
/// by recursion.
const MAX_DEPTH: usize = 100;

/// The input of the text encoders for one prompt at one step: prompt languages, edits, alternations
/// and wildcards are resolved already. No parts at all mean the empty prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResolvedPrompt {
    /// The parts that are encoded, in order.
    pub parts: Vec<ResolvedPart>,
    /// The way in which the parts make one conditioning.
    pub join: Join,
}

/// The way in which several parts make one conditioning.
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
pub struct ResolvedPart {
    /// The content that is encoded.
    pub content: ResolvedContent,
    /// The weight of the part; 1 where the prompt gives none.
    pub weight: f64,
}

/// A weighted text, or a mixture of several.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResolvedContent {
    /// Spans, one after the other.
    Text(Vec<WeightedSpan>),
    /// Compel's `.blend()`: a weighted sum of conditionings.
    Blend {
        /// The texts and their weights.
        members: Vec<(Vec<WeightedSpan>, f64)>,
        /// Whether the weights are divided by their sum.
        normalize: bool,
    },
}

/// A stretch of text with one weight. Neighbours of equal weight are one span already (Compel's
/// arithmetic depends on it), save around Compel's `.swap()`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightedSpan {
    /// Text to encode.
    Text {
        /// The text, as it goes to the tokenizer.
        text: String,
        /// The weight of the text, with the factors of all brackets multiplied into it.
        weight: f64,
    },
    /// A1111's `BREAK`: what follows begins a new chunk of 75 tokens.
    Break,
}

/// A LoRA that a prompt asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraUse {
    /// The name of the LoRA, as written.
    pub name: String,
    /// The strength of the LoRA; 1 where the prompt gives none.
    pub weight: f64,
    /// The strength in the text encoders, where that is another number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_weight: Option<f64>,
    /// The numbers of `lbw=`, see [`Blocks::Listed`](crate::weights::lora::blocks::BlockScales::Listed).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub block_weights: Vec<f32>,
}

/// A piece of a prompt: what the languages have in common, and what one of them has alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptNode {
    /// Literal text, without escapes.
    Text(String),
    /// Brackets; a weight of 1 only groups. Weights multiply from the outside in.
    Group {
        /// Factor for everything inside.
        weight: f64,
        /// The contents of the brackets.
        children: Vec<PromptNode>,
    },
    /// Compel's `original.swap(edited)`. SDXL encodes the original.
    Swap {
        /// The text that is encoded.
        original: Vec<PromptNode>,
        /// The text that would be shown instead.
        edited: Vec<PromptNode>,
        /// Options by name, with their value as written; without effect on SDXL.
        options: Vec<(String, Option<String>)>,
    },
    /// A LoRA; no text.
    Lora(LoraUse),
    /// A1111's `BREAK`.
    Break,
    /// A1111's `[before:after:when]`.
    Edit {
        /// Encoded up to and including step `when`, counted from 1.
        before: Vec<PromptNode>,
        /// Encoded from then on.
        after: Vec<PromptNode>,
        /// Below 1 a fraction of the steps, otherwise the number of a step.
        when: f64,
    },
    /// A1111's `[a|b]`: one after the other, changing at every step.
    Alternate(Vec<Vec<PromptNode>>),
}

/// One of the texts that [`Join`] puts together, before it is resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptPart {
    /// The content of the item.
    pub body: PromptBody,
    /// The weight of the item.
    pub weight: f64,
}

/// A text, or several to be mixed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptBody {
    /// Nodes, one after the other.
    Text(Vec<PromptNode>),
    /// Compel's `.blend()`.
    Blend {
        /// The texts and their weights.
        members: Vec<(Vec<PromptNode>, f64)>,
        /// Whether the weights are divided by their sum.
        normalize: bool,
    },
}

/// A prompt as read, in any of the languages. Serialised it is the tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prompt {
    /// The language it was written in. It decides how neighbouring texts are put together: Compel
    /// sets a space between them, A1111 nothing.
    syntax: PromptSyntax,
    join: Join,
    items: Vec<PromptPart>,
    loras: Vec<LoraUse>,
}

/// A prompt written in another language.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranslatedPrompt {
    /// The prompt.
    pub text: String,
    /// The losses: for each thing that the language cannot say, a sentence that names it and what
    /// stands in its place.
    pub lost: Vec<String>,
}

impl Prompt {
    /// Reads `text`, in time linear in its length.
    ///
    /// # Errors
    /// [`Error::Request`] where the language itself refuses the text, and where brackets are nested
    /// more than a hundred deep. [`PromptSyntax::Plain`] never fails.
    pub fn parse(text: &str, syntax: PromptSyntax) -> Result<Prompt> {
        let (items, join) = match syntax {
            PromptSyntax::Compel => (compel::parse(text)?, Join::Concat),
            PromptSyntax::A1111 => a1111::parse(text)?,
            PromptSyntax::Plain => (
                vec![PromptPart::text(vec![PromptNode::Text(text.into())])],
                Join::Concat,
            ),
        };
        let mut loras = Vec::new();
        for item in &items {
            match &item.body {
                PromptBody::Text(nodes) => collect_loras(nodes, &mut loras),
                PromptBody::Blend { members, .. } => {
                    for (nodes, _) in members {
                        collect_loras(nodes, &mut loras);
                    }
                }
            }
        }
        Ok(Prompt {
            syntax,
            join,
            items,
            loras,
        })
    }

    /// A warning to whoever writes A1111's `<lora:...>` in another language, where it is text.
    pub fn warning(text: &str, syntax: PromptSyntax) -> Option<Warning> {
        let hint = match syntax {
            PromptSyntax::A1111 => return None,
            PromptSyntax::Compel => "use `prompt_syntax a1111`, or write withLora(NAME, 0.8)",
            PromptSyntax::Plain => "use `prompt_syntax a1111`",
        };
        text.contains("<lora:").then(|| {
            let message =
                "the prompt says `<lora:`, which is a LoRA in A1111's language and text in this one";
            Warning::new(WarningKind::LoraSyntax, "prompt", message).with_hint(hint)
        })
    }

    /// The language it was written in.
    pub fn syntax(&self) -> PromptSyntax {
        self.syntax
    }

    /// The tree: the texts that [`Prompt::join`] puts together.
    pub fn items(&self) -> &[PromptPart] {
        &self.items
    }

    /// Gives the way in which the items make one conditioning.
    pub fn join(&self) -> Join {
        self.join
    }

    /// The LoRAs asked for, in order.
    pub fn loras(&self) -> &[LoraUse] {
        &self.loras
    }

    /// The prompt in `syntax`: [`Prompt::translate`] without what was lost.
    pub fn print(&self, syntax: PromptSyntax) -> String {
        self.translate(syntax).text
    }

    /// The prompt in `syntax`. In its own language it reads back to the same parts, save that blanks
    /// come between signs where unpaired brackets leave Compel no other spelling. In another one
    /// texts and weights are kept, while blanks beside brackets and signs may come and go, and what
    /// the other language cannot say is replaced by what comes nearest.
    pub fn translate(&self, syntax: PromptSyntax) -> TranslatedPrompt {
        let mut lost = Vec::new();
        let text = match syntax {
            PromptSyntax::Compel => compel_print::print(self, &mut lost),
            PromptSyntax::A1111 => a1111_print::print(self, &mut lost),
            PromptSyntax::Plain => self.plain(&mut lost),
        };
        TranslatedPrompt { text, lost }
    }

    /// The words alone, as at the first step.
    fn plain(&self, lost: &mut Vec<String>) -> String {
        let mut texts: Vec<&str> = Vec::new();
        let resolved = self.at(0, usize::MAX);
        let mut weighted = resolved.parts.len() > 1 || !self.loras.is_empty();
        let spans = resolved.parts.iter().flat_map(|part| match &part.content {
            ResolvedContent::Text(spans) => vec![spans],
            ResolvedContent::Blend { members, .. } => {
                members.iter().map(|(spans, _)| spans).collect()
            }
        });
        for span in spans.flatten() {
            match span {
                WeightedSpan::Text { text, weight } => {
                    weighted |= *weight != 1.0;
                    texts.push(text);
                }
                WeightedSpan::Break => weighted = true,
            }
        }
        if weighted || self.changes_by_step() {
            lost.push("plain text has no weights, edits, blends or LoRAs; the words stay".into());
        }
        match self.syntax {
            PromptSyntax::Plain => texts.concat(),
            _ => texts.join(" "),
        }
    }
}

impl PromptPart {
    /// A text that counts once.
    fn text(nodes: Vec<PromptNode>) -> PromptPart {
        PromptPart {
            body: PromptBody::Text(nodes),
            weight: 1.0,
        }
    }

    /// Whether it holds LoRAs and nothing else.
    fn only_loras(&self) -> bool {
        let lora = |node: &PromptNode| matches!(node, PromptNode::Lora(_));
        matches!(&self.body, PromptBody::Text(nodes) if !nodes.is_empty() && nodes.iter().all(lora))
    }
}

fn collect_loras(nodes: &[PromptNode], into: &mut Vec<LoraUse>) {
    for node in nodes {
        match node {
            PromptNode::Lora(lora) => into.push(lora.clone()),
            PromptNode::Group { children, .. } => collect_loras(children, into),
            PromptNode::Swap {
                original, edited, ..
            } => {
                collect_loras(original, into);
                collect_loras(edited, into);
            }
            PromptNode::Edit { before, after, .. } => {
                collect_loras(before, into);
                collect_loras(after, into);
            }
            PromptNode::Alternate(choices) => choices.iter().for_each(|c| collect_loras(c, into)),
            PromptNode::Text(_) | PromptNode::Break => {}
        }
    }
}

fn too_deep() -> Error {
    let message = format!("brackets are nested more than {MAX_DEPTH} deep");
    Error::request("prompt", message)
        .with_hint("write the product of their weights on one pair instead")
}
