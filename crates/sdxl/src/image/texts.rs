//! The texts in a picture file that say how the picture was made, whatever the file format.

use serde_json::Value;

use super::xmp;

/// The texts of a picture file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// The A1111-style text, from any tool.
    pub parameters: Option<String>,
    /// Our recipe, as JSON.
    pub recipe: Option<String>,
    /// IPTC's `DigitalSourceType`, a URI: see [`super::xmp`].
    pub source_type: Option<String>,
    /// All other texts, each with the name that it has in the file: a PNG's keyword, EXIF's tag,
    /// `Comment` of a JPEG, `XMP`. They are read and never written.
    pub others: Vec<(String, String)>,
}

impl Texts {
    /// Whether the picture was made by a model, but out of another picture.
    pub fn is_composite(&self) -> bool {
        self.source_type.as_deref() == Some(xmp::COMPOSITE)
    }

    /// Adds a text under its name. One of A1111's form is `parameters`, wherever it stands, as is a
    /// comment of EXIF that is no JSON, unless there is one already.
    pub(super) fn add(&mut self, name: &str, text: String) {
        let text = text.trim_matches(['\0', ' ', '\n', '\r']).to_string();
        if text.is_empty() {
            return;
        }
        let is_comment = name == "UserComment" && !text.starts_with('{');
        if self.parameters.is_none() && (is_comment || is_parameters(&text)) {
            self.parameters = Some(text);
        } else if self.parameters.as_ref() != Some(&text) {
            self.others.push((name.to_string(), text));
        }
    }

    /// The program that made the picture, if it is one whose texts are known: by their names, or by
    /// what they say.
    pub fn tool(&self) -> Option<&'static str> {
        let has = |name: &str| self.others.iter().any(|(other, _)| other == name);
        let says = |name: &str, word: &str| {
            (self.others.iter()).any(|(other, text)| other == name && text.contains(word))
        };
        let inside = |key: &str| {
            let texts = (self.others.iter().map(|(_, text)| text)).chain(&self.parameters);
            let objects = texts.filter_map(|text| serde_json::from_str::<Value>(text).ok());
            objects.into_iter().any(|object| object.get(key).is_some())
        };
        if self.recipe.is_some() {
            Some("sdxl")
        } else if has("invokeai_metadata") || has("invokeai_graph") || has("sd-metadata") {
            Some("InvokeAI")
        } else if says("Software", "NovelAI") {
            Some("NovelAI")
        } else if says("Software", "Fooocus") || has("fooocus_scheme") {
            Some("Fooocus")
        } else if inside("sui_image_params") {
            Some("SwarmUI")
        } else if has("workflow") || says("prompt", "class_type") {
            Some("ComfyUI")
        } else if inside("v2") && inside("c") {
            Some("Draw Things")
        } else {
            None
        }
    }
}

/// Whether a text has the form that A1111 gave its parameters: prompts, then `Steps: 20, Sampler: ...`.
fn is_parameters(text: &str) -> bool {
    let settings = text.lines().last().unwrap_or("");
    !text.starts_with('{') && (settings.starts_with("Steps: ") || text.contains("\nSteps: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_told_by_their_form() {
        let mut texts = Texts::default();
        texts.add("Comment", "\0".into());
        texts.add("Comment", "{\"prompt\": \"a\\nSteps: 1\"}".into());
        texts.add(
            "UserComment",
            "a fox\nNegative prompt: rain\nSteps: 3, Seed: 1\0".into(),
        );
        texts.add("Description", "a fox".into());
        // A text that stands twice is said once.
        texts.add(
            "Comment",
            "a fox\nNegative prompt: rain\nSteps: 3, Seed: 1".into(),
        );
        let parameters = texts.parameters.as_deref();
        assert_eq!(
            parameters,
            Some("a fox\nNegative prompt: rain\nSteps: 3, Seed: 1")
        );
        let names: Vec<&str> = texts.others.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Comment", "Description"]);
    }

    #[test]
    fn tools_are_known_by_their_texts() {
        for (name, text, tool) in [
            (
                "prompt",
                "{\"3\": {\"class_type\": \"KSampler\"}}",
                Some("ComfyUI"),
            ),
            ("workflow", "{}", Some("ComfyUI")),
            ("invokeai_metadata", "{}", Some("InvokeAI")),
            ("Software", "NovelAI", Some("NovelAI")),
            ("Software", "Fooocus v2.5.5", Some("Fooocus")),
            ("parameters", "{\"sui_image_params\": {}}", Some("SwarmUI")),
            (
                "UserComment",
                "{\"c\": \"a fox\", \"v2\": {}}",
                Some("Draw Things"),
            ),
            ("Software", "GIMP", None),
        ] {
            let mut texts = Texts::default();
            texts.add(name, text.into());
            assert_eq!(texts.tool(), tool, "{name}");
        }
    }
}
