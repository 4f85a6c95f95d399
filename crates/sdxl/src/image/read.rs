//! Picture files: decoded within limits, told by their contents, turned upright.

use std::io::Cursor;
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::pixels::Pixels;
use crate::error::{Error, Result};
use crate::recipe::read_bounded;

/// Longest side that is read: beyond it a file is likelier broken, or a trap, than a picture.
const MAX_SIDE: u32 = 32_768;
/// Memory that decoding may take.
const MAX_BYTES: u64 = 4 << 30;
/// Most bytes a file may have.
pub(crate) const MAX_FILE: u64 = 1 << 30;

/// Reads `path`: see [`Pixels::decode_rgb`].
///
/// # Errors
/// [`Error::File`] for a file that is no picture, is broken, or is enormous.
pub fn read(path: &Path) -> Result<Pixels> {
    let bytes = read_bounded(path, MAX_FILE)?;
    Pixels::decode_rgb(&bytes).map_err(|message| Error::file(path, message))
}

/// The picture in a file's bytes, turned the way its EXIF orientation says.
pub(super) fn decode(file: &[u8]) -> std::result::Result<DynamicImage, String> {
    let unusable = |e: ::image::ImageError| explain(&e);
    let mut reader = ImageReader::new(Cursor::new(file))
        .with_guessed_format()
        .map_err(|e| format!("this picture cannot be read: {e}"))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(unusable)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // Not every decoder keeps the limits itself.
    let (width, height) = decoder.dimensions();
    limits
        .check_dimensions(width, height)
        .and_then(|()| limits.reserve(decoder.total_bytes()))
        .map_err(unusable)?;
    if width == 0 || height == 0 {
        return Err("this picture has no pixels".into());
    }
    let mut image = DynamicImage::from_decoder(decoder).map_err(unusable)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn explain(error: &::image::ImageError) -> String {
    use ::image::ImageError as E;
    match error {
        E::Unsupported(_) => {
            "this is no picture that can be read; PNG, JPEG, WebP, GIF, BMP, TIFF, QOI, PNM \
             and ICO can"
                .into()
        }
        E::Limits(_) => format!(
            "this picture is too large: sides up to {MAX_SIDE} pixels and {} GiB of memory are allowed",
            MAX_BYTES >> 30
        ),
        other => format!("the picture is broken: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("picture");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn encoded(image: &DynamicImage, format: ::image::ImageFormat) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn transparency_becomes_white() {
        let pixels = vec![200, 100, 0, 0, 200, 100, 0, 255, 200, 100, 0, 51];
        let image = DynamicImage::ImageRgba8(::image::RgbaImage::from_raw(3, 1, pixels).unwrap());
        let (_dir, path) = file(&encoded(&image, ::image::ImageFormat::Png));
        let read = read(&path).unwrap();
        assert_eq!((read.width, read.height), (3, 1));
        assert_eq!(read.data, [255, 255, 255, 200, 100, 0, 244, 224, 204]);
    }

    #[test]
    fn all_three_formats_are_known_by_their_contents() {
        let image =
            DynamicImage::ImageRgb8(::image::RgbImage::from_pixel(8, 4, [250, 10, 10].into()));
        for format in [
            ::image::ImageFormat::Png,
            ::image::ImageFormat::Jpeg,
            ::image::ImageFormat::WebP,
        ] {
            let (_dir, path) = file(&encoded(&image, format));
            let read = read(&path).unwrap();
            assert_eq!((read.width, read.height), (8, 4), "{format:?}");
            assert!(read.data[0] > 240 && read.data[1] < 20, "{format:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_by_name() {
        let broken = {
            let image = DynamicImage::new_rgb8(64, 64);
            let mut bytes = encoded(&image, ::image::ImageFormat::Png);
            bytes.truncate(60);
            bytes
        };
        // A PNG header that claims 2^30 x 2^30 pixels.
        let mut enormous = encoded(&DynamicImage::new_rgb8(1, 1), ::image::ImageFormat::Png);
        enormous[16..24].copy_from_slice(&[0x40, 0, 0, 0, 0x40, 0, 0, 0]);
        for (bytes, words) in [
            (&b"words"[..], "no picture"),
            (&broken[..], "broken"),
            (&enormous[..], ""),
        ] {
            let (_dir, path) = file(bytes);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("picture") && error.contains(words),
                "{error}"
            );
        }
    }
}
