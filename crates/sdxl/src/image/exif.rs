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

/// Tags whose values are texts, with their names: those that programs write how a picture was made in.
const TEXTS: [(u16, &str); 7] = [
    (0x9286, "UserComment"),
    (0x010e, "ImageDescription"),
    (0x0131, "Software"),
    (0x927c, "MakerNote"),
    (0x9c9b, "XPTitle"),
    (0x9c9c, "XPComment"),
    (0x9c9e, "XPKeywords"),
];

/// The texts of a TIFF block with their tags' names, as far as the block can be read: piexif leaves
/// out the pointer to a next directory, and others write tags into the wrong directory, or with
/// another type.
pub(super) fn read(block: &[u8]) -> Vec<(&'static str, String)> {
    // Some writers put the mark of a JPEG's segment into other formats too.
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let mut reader = Reader::new();
    reader.continue_on_error(true);
    let read = (reader.read_raw(block.to_vec())).or_else(|e| e.distill_partial_result(|_| ()));
    let Ok(block) = read else {
        return Vec::new();
    };
    let mut texts = Vec::new();
    for (number, name) in TEXTS {
        let fields = block.fields().filter(|field| field.tag.number() == number);
        for field in fields.filter(|field| field.ifd_num == In::PRIMARY) {
            let bytes = match &field.value {
                Value::Undefined(bytes, _) | Value::Byte(bytes) => bytes.clone(),
                Value::Ascii(parts) => parts.join(&0),
                _ => continue,
            };
            let text = match name.starts_with("XP") {
                true => utf16(&bytes, Some(true)),
                false => comment(&bytes),
            };
            // What a camera notes is no text.
            let is_text = !text.contains('\u{fffd}') || name == "UserComment";
            if is_text && !text.is_empty() {
                texts.push((name, text));
            }
        }
    }
    texts
}

/// The text of a comment: the standard's eight letters say how it is encoded; some writers leave them
/// out, or write UTF-8 behind `UNICODE`.
fn comment(bytes: &[u8]) -> String {
    let marks: [&[u8; 8]; 4] = [UNICODE, ASCII, b"JIS\0\0\0\0\0", &[0; 8]];
    let mark = marks.into_iter().find(|mark| bytes.starts_with(*mark));
    let rest = &bytes[mark.map_or(0, |mark| mark.len())..];
    let end = rest
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    // UTF-16 has a zero beside every Latin letter, UTF-8 has none.
    let zeros = rest[..end].contains(&0);
    match std::str::from_utf8(&rest[..end]) {
        Ok(text) if !zeros => text.to_string(),
        _ if mark == Some(ASCII) => String::from_utf8_lossy(&rest[..end]).into_owned(),
        _ if mark == Some(UNICODE) || zeros => utf16(rest, None),
        _ => String::from_utf8_lossy(&rest[..end]).into_owned(),
    }
}

/// Decodes UTF-16, little-endian or not; `None`: told by its bytes.
fn utf16(bytes: &[u8], little: Option<bool>) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    // The standard does not say which byte comes first. A mark does, or the zeros of Latin
    // letters; without either it is as we write it.
    let zeros = |at: usize| pairs.iter().filter(|pair| pair[at] == 0).count();
    let little = match pairs.first() {
        Some([0xff, 0xfe]) => true,
        Some([0xfe, 0xff]) => false,
        _ => little.unwrap_or_else(|| zeros(1) > zeros(0)),
    };
    let units: Vec<u16> = (pairs.iter())
        .map(|pair| match little {
            true => u16::from_le_bytes(*pair),
            false => u16::from_be_bytes(*pair),
        })
        .collect();
    let text = String::from_utf16_lossy(&units);
    text.trim_matches(['\u{feff}', '\0']).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The comment of a block, and whether it has no other text.
    fn only(block: &[u8]) -> Option<String> {
        match &read(block)[..] {
            [("UserComment", text)] => Some(text.clone()),
            _ => None,
        }
    }

    #[test]
    fn comments_come_back() {
        for text in ["a café\nSteps: 1", "猫 🐱", "a"] {
            assert_eq!(only(&write(text).unwrap()).as_deref(), Some(text));
        }
        assert!(read(&write("").unwrap()).is_empty());
        let block = write("ab").unwrap();
        assert_eq!(block[..4], *b"MM\0\x2a");
        assert!(block.ends_with(b"UNICODE\0\0a\0b"));
    }

    #[test]
    fn other_writers_comments_are_read_and_rubbish_is_not() {
        let mut block = write("ab").unwrap();
        let end = block.len() - 4;
        block[end..].copy_from_slice(b"a\0b\0");
        assert_eq!(only(&block).as_deref(), Some("ab"));
        block[end - 8..end].copy_from_slice(b"ASCII\0\0\0");
        block[end..].copy_from_slice(b"abc\0");
        assert_eq!(only(&block).as_deref(), Some("abc"));
        for end in 0..block.len() - 4 {
            assert_eq!(only(&block[..end]), None, "{end}");
        }
    }

    #[test]
    fn comments_say_how_they_are_encoded_or_do_not() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let text = "一只 a fox";
        let cases: [(&[u8], Vec<u8>); 6] = [
            (b"", text.as_bytes().to_vec()),
            (b"UNICODE\0", text.as_bytes().to_vec()),
            (b"\0\0\0\0\0\0\0\0", text.as_bytes().to_vec()),
            (b"UNICODE\0", utf16(text)),
            (b"UNICODE\0\xff\xfe", utf16(text)),
            (b"", utf16(text)),
        ];
        for (mark, body) in cases {
            assert_eq!(comment(&[mark, &body].concat()), text, "{mark:?}");
        }
        assert_eq!(comment(b"ASCII\0\0\0caf\xc3\xa9\0\0"), "café");
    }
}
