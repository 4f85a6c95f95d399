//! The geometry of a convolution: images, stride and padding.

/// The shape of a convolution's input and how the kernel moves over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Images.
    pub batch: usize,
    /// Rows of an input image.
    pub height: usize,
    /// Columns of an input image.
    pub width: usize,
    /// Step of the kernel in both directions.
    pub stride: usize,
    /// Rows of zeros above.
    pub pad_top: usize,
    /// Columns of zeros to the left.
    pub pad_left: usize,
    /// Rows of zeros below.
    pub pad_bottom: usize,
    /// Columns of zeros to the right.
    pub pad_right: usize,
    /// The input is first enlarged to twice its size by repeating pixels.
    pub upsample: bool,
}

impl ConvGeometry {
    /// Returns the geometry of a 3x3 convolution of stride 1 whose padding keeps the images' size.
    pub fn same(batch: usize, height: usize, width: usize) -> ConvGeometry {
        ConvGeometry {
            batch,
            height,
            width,
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            pad_bottom: 1,
            pad_right: 1,
            upsample: false,
        }
    }

    /// Returns the height and width of the output for a kernel of `kh` by `kw`.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel, or the stride is zero.
    pub fn output_size(&self, kh: usize, kw: usize) -> (usize, usize) {
        let (height, width) = self.enlarged();
        let size = |n: usize, k: usize| (n - k) / self.stride + 1;
        (
            size(height + self.pad_top + self.pad_bottom, kh),
            size(width + self.pad_left + self.pad_right, kw),
        )
    }

    /// Returns the height and width of the input after it is enlarged.
    pub(crate) fn enlarged(&self) -> (usize, usize) {
        let factor = if self.upsample { 2 } else { 1 };
        (self.height * factor, self.width * factor)
    }
}
