//! The memory that there is, the part of it that may be taken ([`Budget`]), and the memory
//! ([`rehearsal`]) and time ([`Speed`]) that networks take. The memory and time of a whole run are
//! computed by [`crate::pipeline::Plan`].

mod budget;
pub mod rehearsal;
mod speed;

pub use budget::{Budget, bytes};
pub use speed::{Effort, Speed};

use crate::error::{Error, Result};
use crate::weights::Precision;
use crate::weights::folder::{Checkpoint, Part};

/// Bytes that can be used without swapping: what the system calls available, within
/// the limit of the control group. `None` where the system does not say.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    let number =
        |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let limit = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(max, current)| max.saturating_sub(current));
    Some(limit.map_or(kib * 1024, |l| l.min(kib * 1024)))
}

/// The most memory that this process has had at once. `None` where the system does not say.
pub fn peak() -> Option<u64> {
    of_process("VmHWM:")
}

/// The memory that this process has now. `None` where the system does not say.
pub fn resident() -> Option<u64> {
    of_process("VmRSS:")
}

fn of_process(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Bytes of a checkpoint's weights once they are packed.
pub fn of_weights(checkpoint: &Checkpoint, precision: Precision) -> Result<u64> {
    let parts = Part::ALL.into_iter().filter(|part| checkpoint.has(*part));
    parts
        .map(|part| of_part(checkpoint, part, precision))
        .sum::<Result<u64>>()
}

/// [`of_weights`] where only those networks are in memory that work together: both text encoders,
/// the UNet, the VAE.
pub fn of_largest_network(checkpoint: &Checkpoint, precision: Precision) -> Result<u64> {
    let mut sizes = [0; 3];
    for part in Part::ALL.into_iter().filter(|part| checkpoint.has(*part)) {
        let network = match part {
            Part::TextEncoder | Part::TextEncoder2 => 0,
            Part::UNet => 1,
            Part::Vae => 2,
        };
        sizes[network] += of_part(checkpoint, part, precision)?;
    }
    Ok(sizes.into_iter().max().expect("there are three networks"))
}

/// Bytes of the packed weights of a part that the checkpoint has.
///
/// # Errors
/// Files that are missing or do not go with their configuration.
pub fn of_part(checkpoint: &Checkpoint, part: Part, precision: Precision) -> Result<u64> {
    rehearsal::weights_of(checkpoint, part, precision)
}

/// Refuses what does not fit; `hint` says what to do then.
pub fn check(what: &str, needed: u64, hint: &str) -> Result<()> {
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
