//! The part of a request that is about pictures to start from and passes after the first.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MAX_SIDE, Request};
use crate::error::{Error, Result};
use crate::named::named;

/// A way to fit an input picture whose aspect ratio is not the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// It is stretched: what diffusers does.
    #[default]
    Stretch,
    /// The middle is taken.
    Crop,
    /// The picture's border is repeated outwards.
    Pad,
}

/// A method of enlargement before a second pass: of the picture or of the latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpscaleMethod {
    /// The picture, by a Lanczos filter: sharp, and the second pass may be weak.
    #[default]
    Lanczos,
    /// The latents, bilinearly: no decoding between the passes, blurred below a strength of
    /// about 0.5.
    Latent,
}

named! { ResizeMode:
    Stretch, "stretch", "Stretch the picture, as diffusers does";
    Crop, "crop", "Take the middle of the picture";
    Pad, "pad", "Repeat the border of the picture outwards";
}

named! { UpscaleMethod:
    Lanczos, "lanczos", "The picture, by a Lanczos filter";
    Latent, "latent", "The latents, bilinearly";
}

/// Pixels on each side of a picture, written `left=128,top=0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExtendMargins {
    /// Pixels added on the left.
    pub left: usize,
    /// Pixels added above.
    pub top: usize,
    /// Pixels added on the right.
    pub right: usize,
    /// Pixels added below.
    pub bottom: usize,
}

impl ExtendMargins {
    /// Whether nothing is added.
    pub fn is_zero(&self) -> bool {
        *self == ExtendMargins::default()
    }

    fn sides(self) -> [(&'static str, usize); 4] {
        [
            ("left", self.left),
            ("top", self.top),
            ("right", self.right),
            ("bottom", self.bottom),
        ]
    }
}

impl fmt::Display for ExtendMargins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.sides().into_iter().filter(|(_, pixels)| *pixels > 0);
        let words: Vec<String> = given.map(|(side, n)| format!("{side}={n}")).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for ExtendMargins {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut margins = ExtendMargins::default();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let parsed = part
                .split_once('=')
                .and_then(|(side, pixels)| Some((side.trim(), pixels.trim().parse().ok()?)));
            match parsed {
                Some(("left", pixels)) => margins.left = pixels,
                Some(("top", pixels)) => margins.top = pixels,
                Some(("right", pixels)) => margins.right = pixels,
                Some(("bottom", pixels)) => margins.bottom = pixels,
                _ => {
                    return Err(format!(
                        "`{part}` is no side with its pixels; write left=128,top=0,right=0,bottom=64 \
                         (any of them)"
                    ));
                }
            }
        }
        Ok(margins)
    }
}

impl TryFrom<String> for ExtendMargins {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<ExtendMargins> for String {
    fn from(margins: ExtendMargins) -> String {
        margins.to_string()
    }
}

impl Request {
    /// The size after the second pass, where there is one.
    pub fn upscaled_size(&self) -> super::Size {
        let size = self.picture_size();
        let larger = |side: usize| match self.upscale {
            Some(factor) => (side as f64 * factor / 8.0) as usize * 8,
            None => side,
        };
        super::Size {
            width: larger(size.width),
            height: larger(size.height),
        }
    }

    /// Checks the fields of this file, as the part of [`Request::check`] that is about them.
    pub(super) fn check_picture(&self) -> Result<()> {
        let no = |field, message: String, hint: &str| -> Result<()> {
            Err(Error::request(field, message).with_hint(hint))
        };
        // At the ends these two would leave a network nothing to do.
        for (name, value) in [
            ("denoising_start", self.denoising_start),
            ("denoising_fraction", self.denoising_fraction),
        ] {
            if let Some(value) = value
                && !(value > 0.0 && value < 1.0)
            {
                return no(
                    name,
                    format!("{value} given"),
                    "use a fraction between 0 and 1, such as 0.8",
                );
            }
        }
        for (name, value) in [
            ("strength", self.strength),
            ("refiner_strength", self.refiner_strength),
            ("upscale_strength", Some(self.upscale_strength)),
        ] {
            if let Some(value) = value
                && !(value > 0.0 && value <= 1.0)
            {
                return no(name, format!("{value} given"), "use more than 0, up to 1");
            }
        }
        if self.denoising_fraction.is_some()
            && (self.denoising_end.is_some() || self.denoising_start.is_some())
        {
            return no(
                "denoising_fraction",
                "it sets both denoising_end and denoising_start".into(),
                "give it alone, or the two",
            );
        }
        for (name, value) in [
            ("aesthetic_score", self.aesthetic_score),
            ("negative_aesthetic_score", self.negative_aesthetic_score),
        ] {
            if !value.is_finite() {
                return no(
                    name,
                    format!("{value} given"),
                    "use a number, about 1 to 10",
                );
            }
        }
        if self
            .guidance_schedule
            .iter()
            .any(|scale| !scale.is_finite())
        {
            return no(
                "guidance_schedule",
                "not every scale is a number to compute with".into(),
                "5 is usual",
            );
        }
        if let Some([from, to]) = self.guidance_interval
            && !(0.0 <= from && from < to && to <= 1.0)
        {
            return no(
                "guidance_interval",
                format!("{from},{to} given"),
                "use two fractions of the steps, the smaller first, such as 0.2,0.8",
            );
        }
        if !(0.0..=1024.0).contains(&self.mask_blur) {
            return no(
                "mask_blur",
                format!("{} given", self.mask_blur),
                "use 0 to 1024 pixels",
            );
        }
        if let Some((side, pixels)) =
            (self.extend.sides().into_iter()).find(|(_, pixels)| *pixels > MAX_SIDE)
        {
            return no(
                "extend",
                format!("{side}={pixels} given"),
                &format!("use at most {MAX_SIDE}"),
            );
        }
        if let Some(factor) = self.upscale
            && !(factor > 1.0 && factor <= 8.0)
        {
            return no(
                "upscale",
                format!("{factor} given"),
                "use more than 1, up to 8",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_read_as_they_are_written() {
        let margins: ExtendMargins = "left=128, top=0,bottom=8".parse().unwrap();
        assert_eq!(
            margins,
            ExtendMargins {
                left: 128,
                bottom: 8,
                ..ExtendMargins::default()
            }
        );
        assert_eq!(margins.to_string(), "left=128,bottom=8");
        assert!("".parse::<ExtendMargins>().unwrap().is_zero());
        for wrong in ["128", "left", "middle=3", "left=-1"] {
            assert!(wrong.parse::<ExtendMargins>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn upscaled_sizes_are_multiples_of_eight() {
        let request = Request {
            width: Some(104),
            height: Some(72),
            upscale: Some(1.5),
            ..Request::default()
        };
        let size = request.upscaled_size();
        assert_eq!((size.width, size.height), (152, 104));
    }
}
