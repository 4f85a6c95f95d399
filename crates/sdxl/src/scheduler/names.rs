//! The comparison of names: one spelling for all variants, and likeness.

/// Lower case, with one underscore for every blank, hyphen or underscore, and `++` for `pp`: `DPM++
/// 2M`, `dpmpp_2m` and `dpm++_2m` are the same name. The endings of class names are left out.
pub(super) fn normalise(name: &str) -> String {
    let words: Vec<_> = name
        .split([' ', '-', '_'])
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect();
    let joined = words.join("_").replace("dpmpp", "dpm++");
    let joined = joined.strip_suffix("scheduler").unwrap_or(&joined);
    joined.strip_suffix('_').unwrap_or(joined).to_owned()
}

/// Compares a known name with one that was given: 1 for the same, 0 for nothing in common.
pub(super) fn similarity(known: &str, wanted: &str) -> f64 {
    strsim::jaro_winkler(&normalise(known), wanted)
}
