//! A model by name: a folder, a file, a model on a hub, or one of the demo models that travel with
//! the program.

use std::path::{Path, PathBuf};

use sdxl::hub::{DownloadEvent, FetchOptions, FoundModel, ModelName};
use sdxl_demo::{Demo, Unpacked};

use crate::environment::hub;
use crate::error::{Error, Result};

/// A word that stands for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// One of the models in this program: `demo` or `demo-refiner`.
    Demo(Demo),
    /// A folder or a file, whether it is there or not.
    Path(PathBuf),
    /// A model on a hub: `ORG/NAME[/FILE][@REVISION]`.
    OnHub(ModelName),
}

impl ModelRef {
    /// Reads a word; `None` is the demo. A file or folder that is there comes first: a folder
    /// `org/name` is never taken for a model on a hub.
    pub fn parse(named: Option<&Path>) -> ModelRef {
        let Some(named) = named else {
            return ModelRef::Demo(Demo::Base);
        };
        if let Some(demo) = Demo::named(named) {
            return ModelRef::Demo(demo);
        }
        match named.to_str().and_then(ModelName::parse) {
            Some(name) if !named.exists() => ModelRef::OnHub(name),
            _ => ModelRef::Path(named.to_path_buf()),
        }
    }

    /// Finds the model on this machine; of a hub's, what is in the cache.
    ///
    /// # Errors
    /// A model that is not in the cache, and a demo that cannot be unpacked. A path is not looked at.
    pub fn find(&self) -> Result<Model> {
        self.locate(&|name| hub().cached(name))
    }

    /// Finds the model, and fetches from the hub what is not in the cache of what is wanted of it.
    /// `told` hears of the progress, from several threads.
    ///
    /// # Errors
    /// As [`ModelRef::find`], and those of [`sdxl::hub::Hub::pull`].
    pub fn fetch(
        &self,
        want: &FetchOptions,
        told: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<Model> {
        self.locate(&|name| hub().get(name, want, told))
    }

    fn locate(&self, on_hub: &dyn Fn(&ModelName) -> sdxl::Result<FoundModel>) -> Result<Model> {
        match self {
            ModelRef::Demo(demo) => {
                let unpacked = demo.unpack().map_err(|error| Error::Demo { error })?;
                Ok(Model {
                    name: demo.name().into(),
                    path: unpacked.path().to_path_buf(),
                    variant: None,
                    _demo: Some(unpacked),
                })
            }
            ModelRef::Path(path) => Ok(Model {
                name: path.clone(),
                path: path.clone(),
                variant: None,
                _demo: None,
            }),
            ModelRef::OnHub(name) => {
                let found = on_hub(name).map_err(|error| Error::NotOnHub {
                    field: "model",
                    name: name.to_string(),
                    error: Box::new(error),
                })?;
                Ok(Model {
                    name: found.name.to_string().into(),
                    path: found.path,
                    variant: found.variant,
                    _demo: None,
                })
            }
        }
    }
}

/// A model on this machine, and its name.
pub struct Model {
    name: PathBuf,
    path: PathBuf,
    variant: Option<String>,
    // Where the demo could only be unpacked for a while, the folder goes with this.
    _demo: Option<Unpacked>,
}

impl Model {
    /// Finds the model that `named` means; `None` is the demo. See [`ModelRef::find`].
    ///
    /// # Errors
    /// As [`ModelRef::find`].
    pub fn find(named: Option<&Path>) -> Result<Model> {
        ModelRef::parse(named).find()
    }

    /// Finds or fetches the model that `named` means; `None` is the demo. See [`ModelRef::fetch`].
    ///
    /// # Errors
    /// As [`ModelRef::fetch`].
    pub fn fetch(
        named: Option<&Path>,
        want: &FetchOptions,
        told: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<Model> {
        ModelRef::parse(named).fetch(want, told)
    }

    /// The folder or the file that [`sdxl::Checkpoint::open`] takes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The variant of the weight files that was fetched, where one was chosen.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The name for a recipe. Those of the demo and of a hub's models are good on another machine
    /// too.
    pub fn name_in_recipes(&self) -> PathBuf {
        // JSON has no other text than Unicode.
        self.name.to_string_lossy().into_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_word_is_the_demo_a_path_or_a_model_on_a_hub() {
        let of = |word: &str| ModelRef::parse(Some(Path::new(word)));
        assert_eq!(ModelRef::parse(None), ModelRef::Demo(Demo::Base));
        assert_eq!(of("demo-refiner"), ModelRef::Demo(Demo::Refiner));
        assert_eq!(of("./demo"), ModelRef::Path("./demo".into()));
        assert_eq!(of("a.safetensors"), ModelRef::Path("a.safetensors".into()));
        let name = ModelName::parse("org/name@main").unwrap();
        assert_eq!(of("org/name@main"), ModelRef::OnHub(name));
        // A folder that is there is a folder.
        assert_eq!(of("src/../src"), ModelRef::Path("src/../src".into()));
    }

    #[test]
    fn paths_keep_their_names() {
        let dir = TempDir::new().unwrap();
        let model = Model::find(Some(dir.path())).unwrap();
        assert_eq!(model.path(), dir.path());
        assert_eq!(model.name_in_recipes(), dir.path());
        assert_eq!(model.variant(), None);
    }
}
