//! Which networks are in memory, and when.
//!
//! It changes what a run takes of memory and of time, and no number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Networks that are taken out of memory while they do not work, in diffusers' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// None: all networks are in memory from the start to the end, for many runs, one after the
    /// other or at once.
    None,
    /// All but the one at work (`enable_model_cpu_offload`): text encoders, UNet and VAE one after
    /// the other. Each run reads the weights again.
    Model,
    /// As [`Offload::Model`], and of the network at work only the layer that computes is in memory
    /// (`enable_sequential_cpu_offload`): every evaluation reads the weights again, from the mapped
    /// files.
    Sequential,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 3] = [Offload::None, Offload::Model, Offload::Sequential];

    /// The name used in requests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Offload::None => "none",
            Offload::Model => "model",
            Offload::Sequential => "sequential",
        }
    }

    /// Whether networks stay in memory until the end of a run.
    pub fn keeps_networks(self) -> bool {
        self == Offload::None
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> Result<Offload, String> {
        let named = Offload::ALL.into_iter().find(|o| o.name() == text);
        named.ok_or_else(|| format!("`{text}` is unknown; use none, model or sequential"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for offload in Offload::ALL {
            assert_eq!(offload.to_string().parse(), Ok(offload));
        }
        assert!("cpu".parse::<Offload>().unwrap_err().contains("sequential"));
    }
}
