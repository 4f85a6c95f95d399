//! The settings of the hub and the cache, and the token to show: read from the environment
//! variables that Python's `huggingface_hub` reads. No other place in this crate reads any.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The settings for speaking with a hub and sharing its cache.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The hub's address without a `/` at the end: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// The folder that holds `models--ORG--NAME` folders: `HF_HUB_CACHE`, else `hub` in `HF_HOME`,
    /// else `huggingface/hub` in the user's cache folder.
    pub cache: PathBuf,
    /// A user's token: `HF_TOKEN`, else what stands in the file `HF_TOKEN_PATH` or `HF_HOME/token`.
    pub token: Option<String>,
    /// Whether the network is out of bounds: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// A PEM file of the certificates to trust: `SSL_CERT_FILE`; else Mozilla's list.
    pub certificates: Option<PathBuf>,
    /// The number of attempts without progress, in a row, after which a request is given up.
    pub tries: u32,
    /// The first pause between tries; each is twice the one before.
    pub pause: Duration,
    /// The longest that a connection may be silent.
    pub silence: Duration,
}

impl Settings {
    /// Reads the settings from the environment.
    pub fn from_env() -> Settings {
        Self::of(
            &|name| env::var(name).ok().filter(|value| !value.trim().is_empty()),
            env::home_dir().unwrap_or_else(|| PathBuf::from(".")),
        )
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>, user: PathBuf) -> Settings {
        let folder = |name: &str| variable(name).map(|text| expand(&text, &user));
        let home = folder("HF_HOME").unwrap_or_else(|| {
            let caches = folder("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
            caches.join("huggingface")
        });
        let endpoint = variable("HF_ENDPOINT");
        let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co");
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN")
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_file).ok());
        let is_true = |name: &str| {
            let yes = ["1", "ON", "YES", "TRUE"];
            variable(name).is_some_and(|v| yes.contains(&v.to_ascii_uppercase().as_str()))
        };
        Settings {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token: token
                .map(|token| token.trim().to_string())
                .filter(|token| !token.is_empty()),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            certificates: folder("SSL_CERT_FILE"),
            tries: 5,
            pause: Duration::from_secs(1),
            silence: Duration::from_secs(30),
        }
    }
}

/// `~/x` is in the user's folder also where no shell has said so.
fn expand(text: &str, user: &Path) -> PathBuf {
    match text.strip_prefix('~') {
        Some("") => user.to_path_buf(),
        Some(rest) if rest.starts_with('/') => user.join(&rest[1..]),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(of: &[(&str, &str)], user: &Path) -> Settings {
        let variable = |name: &str| {
            let found = of.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        };
        Settings::of(&variable, user.to_path_buf())
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let user = Path::new("/home/u");
        for (of, cache) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (
                &[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")],
                "/home/u/hf/hub",
            ),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(settings(of, user).cache, Path::new(cache));
        }
    }

    #[test]
    fn the_token_is_the_variables_or_the_files() {
        let user = tempfile::TempDir::new().unwrap();
        let home = user.path().join(".cache/huggingface");
        assert_eq!(settings(&[], user.path()).token, None);
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("token"), "hf_file\n").unwrap();
        let token = |of| settings(of, user.path()).token;
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[("HF_TOKEN", " hf_own ")]).as_deref(),
            Some("hf_own")
        );
        fs::write(user.path().join("other"), "hf_other").unwrap();
        let path = [("HF_TOKEN_PATH", "~/other")];
        assert_eq!(token(&path).as_deref(), Some("hf_other"));
    }

    #[test]
    fn endpoint_and_offline() {
        let user = Path::new("/u");
        let own = settings(
            &[
                ("HF_ENDPOINT", "http://localhost:1/"),
                ("HF_HUB_OFFLINE", "yes"),
            ],
            user,
        );
        assert_eq!(own.endpoint, "http://localhost:1");
        assert!(own.offline);
        let usual = settings(&[("HF_HUB_OFFLINE", "0")], user);
        assert_eq!(usual.endpoint, "https://huggingface.co");
        assert!(!usual.offline);
    }
}
