//! The invisible watermark of SDXL's pictures: 48 bits that say "made by a machine".
//!
//! Bit for bit what diffusers' `StableDiffusionXLWatermarker` does through invisible-watermark
//! 0.2.0 (`dwtDct`), so that programs which look for it find it: the picture goes to YUV, U through
//! one level of the Haar transform, and in every 4x4 block of its coarse half the largest
//! coefficient (the block's first is left alone) is moved to the middle of one half of its
//! 36-wide interval: the lower half for a 0, the upper for a 1. Blocks take the bits in turn.
//!
//! Three properties of that method are kept although they are odd, since other pixels would be
//! another watermark: there is no cosine transform in it, in spite of its name; the details of
//! rows and columns change places on the way back; and diffusers marks numbers whose U is
//! centred on 0, where the decoder reads bytes whose U is centred on 128, so that the decoder
//! may get many of the 48 bits wrong. [`detect`] reads both ways.

/// The 48 bits, first bit first.
const MESSAGE: u64 = 0b101100111110110010010000011110111011000110011110;
/// Bits in the message.
pub const BITS: usize = 48;
/// Width of the interval that holds one bit, in grey levels.
const SCALE: f32 = 36.0;
/// Side of a block of coefficients.
const BLOCK: usize = 4;
/// One over the square root of two: both taps of the Haar filters.
const HAAR: f32 = std::f32::consts::FRAC_1_SQRT_2;

fn bit(i: usize) -> bool {
    MESSAGE >> (BITS - 1 - i % BITS) & 1 == 1
}

/// Whether a picture of this size gets a watermark: 256 pixels wide, as diffusers asks for, and
/// 65 536 pixels in all, below which the method refuses.
pub fn fits(width: usize, height: usize) -> bool {
    width >= 256 && width * height >= 65_536
}

/// Marks a picture in place. `rgb` are `width` x `height` x 3 values of about -1 to 1,
/// straight from the VAE; afterwards they lie within. A picture that is too small
/// (see [`fits`]) is left as it is.
pub fn embed(rgb: &mut [f32], width: usize, height: usize) {
    assert_eq!(rgb.len(), width * height * 3, "values of an RGB picture");
    if !fits(width, height) {
        return;
    }
    let mut luma = Vec::with_capacity(width * height);
    let mut u = Vec::with_capacity(width * height);
    for pixel in rgb.as_chunks_mut::<3>().0 {
        for value in pixel.iter_mut() {
            *value = 255.0 * (*value / 2.0 + 0.5);
        }
        let [y, u_value, v] = to_yuv(*pixel);
        luma.push(y);
        u.push(u_value);
        pixel[0] = v;
    }
    let bands = Bands::of(&u, width, height);
    bands.marked().into_plane(&mut u, width);
    let planes = luma.iter().zip(&u);
    for (pixel, (y, u)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(planes) {
        *pixel = to_rgb([*y, *u, pixel[0]]).map(|v| (2.0 * (v / 255.0 - 0.5)).clamp(-1.0, 1.0));
    }
}

// OpenCV's conversions for floating point. Where it fuses a multiplication with an addition
// is part of the result: one bit can decide which coefficient of a block is the largest.

fn to_yuv([r, g, b]: [f32; 3]) -> [f32; 3] {
    let y = b.mul_add(0.114, g.mul_add(0.587, r * 0.299));
    [y, (b - y).mul_add(0.492, 0.5), (r - y).mul_add(0.877, 0.5)]
}

fn to_rgb([y, u, v]: [f32; 3]) -> [f32; 3] {
    let (u, v) = (u - 0.5, v - 0.5);
    let g = v.mul_add(-0.581, u.mul_add(-0.395, y));
    [v.mul_add(1.14, y), g, u.mul_add(2.032, y)]
}

/// One level of the Haar transform of a plane whose sides are cut to multiples of four.
struct Bands {
    /// Coefficients a row.
    columns: usize,
    rows: usize,
    coarse: Vec<f32>,
    /// Differences between rows.
    horizontal: Vec<f32>,
    /// Differences between columns.
    vertical: Vec<f32>,
    diagonal: Vec<f32>,
}

impl Bands {
    fn of(plane: &[f32], width: usize, height: usize) -> Bands {
        let (columns, rows) = (width / 4 * 2, height / 4 * 2);
        let mut bands = Bands {
            columns,
            rows,
            coarse: Vec::with_capacity(columns * rows),
            horizontal: Vec::with_capacity(columns * rows),
            vertical: Vec::with_capacity(columns * rows),
            diagonal: Vec::with_capacity(columns * rows),
        };
        for i in 0..rows {
            let upper = &plane[2 * i * width..];
            let lower = &plane[(2 * i + 1) * width..];
            for j in 0..columns {
                let down = |x: usize| {
                    let (a, b) = (upper[x] * HAAR, lower[x] * HAAR);
                    (a + b, a - b)
                };
                let ((sum_0, diff_0), (sum_1, diff_1)) = (down(2 * j), down(2 * j + 1));
                bands.coarse.push(sum_0 * HAAR + sum_1 * HAAR);
                bands.vertical.push(sum_0 * HAAR - sum_1 * HAAR);
                bands.horizontal.push(diff_0 * HAAR + diff_1 * HAAR);
                bands.diagonal.push(diff_0 * HAAR - diff_1 * HAAR);
            }
        }
        bands
    }

    fn marked(mut self) -> Bands {
        for (number, block) in blocks(self.columns, self.rows).enumerate() {
            let place = largest(block, self.columns, |i| self.coarse[i].abs());
            let value = self.coarse[place];
            let half = if bit(number) { 0.5 } else { 0.0 };
            let moved = (floor_divide(value.abs(), SCALE) + 0.25 + half) * SCALE;
            self.coarse[place] = if value >= 0.0 { moved } else { -moved };
        }
        self
    }

    /// Back to the plane, with the details of rows and columns exchanged.
    fn into_plane(self, plane: &mut [f32], width: usize) {
        for i in 0..self.rows {
            for j in 0..self.columns {
                let at = i * self.columns + j;
                let across = |a: f32, d: f32| {
                    let (a, d) = (a * HAAR, d * HAAR);
                    [a + d, a - d]
                };
                let sums = across(self.coarse[at], self.horizontal[at]);
                let diffs = across(self.vertical[at], self.diagonal[at]);
                for (x, (sum, diff)) in (2 * j..).zip(sums.into_iter().zip(diffs)) {
                    let [upper, lower] = across(sum, diff);
                    plane[2 * i * width + x] = upper;
                    plane[(2 * i + 1) * width + x] = lower;
                }
            }
        }
    }
}

/// The first places of the blocks of coefficients, in the order they take the bits.
fn blocks(columns: usize, rows: usize) -> impl Iterator<Item = usize> {
    (0..rows / BLOCK)
        .flat_map(move |i| (0..columns / BLOCK).map(move |j| (i * columns + j) * BLOCK))
}

/// Finds the largest coefficient of a block, the block's first left out; the first of equals.
fn largest<T: PartialOrd>(block: usize, columns: usize, size: impl Fn(usize) -> T) -> usize {
    let mut best = block + 1;
    for place in (2..BLOCK * BLOCK).map(|k| block + k / BLOCK * columns + k % BLOCK) {
        if size(place) > size(best) {
            best = place;
        }
    }
    best
}

/// `a // b` of positive numbers, as numpy computes it in `f32`: through the remainder.
fn floor_divide(a: f32, b: f32) -> f32 {
    let quotient = (a - a % b) / b;
    let floor = quotient.floor();
    if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    }
}

/// The result of looking for the watermark in a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// The 48 bits that invisible-watermark's decoder reads, first bit first.
    pub bits: [bool; BITS],
    /// The number of those bits that are the same as the message's.
    pub matching: usize,
    /// By how many standard deviations the blocks that should hold a 1 hold one more often
    /// than the blocks that should hold a 0 do, in the better of the two ways to read them. A
    /// picture without a watermark is near 0.
    pub z: f64,
}

impl Detection {
    /// Whether the picture carries the watermark: six standard deviations, a chance of one
    /// in a thousand million for a picture that does not.
    pub fn found(&self) -> bool {
        self.z >= 6.0
    }
}

/// Looks for the watermark in a picture of bytes, `width` x `height` x 3. `None` for a
/// picture that is too small to carry one (see [`fits`]).
pub fn detect(rgb: &[u8], width: usize, height: usize) -> Option<Detection> {
    assert_eq!(rgb.len(), width * height * 3, "bytes of an RGB picture");
    if !fits(width, height) {
        return None;
    }
    let (columns, rows) = (width / 4 * 2, height / 4 * 2);
    // The decoder works on bytes: U rounded to a byte by OpenCV's integer arithmetic, then in
    // `f64`, where the rounding of equal sums decides which is the largest.
    let u: Vec<f64> = (rgb.as_chunks::<3>().0.iter())
        .map(|&[r, g, b]| {
            let (r, g, b) = (i32::from(r), i32::from(g), i32::from(b));
            let round = |v: i32| (v + (1 << 13)) >> 14;
            let y = round(b * 1868 + g * 9617 + r * 4899);
            f64::from(round((b - y) * 8061 + (128 << 14)).clamp(0, 255))
        })
        .collect();
    let haar = std::f64::consts::FRAC_1_SQRT_2;
    let of_bytes = Votes::count(columns, rows, |at| {
        let corner = at / columns * 2 * width + at % columns * 2;
        let down = |x: usize| u[x] * haar + u[x + width] * haar;
        (down(corner) * haar + down(corner + 1) * haar).abs()
    });
    // But diffusers marked numbers in which no colour is U = 0 and not 128, so that decoder
    // reads every negative U the wrong way round. Read as it was written:
    let u: Vec<f32> = (rgb.as_chunks::<3>().0.iter())
        .map(|pixel| to_yuv(pixel.map(f32::from))[1])
        .collect();
    let bands = Bands::of(&u, width, height);
    let as_written = Votes::count(columns, rows, |at| f64::from(bands.coarse[at].abs()));
    let bits = of_bytes.bits();
    Some(Detection {
        bits,
        matching: (0..BITS).filter(|&i| bits[i] == bit(i)).count(),
        z: of_bytes.z().max(as_written.z()),
    })
}

/// The counts of a picture's blocks, by the bit of the message that they hold.
struct Votes {
    /// Blocks of each bit that hold a 1.
    ones: [usize; BITS],
    /// Blocks of each bit.
    all: [usize; BITS],
}

impl Votes {
    /// `size` gives the absolute value of a coarse coefficient.
    fn count(columns: usize, rows: usize, size: impl Fn(usize) -> f64) -> Votes {
        let (mut ones, mut all) = ([0; BITS], [0; BITS]);
        for (number, block) in blocks(columns, rows).enumerate() {
            let value = size(largest(block, columns, &size));
            let scale = f64::from(SCALE);
            all[number % BITS] += 1;
            ones[number % BITS] += usize::from(value % scale > 0.5 * scale);
        }
        Votes { ones, all }
    }

    /// The majority of each bit's blocks; the odd threshold is the decoder's.
    fn bits(&self) -> [bool; BITS] {
        std::array::from_fn(|i| self.ones[i] as f64 / self.all[i].max(1) as f64 * 255.0 > 127.0)
    }

    /// See [`Detection::z`]: two proportions compared.
    fn z(&self) -> f64 {
        let sum = |of: &[usize; BITS], wanted: bool| -> f64 {
            (0..BITS)
                .filter(|&i| bit(i) == wanted)
                .map(|i| of[i] as f64)
                .sum()
        };
        let (with, without) = (
            sum(&self.all, true).max(1.0),
            sum(&self.all, false).max(1.0),
        );
        let (a, b) = (sum(&self.ones, true), sum(&self.ones, false));
        let share = (a + b) / (with + without);
        let spread = (share * (1.0 - share) * (1.0 / with + 1.0 / without)).sqrt();
        // A picture of one colour has no spread at all.
        if spread > 0.0 {
            (a / with - b / without) / spread
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..width * height * 3).map(|_| next()).collect()
    }

    #[test]
    fn small_pictures_are_left_alone() {
        for (width, height) in [(248, 512), (256, 248)] {
            let before = noise(width, height);
            let mut after = before.clone();
            embed(&mut after, width, height);
            assert_eq!(before, after);
            assert!(detect(&vec![0; before.len()], width, height).is_none());
        }
    }

    #[test]
    fn the_mark_is_found_where_it_is_and_only_there() {
        // Not multiples of four: the rest of the picture is not touched.
        let (width, height) = (311, 259);
        let before = noise(width, height);
        let mut after = before.clone();
        embed(&mut after, width, height);
        let found = |values: &[f32]| detect(&crate::image::to_u8(values), width, height).unwrap();
        assert!(!found(&before).found(), "{:?}", found(&before));
        assert!(found(&after).found(), "{:?}", found(&after));
        // One colour holds no bits, and is no reason to divide by zero.
        assert!(
            !detect(&vec![90; before.len()], width, height)
                .unwrap()
                .found()
        );
    }
}
