//! The files that flags name.

use std::path::Path;

/// Whether a file's name says that it is of this kind.
pub(crate) fn ends_in(path: &Path, extension: &str) -> bool {
    (path.extension()).is_some_and(|e| e.eq_ignore_ascii_case(extension))
}
