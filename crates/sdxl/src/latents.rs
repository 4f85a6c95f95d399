//! The latent tensors that a diffusion run works on, and the few operations that schedulers need of
//! them.

use serde::{Deserialize, Serialize};

/// A batch of latent images: `f32`, channel-last, shape `[batch, height, width, channels]`.
///
/// Reference checkpoints and their random numbers are channel-first; [`Latents::from_nchw`] and
/// [`Latents::to_nchw`] convert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Latents {
    shape: [usize; 4],
    data: Vec<f32>,
}

/// The stored form of latents: read back through a check, because a length that does not fit the
/// shape would panic later.
#[derive(Deserialize)]
struct Parts {
    shape: [usize; 4],
    data: Vec<f32>,
}

impl TryFrom<Parts> for Latents {
    type Error = String;

    fn try_from(parts: Parts) -> Result<Self, String> {
        let numel = parts
            .shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d));
        if numel != Some(parts.data.len()) {
            return Err(format!(
                "latents of shape {:?} cannot hold {} values",
                parts.shape,
                parts.data.len()
            ));
        }
        Ok(Self {
            shape: parts.shape,
            data: parts.data,
        })
    }
}

impl Latents {
    /// Latents from channel-last values.
    ///
    /// # Panics
    /// If `data` does not have as many values as `shape` says.
    pub fn new(shape: [usize; 4], data: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "latents of shape {shape:?}"
        );
        Self { shape, data }
    }

    /// Latents of zeros.
    pub fn zeros(shape: [usize; 4]) -> Self {
        Self {
            shape,
            data: vec![0.0; shape.iter().product()],
        }
    }

    /// Latents from values in the reference's order `[batch, channels, height, width]`; `shape` is
    /// still `[batch, height, width, channels]`.
    ///
    /// # Panics
    /// If `data` does not have as many values as `shape` says.
    pub fn from_nchw(shape: [usize; 4], data: &[f32]) -> Self {
        let [batch, height, width, channels] = shape;
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "latents of shape {shape:?}"
        );
        let plane = height * width;
        let mut out = Vec::with_capacity(data.len());
        for image in 0..batch {
            let image = &data[image * plane * channels..];
            out.extend((0..plane).flat_map(|p| (0..channels).map(move |c| image[c * plane + p])));
        }
        Self { shape, data: out }
    }

    /// The values in the reference's order `[batch, channels, height, width]`.
    pub fn to_nchw(&self) -> Vec<f32> {
        let [batch, height, width, channels] = self.shape;
        let plane = height * width;
        let mut out = Vec::with_capacity(self.data.len());
        for image in 0..batch {
            let image = &self.data[image * plane * channels..];
            out.extend(
                (0..channels).flat_map(|c| (0..plane).map(move |p| image[p * channels + c])),
            );
        }
        out
    }

    /// `[batch, height, width, channels]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Number of images.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Height in latent pixels (an eighth of the picture's).
    pub fn height(&self) -> usize {
        self.shape[1]
    }

    /// Width in latent pixels (an eighth of the picture's).
    pub fn width(&self) -> usize {
        self.shape[2]
    }

    /// Number of channels (4 for SDXL).
    pub fn channels(&self) -> usize {
        self.shape[3]
    }

    /// The channel-last values.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The channel-last values, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The channel-last values, without a copy.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The channel-last values of each image.
    pub fn images(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks(self.image_len().max(1))
    }

    /// The channel-last values of each image, to be changed in place.
    pub fn images_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let len = self.image_len().max(1);
        self.data.chunks_mut(len)
    }

    /// Values per image.
    pub(crate) fn image_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// `f` of every value.
    pub fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self {
            shape: self.shape,
            data: self.data.iter().map(|&x| f(x)).collect(),
        }
    }

    /// `f` of the values that several latents have at the same place. Scheduler updates are written
    /// with this, in the order of the operations of the reference, so that rounding agrees too.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn zip_with<const N: usize>(sources: [&Self; N], f: impl Fn([f32; N]) -> f32) -> Self {
        const { assert!(N > 0, "zip_with needs a source") };
        let shape = sources[0].shape;
        for source in sources {
            assert_eq!(source.shape, shape, "latents of different shapes");
        }
        let data = (0..sources[0].data.len())
            .map(|i| f(sources.map(|s| s.data[i])))
            .collect();
        Self { shape, data }
    }

    /// The linear combination `sum(factor * latents)`, summed from left to right in `f32`.
    ///
    /// # Panics
    /// If there are no terms or the shapes differ.
    pub fn lincomb(terms: &[(f32, &Self)]) -> Self {
        let (factor, first) = terms.first().expect("a linear combination needs a term");
        let mut out = first.map(|x| factor * x);
        for (factor, term) in &terms[1..] {
            assert_eq!(term.shape, out.shape, "latents of different shapes");
            for (sum, x) in out.data.iter_mut().zip(&term.data) {
                *sum += factor * x;
            }
        }
        out
    }

    /// Several batches as one.
    ///
    /// # Panics
    /// If there are no parts or their images differ in shape.
    pub fn concat(parts: &[Self]) -> Self {
        let mut shape = parts.first().expect("nothing to concatenate").shape;
        assert!(
            parts.iter().all(|p| p.shape[1..] == shape[1..]),
            "images of different shapes"
        );
        shape[0] = parts.iter().map(Self::batch).sum();
        Self {
            shape,
            data: parts.iter().flat_map(|p| p.data.iter().copied()).collect(),
        }
    }

    /// The batch cut into batches of `images` images; the last one may be smaller.
    ///
    /// # Panics
    /// If `images` is zero.
    pub fn split(&self, images: usize) -> Vec<Self> {
        let [batch, height, width, channels] = self.shape;
        let len = self.image_len();
        (0..batch)
            .step_by(images)
            .map(|start| {
                let end = batch.min(start + images);
                let data = self.data[start * len..end * len].to_vec();
                Self {
                    shape: [end - start, height, width, channels],
                    data,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: [usize; 4]) -> Latents {
        let n = shape.iter().product::<usize>();
        Latents::new(shape, (0..n).map(|i| i as f32).collect())
    }

    #[test]
    fn channel_order_round_trips() {
        let nchw: Vec<f32> = (0..2 * 3 * 2 * 5).map(|i| i as f32).collect();
        let latents = Latents::from_nchw([2, 2, 5, 3], &nchw);
        // Pixel (0, 1) of the second image holds one value of each plane.
        assert_eq!(&latents.data()[33..36], &[31.0, 41.0, 51.0]);
        assert_eq!(latents.to_nchw(), nchw);
    }

    #[test]
    fn split_is_undone_by_concat() {
        let all = numbered([5, 2, 3, 4]);
        let parts = all.split(2);
        assert_eq!(
            parts.iter().map(Latents::batch).collect::<Vec<_>>(),
            [2, 2, 1]
        );
        assert_eq!(Latents::concat(&parts), all);
    }

    #[test]
    fn combinations() {
        let (a, b) = (
            numbered([1, 1, 2, 2]),
            numbered([1, 1, 2, 2]).map(|x| x * x),
        );
        assert_eq!(
            Latents::lincomb(&[(2.0, &a), (-1.0, &b)]).data(),
            [0.0, 1.0, 0.0, -3.0]
        );
        assert_eq!(
            Latents::zip_with([&a, &b], |[a, b]| 2.0 * a - b).data(),
            [0.0, 1.0, 0.0, -3.0]
        );
    }

    #[test]
    fn a_lying_length_is_refused() {
        let text = r#"{"shape":[1,1,2,2],"data":[1.0]}"#;
        let error = serde_json::from_str::<Latents>(text)
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot hold 1 values"), "{error}");
    }
}
