//! Pictures from files, as plain RGB bytes.

use std::path::Path;

use ::image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::error::{Error, Result};

/// Longest side that is read: beyond it a file is likelier broken, or a trap, than a picture.
const MAX_SIDE: u32 = 32_768;
/// Memory that decoding may take.
const MAX_BYTES: u64 = 4 << 30;

/// A picture from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue, row by row from the top.
    pub rgb: Vec<u8>,
}

/// Reads `path`: PNG, JPEG or WebP, told by its contents. Turned the way its EXIF
/// orientation says; what is transparent becomes white.
///
/// # Errors
/// [`Error::File`] for a file that is none of these, is broken, or is enormous.
pub fn read(path: &Path) -> Result<RgbImage> {
    let unusable = |e: ::image::ImageError| Error::file(path, explain(&e));
    let mut reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| Error::read(path, &e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unusable)?;
    let orientation = decoder.orientation().map_err(unusable)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(unusable)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let rgb = if image.color().has_alpha() {
        let over_white = |c: u8, a: u8| {
            let (c, a) = (u32::from(c), u32::from(a));
            ((c * a + 255 * (255 - a) + 127) / 255) as u8
        };
        let pixels = image.into_rgba8().into_raw();
        (pixels.as_chunks::<4>().0.iter())
            .flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over_white(c, a)))
            .collect()
    } else {
        image.into_rgb8().into_raw()
    };
    Ok(RgbImage { width, height, rgb })
}

fn explain(error: &::image::ImageError) -> String {
    use ::image::ImageError as E;
    match error {
        E::Unsupported(_) => "this is no picture that can be read; PNG, JPEG and WebP can".into(),
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
        assert_eq!(read.rgb, [255, 255, 255, 200, 100, 0, 244, 224, 204]);
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
            assert!(read.rgb[0] > 240 && read.rgb[1] < 20, "{format:?}");
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
