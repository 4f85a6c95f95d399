//! Masks: grey pictures, white where something new is wanted.

use super::pixels::Pixels;

/// Black for white.
pub fn invert(mask: &mut Pixels) {
    for value in &mut mask.data {
        *value = 255 - *value;
    }
}

/// Blurs with a Gaussian of `radius` pixels (its standard deviation), as Pillow's
/// `GaussianBlur`: three box blurs with fractional ends (Gwosdek et al. 2011), in fixed point,
/// eight bits between the passes.
pub fn blur(mask: &Pixels, radius: f64) -> Pixels {
    if radius <= 0.0 {
        return mask.clone();
    }
    let radius = box_radius(radius as f32, 3);
    let mut out = mask.clone();
    for _ in 0..3 {
        out = box_rows(&out, radius);
    }
    out = transpose(&out);
    for _ in 0..3 {
        out = box_rows(&out, radius);
    }
    transpose(&out)
}

/// The radius of the box which, applied `passes` times, has the variance of the Gaussian.
/// Sums in `f32` and roots in `f64`, as Pillow's C code promotes them.
fn box_radius(deviation: f32, passes: u8) -> f32 {
    let variance = deviation * deviation / f32::from(passes);
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let ends = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + ends / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// The mean over `2·radius + 1` pixels of each row; outside, the row's end repeats.
fn box_rows(mask: &Pixels, radius: f32) -> Pixels {
    const ONE: u64 = 1 << 24;
    let whole = radius as usize;
    let inner = (ONE as f32 / (radius * 2.0 + 1.0)) as u64;
    let outer = (ONE - (2 * whole as u64 + 1) * inner) / 2;
    let mut data = Vec::with_capacity(mask.data.len());
    for row in mask.data.chunks_exact(mask.width) {
        let at = |x: isize| u64::from(row[x.clamp(0, row.len() as isize - 1) as usize]);
        let reach = whole as isize;
        let mut sum: u64 = (-reach..=reach).map(at).sum();
        for x in 0..row.len() as isize {
            let ends = at(x - reach - 1) + at(x + reach + 1);
            data.push(((sum * inner + ends * outer + ONE / 2) >> 24) as u8);
            sum = sum + at(x + reach + 1) - at(x - reach);
        }
    }
    Pixels::new(mask.width, mask.height, 1, data)
}

fn transpose(mask: &Pixels) -> Pixels {
    let data = (0..mask.width)
        .flat_map(|x| (0..mask.height).map(move |y| mask.data[y * mask.width + x]))
        .collect();
    Pixels::new(mask.height, mask.width, 1, data)
}

/// The smallest rectangle (left, top, right, bottom) that holds all that is not black; the
/// whole picture where everything is.
pub fn bounds(mask: &Pixels) -> [usize; 4] {
    let (w, h) = (mask.width, mask.height);
    let column = |x: &usize| (0..h).any(|y| mask.data[y * w + x] != 0);
    let row = |y: &usize| mask.data[y * w..(y + 1) * w].iter().any(|v| *v != 0);
    match ((0..w).find(column), (0..h).find(row)) {
        (Some(left), Some(top)) => {
            let right = (0..w).rev().find(column).unwrap_or(left) + 1;
            let bottom = (0..h).rev().find(row).unwrap_or(top) + 1;
            [left, top, right, bottom]
        }
        _ => [0, 0, w, h],
    }
}

/// The rectangle that is worked on when only the masked part is: what is masked and `padding`
/// pixels around, grown to the aspect ratio of `width` x `height` where the picture has room.
/// The rounding is that of diffusers' `get_crop_region`.
pub fn crop_region(mask: &Pixels, width: usize, height: usize, padding: usize) -> [usize; 4] {
    let [left, top, right, bottom] = bounds(mask);
    let x = [
        left.saturating_sub(padding),
        (right + padding).min(mask.width),
    ];
    let y = [
        top.saturating_sub(padding),
        (bottom + padding).min(mask.height),
    ];
    let ratio = width as f64 / height as f64;
    let (across, down) = (x[1] - x[0], y[1] - y[0]);
    if across as f64 / down as f64 > ratio {
        let more = (across as f64 / ratio - down as f64) as usize;
        let [top, bottom] = grow(y, more, mask.height);
        [x[0], top, x[1], bottom]
    } else {
        let more = (down as f64 * ratio - across as f64) as usize;
        let [left, right] = grow(x, more, mask.width);
        [left, y[0], right, y[1]]
    }
}

/// Lengthens `start..end` by `more`, half on each side, pushed back inside `0..limit`.
fn grow([start, end]: [usize; 2], more: usize, limit: usize) -> [usize; 2] {
    let mut start = start as isize - (more / 2) as isize;
    let mut end = (end + more - more / 2) as isize;
    let beyond = (end - limit as isize).max(0);
    (start, end) = (start - beyond, end - beyond);
    if start < 0 {
        (start, end) = (0, end - start);
    }
    [start as usize, (end as usize).min(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(width: usize, height: usize, x: usize, y: usize) -> Pixels {
        let mut data = vec![0; width * height];
        data[y * width + x] = 255;
        Pixels::new(width, height, 1, data)
    }

    #[test]
    fn blurring_spreads_and_keeps_the_sum_about() {
        let mask = dot(31, 31, 15, 15);
        let blurred = blur(&mask, 2.0);
        let sum: u32 = blurred.data.iter().map(|v| u32::from(*v)).sum();
        assert!((200..310).contains(&sum), "{sum}");
        assert_eq!(blurred.at(14, 15), blurred.at(16, 15));
        assert_eq!(blurred.at(15, 13), blurred.at(17, 15));
        assert_eq!(blurred.at(0, 0), [0]);
        assert_eq!(blur(&mask, 0.0), mask);
    }

    #[test]
    fn regions_grow_to_the_aspect_ratio_and_stay_inside() {
        let mask = dot(100, 80, 50, 40);
        assert_eq!(bounds(&mask), [50, 40, 51, 41]);
        assert_eq!(crop_region(&mask, 64, 64, 10), [40, 30, 61, 51]);
        assert_eq!(crop_region(&mask, 128, 64, 10), [30, 30, 72, 51]);
        // At a corner the region is pushed inside.
        assert_eq!(
            crop_region(&dot(100, 80, 0, 79), 64, 128, 8),
            [0, 62, 9, 80]
        );
        let empty = Pixels::new(4, 4, 1, vec![0; 16]);
        assert_eq!(bounds(&empty), [0, 0, 4, 4]);
    }
}
