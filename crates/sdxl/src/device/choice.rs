//! The choice of a device by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Device;
use super::cpu::cpu;

/// A device by the name that a user gives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The fastest there is: today the CPU.
    #[default]
    Auto,
    /// This machine's processor.
    Cpu,
}

impl DeviceChoice {
    /// The names of all choices.
    pub const NAMES: [&'static str; 2] = ["auto", "cpu"];

    /// The device that is meant.
    pub fn device(self) -> Arc<dyn Device> {
        match self {
            DeviceChoice::Auto | DeviceChoice::Cpu => cpu(),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            other => Err(format!(
                "{other}: this version computes on the CPU only; use {}",
                DeviceChoice::NAMES.join(" or ")
            )),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Cpu => "cpu",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_chosen_by_name_and_others_refused() {
        for name in DeviceChoice::NAMES {
            let choice: DeviceChoice = name.parse().unwrap();
            assert_eq!(choice.to_string(), name);
            assert_eq!(choice.device().name(), "cpu");
        }
        assert_eq!(DeviceChoice::default().to_string(), "auto");
        let refused = "cuda".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(
            refused,
            "cuda: this version computes on the CPU only; use auto or cpu"
        );
    }
}
