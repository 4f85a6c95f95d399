//! Why a scheduler cannot be built or used.

use crate::noise::NoiseError;

/// Why a scheduler cannot be built or used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SchedulerError {
    /// No scheduler of that name.
    #[error("unknown scheduler `{name}`; did you mean `{nearest}`? `sdxl schedulers` lists all")]
    UnknownName {
        /// The name as given.
        name: String,
        /// The known name that is most like it.
        nearest: String,
    },
    /// A configuration that is not a JSON object.
    #[error("a scheduler configuration must be a JSON object: {0}")]
    NotJson(String),
    /// An option that the class does not have.
    #[error("{class} has no option `{option}`{hint}; it has: {options}", hint = hint(nearest))]
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
    #[error("{class}: {option} cannot be {value}; it must be {expected}")]
    BadOption {
        /// The class.
        class: &'static str,
        /// The option.
        option: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Options that exclude one another.
    #[error("{class}: {first} and {second} exclude one another; choose one")]
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
    #[error("{class}: {reason}")]
    Unsupported {
        /// The class.
        class: &'static str,
        /// What does not go together, and what to do.
        reason: String,
    },
    /// A plan without steps.
    #[error("a run needs at least one step")]
    NoSteps,
    /// More steps than the model has timesteps.
    #[error("{steps} steps are more than the {trained} timesteps of training; ask for fewer")]
    TooManySteps {
        /// The steps asked for.
        steps: usize,
        /// The training timesteps.
        trained: usize,
    },
    /// Custom timesteps or sigmas that are not strictly descending.
    #[error("{what} must descend: {before} is followed by {after}")]
    NotDescending {
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// A value.
        before: f64,
        /// The value after it.
        after: f64,
    },
    /// A custom timestep or sigma outside of what the scheduler can use.
    #[error("{what}: {value} is not {expected}")]
    BadValue {
        /// `timesteps`, `sigmas`, `strength`, ...
        what: &'static str,
        /// The value.
        value: f64,
        /// What it may be.
        expected: String,
    },
    /// Custom timesteps or sigmas for a class that places its own.
    #[error("{class} does not take custom {what}; use steps, or one of {takers}")]
    NotCustom {
        /// The class.
        class: &'static str,
        /// `timesteps` or `sigmas`.
        what: &'static str,
        /// Classes that do.
        takers: String,
    },
    /// A plan that is cut until nothing is left of it.
    #[error("{what} leaves none of the {evaluations} evaluations; {remedy}")]
    NothingLeft {
        /// What cuts it, with its value.
        what: String,
        /// How many evaluations the whole plan has.
        evaluations: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// A step after the last one.
    #[error("all {0} evaluations of the plan are done")]
    Finished(usize),
    /// A model output that does not fit the sample.
    #[error("the model output has shape {output:?} but the sample {sample:?}")]
    Shape {
        /// `[batch, height, width, channels]` of the output.
        output: [usize; 4],
        /// `[batch, height, width, channels]` of the sample.
        sample: [usize; 4],
    },
    /// A saved state that belongs to another scheduler or plan.
    #[error("the saved state does not fit: {0}")]
    ForeignState(String),
    /// Noise that cannot be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|n| format!(" (did you mean `{n}`?)"))
        .unwrap_or_default()
}
