//! Activations rounded to bytes, for weights of [`WeightFormat::Int8`](crate::WeightFormat).
//!
//! A row of a matrix, or the image of a convolution (whose taps mix the pixels' rows), gets
//! the scale that makes its largest value 127, is rounded to integers and offset by 128,
//! because the instruction multiplies unsigned bytes with signed ones. The integer sums are
//! exact. The offset adds 128 times the sum of an output's weights, which is known when they are
//! packed; it is subtracted before the sums are scaled.

use rayon::prelude::*;

use crate::dispatch::dispatch;
use crate::element::Element;
use crate::isa::Isa;
use crate::scratch::Scratch;
use crate::simd::{Op, Simd};
use crate::weights::Weights;
use crate::workspace::Workspace;

/// The byte that a value of zero becomes.
pub(crate) const ZERO_POINT: u8 = 128;

/// Quantised activations.
pub(crate) struct Quantised {
    memory: Scratch,
    /// Length of a row, padded to whole steps of four.
    pub(crate) stride: usize,
    /// The scale of each group of rows: the value of one unit of its bytes.
    pub(crate) scales: Vec<f32>,
}

impl Quantised {
    /// Quantises `x`, rows of `len` elements, `rows_per_scale` rows with the same scale.
    pub(crate) fn new<E: Element>(
        isa: Isa,
        x: &[E],
        len: usize,
        rows_per_scale: usize,
    ) -> Quantised {
        let stride = len.next_multiple_of(4);
        let rows = x.len() / len;
        let mut memory = Scratch::new((rows * stride).div_ceil(4));
        let mut scales = vec![0f32; rows.div_ceil(rows_per_scale)];
        let group = stride * rows_per_scale;
        // A task has at least 16 rows.
        bytemuck::cast_slice_mut::<f32, u8>(&mut memory)[..rows * stride]
            .par_chunks_mut(group)
            .with_min_len(16usize.div_ceil(rows_per_scale))
            .zip(x.par_chunks(len * rows_per_scale))
            .zip(&mut scales)
            .for_each(|((out, x), scale)| {
                let mut largest = 0f32;
                for x in x.chunks_exact(len) {
                    largest = largest.max(dispatch(isa, MaxAbs(x)));
                }
                *scale = (largest / 127.0).clamp(f32::MIN_POSITIVE, f32::MAX);
                let factor = 1.0 / *scale;
                for (x, out) in x.chunks_exact(len).zip(out.chunks_exact_mut(stride)) {
                    dispatch(isa, Quantise { x, factor, out });
                }
            });
        Quantised {
            memory,
            stride,
            scales,
        }
    }

    /// Gives the memory of [`Self::new`] for `rows` of `len` elements.
    pub(crate) fn workspace(rows: usize, len: usize, rows_per_scale: usize) -> Workspace {
        Workspace {
            temporary: rows.div_ceil(rows_per_scale) * size_of::<f32>(),
            scratch: vec![rows * len.next_multiple_of(4)],
        }
    }

    /// Returns the rows of `stride` bytes; those that pad a row are arbitrary.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.memory)
    }
}

/// Gives the bytes and scales, one a row, that `n` rows of weights get when they are packed as
/// [`WeightFormat::Int8`](crate::WeightFormat): to be stored, and packed later as
/// [`Weights::Int8`].
///
/// # Panics
/// If `w` is not `n` rows of one length.
pub fn quantise_rows(w: Weights, n: usize) -> (Vec<i8>, Vec<f32>) {
    assert!(n > 0 && w.len().is_multiple_of(n), "weights of {n} rows");
    let k = w.len() / n;
    let mut bytes = vec![0i8; w.len()];
    if k == 0 {
        return (bytes, vec![f32::MIN_POSITIVE; n]);
    }
    let scales = bytes
        .par_chunks_mut(k)
        .enumerate()
        .map(|(row, bytes)| {
            let row: Vec<f32> = (row * k..(row + 1) * k).map(|i| w.get(i)).collect();
            let largest = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = (largest / 127.0).clamp(f32::MIN_POSITIVE, f32::MAX);
            let factor = 1.0 / scale;
            for (byte, value) in bytes.iter_mut().zip(&row) {
                *byte = (value * factor).round_ties_even().clamp(-127.0, 127.0) as i8;
            }
            scale
        })
        .collect();
    (bytes, scales)
}

/// Finds the largest absolute value.
struct MaxAbs<'a, E>(&'a [E]);

impl<E: Element> Op for MaxAbs<'_, E> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut largest = s.zero();
        for i in (0..self.0.len()).step_by(S::LANES) {
            largest = s.max(largest, s.abs(s.read(self.0, i)));
        }
        s.reduce_max(largest)
    }
}

/// Rounds a row to bytes.
struct Quantise<'a, E> {
    x: &'a [E],
    factor: f32,
    out: &'a mut [u8],
}

impl<E: Element> Op for Quantise<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.x.len()).step_by(S::LANES) {
            let y = s.round(s.mul(s.read(self.x, i), s.splat(self.factor)));
            let y = s.min(s.max(y, s.splat(-127.0)), s.splat(127.0));
            s.write_bytes(self.out, i, s.add(y, s.splat(f32::from(ZERO_POINT))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::noise;

    #[test]
    fn rows_are_rounded_to_their_scale() {
        for isa in Isa::available() {
            for len in [1, 3, 4, 33, 70] {
                let x = noise(1, 6 * len);
                let q = Quantised::new(isa, &x, len, 2);
                assert_eq!((q.scales.len(), q.bytes().len()), (3, 6 * q.stride));
                for (i, x) in x.iter().enumerate() {
                    let (row, at) = (i / len, i % len);
                    let byte = f32::from(q.bytes()[row * q.stride + at]) - 128.0;
                    let scale = q.scales[row / 2];
                    assert!((byte * scale - x).abs() <= 0.5001 * scale, "{isa} {len}");
                }
            }
            let zero = Quantised::new(isa, &[0f32; 5], 5, 1);
            assert_eq!(zero.bytes()[..5], [ZERO_POINT; 5]);
        }
    }
}
