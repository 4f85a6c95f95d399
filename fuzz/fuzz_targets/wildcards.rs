//! Wildcards: any text is expanded or refused, the same way each time, and escaped text comes back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdxl::prompt::wildcards::{escape, expand, has_wildcards};

fuzz_target!(|input: (u64, &str)| {
    let (seed, text) = input;
    let made = expand(text, None, seed).ok();
    assert_eq!(made, expand(text, None, seed).ok());
    if !has_wildcards(text) {
        assert_eq!(made.as_deref(), Some(text));
    }
    assert_eq!(
        expand(&escape(text), None, seed).ok().as_deref(),
        Some(text)
    );
});
