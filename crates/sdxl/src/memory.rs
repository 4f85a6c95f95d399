//! The memory that there is, the part of it that may be taken ([`Budget`]), and the memory
//! ([`rehearsal`]) and time ([`Speed`]) that networks take. The memory and time of a whole run are
//! computed by [`crate::pipeline::Plan`].

mod budget;
#[doc(hidden)]
pub mod rehearsal;
mod speed;
mod system;

pub use budget::{Budget, bytes};
pub use speed::{Effort, Speed};
pub use system::{available, peak, resident};

use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::weights::{Checkpoint, Part};

/// Bytes of a checkpoint's weights once they are packed.
pub fn weight_bytes(checkpoint: &Checkpoint, precision: Precision) -> Result<u64> {
    let parts = Part::ALL.into_iter().filter(|part| checkpoint.has(*part));
    parts
        .map(|part| part_bytes(checkpoint, part, precision))
        .sum::<Result<u64>>()
}

/// [`weight_bytes`] where only those networks are in memory that work together: both text encoders,
/// the UNet, the VAE.
pub fn largest_network_bytes(checkpoint: &Checkpoint, precision: Precision) -> Result<u64> {
    let mut sizes = [0; 3];
    for part in Part::ALL.into_iter().filter(|part| checkpoint.has(*part)) {
        let network = match part {
            Part::TextEncoder | Part::TextEncoder2 => 0,
            Part::UNet => 1,
            Part::Vae => 2,
        };
        sizes[network] += part_bytes(checkpoint, part, precision)?;
    }
    Ok(sizes.into_iter().max().expect("there are three networks"))
}

/// Bytes of the packed weights of a part that the checkpoint has.
///
/// # Errors
/// Files that are missing or do not go with their configuration.
pub fn part_bytes(checkpoint: &Checkpoint, part: Part, precision: Precision) -> Result<u64> {
    rehearsal::weights_of(checkpoint, part, precision)
}

/// Refuses what does not fit; `hint` says what to do then.
pub fn check_fits(what: &str, needed: u64, hint: &str) -> Result<()> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
    match available() {
        Some(free) if needed > free => Err(Error::machine(format!(
            "{what} needs about {:.1} GiB of memory and {:.1} GiB are free",
            gib(needed),
            gib(free)
        ))
        .with_hint(hint)),
        _ => Ok(()),
    }
}
