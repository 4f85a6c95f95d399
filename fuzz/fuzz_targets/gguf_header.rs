//! GGUF headers: whatever is read lies inside the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdxl::weights::gguf;

fuzz_target!(|file: &[u8]| {
    for entry in gguf::read(file).unwrap_or_default() {
        assert!(entry.range.0 <= entry.range.1 && entry.range.1 <= file.len());
    }
});
