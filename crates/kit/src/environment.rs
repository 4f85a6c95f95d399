//! The environment of the program: the one place of this crate that reads its variables, but for
//! those of hubs, which the library reads ([`Settings::from_env`]).

use std::env;
use std::path::PathBuf;

use etcetera::BaseStrategy;
use sdxl::hub::{Hub, Settings};

/// The hub and its cache, as the environment has them.
pub fn hub() -> Hub {
    Hub::new(Settings::from_env())
}

/// The folder of the LoRAs that prompts name: `SDXL_LORA_DIR`, else `loras` here.
pub(crate) fn lora_dir() -> PathBuf {
    env::var_os("SDXL_LORA_DIR")
        .filter(|folder| !folder.is_empty())
        .map_or_else(|| PathBuf::from("loras"), PathBuf::from)
}

/// The file of remembered hashes in the user's cache; nothing where there is no such folder.
pub(crate) fn hashes_file() -> Option<PathBuf> {
    if cfg!(test) {
        // No test writes to its user's cache.
        return None;
    }
    let folders = etcetera::choose_base_strategy().ok()?;
    Some(folders.cache_dir().join("sdxl/hashes.json"))
}

/// The system's folder for temporary files: `TMPDIR`, else `/tmp`.
pub(crate) fn temporary_folder() -> PathBuf {
    env::temp_dir()
}
