//! The choice of the instructions: a generic computation is compiled once for each instruction
//! set, and run for the one that is asked for.

#![allow(unsafe_code)]

use crate::isa::Isa;
use crate::simd::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86;
use crate::simd::{MAX_ROWS, Op, Simd};

/// Runs `op` with the instructions of `isa`, which must be available.
pub(crate) fn dispatch<O: Op>(isa: Isa, op: O) -> O::Output {
    match isa {
        Isa::Portable => op.run(Portable::<6>),
        #[cfg(test)]
        Isa::FourRows => op.run(Portable::<4>),
        // SAFETY: an `Isa` above `Portable` comes only from detection on this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::run_avx2(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::run_avx512(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { x86::run_avx512_bf16(op) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => op.run(Portable::<6>),
    }
}

/// The sizes that an instruction set's kernels work in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    /// Rows of a tile: [`Simd::ROWS`].
    pub(crate) rows: usize,
    /// Columns of a full panel of packed weights.
    pub(crate) columns: usize,
    /// Lanes of a vector.
    pub(crate) lanes: usize,
}

/// Gives the sizes that the kernels of this instruction set work in.
pub(crate) fn tile_shape(isa: Isa) -> TileShape {
    struct Shape;
    impl Op for Shape {
        type Output = TileShape;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> TileShape {
            const { assert!(S::ROWS > 0 && S::ROWS <= MAX_ROWS) }
            TileShape {
                rows: S::ROWS,
                columns: S::LANES * S::PANEL_VECTORS,
                lanes: S::LANES,
            }
        }
    }
    dispatch(isa, Shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{MAX_LANES, MAX_PANEL};

    #[test]
    fn tiles_have_the_height_that_their_instruction_set_says() {
        for isa in Isa::available() {
            let shape = tile_shape(isa);
            assert!(shape.columns <= MAX_PANEL && shape.lanes <= MAX_LANES);
            assert_eq!(shape.columns % shape.lanes, 0, "{isa}");
        }
        // Another height than the others': every kernel's test goes through it.
        assert_eq!(tile_shape(Isa::FourRows).rows, 4);
        assert_eq!(tile_shape(Isa::Portable).rows, 6);
    }
}
