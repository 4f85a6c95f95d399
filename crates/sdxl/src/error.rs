//! Everything that can go wrong, split by who can do something about it.

use std::path::{Path, PathBuf};

/// Why a picture could not be made.
///
/// The variants answer one question: who has to act? [`Error::is_usage`] tells
/// front ends which exit code or HTTP status fits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something that cannot be done; change the request.
    #[error("{0}")]
    Request(String),
    /// A file of the checkpoint (or another input file) is missing or wrong.
    #[error("{path}: {message}", path = path.display())]
    File {
        /// The file or folder that is at fault.
        path: PathBuf,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// The machine cannot do it: memory, disk, permissions.
    #[error("{0}")]
    Machine(String),
    /// The caller asked the run to stop; nothing is wrong.
    #[error("cancelled, on request")]
    Cancelled,
    /// A scheduler refused its configuration or the plan asked of it.
    #[error(transparent)]
    Scheduler(#[from] crate::scheduler::SchedulerError),
    /// A model that was named could not be had from the hub or its cache.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
}

/// The library's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the request, with a message that names the field.
    pub fn request(message: impl Into<String>) -> Self {
        Error::Request(message.into())
    }

    /// An error of a file, with a message that says what to do.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File {
            path: path.as_ref().to_path_buf(),
            message: message.into(),
        }
    }

    /// An operating system error while reading `path`.
    pub fn read(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_string(),
            std::io::ErrorKind::PermissionDenied => {
                "it may not be read (permission denied)".to_string()
            }
            _ => format!("it cannot be read: {error}"),
        };
        Error::file(path, message)
    }

    /// Whether the request or the files are at fault (exit code 2), as opposed
    /// to the machine or this program (exit code 1).
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Request(_) | Error::File { .. } | Error::Scheduler(_) => true,
            Error::Machine(_) | Error::Cancelled => false,
            #[cfg(feature = "hub")]
            Error::Hub(error) => error.is_usage(),
        }
    }
}
