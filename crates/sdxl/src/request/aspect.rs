//! Aspect ratios: the sizes SDXL was trained at, and the nearest of them to a ratio.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Size;
use crate::warning::{Warning, WarningKind};

/// Heights and widths of the training buckets (Podell et al. 2023, appendix I), from the widest
/// to the tallest. The table is not symmetric: there is 704 x 1344 and no 1344 x 704.
const TABLE: [[usize; 2]; 40] = [
    [512, 2048],
    [512, 1984],
    [512, 1920],
    [512, 1856],
    [576, 1792],
    [576, 1728],
    [576, 1664],
    [640, 1600],
    [640, 1536],
    [704, 1472],
    [704, 1408],
    [704, 1344],
    [768, 1344],
    [768, 1280],
    [832, 1216],
    [832, 1152],
    [896, 1152],
    [896, 1088],
    [960, 1088],
    [960, 1024],
    [1024, 1024],
    [1024, 960],
    [1088, 960],
    [1088, 896],
    [1152, 896],
    [1152, 832],
    [1216, 832],
    [1280, 768],
    [1344, 768],
    [1408, 704],
    [1472, 704],
    [1536, 640],
    [1600, 640],
    [1664, 576],
    [1728, 576],
    [1792, 576],
    [1856, 512],
    [1920, 512],
    [1984, 512],
    [2048, 512],
];
/// The number of pixels that the table is for.
const PIXELS: f64 = 1024.0 * 1024.0;

/// Names of usual aspect ratios, and the ratios, width first.
pub const NAMES: [(&str, &str); 9] = [
    ("square", "1:1"),
    ("landscape", "4:3"),
    ("portrait", "3:4"),
    ("photo", "3:2"),
    ("wide", "16:9"),
    ("phone", "9:16"),
    ("cinema", "21:9"),
    ("banner", "3:1"),
    ("panorama", "4:1"),
];

/// An aspect ratio, written `16:9` or as one of [`NAMES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Aspect {
    text: String,
    /// Width over height.
    ratio: f64,
}

impl Aspect {
    /// The training bucket of the nearest ratio (as factors, not as differences), for a model
    /// that was trained at `native` pixels: scaled to so many and rounded to multiples of 8.
    pub fn size(&self, native: usize) -> Size {
        let distance = |size: &Size| {
            let ratio = size.width as f64 / size.height as f64;
            (ratio / self.ratio).ln().abs()
        };
        buckets(native)
            .min_by(|(a, _), (b, _)| distance(a).total_cmp(&distance(b)))
            .map_or(
                Size {
                    width: 8,
                    height: 8,
                },
                |(_, scaled)| scaled,
            )
    }
}

/// The training buckets, and beside each what it is for a model that was trained at `native`
/// pixels.
pub fn buckets(native: usize) -> impl Iterator<Item = (Size, Size)> {
    let factor = (native as f64 / PIXELS).sqrt();
    let scaled = move |side: usize| (((side as f64 * factor / 8.0).round() as usize) * 8).max(8);
    TABLE.into_iter().map(move |[height, width]| {
        let own = Size {
            width: scaled(width),
            height: scaled(height),
        };
        (Size { width, height }, own)
    })
}

/// A warning of a size that is far from the `native` pixels of the training: half of them and
/// twice as many are near enough.
pub fn warning(size: Size, native: usize) -> Option<Warning> {
    let share = (size.width * size.height) as f64 / native as f64;
    let ratio = size.width as f64 / size.height as f64;
    let side = (native as f64).sqrt();
    let of_size = |message: String| Warning::new(WarningKind::Size, "width", message);
    let times = format!(
        "{size} has {share:.2} times the pixels that this model was trained on (about \
         {side:.0}x{side:.0}), so is much"
    );
    if share < 0.5 {
        let message = format!("{times} smaller: expect crude or cropped pictures");
        Some(of_size(message))
    } else if share > 2.0 {
        let message = format!("{times} larger: expect repeated motifs");
        Some(of_size(message).with_hint("make a smaller picture and enlarge it with `upscale`"))
    } else if !(0.24..=4.1).contains(&ratio) {
        Some(of_size(format!(
            "{size} is longer than any picture that SDXL was trained on (4:1)"
        )))
    } else {
        None
    }
}

impl FromStr for Aspect {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let text = s.trim().to_ascii_lowercase();
        let ratio = (NAMES.iter())
            .find(|(name, _)| *name == text)
            .map_or(text.as_str(), |(_, ratio)| ratio);
        let parsed = ratio
            .split_once(':')
            .and_then(|(w, h)| Some((w.trim().parse::<f64>().ok()?, h.trim().parse::<f64>().ok()?)))
            .filter(|(w, h)| *w > 0.0 && *h > 0.0)
            .map(|(w, h)| w / h)
            .filter(|ratio| (0.01..=100.0).contains(ratio));
        match parsed {
            Some(ratio) => Ok(Aspect { text, ratio }),
            None => {
                let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                Err(format!(
                    "`{s}` is not an aspect ratio; write WIDTH:HEIGHT, as in 16:9, or one of {}",
                    names.join(", ")
                ))
            }
        }
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Aspect {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<Aspect> for String {
    fn from(aspect: Aspect) -> String {
        aspect.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(aspect: &str, side: usize) -> String {
        aspect
            .parse::<Aspect>()
            .unwrap()
            .size(side * side)
            .to_string()
    }

    #[test]
    fn the_nearest_bucket_is_chosen_and_scaled() {
        for (aspect, full, demo) in [
            ("1:1", "1024x1024", "96x96"),
            ("16:9", "1344x768", "128x72"),
            ("phone", "768x1344", "72x128"),
            ("3:2", "1216x832", "112x80"),
            ("21:9", "1536x640", "144x64"),
            ("panorama", "2048x512", "192x48"),
            ("1:50", "512x2048", "48x192"),
        ] {
            assert_eq!(size(aspect, 1024), full, "{aspect}");
            assert_eq!(size(aspect, 96), demo, "{aspect}");
        }
        for wrong in ["", "16", "16:0", "0:9", "a:b", "-1:-1", "NaN:1", "wider"] {
            assert!(wrong.parse::<Aspect>().is_err(), "{wrong}");
        }
        for (name, _) in NAMES {
            assert!(name.parse::<Aspect>().is_ok(), "{name}");
        }
    }

    #[test]
    fn buckets_are_multiples_of_64_with_about_the_same_pixels() {
        for (bucket, same) in buckets(1024 * 1024) {
            assert_eq!(bucket, same);
            assert_eq!((bucket.width % 64, bucket.height % 64), (0, 0));
            assert_eq!(warning(bucket, 1024 * 1024), None, "{bucket}");
            let share = (bucket.width * bucket.height) as f64 / PIXELS;
            assert!((0.89..=1.01).contains(&share), "{bucket}");
        }
        let far = |width, height| warning(Size { width, height }, 1024 * 1024);
        assert!(far(512, 512).unwrap().message.contains("smaller"));
        assert!(far(2048, 2048).unwrap().message.contains("larger"));
        assert!(far(2560, 512).unwrap().message.contains("4:1"));
    }
}
