//! The input picture and its mask: made ready for a run of one size, and the result laid
//! back into it.

use crate::error::{Error, Result};
use crate::image::resize::{fit, lanczos};
use crate::image::{Pixels, mask};
use crate::inputs::Inputs;
use crate::model::config::VAE_FACTOR;
use crate::request::{ExtendMargins, MAX_SIDE, Request, ResizeMode, Size};

/// An input picture ready for a run.
pub(super) struct Canvas {
    /// The picture with its margins.
    original: Pixels,
    /// As large as `original`; grey where it was blurred.
    mask: Option<Pixels>,
    /// Left, top, right and bottom of the part of `original` that is worked on.
    region: [usize; 4],
    /// Whether the result is pasted back into `original` by the mask.
    paste_back: bool,
    /// That part at the run's size, `[H, W, 3]` in -1 to 1.
    pub picture: Vec<f32>,
    /// For each pixel of `picture`, whether something new is made there, `[H, W]`.
    pub mask_pixels: Option<Vec<bool>>,
}

/// The size of the input picture with its margins.
fn extended(request: &Request, picture: &Pixels) -> Size {
    Size {
        width: picture.width + request.extend.left + request.extend.right,
        height: picture.height + request.extend.top + request.extend.bottom,
    }
}

/// The size a run has where none is asked for: the picture's, rounded down to multiples of 8, as
/// in diffusers. `None` without a picture, and where only a part of it is worked on.
pub(super) fn natural_size(request: &Request, inputs: &Inputs) -> Option<Size> {
    let picture = inputs.init_image.as_ref()?;
    let size = extended(request, picture);
    request.mask_crop_padding.is_none().then_some(Size {
        width: (size.width / VAE_FACTOR * VAE_FACTOR).max(VAE_FACTOR),
        height: (size.height / VAE_FACTOR * VAE_FACTOR).max(VAE_FACTOR),
    })
}

/// Refuses what cannot be made of the pictures given. Needs a request whose size is decided.
///
/// # Errors
/// [`Error::Request`] naming the field.
pub(super) fn check(request: &Request, inputs: &Inputs) -> Result<()> {
    let no = |field, message: String, hint: &str| -> Result<()> {
        Err(Error::request(field, message).with_hint(hint))
    };
    let Some(picture) = &inputs.init_image else {
        let needs_picture = [
            ("mask", inputs.mask.is_some()),
            ("extend", !request.extend.is_zero()),
            ("mask_crop_padding", request.mask_crop_padding.is_some()),
            ("keep_unmasked", request.keep_unmasked),
        ];
        return match needs_picture.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => no(name, "there is no picture".into(), "give `init_image`"),
            None => Ok(()),
        };
    };
    if let Some(mask) = &inputs.mask
        && (mask.width, mask.height) != (picture.width, picture.height)
    {
        let message = format!(
            "it has {}x{} pixels and init_image has {}x{}",
            mask.width, mask.height, picture.width, picture.height
        );
        return no("mask", message, "a mask has the size of its picture");
    }
    let size = extended(request, picture);
    if size.width > MAX_SIDE || size.height > MAX_SIDE {
        return no(
            "extend",
            format!("the picture would have {size} pixels"),
            &format!("use at most {MAX_SIDE} a side"),
        );
    }
    if inputs.mask.is_none() && request.extend.is_zero() {
        let needs_mask = [
            ("invert_mask", request.invert_mask),
            ("mask_blur", request.mask_blur > 0.0),
            ("mask_crop_padding", request.mask_crop_padding.is_some()),
            ("keep_unmasked", request.keep_unmasked),
        ];
        if let Some((name, _)) = needs_mask.into_iter().find(|(_, given)| *given) {
            return no(name, "there is no mask".into(), "give `mask` (or `extend`)");
        }
        return Ok(());
    }
    if request.keep_unmasked
        && request.resize_mode != ResizeMode::Stretch
        && request.picture_size() != size
    {
        return no(
            "keep_unmasked",
            format!(
                "a picture of {size} that was cropped or padded to {} cannot be laid back",
                request.picture_size()
            ),
            "use `resize_mode stretch`, or no width and height",
        );
    }
    Ok(())
}

impl Canvas {
    /// The canvas of a checked request; `None` without an input picture.
    ///
    /// # Errors
    /// [`Error::Request`] for a mask without anything white.
    pub(super) fn new(request: &Request, inputs: &Inputs) -> Result<Option<Canvas>> {
        let Some(picture) = &inputs.init_image else {
            return Ok(None);
        };
        let Size { width, height } = request.picture_size();
        let original = extend(picture, request.extend);
        let mask = mask_of(request, inputs, picture)?;
        let whole = [0, 0, original.width, original.height];
        let (region, mode) = match (&mask, request.mask_crop_padding) {
            (Some(mask), Some(padding)) => (
                mask::crop_region(mask, width, height, padding),
                ResizeMode::Pad,
            ),
            _ => (whole, request.resize_mode),
        };
        let [left, top, right, bottom] = region;
        let part = |of: &Pixels| {
            let part = of.crop(left, top, right - left, bottom - top);
            fit(&part, width, height, mode)
        };
        Ok(Some(Canvas {
            picture: part(&original).to_signed(),
            mask_pixels: mask
                .as_ref()
                .map(|mask| part(mask).data.iter().map(|v| *v >= 128).collect()),
            paste_back: request.keep_unmasked || request.mask_crop_padding.is_some(),
            original,
            mask,
            region,
        }))
    }

    /// The picture with its masked part grey (0), as a UNet that sees a mask is shown it.
    pub(super) fn without_masked_part(&self) -> Vec<f32> {
        let masked = |pixel: usize| self.mask_pixels.as_ref().is_some_and(|mask| mask[pixel]);
        (self.picture.iter().enumerate())
            .map(|(i, value)| if masked(i / 3) { 0.0 } else { *value })
            .collect()
    }

    /// The result of the run as the user gets it: as it is or, where that was asked for, laid
    /// into the input picture, whose pixels stay what they were where the mask is black.
    pub(super) fn finish(&self, made: Pixels) -> Pixels {
        let (true, Some(mask)) = (self.paste_back, &self.mask) else {
            return made;
        };
        let [left, top, right, bottom] = self.region;
        let (width, height) = (right - left, bottom - top);
        let whole = self.region == [0, 0, self.original.width, self.original.height];
        let made = if whole {
            lanczos(&made, width, height)
        } else {
            fit(&made, width, height, ResizeMode::Crop)
        };
        let mut out = self.original.clone();
        for y in top..bottom {
            for x in left..right {
                let share = u32::from(mask.at(x, y)[0]);
                let start = (y * out.width + x) * 3;
                let new = made.at(x - left, y - top);
                for (old, new) in out.data[start..start + 3].iter_mut().zip(new) {
                    let sum = u32::from(*old) * (255 - share) + u32::from(*new) * share;
                    *old = ((sum + 127) / 255) as u8;
                }
            }
        }
        out
    }
}

/// The picture with its border repeated into the margins.
fn extend(picture: &Pixels, margins: ExtendMargins) -> Pixels {
    if margins.is_zero() {
        return picture.clone();
    }
    let width = picture.width + margins.left + margins.right;
    let height = picture.height + margins.top + margins.bottom;
    let mut data = Vec::with_capacity(width * height * picture.channels);
    for y in 0..height {
        let from_y = y.saturating_sub(margins.top).min(picture.height - 1);
        for x in 0..width {
            let from_x = x.saturating_sub(margins.left).min(picture.width - 1);
            data.extend_from_slice(picture.at(from_x, from_y));
        }
    }
    Pixels::new(width, height, picture.channels, data)
}

/// The mask of the picture with its margins, which are white: inverted and blurred as asked.
fn mask_of(request: &Request, inputs: &Inputs, picture: &Pixels) -> Result<Option<Pixels>> {
    if inputs.mask.is_none() && request.extend.is_zero() {
        return Ok(None);
    }
    let mut inner = match &inputs.mask {
        Some(mask) => mask.clone(),
        None => Pixels::new(
            picture.width,
            picture.height,
            1,
            vec![0; picture.width * picture.height],
        ),
    };
    if inputs.mask.is_some() && request.invert_mask {
        mask::invert(&mut inner);
    }
    let ExtendMargins { left, top, .. } = request.extend;
    let mut whole = extend(&inner, request.extend);
    let width = whole.width;
    for (i, value) in whole.data.iter_mut().enumerate() {
        let (x, y) = (i % width, i / width);
        let inside =
            (left..left + inner.width).contains(&x) && (top..top + inner.height).contains(&y);
        if !inside {
            *value = 255;
        }
    }
    if whole.data.iter().all(|v| *v == 0) {
        return Err(
            Error::request("mask", "nothing in it is white, so nothing would be made")
                .with_hint("paint white what is to be new, or use `invert_mask`"),
        );
    }
    Ok(Some(mask::blur(&whole, request.mask_blur)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(width: usize, height: usize, mask: Option<Vec<u8>>) -> Inputs {
        let data = (0..width * height * 3)
            .map(|i| (i * 7 % 251) as u8)
            .collect();
        Inputs {
            init_image: Some(Pixels::new(width, height, 3, data)),
            mask: mask.map(|data| Pixels::new(width, height, 1, data)),
            ..Inputs::default()
        }
    }

    fn request(width: usize, height: usize) -> Request {
        Request {
            width: Some(width),
            height: Some(height),
            ..Request::default()
        }
    }

    #[test]
    fn unmasked_pixels_stay_and_masked_ones_are_new() {
        let mut mask = vec![0; 16 * 8];
        mask[..40].fill(255);
        let inputs = inputs(16, 8, Some(mask.clone()));
        let request = Request {
            keep_unmasked: true,
            ..request(16, 8)
        };
        let canvas = Canvas::new(&request, &inputs).unwrap().unwrap();
        let made = Pixels::new(16, 8, 3, vec![99; 16 * 8 * 3]);
        let out = canvas.finish(made.clone());
        let old = &inputs.init_image.unwrap();
        for (i, value) in mask.iter().enumerate() {
            let range = 3 * i..3 * i + 3;
            let from = if *value == 255 { &made } else { old };
            assert_eq!(out.data[range.clone()], from.data[range]);
        }
    }

    #[test]
    fn margins_are_new_and_the_rest_is_not() {
        let inputs = inputs(8, 8, None);
        let request = Request {
            extend: "left=8,bottom=16".parse().unwrap(),
            ..request(16, 24)
        };
        check(&request, &inputs).unwrap();
        let size = natural_size(&request, &inputs).unwrap();
        assert_eq!((size.width, size.height), (16, 24));
        let canvas = Canvas::new(&request, &inputs).unwrap().unwrap();
        let mask = canvas.mask_pixels.unwrap();
        for (i, new) in mask.iter().enumerate() {
            let (x, y) = (i % 16, i / 16);
            assert_eq!(*new, x < 8 || y >= 8, "{x} {y}");
        }
        assert_eq!(
            canvas.original.at(0, 0),
            inputs.init_image.unwrap().at(0, 0)
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |request: &Request, inputs: &Inputs, word: &str| {
            let error = match check(request, inputs) {
                Err(error) => error,
                Ok(()) => Canvas::new(request, inputs).map(drop).unwrap_err(),
            };
            assert!(error.to_string().contains(word), "{error}");
        };
        let mut other = inputs(8, 8, Some(vec![255; 64]));
        other.mask = Some(Pixels::new(8, 4, 1, vec![255; 32]));
        refused(&request(8, 8), &other, "8x4");
        refused(&request(8, 8), &inputs(8, 8, Some(vec![0; 64])), "white");
        let blurred = Request {
            mask_blur: 3.0,
            ..request(8, 8)
        };
        refused(&blurred, &inputs(8, 8, None), "mask_blur");
        let extended = Request {
            extend: "left=16384".parse().unwrap(),
            ..request(8, 8)
        };
        refused(&extended, &inputs(8, 8, None), "16392");
        refused(&extended, &Inputs::default(), "init_image");
    }
}
