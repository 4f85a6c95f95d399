//! The way a hint continues a sentence, in errors and warnings alike.

/// Gives the hint as the end of a sentence, or nothing.
pub(crate) fn then(hint: &Option<String>) -> String {
    (hint.as_ref()).map_or_else(String::new, |hint| format!("; {hint}"))
}
