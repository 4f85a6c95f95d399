//! The XMP packet of a picture: what it says of itself to programs that know nothing of us
//! (IPTC's `DigitalSourceType`), and, where a format has no texts of its own, the recipe.

use roxmltree::Document;

/// IPTC's word for a picture that a trained model made.
pub const TRAINED: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
/// IPTC's word for a picture that a trained model made out of another picture.
pub const COMPOSITE: &str =
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia";

const RDF: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";
const IPTC: &str = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/";
/// The namespace of our own property.
const OWN: &str = "urn:sdxl:xmp:1.0:";
const EXIF: &str = "http://ns.adobe.com/exif/1.0/";
const DUBLIN_CORE: &str = "http://purl.org/dc/elements/1.1/";

/// The properties that are read from a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XmpTexts {
    /// `Iptc4xmpExt:DigitalSourceType`, a URI.
    pub source_type: Option<String>,
    /// `sdxl:recipe`, JSON.
    pub recipe: Option<String>,
    /// `exif:UserComment` or `dc:description`, where other programs say how a picture was made. It is
    /// read and never written.
    pub comment: Option<String>,
}

/// A packet that says what is there; empty where nothing is.
pub fn write(what: &XmpTexts) -> String {
    let mut properties = String::new();
    if let Some(uri) = &what.source_type {
        let uri = escape(uri);
        properties.push_str(&format!(
            "   <Iptc4xmpExt:DigitalSourceType>{uri}</Iptc4xmpExt:DigitalSourceType>\n"
        ));
    }
    if let Some(recipe) = &what.recipe {
        let recipe = escape(recipe);
        properties.push_str(&format!("   <sdxl:recipe>{recipe}</sdxl:recipe>\n"));
    }
    if properties.is_empty() {
        return String::new();
    }
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n <rdf:RDF xmlns:rdf=\"{RDF}\">\n  \
         <rdf:Description rdf:about=\"\" xmlns:Iptc4xmpExt=\"{IPTC}\" xmlns:sdxl=\"{OWN}\">\n\
         {properties}  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end=\"w\"?>"
    )
}

/// Text as it stands in XML. What XML has no way to write is written as JSON does: outside of
/// JSON's strings, in a recipe, no such character occurs.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' => out.push(c),
            '\u{fffe}' | '\u{ffff}' | '\0'..'\u{20}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out
}

/// Reads a packet of any writer; one that is no XML says nothing.
pub fn read(packet: &str) -> XmpTexts {
    // Pads and a mark of the byte order may stand around the XML.
    let packet = packet.trim_matches(['\0', '\u{feff}', ' ', '\n', '\r', '\t']);
    let Ok(document) = Document::parse(packet) else {
        return XmpTexts::default();
    };
    // A property is an element, or an attribute of its description.
    let property = |namespace: &str, name: &str| -> Option<String> {
        document.descendants().find_map(|node| {
            if node.has_tag_name((namespace, name)) {
                // A text may stand in a list of languages.
                let inside = node.descendants().filter(|inner| inner.is_text());
                let text: String = inside.filter_map(|inner| inner.text()).collect();
                let resource = node.attribute((RDF, "resource")).map(str::to_string);
                let text = resource.unwrap_or(text).trim().to_string();
                return (!text.is_empty()).then_some(text);
            }
            let of_description = node.has_tag_name((RDF, "Description"));
            of_description
                .then(|| node.attribute((namespace, name)).map(str::to_string))
                .flatten()
        })
    };
    XmpTexts {
        source_type: property(IPTC, "DigitalSourceType"),
        recipe: property(OWN, "recipe"),
        comment: property(EXIF, "UserComment").or_else(|| property(DUBLIN_CORE, "description")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        let what = XmpTexts {
            source_type: Some(TRAINED.into()),
            recipe: Some(r#"{"prompt":"a <b> & \"c\" 猫 ]]>"}"#.into()),
            ..XmpTexts::default()
        };
        assert_eq!(read(&write(&what)), what);
        assert_eq!(write(&XmpTexts::default()), "");
        // A character that XML lacks comes back as JSON's escape of it: the same string.
        let odd = XmpTexts {
            recipe: Some("\"\u{ffff}\"".into()),
            ..XmpTexts::default()
        };
        let read = read(&write(&odd)).recipe.unwrap();
        assert_eq!(serde_json::from_str::<String>(&read).unwrap(), "\u{ffff}");
    }

    #[test]
    fn other_writers_forms_are_read() {
        for property in [
            format!("<i:DigitalSourceType>{COMPOSITE}</i:DigitalSourceType></r:Description>"),
            format!("<i:DigitalSourceType r:resource=\"{COMPOSITE}\"/></r:Description>"),
        ] {
            let packet = format!(
                "<r:RDF xmlns:r=\"{RDF}\" xmlns:i=\"{IPTC}\"><r:Description>{property}</r:RDF>\0\0"
            );
            assert_eq!(read(&packet).source_type.as_deref(), Some(COMPOSITE));
        }
        let packet = format!(
            "<r:RDF xmlns:r=\"{RDF}\"><r:Description xmlns:i=\"{IPTC}\" \
             i:DigitalSourceType=\"{TRAINED}\"/></r:RDF>"
        );
        assert_eq!(read(&packet).source_type.as_deref(), Some(TRAINED));
        assert_eq!(read("no XML <"), XmpTexts::default());
    }
}
