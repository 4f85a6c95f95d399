//! Pictures that come in: decoded within limits, upright, without transparency.

/// A picture in memory, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 3 for red, green, blue; 1 for grey.
    pub channels: usize,
    /// The values, row by row from the top.
    pub data: Vec<u8>,
}

impl Pixels {
    /// A picture of values that are there already.
    ///
    /// # Panics
    /// If `data` does not have `width * height * channels` values.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Self {
        assert_eq!(
            width * height * channels,
            data.len(),
            "a picture of {width}x{height}"
        );
        Pixels {
            width,
            height,
            channels,
            data,
        }
    }

    /// The values of the pixel in column `x` and row `y`.
    pub fn at(&self, x: usize, y: usize) -> &[u8] {
        let start = (y * self.width + x) * self.channels;
        &self.data[start..start + self.channels]
    }

    /// The rectangle of `width` x `height` pixels from column `left` and row `top`.
    ///
    /// # Panics
    /// If it reaches beyond the picture.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Pixels {
        let mut data = Vec::with_capacity(width * height * self.channels);
        for y in top..top + height {
            let start = (y * self.width + left) * self.channels;
            data.extend_from_slice(&self.data[start..start + width * self.channels]);
        }
        Pixels::new(width, height, self.channels, data)
    }

    /// The values as the VAE takes them: -1 to 1.
    pub fn to_signed(&self) -> Vec<f32> {
        (self.data.iter())
            .map(|v| 2.0 * (f32::from(*v) / 255.0) - 1.0)
            .collect()
    }
}
