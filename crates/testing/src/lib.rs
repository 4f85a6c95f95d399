//! Helpers that the tests of several crates share: golden files and the repository's other files, and
//! the distances from them. Everything here panics on an error, which fails the test.
//!
//! It knows nothing of `sdxl`, so that the library's own unit tests can use it too.

mod compare;
mod files;
mod golden;

pub use compare::{assert_close, psnr, relative_l2};
pub use files::{copy_folder, demo, golden, read_png};
pub use golden::Golden;
