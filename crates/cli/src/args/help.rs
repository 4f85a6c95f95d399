//! Help: the library's defaults, negatives of switches, and the flags that people use first.

use clap::{Arg, Command, Id};
use sdxl::Request;
use serde_json::Value;

use super::heading;

/// The flags that people use, in their order: those that `-h` shows.
const USUAL: [&str; 20] = [
    "model",
    "output",
    "steps",
    "width",
    "height",
    "aspect",
    "seed",
    "num_images",
    "negative_prompt",
    "guidance_scale",
    "scheduler",
    "init_image",
    "strength",
    "mask",
    "lora",
    "refiner",
    "upscale",
    "precision",
    "memory",
    "recipe",
];

/// The end of short help.
const SHORT: &str = "--help shows all flags, in groups";
/// The end of long help.
const LONG: &str = "A flag that switches something on has a negative, as in --no-watermark; of both the last \
     one counts.";

/// Completes the flags of a command that are fields of a request: their defaults are shown, and a
/// switch and its negative take each other's place.
pub(crate) fn complete(command: Command) -> Command {
    let ids: Vec<Id> = (command.get_arguments())
        .map(|arg| arg.get_id().clone())
        .collect();
    let defaults = serde_json::to_value(Request::default()).expect("a request is written as JSON");
    command.mut_args(|arg| {
        let is_switch = negative(arg.get_id(), &ids).is_some();
        let default = &defaults[arg.get_id().as_str()];
        with_default(paired(arg, &ids), default, is_switch)
    })
}

/// Leaves the usual flags alone in short help. With `flat` they stand in one list, as short help is
/// to show them; without, each first in its group.
pub(crate) fn arrange(command: Command, flat: bool) -> Command {
    let mut place = USUAL.len();
    let command = command.mut_args(|arg| {
        let id = arg.get_id().to_string();
        if arg.is_positional() {
            return arg;
        }
        place += 1;
        if arg.get_help_heading() == Some(heading::SHEET) {
            return arg.display_order(place);
        }
        match USUAL.iter().position(|usual| *usual == id) {
            Some(first) if flat => arg.help_heading(None).display_order(first),
            Some(first) => arg.display_order(first),
            None => arg.display_order(place).hide_short_help(true),
        }
    });
    command.after_help(SHORT).after_long_help(LONG)
}

/// The negative of a switch, among the arguments of its command.
fn negative<'a>(id: &Id, ids: &'a [Id]) -> Option<&'a Id> {
    let is_negative = |other: &&Id| other.as_str().strip_prefix("no_") == Some(id.as_str());
    ids.iter().find(is_negative)
}

/// A switch or its negative, which override each other.
fn paired(arg: Arg, ids: &[Id]) -> Arg {
    let id = arg.get_id().clone();
    let is_positive = |on: &&Id| id.as_str().strip_prefix("no_") == Some(on.as_str());
    match (ids.iter().find(is_positive), negative(&id, ids)) {
        (Some(on), _) => arg.overrides_with_all([on, &id]).hide(true),
        (None, Some(off)) => arg.overrides_with_all([off, &id]),
        (None, None) => arg,
    }
}

/// An argument whose help ends in its default, and in its negative where it is a switch.
fn with_default(arg: Arg, default: &Value, is_switch: bool) -> Arg {
    let mut notes = Vec::new();
    match default {
        Value::Bool(true) => notes.push("default: on".to_string()),
        Value::Bool(false) => notes.push("default: off".to_string()),
        value => notes.extend(in_words(value).map(|word| format!("default: {word}"))),
    }
    if is_switch {
        notes.push(format!(
            "negative: --no-{}",
            arg.get_long().unwrap_or_default()
        ));
    }
    match (arg.get_help().cloned(), notes.is_empty()) {
        (Some(help), false) => arg.help(format!("{help} [{}]", notes.join("; "))),
        _ => arg,
    }
}

/// A default as it is typed; nothing where there is none.
fn in_words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        // Fields of single precision come from JSON with digits that nobody typed.
        Value::Number(number) => Some((number.as_f64()? as f32).to_string()),
        Value::Array(list) if !list.is_empty() => {
            let words: Option<Vec<String>> = list.iter().map(in_words).collect();
            Some(words?.join(","))
        }
        _ => None,
    }
}
