//! Everything that can go wrong between a front end and the library.
//!
//! A message says what is wrong, and then what to do: that part is [`Error::hint`] too. In a hint a
//! word in backticks is a knob (`` `overwrite` ``); a program with flags writes it as a flag.

use std::fmt;
use std::path::{Path, PathBuf};

use sdxl::Class;
use sdxl::image::Format;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A reason why a model could not be opened, a recipe not be repeated, or a picture not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the library.
    #[error(transparent)]
    Library(#[from] sdxl::Error),
    /// A word that is no path here, so it means a model on the hub, which could not be had.
    #[error("there is no file or folder `{name}` here, so it means a model on the hub: {error}")]
    NotOnHub {
        /// The knob that names it.
        field: &'static str,
        /// The model as it was named.
        name: String,
        /// The library's error.
        error: Box<sdxl::Error>,
    },
    /// The demo model has no place on this machine.
    #[error("the built-in demo model cannot be unpacked: {error}; {SET_TMPDIR}")]
    Demo {
        /// The system's error.
        error: std::io::Error,
    },
    /// A file of the model's that was named and is not there.
    #[error("{path}: there is no such file", path = path.display())]
    NoSuchFile {
        /// The knob that names it.
        field: &'static str,
        /// The file as it was named.
        path: PathBuf,
    },
    /// Requests for one model whose prompts name different LoRAs.
    #[error(
        "the pictures' prompts ask for different LoRAs, which change the whole model; {SHARE_LORAS}"
    )]
    DifferentLoras,
    /// A file that exists and would be overwritten.
    #[error("{path}: this file exists and is left alone; {REPLACE}", path = path.display())]
    Exists {
        /// The knob that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A folder where a file is to be written.
    #[error("{path}: this is a folder", path = path.display())]
    IsFolder {
        /// The knob that names it.
        field: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is not there and cannot be made.
    #[error("{path}: no such folder, and it cannot be made: {why}", path = path.display())]
    NoFolder {
        /// The knob that names it.
        field: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's error, in words.
        why: String,
    },
    /// A folder in which no file can be written.
    #[error("{path}: it cannot be written to: {why}", path = path.display())]
    NotWritable {
        /// The knob that names it, or a file in it.
        field: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's error, in words.
        why: String,
    },
    /// A picture's name of one format where another was asked for.
    #[error(
        "{path}: its name says {named} and the format asked for is {asked}; {ONE_FORMAT}",
        path = path.display()
    )]
    FormatsDisagree {
        /// The picture's file.
        path: PathBuf,
        /// The format of its name.
        named: Format,
        /// The format that was asked for.
        asked: Format,
    },
    /// A picture's name that says no format.
    #[error("{path}: pictures are written as PNG, JPEG or WebP; {NAME_FORMAT}", path = path.display())]
    UnknownFormat {
        /// The picture's file.
        path: PathBuf,
    },
    /// A picture larger than its format allows.
    #[error("a side of {side} pixels: a {format} has up to {}; {WRITE_PNG}", format.max_side())]
    TooLarge {
        /// The longer side in pixels.
        side: usize,
        /// The format.
        format: Format,
    },
    /// A recipe whose latents file was not given.
    #[error("this picture was started from a latents file (SHA-256 {sha256}); {GIVE_LATENTS}")]
    NoLatents {
        /// Hash of the file, in hexadecimal.
        sha256: String,
    },
    /// A file of a recipe that has changed since.
    #[error(
        "{path}: this is not the file that the recipe was made with (its SHA-256 was {sha256}); {}",
        give_that_one(field),
        path = path.display()
    )]
    ChangedInput {
        /// The request's field that names it.
        field: String,
        /// The file.
        path: PathBuf,
        /// Hash of the one that the recipe was made with, in hexadecimal.
        sha256: String,
    },
    /// A recipe that was made with a file and does not name it.
    #[error(
        "this recipe was made with a {field} and does not name it; {}",
        give_it(field)
    )]
    InputNotNamed {
        /// The request's field that should name it.
        field: String,
    },
    /// A state of a run that another request began.
    #[error("{path}: this state is of another request (`{field}` differs); {OTHER_STATE}",
        path = path.display())]
    OtherRequest {
        /// The state's file.
        path: PathBuf,
        /// The first field that differs.
        field: String,
    },
    /// A state's file that has the name of a picture.
    #[error("{path}: this is the name of a picture; {NAME_STATE}", path = path.display())]
    StateNamedAsPicture {
        /// The state's file.
        path: PathBuf,
    },
    /// A file that could not be written.
    #[error("{path} was not written: {why}", path = path.display())]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// The system's error, in words.
        why: String,
    },
    /// A finished picture that could be written nowhere. It is in the error.
    #[error(transparent)]
    Unsaved(#[from] Box<UnsavedPicture>),
}

/// A finished picture that could be written neither to its place nor to the system's folder for
/// temporary files.
pub struct UnsavedPicture {
    /// The whole file: the encoded picture with its recipe.
    pub bytes: Vec<u8>,
    /// The file that it was to be.
    pub path: PathBuf,
    /// The reason why it is not there, in words.
    pub why: String,
    /// The system's folder for temporary files.
    pub temporary: PathBuf,
    /// The reason why it is not there either, in words.
    pub why_not_temporary: String,
}

impl fmt::Display for UnsavedPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} was not written: {}; nor could the picture be kept in {}: {}",
            self.path.display(),
            self.why,
            self.temporary.display(),
            self.why_not_temporary
        )
    }
}

impl fmt::Debug for UnsavedPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnsavedPicture({} bytes; {self})", self.bytes.len())
    }
}

impl std::error::Error for UnsavedPicture {}

const SET_TMPDIR: &str = "set TMPDIR to a folder that can be written";
const SHARE_LORAS: &str =
    "make these pictures one after the other, or give what they share with `lora`";
const REPLACE: &str = "use `overwrite` to replace it";
const ONE_FORMAT: &str = "name the file as its format is, or leave out `format`";
const NAME_FORMAT: &str =
    "name the file *.png, *.jpg or *.webp, say which with `format`, or give a folder";
const WRITE_PNG: &str = "write a PNG";
const OTHER_STATE: &str =
    "go on with the same request, name another file with `state`, or remove this one to begin anew";
const NAME_STATE: &str = "name the state's file otherwise, as in fox.state";
const GIVE_LATENTS: &str = "give it with `latents`";

fn give_that_one(field: &str) -> String {
    format!("give that one, or another on purpose, with `{field}`")
}

fn give_it(field: &str) -> String {
    format!("give it with `{field}`")
}

impl Error {
    /// Whether the request or the files are at fault (exit code 2, HTTP status 4xx), as opposed to
    /// the machine or this program.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Library(error) => error.is_usage(),
            Error::NotOnHub { error, .. } => error.is_usage(),
            Error::Demo { .. } | Error::NotWritten { .. } | Error::Unsaved(_) => false,
            Error::NoSuchFile { .. }
            | Error::DifferentLoras
            | Error::Exists { .. }
            | Error::IsFolder { .. }
            | Error::NoFolder { .. }
            | Error::NotWritable { .. }
            | Error::FormatsDisagree { .. }
            | Error::UnknownFormat { .. }
            | Error::TooLarge { .. }
            | Error::NoLatents { .. }
            | Error::ChangedInput { .. }
            | Error::OtherRequest { .. }
            | Error::StateNamedAsPicture { .. }
            | Error::InputNotNamed { .. } => true,
        }
    }

    /// Says who can do something about the error.
    pub fn class(&self) -> Class {
        match self {
            Error::Library(error) => error.class(),
            Error::NotOnHub { error, .. } => error.class(),
            Error::Demo { .. } | Error::NotWritten { .. } | Error::Unsaved(_) => Class::Machine,
            Error::NoSuchFile { .. } | Error::ChangedInput { .. } => Class::File,
            _ => Class::Request,
        }
    }

    /// Whether somebody stopped the run and nothing is wrong.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Library(sdxl::Error::Cancelled))
    }

    /// The knob that is at fault, such as `output` or `init_image`, where there is one.
    pub fn field(&self) -> Option<&str> {
        match self {
            Error::NotOnHub { field, .. }
            | Error::NoSuchFile { field, .. }
            | Error::Exists { field, .. }
            | Error::IsFolder { field, .. }
            | Error::NoFolder { field, .. }
            | Error::NotWritable { field, .. } => Some(field),
            Error::DifferentLoras => Some("prompt"),
            Error::FormatsDisagree { .. } | Error::UnknownFormat { .. } => Some("output"),
            Error::TooLarge { .. } => Some("format"),
            Error::NoLatents { .. } => Some("latents"),
            Error::ChangedInput { field, .. } | Error::InputNotNamed { field } => Some(field),
            Error::OtherRequest { .. } | Error::StateNamedAsPicture { .. } => Some("state"),
            Error::Library(error) => error.field(),
            Error::Demo { .. } | Error::NotWritten { .. } | Error::Unsaved(_) => None,
        }
    }

    /// The end of the message, which says what to do. Words in backticks are knobs.
    pub fn hint(&self) -> Option<String> {
        let constant = match self {
            Error::Demo { .. } => SET_TMPDIR,
            Error::DifferentLoras => SHARE_LORAS,
            Error::Exists { .. } => REPLACE,
            Error::FormatsDisagree { .. } => ONE_FORMAT,
            Error::UnknownFormat { .. } => NAME_FORMAT,
            Error::TooLarge { .. } => WRITE_PNG,
            Error::NoLatents { .. } => GIVE_LATENTS,
            Error::ChangedInput { field, .. } => return Some(give_that_one(field)),
            Error::InputNotNamed { field } => return Some(give_it(field)),
            Error::OtherRequest { .. } => OTHER_STATE,
            Error::StateNamedAsPicture { .. } => NAME_STATE,
            Error::Library(error) => return error.hint().map(|hint| hint.into_owned()),
            Error::NotOnHub { error, .. } => return error.hint().map(|hint| hint.into_owned()),
            Error::NoSuchFile { .. }
            | Error::IsFolder { .. }
            | Error::NoFolder { .. }
            | Error::NotWritable { .. }
            | Error::NotWritten { .. }
            | Error::Unsaved(_) => return None,
        };
        Some(constant.to_string())
    }

    /// The same error of a model that another knob names than `model`.
    pub(crate) fn with_field(self, field: &'static str) -> Error {
        match self {
            Error::NotOnHub { name, error, .. } => Error::NotOnHub { field, name, error },
            other => other,
        }
    }

    /// A file that could not be written.
    pub(crate) fn not_written(path: &Path, why: &dyn fmt::Display) -> Error {
        Error::NotWritten {
            path: path.to_path_buf(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_with_its_hint() {
        let path = PathBuf::from("a.png");
        let (named, asked) = (Format::Png, Format::Jpeg);
        let sha256 = "ab".to_string();
        let all = [
            Error::Demo {
                error: std::io::Error::other("full"),
            },
            Error::DifferentLoras,
            Error::Exists {
                field: "output",
                path: path.clone(),
            },
            Error::FormatsDisagree {
                path: path.clone(),
                named,
                asked,
            },
            Error::UnknownFormat { path: path.clone() },
            Error::TooLarge {
                side: 70_000,
                format: asked,
            },
            Error::NoLatents {
                sha256: sha256.clone(),
            },
            Error::ChangedInput {
                field: "init_image".into(),
                path,
                sha256,
            },
            Error::InputNotNamed {
                field: "mask".into(),
            },
        ];
        for error in &all {
            let hint = error.hint().unwrap();
            assert!(error.to_string().ends_with(&format!("; {hint}")), "{error}");
        }
        assert_eq!(all[7].field(), Some("init_image"));
        assert!(all[7].hint().unwrap().contains("`init_image`"));
        // The machine's fault, and the caller's.
        assert!(!all[0].is_usage() && all[2].is_usage());
    }

    #[test]
    fn the_librarys_errors_keep_their_words() {
        let error = Error::from(sdxl::Error::Cancelled);
        assert!(error.is_cancelled() && !error.is_usage());
        assert_eq!(error.to_string(), sdxl::Error::Cancelled.to_string());
        // Not said twice by whoever prints the chain.
        assert!(std::error::Error::source(&error).is_none());
    }
}
