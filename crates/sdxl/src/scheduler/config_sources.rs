//! The sources of scheduler configurations: the published checkpoint, a scheduler's name, and the
//! JSON object that diffusers writes.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{CLASS, SchedulerConfig};
use super::{SchedulerError, euler_discrete, registry};

impl SchedulerConfig {
    /// The configuration of the published SDXL base checkpoint.
    pub fn sdxl() -> Self {
        let values = serde_json::json!({
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "interpolation_type": "linear",
            "use_karras_sigmas": false,
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "trained_betas": null,
            // Keys that Euler does not have; they matter to schedulers that are built from this
            // one.
            "clip_sample": false,
            "sample_max_value": 1.0,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
        });
        let Value::Object(values) = values else {
            unreachable!("the literal is an object");
        };
        Self::new(&euler_discrete::INFO, values)
    }

    /// The configuration of the published SDXL base checkpoint for a scheduler of any known name,
    /// with the options that the name implies (`dpm++_2m_karras`).
    pub fn named(name: &str) -> Result<Self, SchedulerError> {
        Self::sdxl().with_scheduler(name)
    }

    /// Reads the text that diffusers writes (`scheduler_config.json`), which is JSON except for
    /// numbers that are infinite.
    pub fn from_text(text: &str) -> Result<Self, SchedulerError> {
        let object = crate::python_json::from_str(text);
        Self::from_json(object.map_err(|e| SchedulerError::NotJson(e.to_string()))?)
    }

    /// Reads the object that diffusers writes (`scheduler_config.json`).
    pub fn from_json(object: Map<String, Value>) -> Result<Self, SchedulerError> {
        let mut values = object;
        let class = values.remove(CLASS);
        let name = class.as_ref().and_then(Value::as_str).unwrap_or_default();
        let info = registry::class(name).ok_or_else(|| registry::unknown_name(name))?;
        // A pipeline lists here the keys that only spell out the defaults of the class it had.
        if let Some(Value::Array(defaults)) = values.remove("_use_default_values") {
            values.retain(|key, _| !defaults.iter().any(|d| d.as_str() == Some(key)));
        }
        Ok(Self::new(info, values))
    }

    /// The same keys for another scheduler, as `X.from_config(pipe.scheduler.config)` does, plus
    /// the options that the name implies.
    pub fn with_scheduler(&self, name: &str) -> Result<Self, SchedulerError> {
        let (info, implied) = registry::resolve(name)?;
        let mut values = self.values().clone();
        values.extend(implied);
        Ok(Self::new(info, values))
    }
}

impl<'de> Deserialize<'de> for SchedulerConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(Map::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
