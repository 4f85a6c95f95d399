//! The networks that LoRAs are added to, as far as LoRAs need to know them.

use std::path::PathBuf;

use crate::model::config::UNetConfig;
use crate::weights::{Part, TensorSet};

/// The networks that LoRAs are added to.
pub(in crate::weights) struct BaseNetworks<'a> {
    /// The configuration of the UNet.
    pub(in crate::weights) unet: &'a UNetConfig,
    /// The file that it was read from.
    pub(in crate::weights) unet_config: PathBuf,
    /// The tensors of the UNet and of the text encoders that there are, unchanged.
    pub(in crate::weights) tensors: Vec<(Part, TensorSet)>,
}

impl BaseNetworks<'_> {
    /// Whether there is such a network.
    pub(super) fn has(&self, part: Part) -> bool {
        self.tensors.iter().any(|(of, _)| *of == part)
    }
}
