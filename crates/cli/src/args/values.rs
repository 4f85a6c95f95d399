//! The values of flags: how they are read, and how they are put into a request.

use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use sdxl::{Named, Request};
use serde_json::Value;

/// Gives a parser of the names of `T`, which help lists with a line about each.
pub(crate) fn names<T>() -> impl TypedValueParser<Value = T>
where
    T: Named + FromStr<Err = String>,
{
    let values = T::ALL.iter().map(|value| {
        let aliases = value.aliases().iter().copied();
        PossibleValue::new(value.name())
            .help(value.about())
            .aliases(aliases)
    });
    PossibleValuesParser::new(values).try_map(|name| name.parse::<T>())
}

/// Numbers with commas between them, or the name of a list.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(pub Vec<f64>);

impl Numbers {
    /// Parses the value of `--timesteps`.
    pub(crate) fn timesteps(text: &str) -> Result<Self, String> {
        sdxl::request::parse_timesteps(text).map(Numbers)
    }

    /// Parses the value of `--sigmas`.
    pub(crate) fn sigmas(text: &str) -> Result<Self, String> {
        sdxl::request::parse_sigmas(text).map(Numbers)
    }
}

/// A seed that was typed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Seed {
    /// `-1`, as A1111 writes a seed that is to be drawn.
    Drawn,
    /// This one.
    Given(u64),
}

impl FromStr for Seed {
    type Err = String;

    /// A whole number; a negative one is taken by its bits, as PyTorch's generators take it.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match (text.parse::<u64>(), text.parse::<i64>()) {
            (Ok(seed), _) => Ok(Seed::Given(seed)),
            (_, Ok(-1)) => Ok(Seed::Drawn),
            (_, Ok(negative)) => Ok(Seed::Given(negative as u64)),
            _ => Err(format!(
                "`{text}` is not a seed; use a whole number of up to 64 bits, or -1 to draw one"
            )),
        }
    }
}

impl Seed {
    /// The seeds of a request: none, to have them drawn; `None` where none were typed.
    pub(crate) fn values(seeds: &[Seed]) -> Option<Vec<u64>> {
        if seeds.is_empty() {
            return None;
        }
        if seeds == [Seed::Drawn] {
            return Some(Vec::new());
        }
        let drawn = sdxl::pipeline::fresh_seed();
        let values = seeds.iter().zip(drawn..).map(|(seed, fresh)| match seed {
            Seed::Given(seed) => *seed,
            Seed::Drawn => fresh,
        });
        Some(values.collect())
    }
}

/// Parses a number from 1 on.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a number of evaluations from 1")),
        Ok(number) => Ok(number),
    }
}

/// Parses pixels that are cropped off, `TOP,LEFT`.
pub(super) fn crop(text: &str) -> Result<[usize; 2], String> {
    text.split_once(',')
        .and_then(|(top, left)| Some([top.trim().parse().ok()?, left.trim().parse().ok()?]))
        .ok_or_else(|| format!("`{text}` is not TOP,LEFT, as in 0,128"))
}

/// Parses two fractions, `FROM,TO`.
pub(super) fn interval(text: &str) -> Result<[f64; 2], String> {
    text.split_once(',')
        .and_then(|(from, to)| Some([from.trim().parse().ok()?, to.trim().parse().ok()?]))
        .ok_or_else(|| format!("`{text}` is not FROM,TO, as in 0.2,0.8"))
}

/// Parts of a recipe beside its request that `--reset` leaves out, by their flags.
const BESIDE: [&str; 7] = [
    "variant",
    "vae",
    "unet",
    "lora",
    "embedding",
    "refiner",
    "latents",
];

/// Parses the name of a part of a recipe that can be left out: a field of its request, or what is
/// beside it; or the flag of one.
pub(super) fn part_of_recipe(text: &str) -> Result<&'static str, String> {
    let name = text.trim().trim_start_matches("--").replace('-', "_");
    match BESIDE.into_iter().find(|part| *part == name) {
        Some(part) => Ok(part),
        None => Request::field(&name).map_err(|error| error.to_string()),
    }
}

/// Parses `KEY=VALUE` of `--scheduler-option`; words that are not JSON (`trailing`) are strings.
pub(crate) fn scheduler_option(option: &str) -> anyhow::Result<(String, Value)> {
    let Some((key, text)) = option.split_once('=') else {
        return Err(crate::usage(format!(
            "--scheduler-option {option}: write KEY=VALUE, as in use_karras_sigmas=true"
        )));
    };
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    Ok((key.trim().to_string(), value))
}

/// Something that was typed or not, for a field of type `F`.
pub(super) trait Typed<F> {
    /// Sets the field if it was typed.
    fn put_into(&self, field: &mut F);
}

impl<T: Clone> Typed<T> for Option<T> {
    fn put_into(&self, field: &mut T) {
        if let Some(value) = self {
            *field = value.clone();
        }
    }
}

impl<T: Clone> Typed<Option<T>> for Option<T> {
    fn put_into(&self, field: &mut Option<T>) {
        if self.is_some() {
            *field = self.clone();
        }
    }
}

impl<T: Clone> Typed<Vec<T>> for Vec<T> {
    fn put_into(&self, field: &mut Vec<T>) {
        if !self.is_empty() {
            *field = self.clone();
        }
    }
}

/// Sets a field to what was typed, if something was.
pub(super) fn set<F>(field: &mut F, typed: &impl Typed<F>) {
    typed.put_into(field);
}

/// Joins a flag and its negative. The one that comes last counts; the other one is not there then.
pub(crate) fn switch(on: bool, off: bool) -> Option<bool> {
    match (on, off) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        (false, false) => None,
    }
}
