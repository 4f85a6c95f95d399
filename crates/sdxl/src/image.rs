//! Pictures: those that come in, and from the VAE's numbers to bytes.

#[cfg(feature = "c2pa")]
pub mod credentials;
mod exif;
mod format;
#[doc(hidden)]
pub mod mask;
mod pixels;
pub mod png;
mod read;
mod read_texts;
#[doc(hidden)]
pub mod resize;
mod rewrite;
mod texts;
pub mod xmp;

pub use format::{Encoding, Format};
pub use pixels::Pixels;
pub(crate) use read::MAX_FILE;
pub use read::read;
pub use texts::Texts;

/// A finished picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Red, green and blue.
    pub pixels: Pixels,
    /// The seed of the generator its noise came from.
    pub seed: u64,
    /// Which of the request's prompts it shows.
    pub prompt_index: usize,
}

/// Values of about -1 to 1 as bytes, exactly as diffusers' `VaeImageProcessor` rounds:
/// `x / 2 + 0.5`, clamped to 0 to 1, times 255, half to even.
pub fn to_u8(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::to_u8;

    #[test]
    fn bytes_are_clamped_and_rounded_half_to_even() {
        assert_eq!(to_u8(&[-3.0, -1.0, 1.0, 7.0]), [0, 0, 255, 255]);
        // 127.5 lies between an odd and an even number.
        assert_eq!(to_u8(&[0.0]), [128]);
        assert_eq!(to_u8(&[2.0 * 0.2 - 1.0]), [51]);
    }
}
