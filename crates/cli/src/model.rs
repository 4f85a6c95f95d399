//! Which checkpoint a command is to use: a folder, or the demo model that this program carries.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sdxl_demo::{Demo, Unpacked};

/// What is said when nobody named a checkpoint.
pub const DEMO_NOTICE: &str = "model: the built-in demo, which draws simple scenes at 96x96; for real pictures add --model DIR, \
     an SDXL checkpoint's folder (such as a download of stabilityai/stable-diffusion-xl-base-1.0)";

/// A checkpoint folder, and what it is called.
pub struct Model {
    name: PathBuf,
    folder: PathBuf,
    // Where the demo could only be unpacked for a while, the folder goes with this.
    _demo: Option<Unpacked>,
}

impl Model {
    /// The folder `named`; `demo` and `demo-refiner` are the models in this program, and
    /// `demo` is what is meant when none is named.
    pub fn find(named: Option<&Path>) -> anyhow::Result<Model> {
        let named = named.unwrap_or(Path::new(Demo::Base.name()));
        let Some(demo) = Demo::named(named) else {
            return Ok(Model {
                name: named.to_path_buf(),
                folder: named.to_path_buf(),
                _demo: None,
            });
        };
        let unpacked = demo.unpack().context(
            "the built-in demo model cannot be unpacked; set TMPDIR to a folder that can be written",
        )?;
        Ok(Model {
            name: named.to_path_buf(),
            folder: unpacked.path().to_path_buf(),
            _demo: Some(unpacked),
        })
    }

    /// What to call it: in recipes, a name that is good on another machine too.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
