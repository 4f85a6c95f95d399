//! A picture file with other pixels and everything else as it was: what this program does not
//! understand in it is kept.

use img_parts::jpeg::{Jpeg, JpegSegment, markers};
use img_parts::png::Png;
use img_parts::riff::RiffChunk;
use img_parts::webp::{self, WebP};
use img_parts::{Bytes, ImageEXIF, ImageICC};

use super::format::{Encoded, Encoding, Format};
use super::pixels::Pixels;
use super::texts::Texts;
use crate::error::{Error, Result};
use crate::warning::{Warning, WarningKind};

/// Chunks of a PNG that describe its pixels, which are replaced, and signatures over them.
const OF_PIXELS: [&[u8; 4]; 10] = [
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"bKGD", b"sBIT", b"hIST", b"tIME", b"caBX",
];
/// The chunk of a WebP that signs it.
const WEBP_SIGNATURE: [u8; 4] = *b"C2PA";

impl Encoding {
    /// The file of `picture` (red, green and blue) with all that `original`, a picture file, has beside
    /// its pixels: where both have one format, piece by piece; else its texts.
    ///
    /// # Errors
    /// As [`Encoding::encode`], and an original that is broken.
    pub fn encode_like(&self, picture: &Pixels, original: &[u8], texts: &Texts) -> Result<Encoded> {
        if Format::of_bytes(original) != Some(self.format()) {
            let mut encoded = self.encode(picture, texts)?;
            if let [(first, _), ..] = &texts.others[..] {
                let more = match texts.others.len() {
                    1 => String::new(),
                    all => format!(" and {} more", all - 1),
                };
                let message = format!("the text `{first}`{more} of the original is left out");
                let warning = Warning::new(WarningKind::TextLeftOut, "format", message);
                let hint = "write the format of the original to keep everything";
                encoded.warnings.push(warning.with_hint(hint));
            }
            return Ok(encoded);
        }
        let plain = self.encode(picture, &Texts::default())?.bytes.into();
        let original_bytes = original;
        let original = Bytes::copy_from_slice(original);
        let broken =
            |e: img_parts::Error| Error::machine(format!("the picture was not written again: {e}"));
        let bytes = match self.format() {
            Format::Png => png(original, plain),
            Format::Jpeg => jpeg(original, plain),
            Format::Webp => webp_file(original, plain),
        };
        let signed = |name: &[u8]| original_bytes.windows(name.len()).any(|w| w == name);
        let warnings = (signed(b"jumb") && signed(b"c2pa")).then(|| {
            let message =
                "the content credentials of the original are left out: they are for its pixels";
            Warning::new(WarningKind::TextLeftOut, "format", message)
        });
        Ok(Encoded {
            bytes: bytes.map_err(broken)?.to_vec(),
            warnings: warnings.into_iter().collect(),
        })
    }
}

fn png(original: Bytes, plain: Bytes) -> img_parts::Result<Bytes> {
    let (mut original, plain) = (Png::from_bytes(original)?, Png::from_bytes(plain)?);
    let is_data = |kind: [u8; 4]| kind == *b"IDAT";
    let before = original.chunks().iter().position(|c| is_data(c.kind()));
    let (mut ahead, mut behind) = (Vec::new(), Vec::new());
    for (at, chunk) in original.chunks_mut().drain(..).enumerate() {
        if OF_PIXELS.contains(&&chunk.kind()) {
            continue;
        }
        match before.is_some_and(|before| at < before) {
            true => ahead.push(upright_chunk(chunk)),
            false => behind.push(upright_chunk(chunk)),
        }
    }
    let mut out = plain.clone();
    out.chunks_mut().clear();
    for chunk in plain.chunks() {
        if is_data(chunk.kind()) {
            out.chunks_mut().append(&mut ahead);
        }
        if chunk.kind() == *b"IEND" {
            out.chunks_mut().append(&mut behind);
        }
        out.chunks_mut().push(chunk.clone());
    }
    Ok(out.encoder().bytes())
}

fn upright_chunk(chunk: img_parts::png::PngChunk) -> img_parts::png::PngChunk {
    match chunk.kind() == *b"eXIf" {
        true => img_parts::png::PngChunk::new(*b"eXIf", upright(chunk.contents()).into()),
        false => chunk,
    }
}

fn jpeg(original: Bytes, plain: Bytes) -> img_parts::Result<Bytes> {
    let (original, mut out) = (Jpeg::from_bytes(original)?, Jpeg::from_bytes(plain)?);
    // Segments of applications and comments; but for those that say how pixels are encoded.
    let kept = original.segments().iter().filter(|segment| {
        let marker = segment.marker();
        let of_application = (markers::APP1..=markers::APP15).contains(&marker);
        // Colours of the encoder; signatures.
        let left_out = [markers::APP14, markers::APP11].contains(&marker);
        of_application && !left_out || marker == markers::COM
    });
    let kept: Vec<JpegSegment> = kept
        .map(
            |segment| match segment.contents().strip_prefix(b"Exif\0\0") {
                Some(block) => {
                    let contents = [b"Exif\0\0", &upright(block)[..]].concat();
                    JpegSegment::new_with_contents(segment.marker(), contents.into())
                }
                None => segment.clone(),
            },
        )
        .collect();
    let place = out.segments().len().min(1);
    out.segments_mut().splice(place..place, kept);
    Ok(out.encoder().bytes())
}

fn webp_file(original: Bytes, plain: Bytes) -> img_parts::Result<Bytes> {
    let (original, mut out) = (WebP::from_bytes(original)?, WebP::from_bytes(plain)?);
    let of_pixels = [
        webp::CHUNK_VP8,
        webp::CHUNK_VP8L,
        webp::CHUNK_VP8X,
        webp::CHUNK_ALPH,
        webp::CHUNK_EXIF,
        webp::CHUNK_ICCP,
        WEBP_SIGNATURE,
    ];
    let kept = original
        .chunks()
        .iter()
        .filter(|chunk| !of_pixels.contains(&chunk.id()));
    let kept: Vec<RiffChunk> = kept.cloned().collect();
    out.chunks_mut().extend(kept);
    out.set_icc_profile(original.icc_profile());
    // Also writes the header that says what there is.
    out.set_exif(original.exif().map(|block| upright(&block).into()));
    Ok(out.encoder().bytes())
}

/// A TIFF block whose picture stands upright: it was turned when it was read.
fn upright(block: &[u8]) -> Vec<u8> {
    let mut out = block.to_vec();
    let start = if out.starts_with(b"Exif\0\0") { 6 } else { 0 };
    if let Some(at) = orientation(&out[start..]) {
        let little = out[start] == b'I';
        let one = if little {
            1u16.to_le_bytes()
        } else {
            1u16.to_be_bytes()
        };
        out[start + at..start + at + 2].copy_from_slice(&one);
    }
    out
}

/// The place of the orientation in a TIFF block, where it has one.
fn orientation(block: &[u8]) -> Option<usize> {
    let little = match block.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> {
        let bytes = block.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    };
    let long = |at: usize| -> Option<usize> {
        let bytes = block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let value = if little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        };
        usize::try_from(value).ok()
    };
    let directory = long(4)?;
    let count = usize::from(short(directory)?);
    let entries = (0..count).map(|i| directory + 2 + 12 * i);
    // A short stands in the entry itself.
    let found = entries
        .into_iter()
        .find(|at| short(*at) == Some(0x0112) && short(at + 2) == Some(3));
    found.map(|at| at + 8).filter(|at| at + 2 <= block.len())
}
