//! `sdxl show`: what a picture says about how it was made.

use std::path::PathBuf;

use clap::Args;
use sdxl::image::{Texts, read};
use sdxl::{Recipe, watermark};

use crate::usage;

/// `sdxl show`
#[derive(Args)]
pub(crate) struct ShowArgs {
    /// A PNG, JPEG or WebP, or a recipe as JSON
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The text with what a terminal would obey (escape codes) written out instead.
fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Runs the command.
pub(crate) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let (texts, mark) = match Texts::read(&args.file)? {
        // Half a picture can still say how it was made.
        Some(texts) => (texts, read(&args.file).ok()),
        None => (Recipe::read(&args.file)?.texts(), None),
    };
    let is_picture = mark.is_some();
    #[cfg(feature = "c2pa")]
    let credentials = sdxl::image::credentials::Credentials::read(&args.file)?;
    #[cfg(not(feature = "c2pa"))]
    let credentials: Option<()> = None;
    let mark = mark.and_then(|p| watermark::detect(&p.data, p.width, p.height));
    let marked = mark.is_some_and(|mark| mark.found());
    if texts == Texts::default() && !marked && credentials.is_none() {
        return Err(usage(format!(
            "{}: this picture says nothing about how it was made",
            args.file.display()
        )));
    }
    // A recipe of a later version is still worth printing.
    let recipe: Option<serde_json::Value> = texts
        .recipe
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok());
    if args.json {
        #[cfg_attr(not(feature = "c2pa"), expect(unused_mut))]
        let mut object = serde_json::json!({
            "parameters": texts.parameters,
            "tool": texts.tool(),
            "texts": texts.others.iter().map(|(name, text)| (name.clone(), text.clone().into())).collect::<serde_json::Map<_, _>>(),
            "recipe": recipe,
            "source_type": texts.source_type,
            "watermark": mark.map(|mark| mark.found()),
        });
        #[cfg(feature = "c2pa")]
        {
            object["c2pa"] = serde_json::json!(credentials);
        }
        out!("{object}");
        return Ok(());
    }
    if let Some(parameters) = &texts.parameters {
        out!("{}", harmless(parameters));
    }
    for (name, text) in &texts.others {
        // JSON on one line is for programs.
        let text = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json @ serde_json::Value::Object(_)) => format!("{json:#}"),
            _ => text.clone(),
        };
        out!("\n{}:\n{}", harmless(name), harmless(&text));
    }
    match recipe {
        Some(recipe) => out!("\nrecipe:\n{recipe:#}"),
        None => match texts.tool() {
            Some(tool) => out!("\n(no sdxl recipe: made by {tool})"),
            None => out!("\n(no sdxl recipe: made by another tool)"),
        },
    }
    if let Some(uri) = &texts.source_type {
        out!("\ndigital source type: {}", harmless(uri));
    }
    #[cfg(feature = "c2pa")]
    if let Some(found) = credentials {
        let by = found.signed_by.as_deref().unwrap_or("(no name)");
        let generator = found.generator.as_deref().unwrap_or("(not named)");
        let verdict = match found.valid {
            true => "valid".to_string(),
            false => format!("NOT valid: {}", found.problems.join("; ")),
        };
        let line = format!("content credentials: {verdict}; signed by {by}, made with {generator}");
        out!("{}", harmless(&line));
    }
    if is_picture {
        let verdict = match mark {
            None => "none (the picture is too small for one)",
            Some(mark) if mark.found() => "found",
            Some(_) => "none",
        };
        out!("invisible watermark: {verdict}");
    }
    Ok(())
}
