//! `sdxl show`: what a picture says about how it was made.

use std::path::PathBuf;

use clap::Args;
use sdxl::image::png;
use sdxl::recipe::{self, Recipe};

use crate::usage;

/// `sdxl show`
#[derive(Args)]
pub struct ShowArgs {
    /// A PNG, or a recipe as JSON
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
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let texts = if recipe::is_png(&args.file)? {
        png::read_texts(&args.file)?
    } else {
        Recipe::read(&args.file)?.texts()
    };
    if texts.parameters.is_none() && texts.recipe.is_none() {
        return Err(usage(format!(
            "{}: this PNG says nothing about how it was made",
            args.file.display()
        )));
    }
    // A recipe of a later version is still worth printing.
    let recipe: Option<serde_json::Value> = texts
        .recipe
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok());
    if args.json {
        let object = serde_json::json!({ "parameters": texts.parameters, "recipe": recipe });
        out!("{object}");
        return Ok(());
    }
    if let Some(parameters) = &texts.parameters {
        out!("{}", harmless(parameters));
    }
    match recipe {
        Some(recipe) => out!("\nrecipe:\n{recipe:#}"),
        None => out!("\n(no sdxl recipe: made by another tool)"),
    }
    Ok(())
}
