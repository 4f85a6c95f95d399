//! A scheduler's configuration, and typed access to its keys. `config_sources.rs` makes them.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::SchedulerError;
use super::info::Info;

/// The key of the class's name.
pub(super) const CLASS: &str = "_class_name";

/// The configuration of a scheduler: its class and all keys of the JSON object, known to the class
/// or not. Keys that a class does not have are kept and ignored, keys that are missing have the
/// class's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    info: &'static Info,
    values: Map<String, Value>,
}

impl SchedulerConfig {
    /// The configuration of a class with these keys.
    pub(super) fn new(info: &'static Info, values: Map<String, Value>) -> Self {
        Self { info, values }
    }

    /// Sets an option that the class has.
    pub fn set(&mut self, option: &str, value: Value) -> Result<(), SchedulerError> {
        if self.info.option(option).is_none() {
            return Err(self.info.unknown_option(option));
        }
        self.values.insert(option.to_owned(), value);
        Ok(())
    }

    /// Sets an option from text: JSON if it is (`true`, `0.5`, `[1, 2]`), else a string.
    pub fn set_text(&mut self, option: &str, text: &str) -> Result<(), SchedulerError> {
        let value = match text {
            "True" => true.into(),
            "False" => false.into(),
            "None" => Value::Null,
            _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        self.set(option, value)
    }

    /// The class: names, order, options.
    pub fn info(&self) -> &'static Info {
        self.info
    }

    /// All keys with their values, without the class.
    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The value of a key, whether the class knows it or not.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Number of training timesteps.
    pub fn trained(&self) -> Result<usize, SchedulerError> {
        self.count_in("num_train_timesteps", 2, 1_000_000)
    }

    /// The value of an option of the class, or its default; null where it has none.
    fn value(&self, option: &'static str) -> Value {
        match self.values.get(option) {
            Some(value) if !value.is_null() => value.clone(),
            _ => self.default(option),
        }
    }

    fn default(&self, option: &'static str) -> Value {
        let info = self.info.option(option);
        info.expect("a class asks for options of its own table")
            .default_value()
    }

    /// The error for an option that cannot have its value.
    pub(super) fn bad_option(
        &self,
        option: &'static str,
        expected: impl Into<String>,
    ) -> SchedulerError {
        let value = self.value(option).to_string();
        SchedulerError::BadOption {
            class: self.info.class,
            option,
            value,
            expected: expected.into(),
        }
    }

    /// The error for options that do not go together.
    pub(super) fn unsupported(&self, reason: impl Into<String>) -> SchedulerError {
        SchedulerError::Unsupported {
            class: self.info.class,
            reason: reason.into(),
        }
    }

    /// A switch; null is off, as in Python.
    pub(super) fn flag(&self, option: &'static str) -> Result<bool, SchedulerError> {
        if self.values.get(option).is_some_and(Value::is_null) {
            return Ok(false);
        }
        self.value(option)
            .as_bool()
            .ok_or_else(|| self.bad_option(option, "true or false"))
    }

    /// A finite number.
    pub(super) fn number(&self, option: &'static str) -> Result<f64, SchedulerError> {
        self.value(option)
            .as_f64()
            .filter(|x| x.is_finite())
            .ok_or_else(|| self.bad_option(option, "a number"))
    }

    /// A finite number in a range.
    pub(super) fn number_in(
        &self,
        option: &'static str,
        low: f64,
        high: f64,
    ) -> Result<f64, SchedulerError> {
        let number = self.number(option)?;
        if (low..=high).contains(&number) {
            return Ok(number);
        }
        let expected = match high {
            f64::INFINITY => format!("a number from {low} up"),
            _ => format!("a number from {low} to {high}"),
        };
        Err(self.bad_option(option, expected))
    }

    /// A finite number, or none if it is null.
    pub(super) fn optional_number(
        &self,
        option: &'static str,
    ) -> Result<Option<f64>, SchedulerError> {
        if self.value(option).is_null() {
            Ok(None)
        } else {
            self.number(option).map(Some)
        }
    }

    /// A number, where the text of Python's infinities is allowed.
    pub(super) fn extended_number(&self, option: &'static str) -> Result<f64, SchedulerError> {
        match self.value(option).as_str() {
            Some("inf" | "Infinity") => Ok(f64::INFINITY),
            Some("-inf" | "-Infinity") => Ok(f64::NEG_INFINITY),
            _ => self.number(option),
        }
    }

    /// A whole number that may be negative.
    pub(super) fn integer(&self, option: &'static str) -> Result<i64, SchedulerError> {
        self.value(option)
            .as_i64()
            .ok_or_else(|| self.bad_option(option, "a whole number"))
    }

    /// A whole number in a range.
    pub(super) fn count_in(
        &self,
        option: &'static str,
        low: u64,
        high: u64,
    ) -> Result<usize, SchedulerError> {
        let number = self
            .value(option)
            .as_u64()
            .filter(|n| (low..=high).contains(n));
        number
            .map(|n| n as usize)
            .ok_or_else(|| self.bad_option(option, format!("a whole number from {low} to {high}")))
    }

    /// A list of numbers, or none if it is null.
    pub(super) fn numbers(&self, option: &'static str) -> Result<Option<Vec<f64>>, SchedulerError> {
        match self.value(option) {
            Value::Null => Ok(None),
            Value::Array(values) => {
                let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
                numbers
                    .map(Some)
                    .ok_or_else(|| self.bad_option(option, "a list of numbers"))
            }
            _ => Err(self.bad_option(option, "a list of numbers")),
        }
    }

    /// A list of seeds: one number, or a list of them; empty if it is null.
    pub(super) fn seeds(&self, option: &'static str) -> Result<Vec<u64>, SchedulerError> {
        let value = self.value(option);
        let seeds: Option<Vec<u64>> = match &value {
            Value::Null => Some(Vec::new()),
            Value::Array(values) => values.iter().map(Value::as_u64).collect(),
            one => one.as_u64().map(|seed| vec![seed]),
        };
        seeds.ok_or_else(|| self.bad_option(option, "a seed, or a list of seeds"))
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &self,
        option: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<T, SchedulerError> {
        let value = self.value(option);
        let found = choices
            .iter()
            .find(|(word, _)| value.as_str() == Some(word));
        found.map(|&(_, choice)| choice).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.bad_option(option, words.join(" or "))
        })
    }

    /// Reads several switches and gives the choice of the one that is on; an error if two are.
    pub(super) fn one_of<T: Copy>(
        &self,
        switches: &[(&'static str, T)],
    ) -> Result<Option<T>, SchedulerError> {
        let mut on: Option<(&'static str, T)> = None;
        for &(option, choice) in switches {
            if self.flag(option)? {
                if let Some((first, _)) = on {
                    return Err(SchedulerError::Exclusive {
                        class: self.info.class,
                        first,
                        second: option,
                    });
                }
                on = Some((option, choice));
            }
        }
        Ok(on.map(|(_, choice)| choice))
    }
}

impl Serialize for SchedulerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = Map::new();
        object.insert(CLASS.into(), self.info.class.into());
        object.extend(self.values.clone());
        object.serialize(serializer)
    }
}
