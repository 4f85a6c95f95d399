//! The errors of schedulers.

use std::fmt;

use crate::hint::then;
use crate::noise::NoiseError;

/// The reason why a scheduler cannot be built or used.
#[derive(Debug, PartialEq)]
#[non_exhaustive]
pub enum SchedulerError {
    /// No scheduler of that name.
    UnknownName {
        /// The name as given.
        name: String,
        /// The known name that is most like it.
        nearest: String,
    },
    /// A configuration that is not a JSON object.
    NotJson(String),
    /// An option that the class does not have.
    UnknownOption {
        /// The class.
        class: &'static str,
        /// The option as given.
        option: String,
        /// The option of the class that is most like it, if one is.
        nearest: Option<String>,
        /// All options of the class.
        options: String,
    },
    /// An option with a value that it cannot have.
    BadOption {
        /// The class.
        class: &'static str,
        /// The option.
        option: &'static str,
        /// The value of the option, as JSON.
        value: String,
        /// The values that the option may have, in words.
        expected: String,
    },
    /// Options that exclude one another.
    Exclusive {
        /// The class.
        class: &'static str,
        /// One option.
        first: &'static str,
        /// The other option.
        second: &'static str,
    },
    /// A combination of options for which the method has no finite answer, or that it does not
    /// define.
    Unsupported {
        /// The class.
        class: &'static str,
        /// The options that do not go together, and what to do.
        reason: String,
    },
    /// A run without steps.
    NoSteps,
    /// More steps than the model has timesteps.
    TooManySteps {
        /// The steps asked for.
        steps: usize,
        /// The training timesteps.
        trained: usize,
    },
    /// Custom timesteps or sigmas that are not strictly descending.
    NotDescending {
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// A value.
        before: f64,
        /// The value after it.
        after: f64,
    },
    /// A custom timestep or sigma outside of what the scheduler can use.
    BadValue {
        /// `timesteps`, `sigmas`, `strength`, ...
        what: &'static str,
        /// The value.
        value: f64,
        /// The values that are allowed, in words.
        expected: String,
    },
    /// Custom timesteps or sigmas for a class that places its own.
    NotCustom {
        /// The class.
        class: &'static str,
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// The short names of the classes that do.
        takers: String,
    },
    /// A run that is cut until none of its evaluations is left.
    NothingLeft {
        /// The field that cuts it, the last of several.
        field: &'static str,
        /// The setting that cuts it, with its value.
        what: String,
        /// The number of evaluations before the cut.
        evaluations: usize,
        /// The advice to the user.
        remedy: &'static str,
    },
    /// A step after the last one.
    Finished(usize),
    /// A model output that does not fit the sample.
    Shape {
        /// `[batch, height, width, channels]` of the output.
        output: [usize; 4],
        /// `[batch, height, width, channels]` of the sample.
        sample: [usize; 4],
    },
    /// A saved state that belongs to another scheduler or run.
    ForeignState(String),
    /// Noise that cannot be drawn.
    Noise(NoiseError),
}

impl SchedulerError {
    /// The field of a request that is at fault, by its name in the request's JSON. None where it
    /// is a checkpoint's configuration, a caller's, or a model's.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::UnknownName { .. } => Some("scheduler"),
            Self::UnknownOption { .. }
            | Self::BadOption { .. }
            | Self::Exclusive { .. }
            | Self::Unsupported { .. } => Some("scheduler_options"),
            Self::NoSteps | Self::TooManySteps { .. } => Some("steps"),
            Self::NotDescending { what, .. }
            | Self::BadValue { what, .. }
            | Self::NotCustom { what, .. } => Some(what),
            Self::NothingLeft { field, .. } => Some(field),
            Self::Noise(_) => Some("seed"),
            Self::NotJson(_) | Self::Finished(_) | Self::Shape { .. } | Self::ForeignState(_) => {
                None
            }
        }
    }

    /// Says what is wrong.
    pub fn message(&self) -> String {
        self.told().0
    }

    /// Says what to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        self.told().1
    }

    /// The message and the hint.
    fn told(&self) -> (String, Option<String>) {
        match self {
            Self::UnknownName { name, nearest } => (
                format!("unknown scheduler `{name}`"),
                Some(format!(
                    "did you mean `{nearest}`? `sdxl schedulers` lists all"
                )),
            ),
            Self::NotJson(why) => (
                format!("a scheduler configuration must be a JSON object: {why}"),
                None,
            ),
            Self::UnknownOption {
                class,
                option,
                nearest,
                options,
            } => {
                let near = nearest.as_ref().map(|n| format!("did you mean `{n}`? "));
                (
                    format!("{class} has no option `{option}`"),
                    Some(format!("{}it has: {options}", near.unwrap_or_default())),
                )
            }
            Self::BadOption {
                class,
                option,
                value,
                expected,
            } => (
                format!("{class}: {option} cannot be {value}"),
                Some(format!("it must be {expected}")),
            ),
            Self::Exclusive {
                class,
                first,
                second,
            } => (
                format!("{class}: {first} and {second} exclude one another"),
                Some("choose one".into()),
            ),
            Self::Unsupported { class, reason } => (format!("{class}: {reason}"), None),
            Self::NoSteps => ("a run needs at least one step".into(), None),
            Self::TooManySteps { steps, trained } => (
                format!("{steps} steps are more than the {trained} timesteps of training"),
                Some("ask for fewer".into()),
            ),
            Self::NotDescending {
                what,
                before,
                after,
            } => (
                format!("{what} must descend: {before} is followed by {after}"),
                None,
            ),
            Self::BadValue {
                value, expected, ..
            } => (format!("{value} is not {expected}"), None),
            Self::NotCustom {
                class,
                what,
                takers,
            } => (
                format!("{class} does not take custom {what}"),
                Some(format!("use steps, or one of {takers}")),
            ),
            Self::NothingLeft {
                what,
                evaluations,
                remedy,
                ..
            } => (
                format!("{what} leaves none of the {evaluations} evaluations"),
                Some((*remedy).into()),
            ),
            Self::Finished(all) => (format!("all {all} evaluations of the run are done"), None),
            Self::Shape { output, sample } => (
                format!("the model output has shape {output:?} but the sample {sample:?}"),
                None,
            ),
            Self::ForeignState(why) => (format!("the saved state does not fit: {why}"), None),
            Self::Noise(error) => (error.to_string(), None),
        }
    }
}

impl fmt::Display for SchedulerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, hint) = self.told();
        if let Self::BadValue { what, .. } = self {
            write!(f, "{what}: ")?;
        }
        write!(f, "{message}{}", then(&hint))
    }
}

impl std::error::Error for SchedulerError {}

impl From<NoiseError> for SchedulerError {
    fn from(error: NoiseError) -> Self {
        Self::Noise(error)
    }
}
