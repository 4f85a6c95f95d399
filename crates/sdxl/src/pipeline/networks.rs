//! The networks of a checkpoint, each loaded on first use.

use std::sync::Arc;

use super::lazy::Lazy;
use crate::error::Result;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::precision::Precision;
use crate::text::TextEncoders;
use crate::weights::Loader;
use crate::weights::same::same_part;
use crate::weights::{Checkpoint, Part};

/// The three kinds of networks of a checkpoint. Clones share them.
#[derive(Clone)]
pub(super) struct Networks {
    /// The text encoders.
    pub text: Arc<Lazy<TextEncoders>>,
    /// The UNet.
    pub unet: Arc<Lazy<UNet>>,
    /// The VAE.
    pub vae: Arc<Lazy<Vae>>,
}

/// The way in which the weights of networks are held in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holding {
    /// The precision of the networks.
    pub precision: Precision,
    /// Whether networks stay loaded between runs.
    pub pinned: bool,
    /// Whether layers are packed from the files as they work, instead of once.
    pub streamed: bool,
}

impl Networks {
    /// The networks of `checkpoint`, none of them loaded. Those that `base`, another checkpoint,
    /// has too are in memory once.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        holding: Holding,
        base: Option<(&Checkpoint, &Networks)>,
    ) -> Networks {
        let Holding {
            precision,
            pinned,
            streamed,
        } = holding;
        let base = base.map(|(checkpoint, networks)| (checkpoint.clone(), networks.clone()));
        let text = {
            let (checkpoint, base) = (checkpoint.clone(), base.clone());
            Lazy::new(pinned, move || {
                if let Some((of_base, networks)) = &base
                    && !checkpoint.has(Part::TextEncoder)
                    && same_part(of_base, &checkpoint, Part::TextEncoder2)?
                {
                    return Ok(Arc::new(networks.text.get()?.second_alone()));
                }
                let text = TextEncoders::load(&checkpoint.text_parts(), precision, streamed)?;
                Ok(Arc::new(text))
            })
        };
        let unet = {
            let checkpoint = checkpoint.clone();
            Lazy::new(pinned, move || {
                let tensors = checkpoint.tensors(Part::UNet)?;
                let path = checkpoint.config_path(Part::UNet);
                let loader = Loader::new(&tensors, precision).streamed(streamed);
                Ok(Arc::new(UNet::load(&checkpoint.unet, &path, &loader)?))
            })
        };
        let vae = {
            let checkpoint = checkpoint.clone();
            Lazy::new(pinned, move || {
                if let Some((of_base, networks)) = &base
                    && same_part(of_base, &checkpoint, Part::Vae)?
                {
                    return networks.vae.get();
                }
                let tensors = checkpoint.tensors(Part::Vae)?;
                let precision = precision.of_part(Part::Vae, checkpoint.vae.force_upcast);
                let loader = Loader::new(&tensors, precision).streamed(streamed);
                Ok(Arc::new(Vae::load(&checkpoint.vae, &loader)?))
            })
        };
        Networks {
            text: Arc::new(text),
            unet: Arc::new(unet),
            vae: Arc::new(vae),
        }
    }

    /// Loads all of them.
    ///
    /// # Errors
    /// A file that is missing or wrong.
    pub(super) fn load_all(&self) -> Result<()> {
        self.text.get()?;
        self.unet.get()?;
        self.vae.get()?;
        Ok(())
    }
}
