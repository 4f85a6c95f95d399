//! A scheduler class as people choose it: names, order, options and when to use it.

use serde::Serialize;
use serde_json::Value;

use super::SchedulerError;
use super::names::similarity;

/// Whether the same start always gives the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Randomness {
    /// It draws no noise.
    Deterministic,
    /// It draws noise in its steps; for the same seed the result is the same.
    Stochastic,
    /// It draws noise if an option says so.
    Optional(&'static str),
}

/// When schedulers draw noise that do so by `eta`.
pub(super) const BY_ETA: Randomness = Randomness::Optional("eta above 0");

/// An option of a scheduler class.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// The option's key in a configuration.
    pub name: &'static str,
    /// The option's default as JSON; `null` is none.
    pub default: &'static str,
}

impl OptionInfo {
    /// The default.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).expect("defaults are written as JSON")
    }
}

/// Writes a line of a class's table of options.
pub(super) const fn option(name: &'static str, default: &'static str) -> OptionInfo {
    OptionInfo { name, default }
}

/// A scheduler class.
#[derive(Debug)]
pub struct Info {
    /// The class name of diffusers.
    pub class: &'static str,
    /// Short names, the one to show first.
    pub names: &'static [&'static str],
    /// The name of the same method in the AUTOMATIC1111 web UI, where it has one.
    pub a1111: Option<&'static str>,
    /// The order of accuracy: the power of the step length with which the error falls, for the
    /// default options.
    pub order: u8,
    /// Evaluations of the UNet per step; the last step of a second-order scheduler takes one.
    pub evaluations_per_step: usize,
    /// Whether it draws noise.
    pub randomness: Randomness,
    /// When to use it, in a line.
    pub when: &'static str,
    /// Whether [`super::Steps::Timesteps`] is possible.
    pub custom_timesteps: bool,
    /// Whether [`super::Steps::Sigmas`] is possible.
    pub custom_sigmas: bool,
    /// The options of the class, in groups.
    pub(super) options: &'static [&'static [OptionInfo]],
}

impl PartialEq for Info {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class
    }
}

impl Info {
    /// All options of the class.
    pub fn options(&self) -> impl Iterator<Item = &'static OptionInfo> {
        self.options.iter().copied().flatten()
    }

    /// Whether `eta` has an effect.
    pub fn uses_eta(&self) -> bool {
        self.randomness == BY_ETA
    }

    /// The option of that name.
    pub fn option(&self, name: &str) -> Option<&'static OptionInfo> {
        self.options().find(|o| o.name == name)
    }

    /// The error for an option that the class does not have, with the option that is most like it.
    pub(super) fn unknown_option(&self, option: &str) -> SchedulerError {
        let nearest = self
            .options()
            .map(|o| o.name)
            .filter(|o| similarity(o, option) > 0.8)
            .max_by(|a, b| similarity(a, option).total_cmp(&similarity(b, option)));
        SchedulerError::UnknownOption {
            class: self.class,
            option: option.to_owned(),
            nearest: nearest.map(str::to_owned),
            options: self
                .options()
                .map(|o| o.name)
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}
