//! The watermark against diffusers' watermarker: pixels equal, and the same bits read.

use sdxl_testing::{golden, read_png};
use serde_json::Value;

/// Width, height and RGB bytes of a golden PNG.
fn picture(name: &str) -> (usize, usize, Vec<u8>) {
    read_png(&golden(&format!("watermark/{name}.png")))
}

fn as_text(bits: &[bool]) -> String {
    bits.iter().map(|b| if *b { '1' } else { '0' }).collect()
}

#[test]
fn pixels_and_bits_are_the_references() {
    let bits: Value =
        serde_json::from_slice(&std::fs::read(golden("watermark/bits.json")).unwrap()).unwrap();
    for name in ["square", "wide"] {
        let (width, height, before) = picture(&format!("{name}.before"));
        let (_, _, reference) = picture(&format!("{name}.after"));
        let mut values: Vec<f32> = before
            .iter()
            .map(|b| (f32::from(*b) / 127.5 - 1.0) * 1.1 + 0.003)
            .collect();
        sdxl::watermark::embed(&mut values, width, height);
        let ours = sdxl::image::to_u8(&values);
        let unlike = ours.iter().zip(&reference).filter(|(a, b)| a != b).count();
        assert_eq!(unlike, 0, "{name}: bytes unlike the reference's");
        assert_ne!(ours, before);
        for (when, rgb) in [("before", &before), ("after", &reference)] {
            let read = sdxl::watermark::detect(rgb, width, height).unwrap();
            assert_eq!(
                as_text(&read.bits),
                bits["decoded"][name][when],
                "{name} {when}"
            );
            assert_eq!(read.found(), when == "after", "{name} {when}: {read:?}");
        }
    }
}
