//! The texts in a picture file that say how the picture was made, whatever the file format.

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
}

impl Texts {
    /// Whether the picture was made by a model, but out of another picture.
    pub fn is_composite(&self) -> bool {
        self.source_type.as_deref() == Some(xmp::COMPOSITE)
    }
}
