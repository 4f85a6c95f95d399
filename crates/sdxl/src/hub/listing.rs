//! The list of the files of a model at a revision, as a hub gives it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::Id;
use super::error::HubError;
use super::http::{About, Client, Failure, Method, Watch, encode};
use super::name::{ModelName, is_commit, is_relative};

/// The largest list that is read.
const LIMIT: u64 = 64 << 20;

/// The files of a model at a commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: BTreeMap<String, Listed>,
}

/// A file's entry in the list; mirrors do not always give all values.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub size: Option<u64>,
    pub id: Option<Id>,
}

#[derive(Deserialize)]
struct Model {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub what `name` is at its revision.
    pub(super) fn fetch(
        client: &Client,
        name: &ModelName,
        watch: &Watch<'_>,
    ) -> Result<Listing, HubError> {
        let revision = encode(name.revision(), false);
        let url = client.url(&format!(
            "api/models/{}/revision/{revision}?blobs=true",
            name.repo
        ));
        let about = About {
            repo: &name.repo,
            revision: name.revision(),
            file: None,
        };
        let text = client.retry(&url, watch, &mut || {
            let mut answer = client.send(Method::Get, &url, about, 0)?;
            let body = answer.body.with_config().limit(LIMIT).read_to_vec();
            body.map_err(|e| Failure::lost(e.to_string()))
        })?;
        Self::read(&text).map_err(|what| HubError::Odd { url, what })
    }

    fn read(text: &[u8]) -> Result<Listing, String> {
        let model: Model = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if !is_commit(&model.sha) {
            return Err(format!("`{}` is not a commit's hash", model.sha));
        }
        let files = model.siblings.into_iter().filter_map(|file| {
            // What would land outside the snapshot is none of its files.
            if !is_relative(&file.rfilename) {
                return None;
            }
            let (sha256, lfs_size) = file.lfs.map_or((None, None), |l| (l.sha256, l.size));
            let listed = Listed {
                size: lfs_size.or(file.size),
                id: sha256.or(file.blob_id).as_deref().and_then(Id::parse),
            };
            Some((file.rfilename, listed))
        });
        Ok(Listing {
            files: files.collect(),
            commit: model.sha,
        })
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_the_hub_writes_it() {
        let commit = "462165984030d82259a11f4367a4eed129e94a7b";
        let sha = "a".repeat(64);
        let text = serde_json::json!({
            "_id": "x", "id": "org/name", "private": false, "gated": false, "sha": commit,
            "siblings": [
                { "rfilename": "README.md", "size": 5, "blobId": "b".repeat(40) },
                { "rfilename": "unet/w.safetensors", "size": 7, "blobId": "c".repeat(40),
                  "lfs": { "sha256": sha, "size": 7, "pointerSize": 135 } },
                { "rfilename": "named.only" },
                { "rfilename": "../outside" },
                { "rfilename": "/etc/passwd" },
            ],
        });
        let listing = Listing::read(text.to_string().as_bytes()).unwrap();
        assert_eq!(listing.commit, commit);
        let names: Vec<&str> = listing.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["README.md", "named.only", "unet/w.safetensors"]);
        let of = |name: &str| listing.files[name].clone();
        assert_eq!(of("README.md").id, Some(Id::Git("b".repeat(40))));
        assert_eq!(of("unet/w.safetensors").id, Some(Id::Sha256(sha)));
        assert_eq!(of("unet/w.safetensors").size, Some(7));
        assert_eq!(of("named.only").size, None);
        assert!(Listing::read(b"<html>").is_err());
        assert!(Listing::read(b"{\"sha\": \"../x\"}").is_err());
    }
}
