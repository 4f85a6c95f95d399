//! Checks of checkpoints: whether a pipeline can run them, and whether a refiner fits its base.

use crate::error::{Error, Result};
use crate::weights::{Checkpoint, CheckpointKind, Part};

/// Refuses a UNet that answers something else than latents.
pub(super) fn check_out_channels(checkpoint: &Checkpoint) -> Result<()> {
    let (channels, latents) = (checkpoint.unet.out_channels, checkpoint.vae.latent_channels);
    if channels == latents {
        return Ok(());
    }
    let message = format!(
        "out_channels is {channels}, not the {latents} of the latents: this program knows no UNet \
         that answers anything beside them"
    );
    Err(Error::file(checkpoint.config_path(Part::UNet), message))
}

/// Refuses a checkpoint that cannot refine what `base` makes.
///
/// # Errors
/// [`Error::File`] naming the folder: no refiner, or other latents.
pub(super) fn check_refiner(base: &Checkpoint, refiner: &Checkpoint) -> Result<()> {
    if base.family() == CheckpointKind::Refiner {
        return Err(Error::file(
            base.root(),
            "this is a refiner, which finishes a picture and cannot start one from a prompt",
        )
        .with_hint("give a base checkpoint as the model"));
    }
    if refiner.family() == CheckpointKind::Base {
        return Err(Error::file(
            refiner.root(),
            "this is a base checkpoint (it has two text encoders), not a refiner",
        )
        .with_hint(
            "to go over a picture with it, give it as the model, with `init_image` and `strength`",
        ));
    }
    check_channels(refiner)?;
    let (ours, theirs) = (&base.vae, &refiner.vae);
    let differing = if ours.latent_channels != theirs.latent_channels {
        Some("latent_channels")
    } else if ours.scaling_factor != theirs.scaling_factor {
        Some("scaling_factor")
    } else if ours.latents_mean != theirs.latents_mean {
        Some("latents_mean")
    } else if ours.latents_std != theirs.latents_std {
        Some("latents_std")
    } else {
        None
    };
    match differing {
        Some(key) => Err(Error::file(
            refiner.config_path(Part::Vae),
            format!(
                "`{key}` is not that of {}: base and refiner must have latents of one scale to hand \
                 them over",
                base.config_path(Part::Vae).display()
            ),
        )
        .with_hint("use a refiner of the same family")),
        None => Ok(()),
    }
}

fn check_channels(refiner: &Checkpoint) -> Result<()> {
    check_out_channels(refiner)?;
    if refiner.unet.in_channels == refiner.vae.latent_channels {
        return Ok(());
    }
    Err(Error::file(
        refiner.config_path(Part::UNet),
        format!(
            "in_channels is {}, not the {} of the latents, which a refiner has",
            refiner.unet.in_channels, refiner.vae.latent_channels
        ),
    ))
}
