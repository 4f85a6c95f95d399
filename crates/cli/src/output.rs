//! Where pictures go: names, checks before the run, and writing without overwriting.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sdxl::image::{Encoding, Format};
use tempfile::NamedTempFile;

use crate::usage;

/// Where the files of a run will be, decided before anything heavy.
pub struct Destination {
    kind: Kind,
    extension: String,
    overwrite: bool,
}

enum Kind {
    /// A file; with several pictures, its name gets numbers.
    File(PathBuf),
    /// A folder, in which names are made from seeds.
    Folder(PathBuf),
}

impl Destination {
    /// Checks that `images` pictures can be written to `output` (default: this folder), whose
    /// names end as `format` says where they do not say so themselves. A folder that is not there is
    /// made, if `make` says so.
    pub fn new(
        output: Option<&Path>,
        format: Format,
        images: usize,
        overwrite: bool,
        make: bool,
    ) -> anyhow::Result<Self> {
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
        let destination = Destination {
            kind,
            extension,
            overwrite,
        };
        match &destination.kind {
            Kind::Folder(folder) if !make && !folder.exists() => {}
            Kind::Folder(folder) => {
                std::fs::create_dir_all(folder).map_err(|e| {
                    usage(format!(
                        "--output {}: no such folder, and it cannot be made: {e}",
                        folder.display()
                    ))
                })?;
                writable(folder)?;
            }
            Kind::File(path) => {
                check_file(path, overwrite || images > 1)?;
                for i in 0..images {
                    check_file(&destination.path(i, images, 0), overwrite)?;
                }
            }
        }
        Ok(destination)
    }

    /// The path of picture `index` of `images`.
    fn path(&self, index: usize, images: usize, seed: u64) -> PathBuf {
        match &self.kind {
            Kind::File(path) if images == 1 => path.clone(),
            Kind::File(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                path.with_file_name(format!("{stem}-{}.{}", index + 1, self.extension))
            }
            Kind::Folder(folder) => {
                let stem = if images == 1 {
                    format!("sdxl-{seed}")
                } else {
                    format!("sdxl-{seed}-{}", index + 1)
                };
                let mut path = folder.join(format!("{stem}.{}", self.extension));
                let mut copy = 2;
                while path.exists() && !self.overwrite {
                    path = folder.join(format!("{stem} ({copy}).{}", self.extension));
                    copy += 1;
                }
                path
            }
        }
    }

    /// Writes picture `index` and says where.
    pub fn write(
        &self,
        index: usize,
        images: usize,
        seed: u64,
        bytes: &[u8],
    ) -> anyhow::Result<PathBuf> {
        let path = self.path(index, images, seed);
        write_file(&path, bytes, self.overwrite)?;
        Ok(path)
    }

    /// Writes picture `index`, whose signature failed, beside its place: its name says so.
    pub fn write_unsigned(
        &self,
        index: usize,
        images: usize,
        seed: u64,
        bytes: &[u8],
    ) -> anyhow::Result<PathBuf> {
        let place = self.path(index, images, seed);
        let stem = place.file_stem().unwrap_or_default().to_string_lossy();
        let name = |copy: &str| format!("{stem}.unsigned{copy}.{}", self.extension);
        let mut path = place.with_file_name(name(""));
        let mut copy = 2;
        while path.exists() && !self.overwrite {
            path = place.with_file_name(name(&format!(" ({copy})")));
            copy += 1;
        }
        write_file(&path, bytes, self.overwrite)?;
        Ok(path)
    }
}

/// How pictures are written: as `format` and `quality` say, or as the name of the file does.
pub fn encoding(
    output: Option<&Path>,
    format: Option<Format>,
    quality: Option<u8>,
) -> anyhow::Result<Encoding> {
    let file = output.filter(|path| !path.is_dir() && path.extension().is_some());
    let named = file.and_then(Format::of_name);
    let format = match (file, named, format) {
        (Some(path), Some(named), Some(format)) if named != format => {
            return Err(usage(format!(
                "--output {}: its name says {named} and --format says {format}",
                path.display()
            )));
        }
        (Some(path), None, None) => {
            return Err(usage(format!(
                "--output {}: pictures are written as PNG, JPEG or WebP; name the file *.png, \
                 *.jpg or *.webp, say which with --format, or give a folder",
                path.display()
            )));
        }
        _ => format.or(named).unwrap_or(Format::Png),
    };
    Ok(Encoding::new(format, quality)?)
}

/// Whether a file's name says that it is of this kind.
pub fn ends_in(path: &Path, extension: &str) -> bool {
    (path.extension()).is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// Refuses a file that exists or whose folder cannot be written to.
pub fn check_file(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    if path.is_dir() {
        return Err(usage(format!("{}: this is a folder", path.display())));
    }
    if path.exists() && !overwrite {
        return Err(usage(format!(
            "{}: this file exists and is left alone; add --overwrite to replace it",
            path.display()
        )));
    }
    writable(&folder_of(path))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn writable(folder: &Path) -> anyhow::Result<()> {
    NamedTempFile::new_in(folder).map(drop).map_err(|e| {
        usage(format!(
            "{}: it cannot be written to: {e}",
            folder.display()
        ))
    })
}

/// Writes a whole file or nothing: beside its place first, then moved there.
pub fn write_file(path: &Path, bytes: &[u8], overwrite: bool) -> anyhow::Result<()> {
    let said = || format!("{} was not written", path.display());
    let mut builder = tempfile::Builder::new();
    // Temporary files are private; pictures have the rights that the umask gives.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder_of(path)).with_context(said)?;
    file.write_all(bytes).with_context(said)?;
    if overwrite {
        file.persist(path).with_context(said)?;
    } else {
        file.persist_noclobber(path).with_context(said)?;
    }
    Ok(())
}
