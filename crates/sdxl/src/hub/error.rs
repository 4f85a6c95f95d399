//! The errors that can occur between here and a hub, and what to do about them.

use std::fmt;
use std::path::PathBuf;

use crate::hint::then;
use crate::units::size;

/// Why a model of a hub cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubError {
    /// The hub shows no model of this name.
    NoModel {
        /// `ORG/NAME`.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was shown.
        token: bool,
    },
    /// The model has no such branch, tag or commit.
    NoRevision {
        /// `ORG/NAME`.
        repo: String,
        /// The revision that was asked for.
        revision: String,
    },
    /// The model lacks a file that was asked for, or that a checkpoint must have.
    NoFile {
        /// `ORG/NAME`.
        repo: String,
        /// The file.
        file: String,
        /// The files that it has instead, or what to do.
        hint: Option<String>,
    },
    /// There is no checkpoint in the repository, or more than one.
    NotACheckpoint {
        /// `ORG/NAME`.
        repo: String,
        /// The description of what is there, as a continuation of the sentence.
        what: String,
        /// The advice on what to do.
        hint: Option<String>,
    },
    /// The model is shown to those only who have agreed to its terms.
    Gated {
        /// `ORG/NAME`.
        repo: String,
        /// The address of the page where one can agree to the terms.
        page: String,
        /// Whether a token was shown.
        token: bool,
    },
    /// The hub does not know the token.
    BadToken {
        /// The hub.
        endpoint: String,
    },
    /// The hub refuses, whatever the token.
    Forbidden {
        /// The address that was requested.
        url: String,
        /// The hub's message.
        message: String,
    },
    /// Too many requests, and the hub wants a longer wait than anyone sits through.
    Busy {
        /// The hub.
        endpoint: String,
        /// The number of seconds that the hub asks to wait.
        seconds: u64,
        /// Whether a token was shown.
        token: bool,
    },
    /// The network is out of bounds and the cache does not have everything.
    Offline {
        /// The model as it was named.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// The model's folder in it.
        folder: String,
        /// The names of the files that are not there, or that of the model.
        missing: Vec<String>,
    },
    /// The model was asked of the cache only and is not there.
    NotCached {
        /// The model as it was named.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No connection, or one that was cut again and again.
    Lost {
        /// The address that was requested.
        url: String,
        /// The last failure.
        why: String,
        /// The number of failures in a row, without a byte in between.
        tries: u32,
    },
    /// A server that does not prove who it is.
    Certificate {
        /// The address that was requested.
        url: String,
        /// The description of what is wrong with the certificate.
        why: String,
    },
    /// An answer that is none of the above.
    Status {
        /// The address that was requested.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message, as a continuation of the sentence.
        message: String,
    },
    /// An answer that makes no sense.
    Odd {
        /// The address that was requested.
        url: String,
        /// The description of what is odd.
        what: String,
    },
    /// A file that arrived is not the file that the hub described.
    WrongHash {
        /// The file.
        file: String,
        /// The hash the hub says.
        expected: String,
        /// The hash of what arrived.
        found: String,
    },
    /// The disk is too small.
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes to come.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The cache cannot be read or written.
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The error that the operating system reports.
        why: String,
    },
}

impl HubError {
    /// Whether whoever asked can put it right (another name, a token), as opposed to the network
    /// or the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            HubError::NoModel { .. }
            | HubError::NoRevision { .. }
            | HubError::NoFile { .. }
            | HubError::NotACheckpoint { .. }
            | HubError::Gated { .. }
            | HubError::BadToken { .. }
            | HubError::Forbidden { .. }
            | HubError::Offline { .. }
            | HubError::NotCached { .. } => true,
            HubError::Busy { .. }
            | HubError::Lost { .. }
            | HubError::Certificate { .. }
            | HubError::Status { .. }
            | HubError::Odd { .. }
            | HubError::WrongHash { .. }
            | HubError::DiskFull { .. }
            | HubError::Cache { .. } => false,
        }
    }

    /// Says what is wrong.
    pub fn message(&self) -> String {
        self.told().0
    }

    /// Says what to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        self.told().1
    }

    /// The message and the hint.
    fn told(&self) -> (String, Option<String>) {
        match self {
            HubError::NoModel {
                repo,
                endpoint,
                token,
            } => (
                format!("{endpoint} shows no model `{repo}`"),
                Some(match token {
                    true => "check the spelling. If it is a private model, the token that is set \
                             may not see it"
                        .into(),
                    false => "check the spelling, or, if it is a private model, set HF_TOKEN to a \
                              token that may read it"
                        .into(),
                }),
            ),
            HubError::NoRevision { repo, revision } => (
                format!("the model `{repo}` has no revision `{revision}`"),
                Some(
                    "write a branch, a tag or a whole commit hash after the @, or nothing for the \
                     newest"
                        .into(),
                ),
            ),
            HubError::NoFile { repo, file, hint } => {
                (format!("the model `{repo}` has no {file}"), hint.clone())
            }
            HubError::NotACheckpoint { repo, what, hint } => {
                (format!("the model `{repo}` {what}"), hint.clone())
            }
            HubError::Gated { repo, page, token } => (
                format!("the model `{repo}` is gated"),
                Some(format!(
                    "agree to its terms at {page}, then {}",
                    match token {
                        true =>
                            "run this again (the token that is set must belong to the account that \
                             agreed, and may need the right to read gated models)",
                        false =>
                            "set HF_TOKEN to a token of the same account, made at the hub's \
                             settings/tokens page",
                    }
                )),
            ),
            HubError::BadToken { endpoint } => (
                format!("{endpoint} does not accept the token"),
                Some(
                    "make a new one and set HF_TOKEN to it, or unset HF_TOKEN (and remove the file \
                     that `hf auth login` wrote) for models that need none"
                        .into(),
                ),
            ),
            HubError::Forbidden { url, message } => (
                format!("{url}: forbidden ({message})"),
                Some("a token with the right to read this model is needed: set HF_TOKEN".into()),
            ),
            HubError::Busy {
                endpoint,
                seconds,
                token,
            } => (
                format!("{endpoint} asks to wait {seconds} s before the next request (429)"),
                Some(format!(
                    "run this again then: what has come is kept{}",
                    match token {
                        true => "",
                        false => ". With a token in HF_TOKEN the hub allows more",
                    }
                )),
            ),
            HubError::Offline {
                name,
                cache,
                folder,
                missing,
            } => (
                format!(
                    "the cache {} lacks {} and HF_HUB_OFFLINE is set",
                    cache.display(),
                    list(missing)
                ),
                Some(format!(
                    "unset it, or copy the cache's folder {folder} from a machine where \
                     `sdxl models pull {name}` has run"
                )),
            ),
            HubError::NotCached { name, cache } => (
                format!("`{name}` is not in the cache {}", cache.display()),
                Some(format!("`sdxl models pull {name}` fetches it")),
            ),
            HubError::Lost { url, why, tries } => (
                format!("{url}: {why}, {tries} times in a row"),
                Some(
                    "check the connection (and HTTPS_PROXY, HF_ENDPOINT where they are set) and \
                     run this again: what has come is kept"
                        .into(),
                ),
            ),
            HubError::Certificate { url, why } => (
                format!("{url}: the server's certificate is not trusted ({why})"),
                Some(
                    "where a proxy opens encrypted connections, set SSL_CERT_FILE to a PEM file \
                     with its certificate"
                        .into(),
                ),
            ),
            HubError::Status {
                url,
                status,
                message,
            } => (format!("{url}: the server answers {status}{message}"), None),
            HubError::Odd { url, what } => (
                format!("{url}: {what}"),
                Some(
                    "this does not look like a model hub's answer (is HF_ENDPOINT right, is there \
                     a proxy that wants a login?)"
                        .into(),
                ),
            ),
            HubError::WrongHash {
                file,
                expected,
                found,
            } => (
                format!(
                    "{file} arrived twice with other contents than the hub says (SHA {expected}, \
                     not {found})"
                ),
                Some(
                    "something on the way changes it: try another network, or without a proxy"
                        .into(),
                ),
            ),
            HubError::DiskFull { path, needed, free } => (
                format!(
                    "{} to fetch, but only {} free at {}",
                    size(*needed),
                    size(*free),
                    path.display()
                ),
                Some(
                    "free some (`sdxl models list`, `sdxl models rm`), or set HF_HUB_CACHE to a \
                     folder on a larger disk"
                        .into(),
                ),
            ),
            HubError::Cache { path, why } => (format!("{}: {why}", path.display()), None),
        }
    }

    pub(super) fn cache(path: &std::path::Path, error: &std::io::Error) -> HubError {
        HubError::Cache {
            path: path.to_path_buf(),
            why: error.to_string(),
        }
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (message, hint) = self.told();
        write!(f, "{message}{}", then(&hint))
    }
}

impl std::error::Error for HubError {}

/// A few names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(4) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
