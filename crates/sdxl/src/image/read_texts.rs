//! The texts of picture files, whatever the file format.

use std::path::Path;

use img_parts::jpeg::{Jpeg, markers};
use img_parts::webp::{CHUNK_XMP, WebP};
use img_parts::{Bytes, ImageEXIF};

use super::format::{Format, XMP_PREFIX};
use super::read::MAX_FILE;
use super::texts::Texts;
use super::{exif, png, xmp};
use crate::error::{Error, Result};
use crate::files::read_bounded;

impl Texts {
    /// Reads the texts of a PNG, JPEG or WebP, told by its contents. `None` for a file that is
    /// none of them.
    ///
    /// # Errors
    /// A file that cannot be read, or is broken.
    pub fn read(path: &Path) -> Result<Option<Texts>> {
        let broken = |e: img_parts::Error| Error::file(path, format!("the picture is broken: {e}"));
        let mut texts = Texts::default();
        let (block, packet) = match Format::of_file(path)? {
            None => return Ok(None),
            Some(Format::Png) => return png::read_texts(path).map(Some),
            Some(Format::Jpeg) => {
                let file = Bytes::from(read_bounded(path, MAX_FILE)?);
                let jpeg = Jpeg::from_bytes(file).map_err(broken)?;
                let packet = (jpeg.segments().iter())
                    .find_map(|s| s.contents().strip_prefix(XMP_PREFIX).map(<[u8]>::to_vec));
                for comment in jpeg.segments_by_marker(markers::COM) {
                    let text = String::from_utf8_lossy(comment.contents());
                    texts.add("Comment", text.into_owned());
                }
                (jpeg.exif(), packet)
            }
            Some(Format::Webp) => {
                let file = Bytes::from(read_bounded(path, MAX_FILE)?);
                let webp = WebP::from_bytes(file).map_err(broken)?;
                let packet = webp
                    .chunk_by_id(CHUNK_XMP)
                    .and_then(|chunk| chunk.content().data().map(|data| data.to_vec()));
                (webp.exif(), packet)
            }
        };
        if let Some(block) = block {
            (exif::read(&block).into_iter()).for_each(|(name, text)| texts.add(name, text));
        }
        if let Some(packet) = packet {
            let found = xmp::read(&String::from_utf8_lossy(&packet));
            texts.recipe = found.recipe;
            texts.source_type = found.source_type;
            (found.comment.into_iter()).for_each(|text| texts.add("XMP UserComment", text));
        }
        Ok(Some(texts))
    }
}
