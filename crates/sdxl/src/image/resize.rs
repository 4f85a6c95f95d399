//! Resizing, pixel for pixel as Pillow does it for diffusers.

use super::pixels::Pixels;
use crate::request::ResizeMode;

/// Bits after the point of Pillow's fixed-point weights: 8 for the pixel and 2 for overshoot
/// are left of 32.
const PRECISION: u32 = 32 - 8 - 2;

/// `picture` as `width` x `height` pixels; `mode` says what happens to another aspect ratio.
pub fn fit(picture: &Pixels, width: usize, height: usize, mode: ResizeMode) -> Pixels {
    // Sides of the whole picture that fit inside, or cover, the wanted rectangle, rounded as
    // diffusers' image processor rounds them.
    let wider = width * picture.height > picture.width * height;
    let across = picture.width * height / picture.height;
    let down = picture.height * width / picture.width;
    match mode {
        ResizeMode::Stretch => lanczos(picture, width, height),
        ResizeMode::Crop if wider => centred(&lanczos(picture, width, down.max(1)), width, height),
        ResizeMode::Crop => centred(&lanczos(picture, across.max(1), height), width, height),
        ResizeMode::Pad if wider => pad_across(&lanczos(picture, across.max(1), height), width),
        ResizeMode::Pad => pad_down(&lanczos(picture, width, down.max(1)), height),
    }
}

/// Resampling with a Lanczos window of three lobes, widened by the factor of reduction.
///
/// The arithmetic is Pillow's `Image.resize(..., LANCZOS)`: rows first, then columns,
/// weights in fixed point, eight bits between the passes. (Up to Pillow 12: later ones begin
/// with the columns for some sizes, and differ there by one level of 255 in some pixels.)
pub fn lanczos(picture: &Pixels, width: usize, height: usize) -> Pixels {
    let mut out = picture.clone();
    if width != out.width {
        out = along_rows(&out, width);
    }
    if height != out.height {
        out = along_columns(&out, height);
    }
    out
}

/// The first source pixel that counts for a pixel, and the weights from it on.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = 3.0 * widening;
    let taps = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|x| window((x as f64 - centre + 0.5) / widening))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let scaled = w / sum * f64::from(1u32 << PRECISION);
            // Away from zero at the half, then cut.
            (scaled + 0.5f64.copysign(scaled)) as i64
        };
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(taps).collect()
}

fn window(x: f64) -> f64 {
    let sinc = |x: f64| match std::f64::consts::PI * x {
        0.0 => 1.0,
        angle => angle.sin() / angle,
    };
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}

fn round(sum: i64) -> u8 {
    ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
}

fn along_rows(picture: &Pixels, width: usize) -> Pixels {
    let (taps, channels) = (taps(picture.width, width), picture.channels);
    let mut data = Vec::with_capacity(width * picture.height * channels);
    for row in picture.data.chunks_exact(picture.width * channels) {
        for tap in &taps {
            for c in 0..channels {
                let values = row[tap.first * channels + c..].iter().step_by(channels);
                let sum = (tap.weights.iter().zip(values))
                    .map(|(w, v)| w * i64::from(*v))
                    .sum();
                data.push(round(sum));
            }
        }
    }
    Pixels::new(width, picture.height, channels, data)
}

fn along_columns(picture: &Pixels, height: usize) -> Pixels {
    let length = picture.width * picture.channels;
    let mut data = Vec::with_capacity(length * height);
    let mut sums = vec![0i64; length];
    for tap in taps(picture.height, height) {
        sums.fill(0);
        let rows = picture.data[tap.first * length..].chunks_exact(length);
        for (weight, row) in tap.weights.iter().zip(rows) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * i64::from(*value);
            }
        }
        data.extend(sums.iter().map(|sum| round(*sum)));
    }
    Pixels::new(picture.width, height, picture.channels, data)
}

/// The middle `width` x `height` pixels.
fn centred(picture: &Pixels, width: usize, height: usize) -> Pixels {
    let left = (picture.width / 2).saturating_sub(width / 2);
    let top = (picture.height / 2).saturating_sub(height / 2);
    picture.crop(
        left.min(picture.width - width),
        top.min(picture.height - height),
        width,
        height,
    )
}

/// Above and below the picture its first and last row, until it is `height` high.
fn pad_down(picture: &Pixels, height: usize) -> Pixels {
    let length = picture.width * picture.channels;
    let rows: Vec<&[u8]> = picture.data.chunks_exact(length).collect();
    let above = height / 2 - picture.height / 2;
    let below = height - picture.height - above;
    let last = rows.len() - 1;
    let first_row = beyond(rows[0], rows[1.min(last)]);
    let last_row = beyond(rows[last], rows[last.saturating_sub(1)]);
    let mut data = first_row.repeat(above);
    data.extend_from_slice(&picture.data);
    data.extend(last_row.repeat(below));
    Pixels::new(picture.width, height, picture.channels, data)
}

/// Left and right of the picture its first and last column, until it is `width` wide.
fn pad_across(picture: &Pixels, width: usize) -> Pixels {
    let before = width / 2 - picture.width / 2;
    let after = width - picture.width - before;
    let last = picture.width - 1;
    let mut data = Vec::with_capacity(width * picture.height * picture.channels);
    for (y, row) in (picture.data)
        .chunks_exact(picture.width * picture.channels)
        .enumerate()
    {
        let first_pixel = beyond(picture.at(0, y), picture.at(1.min(last), y));
        let last_pixel = beyond(picture.at(last, y), picture.at(last.saturating_sub(1), y));
        data.extend(first_pixel.repeat(before));
        data.extend_from_slice(row);
        data.extend(last_pixel.repeat(after));
    }
    Pixels::new(width, picture.height, picture.channels, data)
}

/// Gives the pixel that diffusers pads with: Pillow's bicubic filter on an empty box at the border,
/// which is the border pixel and an eighth of its difference from the one inside.
fn beyond(border: &[u8], inside: &[u8]) -> Vec<u8> {
    let mix = |(b, i): (&u8, &u8)| ((9 * i32::from(*b) - i32::from(*i) + 4) >> 3).clamp(0, 255);
    border
        .iter()
        .zip(inside)
        .map(mix)
        .map(|v| v as u8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat() {
        let picture = Pixels::new(5, 7, 3, [10, 200, 77].repeat(35));
        for mode in [ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Pad] {
            for (width, height) in [(8, 8), (16, 8), (3, 64), (5, 7), (64, 3)] {
                let out = fit(&picture, width, height, mode);
                assert_eq!((out.width, out.height), (width, height), "{mode:?}");
                assert_eq!(out.data, [10, 200, 77].repeat(width * height), "{mode:?}");
            }
        }
    }
}
