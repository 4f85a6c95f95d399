//! Ctrl-C: the first stops the run within a block of a network, the second ends the program.

use anyhow::Context;
use sdxl::Cancel;

/// A token that Ctrl-C cancels; a second Ctrl-C ends the program at once.
pub(crate) fn token() -> anyhow::Result<Cancel> {
    let token = Cancel::new();
    let cancelled = token.clone();
    ctrlc::set_handler(move || {
        if cancelled.is_cancelled() {
            std::process::exit(130);
        }
        cancelled.cancel();
        err!("\nstopping; press Ctrl-C again to end at once");
    })
    .context("Ctrl-C cannot be watched")?;
    Ok(token)
}
