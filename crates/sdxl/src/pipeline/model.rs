//! A checkpoint with its networks, as a run uses it.

use super::networks::Networks;
use crate::precision::Precision;
use crate::weights::Checkpoint;

/// A checkpoint and its networks.
#[derive(Clone)]
pub(super) struct Model {
    /// Files and configurations.
    pub checkpoint: Checkpoint,
    /// The precision of the networks.
    pub precision: Precision,
    /// The networks, loaded on first use.
    pub(super) networks: Networks,
}

impl Model {
    /// Channels of the latents.
    pub(super) fn latent_channels(&self) -> usize {
        self.checkpoint.vae.latent_channels
    }

    /// Channels of the UNet's input: more than the latents have where it sees a mask.
    pub(super) fn unet_channels(&self) -> usize {
        self.checkpoint.unet.in_channels
    }
}
