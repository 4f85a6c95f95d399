//! Events while files are fetched from a hub.

use std::time::Duration;

/// An event while files are fetched. Events come from several threads.
#[derive(Debug)]
pub enum DownloadEvent<'a> {
    /// The files to download are known.
    Begin {
        /// `ORG/NAME`.
        repo: &'a str,
        /// The commit whose files these are.
        commit: &'a str,
        /// The number of files to bring into the snapshot.
        files: usize,
        /// The number of bytes that are still to come.
        bytes: u64,
    },
    /// A file has grown. It may shrink where a server cannot go on in the middle.
    File {
        /// The path of the file in the repository.
        path: &'a str,
        /// Bytes that are here.
        done: u64,
        /// Bytes of the whole.
        size: u64,
    },
    /// An attempt came to nothing and there will be another.
    Waiting {
        /// The address that was requested.
        url: &'a str,
        /// The reason why the attempt failed.
        why: &'a str,
        /// The time until the next attempt.
        pause: Duration,
    },
}
