//! What can go wrong between here and a hub, and what to do about it.

use std::path::PathBuf;

/// Why a model of a hub cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The hub shows no model of this name.
    #[error(
        "{endpoint} shows no model `{repo}`; check the spelling{}",
        if *token {
            ". If it is a private model, the token that is set may not see it"
        } else {
            ", or, if it is a private model, set HF_TOKEN to a token that may read it"
        }
    )]
    NoModel {
        /// `ORG/NAME`.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was shown.
        token: bool,
    },
    /// The model has no such branch, tag or commit.
    #[error(
        "the model `{repo}` has no revision `{revision}`; write a branch, a tag or a whole commit \
         hash after the @, or nothing for the newest"
    )]
    NoRevision {
        /// `ORG/NAME`.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// The model lacks a file that was asked for, or that a checkpoint must have.
    #[error("the model `{repo}` has no {file}{hint}")]
    NoFile {
        /// `ORG/NAME`.
        repo: String,
        /// The file.
        file: String,
        /// What it has instead, as a continuation of the sentence.
        hint: String,
    },
    /// There is no checkpoint in the repository, or more than one.
    #[error("the model `{repo}` {what}")]
    NotACheckpoint {
        /// `ORG/NAME`.
        repo: String,
        /// What is there, and what to do.
        what: String,
    },
    /// The model is shown to those only who have agreed to its terms.
    #[error(
        "the model `{repo}` is gated: agree to its terms at {page}, then {}",
        if *token {
            "run this again (the token that is set must belong to the account that agreed, and may \
             need the right to read gated models)"
        } else {
            "set HF_TOKEN to a token of the same account, made at the hub's settings/tokens page"
        }
    )]
    Gated {
        /// `ORG/NAME`.
        repo: String,
        /// Where to agree.
        page: String,
        /// Whether a token was shown.
        token: bool,
    },
    /// The hub does not know the token.
    #[error(
        "{endpoint} does not accept the token; make a new one and set HF_TOKEN to it, or unset \
         HF_TOKEN (and remove the file that `hf auth login` wrote) for models that need none"
    )]
    BadToken {
        /// The hub.
        endpoint: String,
    },
    /// The hub refuses, whatever the token.
    #[error(
        "{url}: forbidden ({message}); a token with the right to read this model is needed: set HF_TOKEN"
    )]
    Forbidden {
        /// What was asked for.
        url: String,
        /// What the hub says.
        message: String,
    },
    /// Too many requests, and the hub wants a longer wait than anyone sits through.
    #[error(
        "{endpoint} asks to wait {seconds} s before the next request (429); run this again then: \
         what has come is kept{}",
        if *token { "" } else { ". With a token in HF_TOKEN the hub allows more" }
    )]
    Busy {
        /// The hub.
        endpoint: String,
        /// How long it asks to wait.
        seconds: u64,
        /// Whether a token was shown.
        token: bool,
    },
    /// The network is out of bounds and the cache does not have everything.
    #[error(
        "the cache {} lacks {} and HF_HUB_OFFLINE is set; unset it, or copy the cache's folder \
         {folder} from a machine where `sdxl models pull {name}` has run",
        cache.display(),
        list(missing)
    )]
    Offline {
        /// The model as it was named.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// The model's folder in it.
        folder: String,
        /// What is not there.
        missing: Vec<String>,
    },
    /// The model was asked of the cache only and is not there.
    #[error("`{name}` is not in the cache {}; `sdxl models pull {name}` fetches it", cache.display())]
    NotCached {
        /// The model as it was named.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No connection, or one that was cut again and again.
    #[error(
        "{url}: {why}, {tries} times in a row; check the connection (and HTTPS_PROXY, HF_ENDPOINT \
         where they are set) and run this again: what has come is kept"
    )]
    Lost {
        /// What was asked for.
        url: String,
        /// The last failure.
        why: String,
        /// How often it failed without a byte in between.
        tries: u32,
    },
    /// A server that does not prove who it is.
    #[error(
        "{url}: the server's certificate is not trusted ({why}); where a proxy opens encrypted \
         connections, set SSL_CERT_FILE to a PEM file with its certificate"
    )]
    Certificate {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// An answer that is none of the above.
    #[error("{url}: the server answers {status}{message}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server says, as a continuation.
        message: String,
    },
    /// An answer that makes no sense.
    #[error(
        "{url}: {what}; this does not look like a model hub's answer (is HF_ENDPOINT right, is there \
         a proxy that wants a login?)"
    )]
    Odd {
        /// What was asked for.
        url: String,
        /// What is odd.
        what: String,
    },
    /// A file that arrived is not the file that the hub described.
    #[error(
        "{file} arrived twice with other contents than the hub says (SHA {expected}, not {found}); \
         something on the way changes it: try another network, or without a proxy"
    )]
    WrongHash {
        /// The file.
        file: String,
        /// The hash the hub says.
        expected: String,
        /// The hash of what arrived.
        found: String,
    },
    /// The disk is too small.
    #[error(
        "{} to fetch, but only {} free at {}; free some (`sdxl models list`, `sdxl models rm`), or \
         set HF_HUB_CACHE to a folder on a larger disk",
        super::size(*needed),
        super::size(*free),
        path.display()
    )]
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes to come.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The cache cannot be read or written.
    #[error("{}: {why}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
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

    pub(super) fn cache(path: &std::path::Path, error: &std::io::Error) -> HubError {
        HubError::Cache {
            path: path.to_path_buf(),
            why: error.to_string(),
        }
    }
}

/// A few names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(4) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
