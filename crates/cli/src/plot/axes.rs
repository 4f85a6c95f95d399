//! The axes of a sheet: the fields of a request that vary over it, each with its values.

use anyhow::Context;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use sdxl::Request;
use serde::Serialize;
use serde_json::Value;

use crate::args::heading;
use crate::usage;

/// Before the name of a scheduler option, among the names of fields.
const OPTION: &str = "scheduler_options.";

/// A field of a request and its values, in the order in which they are shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Axis {
    /// The field's name, or `scheduler_options.KEY`.
    pub field: String,
    /// As JSON; where the field is a list, one value stands for a list of it.
    pub values: Vec<Value>,
}

impl Axis {
    fn new<T: Into<Value> + Clone>(field: &str, values: &[T]) -> Self {
        Axis {
            field: field.into(),
            values: values.iter().cloned().map(Into::into).collect(),
        }
    }

    /// Reads `FIELD=V,V,...` or `FIELD=[JSON, ...]`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let bad = || {
            usage(format!(
                "--axis {text}: write FIELD=VALUE,VALUE,... as in guidance_scale=3,5,7; values that \
                 hold commas as JSON, as in 'prompt=[\"a cat, asleep\", \"a dog\"]'"
            ))
        };
        let (field, values) = text.split_once('=').ok_or_else(bad)?;
        let values: Vec<Value> = if values.trim_start().starts_with('[') {
            serde_json::from_str(values).map_err(|_| bad())?
        } else {
            let value = |v: &str| serde_json::from_str(v).unwrap_or_else(|_| Value::from(v));
            values.split(',').map(|v| value(v.trim())).collect()
        };
        if field.trim().is_empty() || values.is_empty() {
            return Err(bad());
        }
        let field = match field.trim().split_once('.') {
            Some((fields, key)) => format!("{}.{key}", fields.replace('-', "_")),
            None => field.trim().replace('-', "_"),
        };
        Ok(Axis { field, values })
    }

    /// Value `index` in few words: the field is named unless the value speaks for itself.
    pub(crate) fn label(&self, index: usize) -> String {
        let value = words(&self.values[index]);
        match self.field.strip_prefix(OPTION).unwrap_or(&self.field) {
            "scheduler" | "prompt" => value,
            "steps" if value == "1" => "1 step".into(),
            "steps" => format!("{value} steps"),
            field => format!("{field} {value}"),
        }
    }

    /// The request with this field at value `index`.
    pub(crate) fn apply(&self, request: &Request, index: usize) -> anyhow::Result<Request> {
        let value = &self.values[index];
        let mut object = serde_json::to_value(request).context("a request is an object")?;
        let place = match self.field.strip_prefix(OPTION) {
            Some(option) => &mut object["scheduler_options"][option],
            None => match object.get_mut(&self.field) {
                Some(place) => place,
                None => {
                    let fields = object.as_object().into_iter().flat_map(|o| o.keys());
                    return Err(usage(format!(
                        "{}: a request has no such field; it has {}, and {OPTION}KEY",
                        self.field,
                        fields.cloned().collect::<Vec<_>>().join(", ")
                    )));
                }
            },
        };
        *place = value.clone();
        let plain = serde_json::from_value(object.clone());
        plain.or_else(|error| {
            // Prompts and seeds are lists, of which a cell has one.
            object[&self.field] = Value::Array(vec![value.clone()]);
            serde_json::from_value(object)
                .map_err(|_| usage(format!("{}: {value}: {error}", self.field)))
        })
    }
}

/// A value as it is typed.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(words).collect::<Vec<_>>().join(","),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, v)| format!("{key}={}", words(v)));
            pairs.collect::<Vec<_>>().join(",")
        }
        // Fields of single precision come back from JSON with digits that nobody typed.
        Value::Number(n) if n.is_f64() => (n.as_f64().unwrap_or_default() as f32).to_string(),
        other => other.to_string(),
    }
}

/// The flags that say what differs over a sheet.
#[derive(Args)]
#[command(next_help_heading = heading::SHEET)]
struct Flags {
    /// Description of the pictures; given several times, the sheet compares prompts
    #[arg(long, value_name = "TEXT", required_unless_present = "recipe")]
    prompt: Vec<String>,
    /// Schedulers to compare: the same as --axis scheduler=NAME,NAME,...
    #[arg(
        long,
        value_name = "NAME,NAME,...",
        value_delimiter = ',',
        conflicts_with = "scheduler"
    )]
    schedulers: Vec<String>,
    /// Numbers of steps to compare
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    steps: Vec<usize>,
    /// Seeds to compare; one seed is that of all pictures [default: 0]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    seed: Vec<u64>,
    /// Any field to compare, as in guidance_scale=3,5,7 or
    /// scheduler_options.timestep_spacing=leading,trailing; values with commas as a JSON list.
    /// The first of two axes goes down and the second across; for every value of a third there is
    /// a grid
    #[arg(long, value_name = "FIELD=V,V,...")]
    axis: Vec<String>,
}

/// The flags that say what differs over a sheet, and their order on the command line, which is that of
/// the axes.
pub(crate) struct AxisArgs {
    flags: Flags,
    /// The place of the first value of each flag but `--axis`, by its name.
    first: Vec<(&'static str, usize)>,
    /// The places of all `--axis`.
    axis: Vec<usize>,
}

impl FromArgMatches for AxisArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let places = |name| matches.indices_of(name).into_iter().flatten();
        let flags = ["prompt", "seed", "schedulers", "steps"];
        Ok(AxisArgs {
            flags: Flags::from_arg_matches(matches)?,
            first: (flags.into_iter())
                .filter_map(|name| Some((name, places(name).next()?)))
                .collect(),
            axis: places("axis").collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for AxisArgs {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}

impl AxisArgs {
    /// The numbers of steps that were typed.
    pub(crate) fn steps(&self) -> &[usize] {
        &self.flags.steps
    }

    /// All that was typed, in that order; also what has one value only.
    ///
    /// # Errors
    /// An axis that cannot be read, and a field or value that is there twice.
    pub(crate) fn typed(&self) -> anyhow::Result<Vec<Axis>> {
        let flags = &self.flags;
        let mut found: Vec<(usize, Axis)> = Vec::new();
        for (name, place) in &self.first {
            let axis = match *name {
                "prompt" => Axis::new("prompt", &flags.prompt),
                "seed" => Axis::new("seed", &flags.seed),
                "schedulers" => Axis::new("scheduler", &flags.schedulers),
                _ => Axis::new("steps", &flags.steps),
            };
            found.push((*place, axis));
        }
        for (place, text) in self.axis.iter().zip(&flags.axis) {
            found.push((*place, Axis::parse(text)?));
        }
        found.sort_by_key(|(place, _)| *place);
        let axes: Vec<Axis> = found.into_iter().map(|(_, axis)| axis).collect();
        check_once(&axes)?;
        Ok(axes)
    }
}

/// Refuses a field that is there twice, and a value that is.
fn check_once(axes: &[Axis]) -> anyhow::Result<()> {
    for (i, axis) in axes.iter().enumerate() {
        if axes[..i].iter().any(|other| other.field == axis.field) {
            return Err(usage(format!(
                "{} is given twice; list all its values in one place",
                axis.field
            )));
        }
        if let Some(j) =
            (1..axis.values.len()).find(|&j| axis.values[..j].contains(&axis.values[j]))
        {
            return Err(usage(format!(
                "{}: {} is given twice",
                axis.field,
                words(&axis.values[j])
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_json_or_words() {
        let axis = Axis::parse("guidance-scale=3, 5.5").unwrap();
        assert_eq!(axis, Axis::new("guidance_scale", &[json!(3), json!(5.5)]));
        let axis = Axis::parse("scheduler-options.timestep_spacing=leading,trailing").unwrap();
        assert_eq!(axis.field, "scheduler_options.timestep_spacing");
        assert_eq!(axis.label(1), "timestep_spacing trailing");
        let axis = Axis::parse(r#"prompt=["a cat, asleep", "b"]"#).unwrap();
        assert_eq!(axis.label(0), "a cat, asleep");
        for bad in ["steps", "=1,2", "steps=[1,", "steps=[]"] {
            assert!(Axis::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_field_can_be_set() {
        let apply = |text: &str| {
            let axis = Axis::parse(text).unwrap();
            axis.apply(&Request::default(), 0)
        };
        assert_eq!(apply("seed=7").unwrap().seed, [7]);
        assert_eq!(
            apply("prompt=true").unwrap_err().to_string().find("prompt"),
            Some(0)
        );
        assert_eq!(apply("prompt=a cat").unwrap().prompt, ["a cat"]);
        assert_eq!(apply("guidance_scale=3").unwrap().guidance_scale, 3.0);
        assert_eq!(apply("clip_skip=1").unwrap().clip_skip, Some(1));
        assert_eq!(apply("timesteps=ays").unwrap().timesteps.len(), 10);
        assert_eq!(apply("sigmas=[[2, 1]]").unwrap().sigmas, [2.0, 1.0]);
        assert_eq!(
            apply("crops_coords_top_left=[[8, 0]]")
                .unwrap()
                .crops_coords_top_left,
            [8, 0]
        );
        assert_eq!(
            apply("original_size=512x256")
                .unwrap()
                .original_size
                .unwrap()
                .height,
            256
        );
        let options = apply("scheduler_options.use_karras_sigmas=true")
            .unwrap()
            .scheduler_options;
        assert_eq!(options["use_karras_sigmas"], true);
        let error = apply("guidance=3").unwrap_err().to_string();
        assert!(
            error.contains("no such field") && error.contains("guidance_scale"),
            "{error}"
        );
        assert!(apply("steps=many").is_err());
    }
}
