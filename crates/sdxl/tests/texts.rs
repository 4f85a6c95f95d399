//! Texts that other programs leave in pictures: found wherever they stand, however they are encoded.

use std::fs;
use std::path::PathBuf;

use img_parts::jpeg::{Jpeg, JpegSegment, markers};
use img_parts::png::{Png, PngChunk};
use img_parts::riff::{RiffChunk, RiffContent};
use img_parts::webp::WebP;
use img_parts::{Bytes, ImageEXIF};
use sdxl::Named;
use sdxl::image::{Encoding, Format, Pixels, Texts};
use tempfile::TempDir;

const PARAMETERS: &str = "一只 a red fox, café\nNegative prompt: blurry\nSteps: 20, Seed: 123";

/// A picture without any text, as bytes.
fn plain(format: Format) -> Bytes {
    let picture = Pixels::new(8, 8, 3, vec![90; 192]);
    let encoding = Encoding::new(format, None).unwrap();
    encoding
        .encode(&picture, &Texts::default())
        .unwrap()
        .bytes
        .into()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(TempDir::new().unwrap())
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.0.path().join("picture");
        fs::write(&path, content).unwrap();
        path
    }

    fn read(&self, content: &[u8]) -> Texts {
        Texts::read(&self.file(content)).unwrap().unwrap()
    }

    /// The texts of a PNG with these chunks.
    fn png(&self, chunks: &[([u8; 4], Vec<u8>)]) -> Texts {
        let mut png = Png::from_bytes(plain(Format::Png)).unwrap();
        for (kind, content) in chunks {
            let chunk = PngChunk::new(*kind, Bytes::from(content.clone()));
            png.chunks_mut().insert(1, chunk);
        }
        self.read(&png.encoder().bytes())
    }

    /// The texts of a JPEG with this EXIF block.
    fn jpeg(&self, block: Vec<u8>) -> Texts {
        let mut jpeg = Jpeg::from_bytes(plain(Format::Jpeg)).unwrap();
        jpeg.set_exif(Some(block.into()));
        self.read(&jpeg.encoder().bytes())
    }
}

fn text_chunk(key: &str, text: &[u8]) -> ([u8; 4], Vec<u8>) {
    (*b"tEXt", [key.as_bytes(), b"\0", text].concat())
}

/// A TIFF block, big-endian: tags with type and value, in the first directory or in EXIF's.
/// `next`: whether the directory ends with the pointer that piexif leaves out.
fn tiff(tags: &[(u16, u16, &[u8])], in_exif: bool, next: bool) -> Vec<u8> {
    let mut out = b"MM\0\x2a\0\0\0\x08".to_vec();
    if in_exif {
        out.extend(1u16.to_be_bytes());
        out.extend([&0x8769u16.to_be_bytes()[..], &4u16.to_be_bytes()].concat());
        out.extend([1u32.to_be_bytes(), 26u32.to_be_bytes()].concat());
        out.extend([0; 4]);
    }
    out.extend((tags.len() as u16).to_be_bytes());
    let directory = out.len() + 12 * tags.len() + if next { 4 } else { 0 };
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    for (tag, kind, value) in tags {
        assert!(value.len() > 4);
        entries.extend([tag.to_be_bytes(), kind.to_be_bytes()].concat());
        entries.extend((value.len() as u32).to_be_bytes());
        entries.extend(((directory + values.len()) as u32).to_be_bytes());
        values.extend_from_slice(value);
    }
    out.extend(entries);
    if next {
        out.extend([0; 4]);
    }
    out.extend(values);
    out
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

#[test]
fn texts_of_other_tools_are_shown_under_their_names() {
    let folder = Folder::new();
    let comfy = folder.png(&[
        text_chunk("prompt", br#"{"3": {"class_type": "KSampler"}}"#),
        text_chunk("workflow", br#"{"nodes": []}"#),
    ]);
    assert_eq!(comfy.tool(), Some("ComfyUI"));
    assert_eq!((comfy.others.len(), &comfy.parameters), (2, &None));
    let invoke = [
        b"invokeai_metadata\0\0\0\0\0".to_vec(),
        br#"{"seed": 5}"#.to_vec(),
    ]
    .concat();
    let invoke = folder.png(&[(*b"iTXt", invoke)]);
    assert_eq!(invoke.tool(), Some("InvokeAI"));
    assert_eq!(
        invoke.others,
        [("invokeai_metadata".into(), "{\"seed\": 5}".into())]
    );
    let novel = folder.png(&[
        text_chunk("Software", b"NovelAI"),
        text_chunk("Description", b"1girl"),
        text_chunk("Comment", br#"{"steps": 28}"#),
    ]);
    assert_eq!((novel.tool(), novel.others.len()), (Some("NovelAI"), 3));
    let fooocus = folder.jpeg(tiff(
        &[
            (0x0131, 2, b"Fooocus v2.5.5\0"),
            (0x927c, 2, b"fooocus\0"),
            (0x9286, 2, b"{\"prompt\": \"a red fox\"}\0"),
        ],
        false,
        true,
    ));
    assert_eq!((fooocus.tool(), fooocus.others.len()), (Some("Fooocus"), 3));
    let swarm = folder.png(&[text_chunk("parameters", br#"{"sui_image_params": {}}"#)]);
    assert_eq!((swarm.tool(), &swarm.parameters), (Some("SwarmUI"), &None));
}

#[test]
fn parameters_are_read_however_they_are_written() {
    let folder = Folder::new();
    let wanted = |texts: Texts| assert_eq!(texts.parameters.as_deref(), Some(PARAMETERS));
    // UTF-8 in a chunk that has Latin-1, and real Latin-1.
    wanted(folder.png(&[text_chunk("parameters", PARAMETERS.as_bytes())]));
    let latin = folder.png(&[text_chunk("parameters", b"caf\xe9\nSteps: 1")]);
    assert_eq!(latin.parameters.as_deref(), Some("café\nSteps: 1"));
    // EXIF, in a JPEG and in a PNG: with the mark and without, with the pointer and without.
    let marked = [&b"UNICODE\0"[..], &utf16(PARAMETERS)].concat();
    let mixed = [&b"UNICODE\0"[..], PARAMETERS.as_bytes()].concat();
    for comment in [&marked[..], &mixed, PARAMETERS.as_bytes()] {
        for next in [true, false] {
            let block = tiff(&[(0x9286, 7, comment)], true, next);
            wanted(folder.jpeg(block.clone()));
            wanted(folder.png(&[(*b"eXIf", block)]));
        }
        // Of another type, in the wrong directory.
        wanted(folder.jpeg(tiff(&[(0x9286, 2, comment)], false, true)));
    }
    // A JPEG's comment.
    let mut jpeg = Jpeg::from_bytes(plain(Format::Jpeg)).unwrap();
    let comment = Bytes::from_static(PARAMETERS.as_bytes());
    jpeg.segments_mut()
        .insert(1, JpegSegment::new_with_contents(markers::COM, comment));
    wanted(folder.read(&jpeg.encoder().bytes()));
}

#[test]
fn a_picture_without_texts_says_nothing() {
    let folder = Folder::new();
    for format in Format::ALL {
        let texts = folder.read(&plain(*format));
        assert_eq!((texts.tool(), texts), (None, Texts::default()));
    }
}

/// An EXIF block that says how the picture is turned, and something that nobody here knows.
fn turned() -> Vec<u8> {
    let mut block = b"II\x2a\0\x08\0\0\0\x02\0".to_vec();
    block.extend(b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0");
    block.extend(b"\x34\x12\x03\0\x01\0\0\0\x2a\0\0\0");
    block.extend([0; 4]);
    block
}

#[test]
fn a_picture_written_again_keeps_what_is_not_understood() {
    let folder = Folder::new();
    let other = Pixels::new(8, 8, 3, (0..192).collect());
    let upright = turned()
        .iter()
        .map(|b| if *b == 6 { 1 } else { *b })
        .collect::<Vec<u8>>();
    // PNG: chunks before and behind the pixels, in their order.
    let mut png = Png::from_bytes(plain(Format::Png)).unwrap();
    let chunk =
        |kind: &[u8; 4], content: &[u8]| PngChunk::new(*kind, Bytes::copy_from_slice(content));
    let at = png.chunks().len() - 1;
    png.chunks_mut()
        .insert(at, chunk(b"tEXt", b"Comment\0behind"));
    png.chunks_mut().insert(1, chunk(b"eXIf", &turned()));
    png.chunks_mut().insert(1, chunk(b"prIv", b"whatever"));
    png.chunks_mut().insert(1, chunk(b"caBX", b"jumb c2pa"));
    let original = png.encoder().bytes();
    let texts = folder.read(&original);
    let encoding = Encoding::new(Format::Png, None).unwrap();
    let written = encoding.encode_like(&other, &original, &texts).unwrap();
    let [warning] = &written.warnings[..] else {
        panic!("{:?}", written.warnings);
    };
    assert!(warning.message.contains("content credentials"), "{warning}");
    let again = Png::from_bytes(written.bytes.clone().into()).unwrap();
    let kinds: Vec<[u8; 4]> = again.chunks().iter().map(PngChunk::kind).collect();
    assert_eq!(
        kinds,
        [*b"IHDR", *b"prIv", *b"eXIf", *b"IDAT", *b"tEXt", *b"IEND"]
    );
    assert_eq!(again.chunks()[2].contents(), &upright);
    assert_eq!(
        sdxl::image::read(&folder.file(&written.bytes)).unwrap(),
        other
    );
    // JPEG: applications' segments and comments, not the colours of another encoder.
    let mut jpeg = Jpeg::from_bytes(plain(Format::Jpeg)).unwrap();
    let exif = [b"Exif\0\0", &turned()[..]].concat();
    for (marker, content) in [
        (markers::APP14, &b"Adobe\0d\0\0\0\0\0\x01"[..]),
        (markers::APP13, b"Photoshop"),
        (markers::COM, b"a comment"),
        (markers::APP1, &exif),
    ] {
        let segment = JpegSegment::new_with_contents(marker, Bytes::copy_from_slice(content));
        jpeg.segments_mut().insert(1, segment);
    }
    let original = jpeg.encoder().bytes();
    let encoding = Encoding::new(Format::Jpeg, Some(100)).unwrap();
    let written = encoding
        .encode_like(&other, &original, &folder.read(&original))
        .unwrap();
    assert!(written.warnings.is_empty());
    let again = Jpeg::from_bytes(written.bytes.into()).unwrap();
    let kept: Vec<(u8, &[u8])> = (again.segments()[1..4].iter())
        .map(|segment| (segment.marker(), &segment.contents()[..]))
        .collect();
    let exif = [b"Exif\0\0", &upright[..]].concat();
    assert_eq!(
        kept,
        [
            (markers::APP1, &exif[..]),
            (markers::COM, b"a comment"),
            (markers::APP13, b"Photoshop"),
        ]
    );
    // WebP, and another format, which has no place for them.
    let mut webp = WebP::from_bytes(plain(Format::Webp)).unwrap();
    webp.set_exif(Some(turned().into()));
    let chunk = RiffChunk::new(*b"prIv", RiffContent::Data(Bytes::from_static(b"whatever")));
    webp.chunks_mut().push(chunk);
    let original = webp.encoder().bytes();
    let encoding = Encoding::new(Format::Webp, None).unwrap();
    let written = encoding
        .encode_like(&other, &original, &folder.read(&original))
        .unwrap();
    let again = WebP::from_bytes(written.bytes.clone().into()).unwrap();
    assert_eq!(again.exif().unwrap(), upright);
    assert!(again.chunk_by_id(*b"prIv").is_some());
    assert_eq!(
        sdxl::image::read(&folder.file(&written.bytes)).unwrap(),
        other
    );
    let texts = folder.png(&[text_chunk("Title", b"a"), text_chunk("Author", b"b")]);
    let (original, encoding) = (
        plain(Format::Png),
        Encoding::new(Format::Jpeg, None).unwrap(),
    );
    let written = encoding.encode_like(&other, &original, &texts).unwrap();
    assert!(
        written.warnings[0]
            .message
            .contains("and 1 more of the original is left out")
    );
}
