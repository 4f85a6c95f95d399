//! The command line program `sdxl`.

fn main() {}
