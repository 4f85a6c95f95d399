//! Knobs in the texts of `sdxl-kit`, written as the flags of this program.

/// The text of an error, with flags in what it says to do.
pub fn in_error(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    match error
        .downcast_ref::<sdxl_kit::Error>()
        .and_then(|e| e.hint())
    {
        Some(hint) => text.replace(&hint, &in_text(&hint)),
        None => text,
    }
}

/// A text with `--init-image` for a word in backticks that looks like the knob `init_image`.
pub fn in_text(text: &str) -> String {
    let mut all = String::new();
    for (i, part) in text.split('`').enumerate() {
        let knob = !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        match i % 2 == 1 {
            true if knob => all.push_str(&format!("--{}", part.replace('_', "-"))),
            true => all.push_str(&format!("`{part}`")),
            false => all.push_str(part),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_become_flags() {
        let text = in_text("give `init_image` or `Org/Name`, with `lora`");
        assert_eq!(text, "give --init-image or `Org/Name`, with --lora");
        let exists = sdxl_kit::Error::Exists {
            field: "output",
            path: "a `b`.png".into(),
        };
        let error = anyhow::Error::from(exists).context("picture 1");
        let said = "picture 1: a `b`.png: this file exists and is left alone; use --overwrite to \
                    replace it";
        assert_eq!(in_error(&error), said);
    }
}
