//! The place of a run's pictures: their format, their names, and checks before the run.

use std::path::{Path, PathBuf};

use sdxl::image::{Encoding, Format};
use sdxl::{Inputs, Request};

use crate::error::{Error, Result};
use crate::files::{self, Saved, check_folder, check_writable};

/// The knob that names the place of the pictures.
const FIELD: &str = "output";

/// The files of a run's pictures, decided before anything heavy.
#[derive(Debug, Clone)]
pub struct Destination {
    kind: Kind,
    extension: String,
    images: usize,
    overwrite: bool,
    // Whether a picture may have been written already by a run that was stopped.
    resuming: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    /// A file; with several pictures, its name gets numbers.
    File(PathBuf),
    /// A folder, in which names are made from seeds.
    Folder(PathBuf),
}

impl Destination {
    /// Checks that `images` pictures can be written to `output` (`None`: this folder), whose names
    /// end as `format` says where they do not say so themselves. A folder that is not there is made.
    ///
    /// # Errors
    /// A file that exists and may not be overwritten, and a folder that cannot be made or written
    /// to.
    pub fn new(
        output: Option<&Path>,
        format: Format,
        images: usize,
        overwrite: bool,
    ) -> Result<Destination> {
        Self::made(Self::unchecked(output, format, images, overwrite), 0)
    }

    /// The same for a run that is resumed, `written` of whose pictures are known to be written. The next
    /// one may be there too: one with the same bytes is the picture that is to be written.
    ///
    /// # Errors
    /// As [`Destination::new`].
    pub fn resuming(
        written: usize,
        output: Option<&Path>,
        format: Format,
        images: usize,
        overwrite: bool,
    ) -> Result<Destination> {
        let destination = Destination {
            resuming: true,
            ..Self::unchecked(output, format, images, overwrite)
        };
        Self::made(destination, written + 1)
    }

    /// Checks the names of the pictures from number `first` on, and makes the folder.
    fn made(destination: Destination, first: usize) -> Result<Destination> {
        if let Kind::Folder(folder) = &destination.kind {
            std::fs::create_dir_all(folder).map_err(|e| Error::NoFolder {
                field: FIELD,
                path: folder.clone(),
                why: e.to_string(),
            })?;
        }
        destination.check(first)?;
        Ok(destination)
    }

    /// Checks the same as [`Destination::new`], and makes no folder.
    ///
    /// # Errors
    /// As [`Destination::new`], but for a folder that is not there.
    pub fn check_only(
        output: Option<&Path>,
        format: Format,
        images: usize,
        overwrite: bool,
    ) -> Result<()> {
        let destination = Self::unchecked(output, format, images, overwrite);
        match &destination.kind {
            Kind::Folder(folder) if !folder.exists() => Ok(()),
            _ => destination.check(0),
        }
    }

    fn unchecked(
        output: Option<&Path>,
        format: Format,
        images: usize,
        overwrite: bool,
    ) -> Destination {
        let kind = match output {
            None => Kind::Folder(PathBuf::from(".")),
            Some(path) if path.is_dir() || path.extension().is_none() => {
                Kind::Folder(path.to_path_buf())
            }
            Some(path) => Kind::File(path.to_path_buf()),
        };
        let extension = match &kind {
            Kind::File(path) => path
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .into(),
            Kind::Folder(_) => format.extension().to_string(),
        };
        Destination {
            kind,
            extension,
            images,
            overwrite,
            resuming: false,
        }
    }

    fn check(&self, first: usize) -> Result<()> {
        match &self.kind {
            Kind::Folder(folder) => check_folder(FIELD, folder),
            Kind::File(path) => {
                check_writable(FIELD, path, self.overwrite || self.images > 1 || first > 0)?;
                (first..self.images)
                    .try_for_each(|i| check_writable(FIELD, &self.path(i, 0), self.overwrite))
            }
        }
    }

    /// The path of picture `number` (from 0) of those that are written.
    fn path(&self, number: usize, seed: u64) -> PathBuf {
        match &self.kind {
            Kind::File(path) if self.images == 1 => path.clone(),
            Kind::File(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                path.with_file_name(format!("{stem}-{}.{}", number + 1, self.extension))
            }
            Kind::Folder(folder) => self.free(folder.join(self.name_in_folder(number, seed))),
        }
    }

    /// The file of a picture that was written just before the run was stopped.
    fn copy_of(&self, number: usize, seed: u64, bytes: &[u8]) -> Option<PathBuf> {
        let place = match &self.kind {
            Kind::File(_) => self.path(number, seed),
            Kind::Folder(folder) => folder.join(self.name_in_folder(number, seed)),
        };
        files::copies(&place).find(|path| std::fs::read(path).is_ok_and(|there| there == bytes))
    }

    fn name_in_folder(&self, number: usize, seed: u64) -> String {
        match self.images {
            1 => format!("sdxl-{seed}.{}", self.extension),
            _ => format!("sdxl-{seed}-{}.{}", number + 1, self.extension),
        }
    }

    /// A name that may be used: the same, or with a number, where the files that exist are to stay.
    fn free(&self, path: PathBuf) -> PathBuf {
        match self.overwrite {
            true => path,
            false => files::first_free(path),
        }
    }

    /// Writes the file of picture `number` (from 0), with `seed` in the name that is made for it
    /// in a folder, and says where it is: see [`files::save_picture`].
    ///
    /// # Errors
    /// [`Error::Unsaved`], which holds the file.
    pub fn save(&self, number: usize, seed: u64, bytes: &[u8]) -> Result<Saved> {
        if self.resuming
            && let Some(path) = self.copy_of(number, seed, bytes)
        {
            return Ok(Saved {
                path,
                warning: None,
                is_temporary: false,
            });
        }
        self.save_as(&self.path(number, seed), bytes)
    }

    /// Writes picture `number`, whose signature failed, beside its place: its name says so.
    ///
    /// # Errors
    /// As [`Destination::save`].
    pub fn save_unsigned(&self, number: usize, seed: u64, bytes: &[u8]) -> Result<Saved> {
        let place = self.path(number, seed);
        let stem = place.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("{stem}.unsigned.{}", self.extension);
        self.save_as(&self.free(place.with_file_name(name)), bytes)
    }

    fn save_as(&self, place: &Path, bytes: &[u8]) -> Result<Saved> {
        let mut saved = files::save_picture(place, bytes, self.overwrite)?;
        // Nobody chose the names in a folder: one is as good as another.
        if matches!(self.kind, Kind::Folder(_)) && !saved.is_temporary {
            saved.warning = None;
        }
        Ok(saved)
    }
}

/// Decides how pictures are written: as `format` and `quality` say, or as the name of the file does.
///
/// # Errors
/// [`Error::FormatsDisagree`], [`Error::UnknownFormat`], and a quality that the format has not.
pub fn encoding(
    output: Option<&Path>,
    format: Option<Format>,
    quality: Option<u8>,
) -> Result<Encoding> {
    let file = output.filter(|path| !path.is_dir() && path.extension().is_some());
    let named = file.and_then(Format::of_name);
    let format = match (file, named, format) {
        (Some(path), Some(named), Some(asked)) if named != asked => {
            return Err(Error::FormatsDisagree {
                path: path.to_path_buf(),
                named,
                asked,
            });
        }
        (Some(path), None, None) => {
            return Err(Error::UnknownFormat {
                path: path.to_path_buf(),
            });
        }
        _ => format.or(named).unwrap_or(Format::Png),
    };
    Ok(Encoding::new(format, quality)?)
}

/// Refuses, before the work, pictures that are larger than their format allows. `request` is a
/// resolved one.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn check_picture_sides(format: Format, request: &Request, inputs: &Inputs) -> Result<()> {
    let made = request.upscaled_size();
    // The result may be laid into the input picture.
    let input = (inputs.init_image.as_ref()).map_or(0, |p| p.width.max(p.height));
    let side = made.width.max(made.height).max(input);
    match side > format.max_side() {
        true => Err(Error::TooLarge { side, format }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_file_of_several_pictures_gets_numbers() {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("a.png");
        let several = Destination::new(Some(&output), Format::Png, 2, false).unwrap();
        for (number, name) in [(0, "a-1.png"), (1, "a-2.png")] {
            let saved = several.save(number, 7, b"x").unwrap();
            assert_eq!(saved.path, dir.path().join(name));
        }
        // One that is there already is enough.
        let again = Destination::new(Some(&output), Format::Png, 2, false).unwrap_err();
        assert!(matches!(&again, Error::Exists { path, .. } if path.ends_with("a-1.png")));
        assert_eq!(again.field(), Some("output"));
        Destination::new(Some(&output), Format::Png, 2, true).unwrap();
        Destination::new(Some(&output), Format::Png, 1, false).unwrap();
    }

    #[test]
    fn names_in_a_folder_come_from_seeds() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("new");
        Destination::check_only(Some(&folder), Format::Webp, 1, false).unwrap();
        assert!(!folder.exists());
        let one = Destination::new(Some(&folder), Format::Webp, 1, false).unwrap();
        for name in ["sdxl-7.webp", "sdxl-7 (2).webp", "sdxl-7 (3).webp"] {
            let saved = one.save(0, 7, b"x").unwrap();
            assert_eq!((saved.path, saved.warning), (folder.join(name), None));
        }
        let unsigned = one.save_unsigned(0, 8, b"x").unwrap();
        assert_eq!(unsigned.path, folder.join("sdxl-8.unsigned.webp"));
    }

    #[test]
    fn the_name_says_the_format() {
        let of = |name: &str, format| encoding(Some(Path::new(name)), format, None);
        assert_eq!(of("a.webp", None).unwrap().format(), Format::Webp);
        assert_eq!(
            of("a.img", Some(Format::Jpeg)).unwrap().format(),
            Format::Jpeg
        );
        assert_eq!(of("folder", None).unwrap().format(), Format::Png);
        let error = of("a.png", Some(Format::Jpeg)).unwrap_err();
        assert!(matches!(error, Error::FormatsDisagree { .. }));
        let error = of("a.img", None).unwrap_err();
        assert!(matches!(error, Error::UnknownFormat { .. }));
        assert!(encoding(None, None, Some(90)).unwrap_err().is_usage());
    }
}
