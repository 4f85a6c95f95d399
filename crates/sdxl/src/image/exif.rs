//! The EXIF block of a JPEG or WebP: `UserComment` holds the text that in a PNG stands under
//! `parameters`, as A1111 writes it and other tools read it.

use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Field, In, Reader, Tag, Value};

/// The bytes that the comment starts with when UTF-16 follows (Exif 2.32, section 4.6.5).
const UNICODE: &[u8; 8] = b"UNICODE\0";
/// The same for ASCII.
const ASCII: &[u8; 8] = b"ASCII\0\0\0";

/// A TIFF block, without the `Exif` in front of it, whose only field is the comment `text`.
///
/// # Errors
/// A text that is too long for 32-bit offsets.
pub(super) fn write(text: &str) -> Result<Vec<u8>, String> {
    let mut value = UNICODE.to_vec();
    // Big-endian whatever the block's own order, because piexif, A1111's library, is.
    value.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    let field = Field {
        tag: Tag::UserComment,
        ifd_num: In::PRIMARY,
        value: Value::Undefined(value, 0),
    };
    let mut writer = Writer::new();
    writer.push_field(&field);
    let mut out = Cursor::new(Vec::new());
    writer
        .write(&mut out, false)
        .map_err(|e| format!("the EXIF block was not written: {e}"))?;
    Ok(out.into_inner())
}

/// The comment of a TIFF block, where there is one and it can be read.
pub(super) fn read(block: &[u8]) -> Option<String> {
    let block = Reader::new().read_raw(block.to_vec()).ok()?;
    let Value::Undefined(bytes, _) = &block.get_field(Tag::UserComment, In::PRIMARY)?.value else {
        return None;
    };
    if let Some(ascii) = bytes.strip_prefix(ASCII) {
        let text = String::from_utf8_lossy(ascii);
        return Some(text.trim_end_matches('\0').to_string());
    }
    let (pairs, _) = bytes.strip_prefix(UNICODE)?.as_chunks::<2>();
    // The standard does not say which byte comes first. A mark does, or the zeros of Latin
    // letters; without either it is as we write it.
    let zeros = |at: usize| pairs.iter().filter(|pair| pair[at] == 0).count();
    let little = match pairs.first() {
        Some([0xff, 0xfe]) => true,
        Some([0xfe, 0xff]) => false,
        _ => zeros(1) > zeros(0),
    };
    let units: Vec<u16> = (pairs.iter())
        .map(|pair| match little {
            true => u16::from_le_bytes(*pair),
            false => u16::from_be_bytes(*pair),
        })
        .collect();
    let text = String::from_utf16_lossy(&units);
    Some(text.trim_start_matches('\u{feff}').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_come_back() {
        for text in ["a café\nSteps: 1", "猫 🐱", ""] {
            assert_eq!(read(&write(text).unwrap()).as_deref(), Some(text));
        }
        let block = write("ab").unwrap();
        assert_eq!(block[..4], *b"MM\0\x2a");
        assert!(block.ends_with(b"UNICODE\0\0a\0b"));
    }

    #[test]
    fn other_writers_comments_are_read_and_rubbish_is_not() {
        let mut block = write("ab").unwrap();
        let end = block.len() - 4;
        block[end..].copy_from_slice(b"a\0b\0");
        assert_eq!(read(&block).as_deref(), Some("ab"));
        block[end - 8..end].copy_from_slice(b"ASCII\0\0\0");
        block[end..].copy_from_slice(b"abc\0");
        assert_eq!(read(&block).as_deref(), Some("abc"));
        for end in 0..block.len() - 4 {
            assert_eq!(read(&block[..end]), None, "{end}");
        }
    }
}
