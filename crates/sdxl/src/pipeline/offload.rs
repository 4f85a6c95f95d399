//! Which networks are in memory, and when.
//!
//! It changes what a run takes of memory and of time, and no number.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::named::{Named, named};

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

named! { Offload:
    None, "none", "All networks are in memory at once";
    Model, "model", "Each network is in memory only while it works";
    Sequential, "sequential", "Of the network at work only the layer at work, read from the files at \
        every step: the least memory, and some seconds more a step";
}

impl Offload {
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
