//! Pictures as files: PNG, JPEG and WebP, each with what it says about its making.
//!
//! | | `parameters` | recipe | source type |
//! |---|---|---|---|
//! | PNG | text chunk | text chunk | XMP |
//! | JPEG, WebP | EXIF `UserComment` | XMP | XMP |

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::image::ExtendedColorType;
use ::image::codecs::jpeg::JpegEncoder;
use img_parts::jpeg::{Jpeg, JpegSegment, markers};
use img_parts::riff::{RiffChunk, RiffContent};
use img_parts::webp::{CHUNK_XMP, WebP};
use img_parts::{Bytes, ImageEXIF};

use super::texts::Texts;
use super::{Pixels, exif, png, xmp};
use crate::error::{Error, Result};
use crate::named::named;
use crate::warning::{Warning, WarningKind};

/// Quality of a JPEG where none is asked for.
pub(super) const JPEG_QUALITY: u8 = 90;
/// The bytes that an XMP segment of a JPEG begins with.
pub(super) const XMP_PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// Most bytes in a segment of a JPEG.
const SEGMENT: usize = 65_533;

/// A format that pictures are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lossless.
    Png,
    /// Lossy.
    Jpeg,
    /// Lossless, or lossy where a quality is asked for.
    Webp,
}

impl Format {
    /// The format that a file's name says, by its ending.
    pub fn of_name(path: &Path) -> Option<Format> {
        path.extension()?.to_str()?.parse().ok()
    }

    /// The format that a file's first bytes say.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_file(path: &Path) -> Result<Option<Format>> {
        let mut start = Vec::new();
        let file = File::open(path).map_err(|e| Error::read(path, &e))?;
        file.take(12)
            .read_to_end(&mut start)
            .map_err(|e| Error::read(path, &e))?;
        Ok(Self::of_bytes(&start))
    }

    /// The format that a file begins with.
    pub(super) fn of_bytes(file: &[u8]) -> Option<Format> {
        if file.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Format::Png)
        } else if file.starts_with(b"\xff\xd8\xff") {
            Some(Format::Jpeg)
        } else if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
            Some(Format::Webp)
        } else {
            None
        }
    }

    /// The usual ending of a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::Webp => "webp",
        }
    }

    /// Pixels that a side can have.
    pub fn max_side(self) -> usize {
        match self {
            Format::Png => i32::MAX as usize,
            Format::Jpeg => 65_535,
            Format::Webp => 16_383,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Png => "PNG",
            Format::Jpeg => "JPEG",
            Format::Webp => "WebP",
        })
    }
}

named! { Format:
    Png, "png", "Lossless";
    Jpeg, "jpeg" or "jpg", "Lossy";
    Webp, "webp", "Lossless, or lossy where a quality is asked for";
}

/// The file format of pictures, and the quality where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    format: Format,
    quality: Option<u8>,
}

/// A picture's file, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// The warnings about what the format had no room for.
    pub warnings: Vec<Warning>,
}

impl Encoding {
    /// `quality` from 1 to 100: of a JPEG, 90 without it; a WebP is lossless
    /// without it.
    ///
    /// # Errors
    /// A quality out of range, or of a PNG.
    pub fn new(format: Format, quality: Option<u8>) -> Result<Self> {
        match quality {
            Some(quality) if !(1..=100).contains(&quality) => {
                Err(Error::request("quality", format!("{quality} given")).with_hint("use 1 to 100"))
            }
            Some(_) if format == Format::Png => {
                Err(Error::request("quality", "a PNG is lossless and has none")
                    .with_hint("use it with JPEG or WebP"))
            }
            quality => Ok(Encoding { format, quality }),
        }
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file of `picture` (red, green and blue) with its texts.
    ///
    /// # Errors
    /// A picture that is larger than the format allows.
    pub fn encode(&self, picture: &Pixels, texts: &Texts) -> Result<Encoded> {
        let max = self.format.max_side();
        if picture.width.max(picture.height) > max {
            let message = format!(
                "{}x{} is too large for a {}, whose sides have up to {max} pixels",
                picture.width, picture.height, self.format
            );
            return Err(Error::request("format", message).with_hint("write a PNG"));
        }
        match self.format {
            Format::Png => {
                let mut bytes = Vec::new();
                png::write(&mut bytes, picture, texts)?;
                Ok(Encoded {
                    bytes,
                    warnings: Vec::new(),
                })
            }
            Format::Jpeg => self.jpeg(picture, texts),
            Format::Webp => self.webp(picture, texts),
        }
    }

    fn jpeg(&self, picture: &Pixels, texts: &Texts) -> Result<Encoded> {
        let quality = self.quality.unwrap_or(JPEG_QUALITY);
        let failed =
            |e: &dyn fmt::Display| Error::machine(format!("the JPEG was not written: {e}"));
        let mut plain = Vec::new();
        let (width, height) = (picture.width as u32, picture.height as u32);
        JpegEncoder::new_with_quality(&mut plain, quality)
            .encode(&picture.data, width, height, ExtendedColorType::Rgb8)
            .map_err(|e| failed(&e))?;
        let mut jpeg = Jpeg::from_bytes(plain.into()).map_err(|e| failed(&e))?;
        let mut warnings = Vec::new();
        let no_room = |what: &str| {
            let message = format!(
                "the JPEG holds no {what}, which is longer than the 64 KiB that a JPEG has for it"
            );
            Warning::new(WarningKind::TextLeftOut, "format", message)
                .with_hint("a PNG or WebP would")
        };
        // Behind the header with which every JPEG begins: EXIF, then XMP.
        let mut packet = packet(texts);
        if XMP_PREFIX.len() + packet.len() > SEGMENT {
            warnings.push(no_room("recipe"));
            packet = xmp::write(&xmp::XmpTexts {
                source_type: texts.source_type.clone(),
                ..xmp::XmpTexts::default()
            });
        }
        let place = jpeg.segments().len().min(1);
        if !packet.is_empty() {
            let contents = [XMP_PREFIX, packet.as_bytes()].concat();
            let segment = JpegSegment::new_with_contents(markers::APP1, contents.into());
            jpeg.segments_mut().insert(place, segment);
        }
        if let Some(block) = comment(texts)? {
            let contents = [b"Exif\0\0", &block[..]].concat();
            if contents.len() > SEGMENT {
                warnings.push(no_room("parameters"));
            } else {
                let segment = JpegSegment::new_with_contents(markers::APP1, contents.into());
                jpeg.segments_mut().insert(place, segment);
            }
        }
        Ok(Encoded {
            bytes: jpeg.encoder().bytes().to_vec(),
            warnings,
        })
    }

    fn webp(&self, picture: &Pixels, texts: &Texts) -> Result<Encoded> {
        let failed =
            |e: &dyn fmt::Debug| Error::machine(format!("the WebP was not written: {e:?}"));
        let (width, height) = (picture.width as u32, picture.height as u32);
        let encoder = webp::Encoder::from_rgb(&picture.data, width, height);
        // Of a lossless one the number is how long to look for a smaller file; libwebp's default.
        let plain = match self.quality {
            None => encoder.encode_simple(true, 75.0),
            Some(quality) => encoder.encode_simple(false, f32::from(quality)),
        };
        let plain = plain.map_err(|e| failed(&e))?;
        let file = Bytes::copy_from_slice(&plain);
        let mut webp = WebP::from_bytes(file).map_err(|e| failed(&e))?;
        let packet = packet(texts);
        if !packet.is_empty() {
            let content = RiffContent::Data(packet.into());
            webp.chunks_mut().push(RiffChunk::new(CHUNK_XMP, content));
        }
        // Also writes the header that says which of the two there are.
        webp.set_exif(comment(texts)?.map(Bytes::from));
        Ok(Encoded {
            bytes: webp.encoder().bytes().to_vec(),
            warnings: Vec::new(),
        })
    }
}

/// The XMP packet of a file without texts of its own.
fn packet(texts: &Texts) -> String {
    // Without the line breaks and indents that people read in a PNG.
    let compact = |text: &String| {
        serde_json::from_str::<serde_json::Value>(text)
            .map_or_else(|_| text.clone(), |recipe| recipe.to_string())
    };
    xmp::write(&xmp::XmpTexts {
        source_type: texts.source_type.clone(),
        recipe: texts.recipe.as_ref().map(compact),
        ..xmp::XmpTexts::default()
    })
}

/// The EXIF block.
fn comment(texts: &Texts) -> Result<Option<Vec<u8>>> {
    let written = texts.parameters.as_deref().map(exif::write);
    written.transpose().map_err(Error::machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Pixels {
        let value = |i: usize| (i * i / 7 % 256) as u8;
        Pixels::new(37, 21, 3, (0..37 * 21 * 3).map(value).collect())
    }

    fn texts() -> Texts {
        Texts {
            parameters: Some("a café, 猫 🐱\nSteps: 1".into()),
            recipe: Some(r#"{"prompt":"naïve <b> & 🐱"}"#.into()),
            source_type: Some(xmp::TRAINED.into()),
            ..Texts::default()
        }
    }

    fn saved(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("picture");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn texts_and_pixels_come_back() {
        for (format, quality) in [
            (Format::Png, None),
            (Format::Webp, None),
            (Format::Webp, Some(60)),
            (Format::Jpeg, None),
            (Format::Jpeg, Some(100)),
        ] {
            let encoding = Encoding::new(format, quality).unwrap();
            for texts in [
                texts(),
                Texts::default(),
                Texts {
                    parameters: None,
                    ..texts()
                },
                Texts {
                    recipe: None,
                    source_type: None,
                    ..texts()
                },
            ] {
                let file = encoding.encode(&picture(), &texts).unwrap();
                assert_eq!(file.warnings, Vec::<Warning>::new());
                let (_dir, path) = saved(&file.bytes);
                assert_eq!(Format::of_file(&path).unwrap(), Some(format));
                assert_eq!(Texts::read(&path).unwrap(), Some(texts), "{encoding:?}");
                let read = Pixels::decode_rgb(&file.bytes).unwrap();
                assert_eq!((read.width, read.height), (37, 21));
                let lossless = format == Format::Png || quality.is_none() && format == Format::Webp;
                assert_eq!(read.data == picture().data, lossless, "{encoding:?}");
            }
        }
    }

    #[test]
    fn less_quality_is_less_to_store() {
        for format in [Format::Jpeg, Format::Webp] {
            let size = |quality| {
                let encoding = Encoding::new(format, Some(quality)).unwrap();
                let file = encoding.encode(&picture(), &Texts::default()).unwrap();
                file.bytes.len()
            };
            assert!(size(10) < size(95), "{format}");
        }
        assert!(Encoding::new(Format::Jpeg, Some(0)).is_err());
        assert!(Encoding::new(Format::Jpeg, Some(101)).is_err());
        assert!(Encoding::new(Format::Png, Some(90)).is_err());
    }

    #[test]
    fn what_a_jpeg_has_no_room_for_is_said() {
        let long = Texts {
            recipe: Some(format!("\"{}\"", "a".repeat(70_000))),
            parameters: Some("b".repeat(40_000)),
            ..texts()
        };
        let encoding = Encoding::new(Format::Jpeg, None).unwrap();
        let file = encoding.encode(&picture(), &long).unwrap();
        assert_eq!(file.warnings.len(), 2, "{:?}", file.warnings);
        let (_dir, path) = saved(&file.bytes);
        let read = Texts::read(&path).unwrap().unwrap();
        assert_eq!(read.source_type, long.source_type);
        assert_eq!((read.recipe, read.parameters), (None, None));
        let encoding = Encoding::new(Format::Webp, None).unwrap();
        let (_dir, path) = saved(&encoding.encode(&picture(), &long).unwrap().bytes);
        assert_eq!(Texts::read(&path).unwrap(), Some(long));
    }

    #[test]
    fn sides_that_a_format_cannot_have_are_refused() {
        let long = Pixels::new(16_384, 1, 3, vec![0; 3 * 16_384]);
        let encoding = Encoding::new(Format::Webp, None).unwrap();
        let error = encoding.encode(&long, &texts()).unwrap_err().to_string();
        assert!(error.contains("16383"), "{error}");
    }

    #[test]
    fn broken_files_are_errors_or_say_nothing() {
        for format in [Format::Jpeg, Format::Webp] {
            let encoding = Encoding::new(format, None).unwrap();
            let bytes = encoding.encode(&picture(), &texts()).unwrap().bytes;
            for end in (0..bytes.len()).step_by(7) {
                let (_dir, path) = saved(&bytes[..end]);
                // No panic, and nothing made up.
                if let Ok(Some(read)) = Texts::read(&path) {
                    assert!(read.recipe.is_none_or(|r| Some(r) == texts().recipe));
                }
            }
        }
    }
}
