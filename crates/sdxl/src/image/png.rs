//! PNG files that carry how they were made.
//!
//! Two texts go in: `parameters`, the form that A1111 started and that most tools read, and
//! `sdxl-recipe`, our own JSON (see [`crate::recipe`]). What kind of picture it is stands in XMP.

use std::fs::File;
use std::io::{BufReader, Seek, Write};
use std::path::Path;

use png::text_metadata::{ITXtChunk, ZTXtChunk};

use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::image::texts::Texts;
use crate::image::{exif, xmp};

/// Key of the text that other tools read.
const PARAMETERS: &str = "parameters";
/// Key of our recipe.
const RECIPE: &str = "sdxl-recipe";
/// Key of the XMP packet (XMP specification, part 3, section 1.1.5).
const XMP: &str = "XML:com.adobe.xmp";
/// Memory a decoder may use for texts: recipes are a few kilobytes.
const TEXT_LIMIT: usize = 64 << 20;

/// Writes `picture` (red, green and blue) with its texts.
pub fn write(out: impl Write, picture: &Pixels, texts: &Texts) -> Result<()> {
    let side =
        |n: usize| u32::try_from(n).map_err(|_| Error::request("width", "a PNG side has 32 bits"));
    let failed = |e: png::EncodingError| Error::machine(format!("the PNG was not written: {e}"));
    let mut encoder = png::Encoder::new(out, side(picture.width)?, side(picture.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(text) = &texts.parameters {
        // The plain chunk holds Latin-1 only; what every reader knows comes first.
        if text.chars().all(|c| (c as u32) < 256) {
            encoder
                .add_text_chunk(PARAMETERS.into(), text.clone())
                .map_err(failed)?;
        } else {
            encoder
                .add_itxt_chunk(PARAMETERS.into(), text.clone())
                .map_err(failed)?;
        }
    }
    if let Some(text) = &texts.recipe {
        encoder
            .add_itxt_chunk(RECIPE.into(), text.clone())
            .map_err(failed)?;
    }
    let packet = xmp::write(&xmp::XmpTexts {
        source_type: texts.source_type.clone(),
        ..xmp::XmpTexts::default()
    });
    if !packet.is_empty() {
        encoder.add_itxt_chunk(XMP.into(), packet).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&picture.data).map_err(failed)?;
    writer.finish().map_err(failed)
}

/// Reads the texts of the PNG file `path`, wherever in the file they are.
///
/// # Errors
/// A file that is not a PNG, or is broken.
pub fn read_texts(path: &Path) -> Result<Texts> {
    let file = File::open(path).map_err(|e| Error::read(path, &e))?;
    texts_of(BufReader::new(file)).map_err(|message| Error::file(path, message))
}

fn texts_of(input: impl std::io::BufRead + Seek) -> std::result::Result<Texts, String> {
    let explain = |e: png::DecodingError| match e {
        png::DecodingError::Format(_) => format!("this is not a usable PNG file: {e}"),
        other => format!("the PNG file is broken: {other}"),
    };
    let limits = png::Limits { bytes: TEXT_LIMIT };
    let mut reader = png::Decoder::new_with_limits(input, limits)
        .read_info()
        .map_err(explain)?;
    // Texts may stand behind the pixels too.
    let found = collect(reader.info());
    if found.parameters.is_some() && found.recipe.is_some() && found.source_type.is_some() {
        return Ok(found);
    }
    match reader.finish() {
        Ok(()) => Ok(collect(reader.info())),
        // Half a picture can still say how it was made.
        Err(_) if found != Texts::default() => Ok(found),
        Err(error) => Err(explain(error)),
    }
}

fn collect(info: &png::Info<'_>) -> Texts {
    // A small compressed text can unpack to gigabytes: bounded before it is looked at.
    let utf8 = |chunk: &ITXtChunk| {
        let mut chunk = chunk.clone();
        let fits = chunk.decompress_text_with_limit(TEXT_LIMIT).is_ok();
        (
            chunk.keyword.clone(),
            fits.then(|| chunk.get_text().ok()).flatten(),
        )
    };
    let latin1 = |chunk: &ZTXtChunk| {
        let mut chunk = chunk.clone();
        let fits = chunk.decompress_text_with_limit(TEXT_LIMIT).is_ok();
        (
            chunk.keyword.clone(),
            fits.then(|| chunk.get_text().ok()).flatten(),
        )
    };
    let mut texts = Texts::default();
    if let Some(block) = &info.exif_metadata {
        (exif::read(block).into_iter()).for_each(|(name, text)| texts.add(name, text));
    }
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .map(|c| (c.keyword.clone(), Some(c.text.clone())));
    let compressed = info.compressed_latin1_text.iter().map(latin1);
    let as_meant = |(key, text): (String, Option<String>)| (key, text.map(as_meant));
    for (key, text) in plain
        .chain(compressed)
        .map(as_meant)
        .chain(info.utf8_text.iter().map(utf8))
    {
        let Some(text) = text else {
            continue;
        };
        match key.as_str() {
            // SwarmUI's is JSON.
            PARAMETERS if !text.starts_with('{') => texts.parameters = Some(text),
            RECIPE => texts.recipe = Some(text),
            XMP => {
                let found = xmp::read(&text);
                texts.source_type = found.source_type;
                (found.comment.into_iter()).for_each(|text| texts.add("XMP UserComment", text));
            }
            key => texts.add(key, text),
        }
    }
    texts
}

/// A text of Latin-1, or the UTF-8 that some writers put in its place.
fn as_meant(text: String) -> String {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c as u32).ok()).collect();
    let utf8 = bytes
        .filter(|bytes| !bytes.is_ascii())
        .map(String::from_utf8);
    utf8.and_then(std::result::Result::ok).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn picture() -> Pixels {
        Pixels::new(3, 2, 3, (0..18).collect())
    }

    #[test]
    fn texts_and_pixels_come_back() {
        for parameters in ["a café\nSteps: 1", "猫 🐱\nSteps: 1"] {
            let texts = Texts {
                parameters: Some(parameters.into()),
                recipe: Some(r#"{"prompt":"naïve 🐱"}"#.into()),
                source_type: Some(xmp::TRAINED.into()),
                ..Texts::default()
            };
            let mut bytes = Vec::new();
            write(&mut bytes, &picture(), &texts).unwrap();
            assert_eq!(texts_of(Cursor::new(&bytes)).unwrap(), texts);
            let mut reader = png::Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(pixels, picture().data);
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let mut bytes = Vec::new();
        write(&mut bytes, &picture(), &Texts::default()).unwrap();
        assert_eq!(texts_of(Cursor::new(&bytes)).unwrap(), Texts::default());
        for end in 0..bytes.len() - 12 {
            assert!(texts_of(Cursor::new(&bytes[..end])).is_err(), "{end}");
        }
        assert!(texts_of(Cursor::new(b"GIF89a and so on")).is_err());
    }
}
