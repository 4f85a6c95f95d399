//! Everything that can go wrong, split by who can do something about it.
//!
//! People read [`Error`]'s `Display`, one sentence. Programs ask for its parts: the class
//! ([`Error::class`]), the field of the request ([`Error::field`]), what is wrong
//! ([`Error::message`]) and what to do ([`Error::hint`]).
//!
//! Hints name fields and never flags: a field in backticks, with its value where there is one, as
//! in `` `init_image` `` and `` `precision f32` ``. A front end with other words for them, such as
//! flags, puts its own there.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::hint::then;

/// Why a picture could not be made.
///
/// The variants answer one question: who has to act? [`Error::is_usage`] tells
/// front ends which exit code or HTTP status fits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request asks for something that cannot be done; change the request.
    #[error("{}{message}{}", of(field), then(hint))]
    Request {
        /// The field at fault, by its name in the request's JSON, or of what is given beside a
        /// request (`memory`, `latents`, ...); of several that do not go together, the one to
        /// change.
        field: Option<&'static str>,
        /// The description of what is wrong.
        message: String,
        /// The advice on what to do.
        hint: Option<String>,
    },
    /// A file of the checkpoint (or another input file) is missing or wrong.
    #[error("{}: {message}{}", path.display(), then(hint))]
    File {
        /// The file or folder that is at fault.
        path: PathBuf,
        /// The description of what is wrong with it.
        message: String,
        /// The advice on what to do, where the message does not say it.
        hint: Option<String>,
    },
    /// The machine cannot do it: memory, disk, permissions.
    #[error("{message}{}", then(hint))]
    Machine {
        /// The description of what went wrong.
        message: String,
        /// The advice on what to do.
        hint: Option<String>,
    },
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

/// The party that has to act on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Class {
    /// Whoever wrote the request.
    Request,
    /// Whoever chose the files, or the model that they are of.
    File,
    /// Whoever runs the machine.
    Machine,
    /// Nobody: the run was stopped on request.
    Cancelled,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Class::Request => "request",
            Class::File => "file",
            Class::Machine => "machine",
            Class::Cancelled => "cancelled",
        })
    }
}

/// The library's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the request's `field`; [`Error::with_hint`] says what to do.
    pub fn request(field: &'static str, message: impl Into<String>) -> Self {
        Error::Request {
            field: Some(field),
            message: message.into(),
            hint: None,
        }
    }

    /// An error of a file; [`Error::with_hint`] says what to do.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File {
            path: path.as_ref().to_path_buf(),
            message: message.into(),
            hint: None,
        }
    }

    /// An error of the machine; [`Error::with_hint`] says what to do.
    pub fn machine(message: impl Into<String>) -> Self {
        Error::Machine {
            message: message.into(),
            hint: None,
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

    /// The error with what to do about it, which continues the sentence. Errors of schedulers and
    /// of the hub have hints of their own and keep them.
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Error::Request { hint, .. }
        | Error::File { hint, .. }
        | Error::Machine { hint, .. } = &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// The error with the field `to` where it is one of the field `from`: who calls may know that
    /// a text is no prompt but a negative prompt, or a strength that of another pass.
    pub fn of_field(self, from: &str, to: &'static str) -> Self {
        if self.field() != Some(from) {
            return self;
        }
        Error::Request {
            field: Some(to),
            message: self.message(),
            hint: self.hint().map(|hint| hint.into_owned()),
        }
    }

    /// Says who has to act.
    pub fn class(&self) -> Class {
        match self {
            Error::Request { .. } | Error::Scheduler(_) => Class::Request,
            Error::File { .. } => Class::File,
            Error::Machine { .. } => Class::Machine,
            Error::Cancelled => Class::Cancelled,
            #[cfg(feature = "hub")]
            Error::Hub(error) if error.is_usage() => Class::File,
            #[cfg(feature = "hub")]
            Error::Hub(_) => Class::Machine,
        }
    }

    /// The field of the request that is at fault, where one is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Error::Request { field, .. } => *field,
            Error::Scheduler(error) => error.field(),
            _ => None,
        }
    }

    /// Says what is wrong, without the field's name and without [`Error::hint`].
    pub fn message(&self) -> String {
        match self {
            Error::Request { message, .. } | Error::Machine { message, .. } => message.clone(),
            Error::File { path, message, .. } => format!("{}: {message}", path.display()),
            Error::Scheduler(error) => error.message(),
            other => other.to_string(),
        }
    }

    /// Says what to do about it; fields are named as in [the module's](self) convention.
    pub fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Error::Request { hint, .. }
            | Error::File { hint, .. }
            | Error::Machine { hint, .. } => hint.as_deref().map(Into::into),
            Error::Scheduler(error) => error.hint().map(Into::into),
            #[cfg(feature = "hub")]
            Error::Hub(error) => error.hint().map(Into::into),
            Error::Cancelled => None,
        }
    }

    /// Whether the request or the files are at fault (exit code 2), as opposed
    /// to the machine or this program (exit code 1).
    pub fn is_usage(&self) -> bool {
        matches!(self.class(), Class::Request | Class::File)
    }
}

/// The field, as a sentence begins with it.
fn of(field: &Option<&'static str>) -> String {
    field.map_or_else(String::new, |field| format!("{field}: "))
}
