//! The number types activations can have.

use half::bf16;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A number type for activations: `f32` or [`half::bf16`]. Arithmetic is done in `f32`
/// whichever is chosen; this is how values are kept between operations.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// Whether this is [`half::bf16`]; otherwise it is `f32`.
    const IS_BF16: bool;
    /// Returns the value, exactly.
    fn to_f32(self) -> f32;
    /// Returns the nearest value of this type, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Returns the slice itself, if its elements are `f32`.
    #[doc(hidden)]
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
    /// Returns the slice itself, if its elements are `f32`.
    #[doc(hidden)]
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]>;
    /// Returns the slice itself, if its elements are [`half::bf16`].
    #[doc(hidden)]
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]>;
    /// Returns the slice itself, if its elements are [`half::bf16`].
    #[doc(hidden)]
    fn as_bf16_mut(slice: &mut [Self]) -> Option<&mut [bf16]>;
}

impl Element for f32 {
    const IS_BF16: bool = false;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    fn as_f32(slice: &[f32]) -> Option<&[f32]> {
        Some(slice)
    }
    fn as_f32_mut(slice: &mut [f32]) -> Option<&mut [f32]> {
        Some(slice)
    }
    fn as_bf16(_: &[f32]) -> Option<&[bf16]> {
        None
    }
    fn as_bf16_mut(_: &mut [f32]) -> Option<&mut [bf16]> {
        None
    }
}

impl Element for bf16 {
    const IS_BF16: bool = true;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn as_f32(_: &[bf16]) -> Option<&[f32]> {
        None
    }
    fn as_f32_mut(_: &mut [bf16]) -> Option<&mut [f32]> {
        None
    }
    fn as_bf16(slice: &[bf16]) -> Option<&[bf16]> {
        Some(slice)
    }
    fn as_bf16_mut(slice: &mut [bf16]) -> Option<&mut [bf16]> {
        Some(slice)
    }
}
