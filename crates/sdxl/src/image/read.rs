//! Picture files: decoded within limits, told by their contents, turned upright.

use std::io::Cursor;
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::pixels::Pixels;
use crate::error::{Error, Result};
use crate::files::read_bounded;

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
    if reader.format() == Some(::image::ImageFormat::Jpeg) && !has_end(file) {
        return Err("the picture is cut short: download it, or save it, again".into());
    }
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

impl Pixels {
    /// A picture file as red, green and blue: turned as its EXIF orientation says,
    /// transparency laid on white.
    ///
    /// # Errors
    /// The description of what is wrong with the file, without its name.
    pub fn decode_rgb(file: &[u8]) -> std::result::Result<Pixels, String> {
        let image = decode(file)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let data = if image.color().has_alpha() {
            let rgba = image.into_rgba8().into_raw();
            let (pixels, _) = rgba.as_chunks::<4>();
            pixels
                .iter()
                .flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over(c, 255, a)))
                .collect()
        } else {
            image.into_rgb8().into_raw()
        };
        Ok(Pixels::new(width, height, 3, data))
    }

    /// A picture file as grey, as a mask is read: transparency laid on black, so that a drawing
    /// of white strokes on nothing masks what was drawn.
    ///
    /// # Errors
    /// The description of what is wrong with the file, without its name.
    pub fn decode_grey(file: &[u8]) -> std::result::Result<Pixels, String> {
        let image = decode(file)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let rgba = image.into_rgba8().into_raw();
        let (pixels, _) = rgba.as_chunks::<4>();
        let data = pixels
            .iter()
            .map(|&[r, g, b, a]| over(luma([r, g, b]), 0, a))
            .collect();
        Ok(Pixels::new(width, height, 1, data))
    }
}

/// A channel over a background, rounded to nearest.
fn over(channel: u8, background: u8, alpha: u8) -> u8 {
    let (c, b, a) = (u32::from(channel), u32::from(background), u32::from(alpha));
    ((c * a + b * (255 - a) + 127) / 255) as u8
}

/// ITU-R 601 luma in 16-bit fixed point, as Pillow's conversion to grey rounds it.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    let sum = u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471;
    ((sum + 0x8000) >> 16) as u8
}

/// Whether a JPEG has the marker of its end behind the data of its pixels: decoders fill up with grey
/// what is missing, and say nothing.
fn has_end(file: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some([0xff, marker, high, low]) = file.get(at..at + 4) {
        if *marker == START_OF_SCAN {
            return file[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        }
        // A marker may be filled up in front.
        at += match marker {
            0xff => 1,
            _ => 2 + usize::from(u16::from_be_bytes([*high, *low])),
        };
    }
    false
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
    fn a_jpeg_that_is_cut_short_is_refused() {
        let image = DynamicImage::ImageRgb8(::image::RgbImage::from_fn(64, 64, |x, y| {
            [(x * 4) as u8, (y * 4) as u8, (x * y) as u8].into()
        }));
        let whole = encoded(&image, ::image::ImageFormat::Jpeg);
        let (_dir, path) = file(&whole);
        assert!(read(&path).is_ok());
        for end in [whole.len() - 2, whole.len() / 2 + 300, 700] {
            let (_dir, path) = file(&whole[..end]);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("cut short") || error.contains("broken"),
                "{error}"
            );
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

    #[test]
    fn transparency_lies_on_white_in_pictures_and_on_black_in_masks() {
        let rgba = vec![200, 0, 100, 255, 255, 255, 255, 128, 255, 255, 255, 0];
        let image = DynamicImage::ImageRgba8(image::RgbaImage::from_raw(3, 1, rgba).unwrap());
        let file = encoded(&image, image::ImageFormat::Png);
        let picture = Pixels::decode_rgb(&file).unwrap();
        assert_eq!(picture.data, [200, 0, 100, 255, 255, 255, 255, 255, 255]);
        let mask = Pixels::decode_grey(&file).unwrap();
        assert_eq!(mask.data, [71, 128, 0]);
    }

    #[test]
    fn sixteen_bits_and_grey_become_rgb() {
        let grey = image::ImageBuffer::from_raw(2, 1, vec![0u16, 65535]).unwrap();
        let file = encoded(&DynamicImage::ImageLuma16(grey), image::ImageFormat::Png);
        let picture = Pixels::decode_rgb(&file).unwrap();
        assert_eq!(picture.data, [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn turned_as_exif_says() {
        let rgb =
            image::RgbImage::from_fn(16, 8, |x, _| image::Rgb([if x < 8 { 250 } else { 5 }; 3]));
        let jpeg = encoded(&DynamicImage::ImageRgb8(rgb), image::ImageFormat::Jpeg);
        // An APP1 segment with one tag: orientation 6, a quarter turn clockwise.
        let exif: &[u8] =
            b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let mut turned = jpeg[..2].to_vec();
        turned.extend([0xff, 0xe1, 0, (exif.len() + 2) as u8]);
        turned.extend(exif);
        turned.extend(&jpeg[2..]);
        let picture = Pixels::decode_rgb(&turned).unwrap();
        assert_eq!((picture.width, picture.height), (8, 16));
        // What was left is now on top.
        assert!(picture.at(4, 1)[0] > 200 && picture.at(4, 14)[0] < 50);
    }

    #[test]
    fn what_is_no_picture_or_too_large_is_refused() {
        let text = Pixels::decode_rgb(b"hello, this is text").unwrap_err();
        assert!(text.contains("no picture"), "{text}");
        let image = DynamicImage::new_rgb8(40, 40);
        let file = encoded(&image, image::ImageFormat::Png);
        let text = Pixels::decode_rgb(&file[..file.len() / 2]).unwrap_err();
        assert!(text.contains("broken"), "{text}");
        // A header that promises 100000 x 100000 pixels.
        let mut huge = b"BM".to_vec();
        huge.extend(54u32.to_le_bytes());
        huge.extend([0; 4]);
        huge.extend(54u32.to_le_bytes());
        huge.extend(40u32.to_le_bytes());
        huge.extend(100_000i32.to_le_bytes());
        huge.extend(100_000i32.to_le_bytes());
        huge.extend([1, 0, 24, 0]);
        huge.extend([0; 24]);
        let text = Pixels::decode_rgb(&huge).unwrap_err();
        assert!(
            text.contains("too large") || text.contains("broken"),
            "{text}"
        );
    }
}
