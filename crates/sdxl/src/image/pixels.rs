//! Pictures that come in: decoded within limits, upright, without transparency.

use super::read::decode;

/// A picture in memory, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 3 for red, green, blue; 1 for grey.
    pub channels: usize,
    /// The values, row by row from the top.
    pub data: Vec<u8>,
}

impl Pixels {
    /// A picture of values that are there already.
    ///
    /// # Panics
    /// If `data` does not have `width * height * channels` values.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Self {
        assert_eq!(
            width * height * channels,
            data.len(),
            "a picture of {width}x{height}"
        );
        Pixels {
            width,
            height,
            channels,
            data,
        }
    }

    /// A picture file as red, green and blue: turned as its EXIF orientation says,
    /// transparency laid on white.
    ///
    /// # Errors
    /// The description of what is wrong with the file, without its name.
    pub fn decode_rgb(file: &[u8]) -> Result<Pixels, String> {
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
    pub fn decode_grey(file: &[u8]) -> Result<Pixels, String> {
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

    /// The values of the pixel in column `x` and row `y`.
    pub fn at(&self, x: usize, y: usize) -> &[u8] {
        let start = (y * self.width + x) * self.channels;
        &self.data[start..start + self.channels]
    }

    /// The rectangle of `width` x `height` pixels from column `left` and row `top`.
    ///
    /// # Panics
    /// If it reaches beyond the picture.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Pixels {
        let mut data = Vec::with_capacity(width * height * self.channels);
        for y in top..top + height {
            let start = (y * self.width + left) * self.channels;
            data.extend_from_slice(&self.data[start..start + width * self.channels]);
        }
        Pixels::new(width, height, self.channels, data)
    }

    /// The values as the VAE takes them: -1 to 1.
    pub fn to_signed(&self) -> Vec<f32> {
        (self.data.iter())
            .map(|v| 2.0 * (f32::from(*v) / 255.0) - 1.0)
            .collect()
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::DynamicImage;

    use super::*;

    fn encoded(image: &DynamicImage, format: image::ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
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
