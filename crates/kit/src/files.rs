//! Files that a run leaves: checked before it, written whole or not at all, and a finished picture
//! never thrown away.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::environment;
use crate::error::{Error, Result, UnsavedPicture};

/// Names that are tried for one file; so many are taken only where something is wrong.
const MOST_COPIES: usize = 10_000;

/// Refuses a file that exists (unless it may be overwritten) or whose folder cannot be written to.
/// `field` is the knob that names it.
///
/// # Errors
/// [`Error::IsFolder`], [`Error::Exists`] and [`Error::NotWritable`].
pub fn check_writable(field: &'static str, path: &Path, overwrite: bool) -> Result<()> {
    let named = || path.to_path_buf();
    if path.is_dir() {
        return Err(Error::IsFolder {
            field,
            path: named(),
        });
    }
    if path.exists() && !overwrite {
        return Err(Error::Exists {
            field,
            path: named(),
        });
    }
    check_folder(field, folder_of(path))
}

/// Refuses a folder in which no file can be written.
pub(crate) fn check_folder(field: &'static str, folder: &Path) -> Result<()> {
    match NamedTempFile::new_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NotWritable {
            field,
            path: folder.to_path_buf(),
            why: error.to_string(),
        }),
    }
}

/// Writes a whole file or nothing: beside its place first, then moved there.
///
/// # Errors
/// [`Error::NotWritten`], also for a file that exists where none is to be overwritten.
pub fn write_file(path: &Path, bytes: &[u8], overwrite: bool) -> Result<()> {
    let said = |error: io::Error| Error::not_written(path, &error);
    let file = beside(folder_of(path), bytes, true).map_err(said)?;
    let moved = match overwrite {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    moved.map(drop).map_err(|e| said(e.error))
}

/// A picture's file and where it came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The file.
    pub path: PathBuf,
    /// The reason why it is not where it was to be, in words.
    pub warning: Option<String>,
    /// Whether it is in the system's folder for temporary files, where it may not last.
    pub is_temporary: bool,
}

/// Writes a finished picture, which took long to make and is not thrown away. Where its name is
/// taken it is written beside, as `NAME (2)`; where its folder cannot be written, into the system's
/// folder for temporary files.
///
/// # Errors
/// [`Error::Unsaved`], which holds the picture, if that cannot be written either.
pub fn save_picture(place: &Path, bytes: &[u8], overwrite: bool) -> Result<Saved> {
    save_or_keep_in(&environment::temporary_folder(), place, bytes, overwrite)
}

fn save_or_keep_in(temporary: &Path, place: &Path, bytes: &[u8], overwrite: bool) -> Result<Saved> {
    let written =
        beside(folder_of(place), bytes, true).and_then(|file| move_to(file, place, overwrite));
    let why = match written {
        Ok(path) => {
            let beside = (path != place).then(|| {
                format!(
                    "{}: this name was taken meanwhile; the picture is {}",
                    place.display(),
                    path.display()
                )
            });
            return Ok(Saved {
                path,
                warning: beside,
                is_temporary: false,
            });
        }
        Err(error) => error.to_string(),
    };
    let name = Path::new(place.file_name().unwrap_or("picture".as_ref()));
    // Others may look into that folder, but not into the picture.
    let kept = beside(temporary, bytes, false)
        .and_then(|file| move_to(file, &temporary.join(name), false));
    match kept {
        Ok(path) => Ok(Saved {
            warning: Some(format!(
                "{} was not written: {why}; the picture is kept as {}",
                place.display(),
                path.display()
            )),
            path,
            is_temporary: true,
        }),
        Err(error) => Err(Error::Unsaved(Box::new(UnsavedPicture {
            bytes: bytes.to_vec(),
            path: place.to_path_buf(),
            why,
            temporary: temporary.to_path_buf(),
            why_not_temporary: error.to_string(),
        }))),
    }
}

/// Copy number `copy` of a file's name, from 2: `NAME (2).png`.
pub(crate) fn numbered(path: &Path, copy: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!(" ({copy})"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The files that are there under a name and its numbered copies.
pub(crate) fn copies(path: &Path) -> impl Iterator<Item = PathBuf> {
    let path = path.to_path_buf();
    let copies = (2..=MOST_COPIES).map({
        let path = path.clone();
        move |copy| numbered(&path, copy)
    });
    std::iter::once(path)
        .chain(copies)
        .take_while(|path| path.exists())
}

/// The first of a file's names that is not taken now.
pub(crate) fn first_free(path: PathBuf) -> PathBuf {
    if !path.exists() {
        return path;
    }
    let mut copies = (2..=MOST_COPIES).map(|copy| numbered(&path, copy));
    copies.find(|copy| !copy.exists()).unwrap_or(path)
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A file in `folder`, without a name that stays, with these bytes in it. If `shared`, it has the
/// rights that the umask gives; else nobody else reads it.
fn beside(folder: &Path, bytes: &[u8], shared: bool) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    if shared {
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Gives `file` the name `place`, or the first numbered one that is free.
fn move_to(mut file: NamedTempFile, place: &Path, overwrite: bool) -> io::Result<PathBuf> {
    if overwrite {
        file = match file.persist(place) {
            Ok(_) => return Ok(place.to_path_buf()),
            // A folder has taken the name.
            Err(error) if place.is_dir() => error.file,
            Err(error) => return Err(error.error),
        };
    }
    for copy in 1..=MOST_COPIES {
        let path = match copy {
            1 => place.to_path_buf(),
            copy => numbered(place, copy),
        };
        file = match file.persist_noclobber(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => error.file,
            Err(error) => return Err(error.error),
        };
    }
    Err(ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_taken_name_gets_a_number() {
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("a.png");
        let unused = dir.path().join("unused");
        let save =
            |bytes: &[u8], overwrite| save_or_keep_in(&unused, &place, bytes, overwrite).unwrap();
        let first = save(b"1", false);
        assert_eq!((&first.path, &first.warning), (&place, &None));
        let second = save(b"2", false);
        let beside = dir.path().join("a (2).png");
        assert_eq!(second.path, beside);
        assert!(!second.is_temporary);
        let warning = second.warning.unwrap();
        for path in [&place, &beside] {
            assert!(warning.contains(path.to_str().unwrap()), "{warning}");
        }
        assert_eq!(save(b"3", false).path, dir.path().join("a (3).png"));
        let replaced = save(b"4", true);
        assert_eq!((&replaced.path, &replaced.warning), (&place, &None));
        assert_eq!(fs::read(&place).unwrap(), b"4");
        assert_eq!(fs::read(&beside).unwrap(), b"2");
        // Nothing half written is left.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_folder_that_took_the_name_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("a.png");
        fs::create_dir(&place).unwrap();
        for (overwrite, name) in [(true, "a (2).png"), (false, "a (3).png")] {
            let saved = save_or_keep_in(dir.path(), &place, b"1", overwrite).unwrap();
            assert_eq!(saved.path, dir.path().join(name));
            assert!(saved.warning.is_some() && !saved.is_temporary);
        }
    }

    #[test]
    fn a_picture_outlives_its_folder() {
        let (dir, temporary) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        // A folder that is gone, and one that never was: nothing can be written in either.
        for folder in [dir.path().join("gone"), file] {
            let place = folder.join("a.png");
            let saved = save_or_keep_in(temporary.path(), &place, b"1", false).unwrap();
            assert!(saved.is_temporary);
            assert_eq!(saved.path.parent(), Some(temporary.path()));
            assert_eq!(fs::read(&saved.path).unwrap(), b"1");
            let warning = saved.warning.unwrap();
            for path in [&place, &saved.path] {
                assert!(warning.contains(path.to_str().unwrap()), "{warning}");
            }
        }
        let kept = fs::read_dir(temporary.path()).unwrap().count();
        assert_eq!(kept, 2, "the second does not replace the first");
    }

    #[test]
    fn a_picture_without_any_place_is_in_the_error() {
        let dir = TempDir::new().unwrap();
        let (place, gone) = (dir.path().join("x/a.png"), dir.path().join("y"));
        let error = save_or_keep_in(&gone, &place, b"the picture", false).unwrap_err();
        assert!(!error.is_usage());
        let said = error.to_string();
        for path in [&place, &gone] {
            assert!(said.contains(path.to_str().unwrap()), "{said}");
        }
        let Error::Unsaved(unsaved) = error else {
            panic!("{said}");
        };
        assert_eq!(unsaved.bytes, b"the picture");
        assert_eq!(unsaved.path, place);
    }

    #[test]
    fn files_are_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("latents.safetensors");
        check_writable("output_latents", &path, false).unwrap();
        write_file(&path, b"1", false).unwrap();
        let error = check_writable("output_latents", &path, false).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }) && error.is_usage());
        assert_eq!(error.field(), Some("output_latents"));
        check_writable("output_latents", &path, true).unwrap();
        let error = write_file(&path, b"2", false).unwrap_err();
        assert!(matches!(error, Error::NotWritten { .. }) && !error.is_usage());
        assert_eq!(fs::read(&path).unwrap(), b"1");
        write_file(&path, b"2", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        let error = check_writable("output", dir.path(), true).unwrap_err();
        assert!(matches!(error, Error::IsFolder { .. }));
        let error = check_writable("output", &path.join("a.png"), true).unwrap_err();
        assert!(matches!(error, Error::NotWritable { .. }));
    }
}
