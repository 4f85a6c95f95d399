//! The file in which a run is kept between its steps, so that it goes on after a crash.

use std::path::{Path, PathBuf};

use sdxl::image::Format;
use sdxl::{Inputs, Pipeline, Request, Run, RunState};

use crate::error::{Error, Result};
use crate::files;

/// The file of a run's state (the knob `state`). It is replaced as a whole, so it holds a whole state
/// at any moment.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Evaluations after which the state is written where nothing else is asked for.
    pub const EVERY: usize = 1;

    /// The state file at `path`, which need not be there.
    ///
    /// # Errors
    /// A folder that cannot be written to, and the name of a picture, which the state would replace.
    pub fn new(path: &Path) -> Result<StateFile> {
        if Format::of_name(path).is_some() {
            let path = path.to_path_buf();
            return Err(Error::StateNamedAsPicture { path });
        }
        files::check_writable("state", path, true)?;
        let path = path.to_path_buf();
        Ok(StateFile { path })
    }

    /// Reads the state, if there is one.
    ///
    /// # Errors
    /// A file that is no state, or one of another version.
    pub fn read(&self) -> Result<Option<RunState>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(RunState::from_bytes(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(sdxl::Error::read(&self.path, &error).into()),
        }
    }

    /// Prepares the run of `request`, or takes up the run that was stopped: it must have been begun by
    /// the same request. Seeds that nobody chose are those of the state.
    ///
    /// # Errors
    /// [`Error::OtherRequest`]; whatever [`Pipeline::prepare`] and [`Pipeline::resume`] refuse.
    pub fn prepare(&self, pipeline: &Pipeline, request: &Request, inputs: Inputs) -> Result<Run> {
        let Some(state) = self.read()? else {
            return Ok(pipeline.prepare(request, inputs)?);
        };
        let mut request = request.clone();
        if request.seed.is_empty() {
            request.seed.clone_from(&state.request().seed);
        }
        let fresh = pipeline.prepare(&request, inputs.clone())?;
        if let Some(field) = difference(fresh.request(), state.request()) {
            let path = self.path.clone();
            return Err(Error::OtherRequest { path, field });
        }
        Ok(pipeline.resume(state, inputs)?)
    }

    /// Whether there is a state to go on from.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Writes the state of a run.
    ///
    /// # Errors
    /// [`Error::NotWritten`], and a request that cannot be stored.
    pub fn write(&self, run: &Run) -> Result<()> {
        files::write_file(&self.path, &run.save()?.to_bytes()?, true)
    }

    /// Removes the file: the run is finished.
    ///
    /// # Errors
    /// [`Error::NotWritten`].
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::not_written(&self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

/// The first field in which two requests differ.
fn difference(one: &Request, other: &Request) -> Option<String> {
    if one == other {
        return None;
    }
    let fields = |request| serde_json::to_value(request).expect("a request has string keys only");
    let (one, other) = (fields(one), fields(other));
    let differs = |field: &&&'static str| one.get(**field) != other.get(**field);
    let field = Request::fields().iter().find(differs);
    Some(field.unwrap_or(&"request").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_differ_are_told_apart_by_a_field() {
        let one = Request {
            prompt: vec!["a cat".into()],
            seed: vec![1],
            ..Request::default()
        };
        assert_eq!(difference(&one, &one.clone()), None);
        let other = Request {
            steps: 7,
            ..one.clone()
        };
        assert_eq!(difference(&one, &other).as_deref(), Some("steps"));
    }
}
