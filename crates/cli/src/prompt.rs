//! `sdxl prompt`: what a prompt says, what the text encoders read, and what they make of it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use sdxl::prompt::{
    Join, Prompt, PromptBody, PromptNode, ResolvedContent, ResolvedPrompt, WeightedSpan,
};
use sdxl::text::chunks::{Chunk, ChunkLayout};
use sdxl::text::tokenizer::Tokenizer;
use sdxl::text::{TextEncoders, TextInput, TextOptions, embeds_file};
use sdxl::weights::TextCheckpoint;
use sdxl::{
    InversionFile, OpenOptions, Part, PooledFrom, Precision, PromptSyntax, PromptWeighting,
    Request, Warning,
};
use sdxl_kit::{Model, files};
use serde_json::{Value, json};

use crate::args::{names, switch};
use crate::flags;
use crate::usage;

/// `sdxl prompt`
#[derive(Args)]
pub(crate) struct PromptArgs {
    /// The prompt
    pub prompt: String,
    /// Syntax that it is written in
    #[arg(long, value_parser = names::<PromptSyntax>())]
    pub prompt_syntax: Option<PromptSyntax>,
    /// Print it in another language, and nothing else
    #[arg(long, value_parser = names::<PromptSyntax>(), value_name = "SYNTAX")]
    pub to: Option<PromptSyntax>,
    /// Also show its tokens: a checkpoint folder, or one with only tokenizers and text encoders
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Use weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A textual inversion, as for `sdxl generate`
    #[arg(long, value_name = "FILE[:TOKEN]", requires = "model")]
    pub embedding: Vec<InversionFile>,
    /// Cut it at 77 tokens [default: on with plain syntax, else off]
    #[arg(long)]
    pub truncate_long_prompts: bool,
    /// The negative
    #[arg(long)]
    pub no_truncate_long_prompts: bool,
    /// Steps of the run, for prompts that change by step
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Encode it and write `prompt_embeds` and `pooled_prompt_embeds` (safetensors, f32)
    #[arg(long, value_name = "FILE", requires = "model")]
    pub output_embeddings: Option<PathBuf>,
    /// Replace a file that exists
    #[arg(long)]
    pub overwrite: bool,
    /// Method of applying weights to the encoded prompt
    #[arg(long, value_parser = names::<PromptWeighting>())]
    pub prompt_weighting: Option<PromptWeighting>,
    /// Text that the pooled vector is computed from [default: clean with a1111 syntax, else raw]
    #[arg(long, value_parser = names::<PooledFrom>())]
    pub pooled_from: Option<PooledFrom>,
    /// Layers of the text encoders to skip, beyond the one SDXL skips
    #[arg(long, value_name = "N")]
    pub clip_skip: Option<usize>,
    /// Precision of the text encoders [default: f32]
    #[arg(long, value_parser = names::<Precision>())]
    pub precision: Option<Precision>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &PromptArgs) -> anyhow::Result<()> {
    let defaults = Request::default();
    let syntax = args.prompt_syntax.unwrap_or(defaults.prompt_syntax);
    let prompt = Prompt::parse(&args.prompt, syntax)?;
    if let Some(warning) = Prompt::warning(&args.prompt, syntax) {
        err!("{}", flags::of_warning(&warning));
    }
    let translation = args.to.map(|to| prompt.translate(to));
    if let (Some(translation), false) = (&translation, args.json) {
        out!("{}", translation.text);
        for lost in &translation.lost {
            err!("{lost}");
        }
        return Ok(());
    }
    if let Some(path) = &args.output_embeddings {
        files::check_writable("output_embeddings", path, args.overwrite)?;
    }
    let request = Request {
        prompt_syntax: syntax,
        prompt_weighting: (args.prompt_weighting).unwrap_or(defaults.prompt_weighting),
        truncate_long_prompts: switch(args.truncate_long_prompts, args.no_truncate_long_prompts),
        pooled_from: args.pooled_from,
        clip_skip: args.clip_skip,
        steps: args.steps.unwrap_or(defaults.steps),
        ..defaults
    };
    let options = TextOptions::of(&request);
    let phases = phases(&prompt, request.steps.max(1));
    let model = (args.model.as_deref())
        .map(|named| Model::find(Some(named)))
        .transpose()?;
    let parts = (model.as_ref())
        .map(|model| {
            let options = OpenOptions {
                variant: args.variant.clone(),
                embeddings: args.embedding.clone(),
                ..OpenOptions::default()
            };
            TextCheckpoint::open_with(model.path(), &options)
        })
        .transpose()?;
    let readings = match &parts {
        Some(parts) => read_tokens(parts, &phases, &options)?,
        None => Vec::new(),
    };
    let written = match (&parts, &args.output_embeddings) {
        (Some(parts), Some(path)) => Some(write_embeddings(args, parts, &phases, &options, path)?),
        _ => None,
    };
    if args.json {
        let inversions: Vec<Value> = (parts.iter())
            .flat_map(|parts| parts.files().inversions().words())
            .map(|word| {
                json!({
                    "token": word.token,
                    "file": word.file.to_string_lossy(),
                    "vectors": word.vectors,
                })
            })
            .collect();
        let object = json!({
            "syntax": syntax,
            "tree": prompt,
            "loras": prompt.loras(),
            "translation": translation,
            "steps": phases.iter().map(|p| json!({
                "from": p.from,
                "to": p.to,
                "resolved": p.resolved,
            })).collect::<Vec<_>>(),
            "encoders": readings.iter().map(Reading::to_json).collect::<Vec<_>>(),
            "inversions": inversions,
            "embeddings": written,
        });
        out!("{object}");
        return Ok(());
    }
    show_tree(&prompt);
    let ink = Ink::of_stdout();
    for reading in &readings {
        reading.show(ink, phases.len() > 1);
    }
    if let Some(written) = written {
        out!(
            "\n{}: prompt_embeds {}, pooled_prompt_embeds {}",
            written["path"].as_str().expect("`write` names its file"),
            written["prompt_embeds"],
            written["pooled_prompt_embeds"]
        );
    }
    Ok(())
}

/// Steps, counted from 1, that are conditioned on the same.
struct Phase {
    from: usize,
    to: usize,
    resolved: ResolvedPrompt,
}

fn phases(prompt: &Prompt, steps: usize) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let count = if prompt.changes_by_step() { steps } else { 1 };
    for step in 0..count {
        let resolved = prompt.at(step, steps);
        match phases.last_mut() {
            Some(last) if last.resolved == resolved => last.to = step + 1,
            _ => phases.push(Phase {
                from: step + 1,
                to: step + 1,
                resolved,
            }),
        }
    }
    if let [only] = &mut phases[..] {
        only.to = steps;
    }
    phases
}

/// The texts of a resolved prompt, each of which is laid out in chunks of its own.
fn texts(resolved: &ResolvedPrompt) -> Vec<(String, &[WeightedSpan])> {
    let mut found: Vec<(String, &[WeightedSpan])> = Vec::new();
    let several = resolved.parts.len() > 1;
    for (i, part) in resolved.parts.iter().enumerate() {
        let name = match resolved.join {
            _ if !several && part.weight == 1.0 => String::new(),
            Join::Concat => format!("part {} at {}", i + 1, part.weight),
            Join::Compose => format!("prediction {} at {}", i + 1, part.weight),
        };
        match &part.content {
            ResolvedContent::Text(spans) => found.push((name, spans)),
            ResolvedContent::Blend { members, .. } => {
                for (m, (spans, weight)) in members.iter().enumerate() {
                    let member = format!("blended {} at {weight}", m + 1);
                    let name = [name.as_str(), member.as_str()].join(" ");
                    found.push((name.trim().to_string(), spans));
                }
            }
        }
    }
    if found.is_empty() {
        found.push((String::new(), &[]));
    }
    found
}

/// One text as one encoder reads it.
struct Reading {
    encoder: &'static str,
    steps: (usize, usize),
    name: String,
    layout: ChunkLayout,
    /// The words of each chunk, with the tokens within a word joined by dots.
    words: Vec<Vec<Word>>,
    tokens: Vec<Vec<String>>,
    /// The text beyond 77 tokens, which is cut if `truncated` and would be otherwise.
    cut: String,
    truncated: bool,
}

/// A word, and the weight of its tokens.
struct Word {
    text: String,
    weight: f32,
}

fn read_tokens(
    parts: &TextCheckpoint,
    phases: &[Phase],
    options: &TextOptions,
) -> anyhow::Result<Vec<Reading>> {
    let mut readings = Vec::new();
    let first = parts.text_encoder.as_ref().map(|_| Part::TextEncoder);
    for part in first.into_iter().chain([Part::TextEncoder2]) {
        let tokenizer = Tokenizer::of(parts.files(), part)?;
        for phase in phases {
            for (name, spans) in texts(&phase.resolved) {
                let truncate = options.truncate;
                let layout = ChunkLayout::new(&tokenizer, spans, options.splitting, truncate)?;
                let short = ChunkLayout::new(&tokenizer, spans, options.splitting, true)?;
                let words = (layout.chunks.iter())
                    .map(|chunk| words(&tokenizer, chunk))
                    .collect();
                let tokens = (layout.chunks.iter())
                    .map(|chunk| {
                        let own = chunk.ids[1..].iter().take(chunk.owners.len());
                        own.map(|id| tokenizer.token(*id).unwrap_or_default())
                            .collect()
                    })
                    .collect();
                readings.push(Reading {
                    encoder: part.folder(),
                    steps: (phase.from, phase.to),
                    name,
                    words,
                    tokens,
                    cut: tokenizer.decode(&short.cut),
                    truncated: options.truncate,
                    layout,
                });
            }
        }
    }
    Ok(readings)
}

/// The words of a chunk, tokens within a word joined by dots where each can be read alone.
fn words(tokenizer: &Tokenizer, chunk: &Chunk) -> Vec<Word> {
    let count = chunk.owners.len();
    let (ids, weights) = (&chunk.ids[1..=count], &chunk.weights[1..=count]);
    let mut found = Vec::new();
    let mut start = 0;
    for end in 1..=count {
        let ends = tokenizer.ends_word(ids[end - 1]);
        let other = end == count || chunk.owners[end] != chunk.owners[end - 1];
        if !ends && !other {
            continue;
        }
        let word = &ids[start..end];
        let alone: Vec<String> = word.iter().map(|id| tokenizer.decode(&[*id])).collect();
        let text = if alone.iter().any(|t| t.contains('\u{fffd}')) {
            tokenizer.decode(word)
        } else {
            alone.join("·")
        };
        found.push(Word {
            text,
            weight: weights[start],
        });
        start = end;
    }
    found
}

impl Reading {
    fn to_json(&self) -> Value {
        let chunks: Vec<Value> = (self.layout.chunks.iter().zip(&self.tokens))
            .map(|(chunk, tokens)| {
                let tokens: Vec<Value> = (tokens.iter().enumerate())
                    .map(|(i, token)| {
                        json!({
                            "id": chunk.ids[i + 1],
                            "token": token,
                            "weight": chunk.weights[i + 1],
                        })
                    })
                    .collect();
                json!({ "tokens": tokens })
            })
            .collect();
        json!({
            "encoder": self.encoder,
            "steps": [self.steps.0, self.steps.1],
            "text": self.name,
            "chunks": chunks,
            "truncated": self.truncated,
            "beyond_77_tokens": self.cut,
        })
    }

    fn show(&self, ink: Ink, by_step: bool) {
        let count: usize = self.tokens.iter().map(Vec::len).sum();
        let mut about = Vec::new();
        if by_step {
            about.push(match self.steps {
                (from, to) if from == to => format!("step {from}"),
                (from, to) => format!("steps {from} to {to}"),
            });
        }
        if !self.name.is_empty() {
            about.push(self.name.clone());
        }
        about.push(match count {
            1 => "1 token".to_string(),
            n => format!("{n} tokens"),
        });
        out!("\n{}: {}", self.encoder, about.join(", "));
        let chunks = self.layout.chunks.len();
        for (i, words) in self.words.iter().enumerate() {
            let mut line = String::new();
            for (w, word) in words.iter().enumerate() {
                let next = words.get(w + 1).map(|n| n.weight);
                let mark = if word.weight != 1.0 && next != Some(word.weight) {
                    format!("×{}", word.weight)
                } else {
                    String::new()
                };
                line.push_str(&ink.weighted(&harmless(&word.text), word.weight));
                line.push_str(&ink.faint(&mark));
                line.push(' ');
            }
            let border = match (chunks, self.tokens[i].len()) {
                (1, _) => String::new(),
                (_, n) => format!("chunk {} ({n}) ", i + 1),
            };
            out!("  {}| {line}|", ink.faint(&border));
        }
        if !self.cut.is_empty() {
            let word = if self.truncated {
                "cut off"
            } else {
                "would be cut off at 77 tokens"
            };
            out!("  {word}: {}", ink.struck(&harmless(&self.cut)));
        }
    }
}

/// The text with what a terminal would obey (escape codes) written out instead.
fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Colours, or none.
#[derive(Clone, Copy)]
struct Ink {
    colours: bool,
}

impl Ink {
    /// Colours on a terminal, unless NO_COLOR says otherwise (no-color.org).
    fn of_stdout() -> Ink {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Ink {
            colours: std::io::stdout().is_terminal() && !unwanted,
        }
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// More in red and yellow, less in blue.
    fn weighted(self, text: &str, weight: f32) -> String {
        match weight {
            w if w >= 1.5 => self.code("1;31", text),
            w if w > 1.0 => self.code("33", text),
            w if w <= 0.5 => self.code("2;34", text),
            w if w < 1.0 => self.code("36", text),
            _ => text.to_string(),
        }
    }

    fn faint(self, text: &str) -> String {
        self.code("2", text)
    }

    fn struck(self, text: &str) -> String {
        self.code("9", text)
    }
}

fn show_tree(prompt: &Prompt) {
    let between = match prompt.syntax() {
        PromptSyntax::Compel => " ",
        PromptSyntax::A1111 | PromptSyntax::Plain => "",
    };
    let items = prompt.items();
    let several = items.len() > 1;
    if several {
        out!(
            "{}",
            match prompt.join() {
                Join::Concat => "one after the other (and):",
                Join::Compose => "predictions of their own, summed (AND):",
            }
        );
    }
    for item in items {
        let mut depth = 0;
        if several || item.weight != 1.0 {
            out!("{:indent$}at {}", "", item.weight, indent = 2);
            depth = 4;
        }
        match &item.body {
            PromptBody::Text(nodes) => show_nodes(nodes, depth, between),
            PromptBody::Blend { members, normalize } => {
                let how = if *normalize {
                    ""
                } else {
                    ", weights as they are"
                };
                out!("{:depth$}blend{how}", "");
                for (nodes, weight) in members {
                    out!("{:indent$}at {weight}", "", indent = depth + 2);
                    show_nodes(nodes, depth + 4, between);
                }
            }
        }
    }
    if items.is_empty() {
        out!("(empty)");
    }
}

/// One line a node, neighbouring texts joined by `between` as they are when they are encoded.
fn show_nodes(nodes: &[PromptNode], depth: usize, between: &str) {
    let mut rest = nodes;
    while let [node, others @ ..] = rest {
        rest = others;
        match node {
            PromptNode::Text(text) => {
                let mut joined = text.clone();
                while let [PromptNode::Text(more), others @ ..] = rest {
                    joined.push_str(between);
                    joined.push_str(more);
                    rest = others;
                }
                out!("{:depth$}{joined:?}", "");
            }
            PromptNode::Group { weight, children } => {
                out!("{:depth$}×{weight}", "");
                show_nodes(children, depth + 2, between);
            }
            PromptNode::Swap {
                original, edited, ..
            } => {
                out!("{:depth$}swap (without effect on SDXL)", "");
                show_nodes(original, depth + 2, between);
                out!("{:depth$}for", "");
                show_nodes(edited, depth + 2, between);
            }
            PromptNode::Lora(lora) => {
                let text = match lora.text_weight {
                    Some(weight) => format!(", at {weight} in the text encoders"),
                    None => String::new(),
                };
                let blocks = match lora.block_weights.is_empty() {
                    true => String::new(),
                    false => format!(", by block {:?}", lora.block_weights),
                };
                out!(
                    "{:depth$}LoRA {:?} at {}{text}{blocks}",
                    "",
                    lora.name,
                    lora.weight
                );
            }
            PromptNode::Break => out!("{:depth$}BREAK", ""),
            PromptNode::Edit {
                before,
                after,
                when,
            } => {
                out!("{:depth$}before {when}", "");
                show_nodes(before, depth + 2, between);
                out!("{:depth$}after", "");
                show_nodes(after, depth + 2, between);
            }
            PromptNode::Alternate(choices) => {
                for (i, choice) in choices.iter().enumerate() {
                    out!("{:depth$}{}", "", if i == 0 { "by turns" } else { "or" });
                    show_nodes(choice, depth + 2, between);
                }
            }
        }
    }
}

/// Encodes the prompt and writes it; gives the path and the shapes.
fn write_embeddings(
    args: &PromptArgs,
    parts: &TextCheckpoint,
    phases: &[Phase],
    options: &TextOptions,
    path: &Path,
) -> anyhow::Result<Value> {
    let [Phase { resolved, .. }] = phases else {
        return Err(usage(
            "--output-embeddings: this prompt changes by step, so it is not one encoded prompt",
        ));
    };
    if resolved.join == Join::Compose && texts(resolved).len() > 1 {
        return Err(usage(
            "--output-embeddings: this prompt has AND, so it is several encoded prompts; encode its \
             parts one by one",
        ));
    }
    let encoders = [parts.text_encoder.as_ref(), Some(&parts.text_encoder_2)];
    for config in encoders.into_iter().flatten() {
        let layers = config.num_hidden_layers;
        if args.clip_skip.is_some_and(|skip| skip >= layers) {
            return Err(usage(format!(
                "--clip-skip: a text encoder has {layers} layers; use up to {}",
                layers - 1
            )));
        }
    }
    let text = TextEncoders::load(parts, args.precision.unwrap_or(Precision::F32), false)?;
    let input = TextInput {
        raw: &args.prompt,
        parts: &resolved.parts,
    };
    let mut warn = |warning: Warning| err!("{}", flags::of_warning(&warning));
    let made = text.encode(input, input, options, &mut warn)?;
    let channels = text.channels();
    let bytes = embeds_file::to_bytes(&[&made], channels)?;
    files::write_file(path, &bytes, args.overwrite)?;
    Ok(json!({
        "path": path.to_string_lossy(),
        "prompt_embeds": [1, made.tokens(channels), channels],
        "pooled_prompt_embeds": [1, made.pooled.len()],
    }))
}
