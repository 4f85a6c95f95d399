//! Stopping what runs from outside: a token that networks, and the reading of weights, ask.
//!
//! A [`Cancel`] is handed around and asked in two ways. Whoever holds it asks it by name
//! ([`Cancel::check`]). Networks are deep and their layers should not pass it on, so
//! [`Cancel::run`] installs it for the calling thread: [`crate::profile::scope`], which networks
//! call at every block, asks it there, and so do [`crate::weights::Loader`] for every layer and the
//! long kernels before each of their tasks.
//!
//! A kernel that is stopped leaves its output incomplete. So nothing that was computed since the
//! last [`check`] may be kept beyond the run (a remembered prompt, a packed layer, keys of a text)
//! or be given to the caller before the next one. Networks do it themselves: what they give with
//! `Ok` is whole. A token is never taken back, so what was incomplete cannot pass for whole later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;

/// A token that stops the work it was installed for. Clones are the same token: one for the thread
/// that works, one for the thread that may stop it, be it a signal handler's.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The answer of a token that was cancelled: nothing is wrong, and there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled, on request")]
pub struct Cancelled;

/// A result, unless the token was cancelled.
pub type OrCancelled<T> = Result<T, Cancelled>;

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Error {
        Error::Cancelled
    }
}

impl Cancel {
    /// A token that nobody has cancelled yet.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Stops what this token was or will be installed for; there is no way back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks this token.
    ///
    /// # Errors
    /// [`Cancelled`] once it was cancelled.
    pub fn check(&self) -> OrCancelled<()> {
        answer(self.is_cancelled())
    }

    /// Runs `run` with this token installed for the calling thread: networks and loaders that work
    /// there return [`Cancelled`] soon after [`Self::cancel`].
    ///
    /// Inside of another token's `run` this one alone is asked. The one before is back as soon as
    /// `run` returns or panics. Threads that `run` starts have no token of their own accord.
    pub fn run<R>(&self, run: impl FnOnce() -> R) -> R {
        sdxl_kernels::stoppable(&self.0, run)
    }
}

/// Asks the token that is installed for the calling thread; without one, goes on.
///
/// # Errors
/// [`Cancelled`] once it was cancelled.
pub(crate) fn check() -> OrCancelled<()> {
    answer(sdxl_kernels::is_stopped())
}

fn answer(cancelled: bool) -> OrCancelled<()> {
    match cancelled {
        true => Err(Cancelled),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn clones_are_one_token_for_all_threads() {
        let token = Cancel::new();
        let other = token.clone();
        assert_eq!(token.check(), Ok(()));
        std::thread::spawn(move || other.cancel()).join().unwrap();
        assert!(token.is_cancelled());
        assert_eq!(token.check(), Err(Cancelled));
        let error = Error::from(Cancelled);
        assert!(matches!(error, Error::Cancelled));
        assert_eq!(error.to_string(), Cancelled.to_string());
    }

    #[test]
    fn the_token_before_is_back_after_a_run_and_after_a_panic() {
        let [outer, inner] = [Cancel::new(), Cancel::new()];
        outer.cancel();
        assert_eq!(check(), Ok(()));
        outer.run(|| {
            assert_eq!(check(), Err(Cancelled));
            inner.run(|| {
                assert_eq!(check(), Ok(()));
                inner.cancel();
                assert_eq!(check(), Err(Cancelled));
            });
            let fresh = Cancel::new();
            let inside = || fresh.run(|| panic!("on purpose"));
            assert!(catch_unwind(AssertUnwindSafe(inside)).is_err());
            assert_eq!(check(), Err(Cancelled));
        });
        assert_eq!(check(), Ok(()));
    }
}
