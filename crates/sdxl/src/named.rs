//! Values with names: the words that stand for them in requests, in recipes and on command lines.

/// A type with a short list of values, each with a name and a line that explains it. `FromStr` reads
/// the names.
pub trait Named: Copy + PartialEq + Send + Sync + 'static {
    /// All values, in the order in which they are listed.
    const ALL: &'static [Self];

    /// The name, as it is in requests and recipes.
    fn name(self) -> &'static str;

    /// A line that explains the value to whoever chooses.
    fn about(self) -> &'static str;

    /// Other names that are read, and never written.
    fn aliases(self) -> &'static [&'static str];
}

/// Likeness from which on a name was probably meant.
const LIKE: f64 = 0.8;

/// The value of a name, in capitals or small letters.
///
/// # Errors
/// Another text, with the names that there are.
pub(crate) fn parse<T: Named>(text: &str) -> Result<T, String> {
    let is = |name: &str| name.eq_ignore_ascii_case(text);
    let found = (T::ALL.iter().copied())
        .find(|value| is(value.name()) || value.aliases().iter().any(|alias| is(alias)));
    found.ok_or_else(|| {
        let names: Vec<&str> = T::ALL.iter().map(|value| value.name()).collect();
        let lower = text.to_ascii_lowercase();
        let meant = match nearest(&lower, names.iter().copied()) {
            Some(name) => format!(" (did you mean {name}?)"),
            None => String::new(),
        };
        let (last, others) = names.split_last().expect("there are values");
        format!(
            "`{text}` is unknown{meant}; use {} or {last}",
            others.join(", ")
        )
    })
}

/// The name that is most like `text`, if one is like it.
fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::jaro_winkler(name, text);
    names
        .filter(|name| likeness(name) >= LIKE)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// Gives an enum its names: value, name (and other names that are read), explanation.
macro_rules! named {
    ($type:ident: $($value:ident, $name:literal $(or $alias:literal)*, $about:literal;)+) => {
        impl $crate::named::Named for $type {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn name(self) -> &'static str {
                match self { $(Self::$value => $name),+ }
            }

            fn about(self) -> &'static str {
                match self { $(Self::$value => $about),+ }
            }

            fn aliases(self) -> &'static [&'static str] {
                match self { $(Self::$value => &[$($alias),*]),+ }
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> ::std::result::Result<Self, String> {
                $crate::named::parse(text)
            }
        }
    };
}
pub(crate) use named;

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::str::FromStr;

    use serde::Serialize;

    use super::*;
    use crate::image::Format;
    use crate::{
        Offload, PooledFrom, Precision, PromptSyntax, PromptWeighting, ResizeMode, Rng,
        UpscaleMethod, VaeTiling,
    };

    fn read_back<T: Named + Debug + FromStr<Err = String>>() {
        for value in T::ALL {
            assert_eq!(value.name().parse(), Ok(*value));
            assert_eq!(value.name().to_uppercase().parse(), Ok(*value));
            for alias in value.aliases() {
                assert_eq!(alias.parse(), Ok(*value));
            }
            assert!(!value.about().is_empty());
        }
        let error = "nothing of the kind".parse::<T>().unwrap_err();
        for value in T::ALL {
            assert!(error.contains(value.name()), "{error}");
        }
    }

    fn as_in_recipes<T: Named + Debug + FromStr<Err = String> + Serialize>() {
        read_back::<T>();
        for value in T::ALL {
            assert_eq!(serde_json::to_value(value).unwrap(), value.name());
        }
    }

    #[test]
    fn names_are_those_of_recipes() {
        as_in_recipes::<PromptSyntax>();
        as_in_recipes::<PromptWeighting>();
        as_in_recipes::<PooledFrom>();
        as_in_recipes::<VaeTiling>();
        as_in_recipes::<ResizeMode>();
        as_in_recipes::<UpscaleMethod>();
        as_in_recipes::<Rng>();
        as_in_recipes::<Precision>();
        as_in_recipes::<Offload>();
        // No field of a request or recipe.
        read_back::<Format>();
    }

    #[test]
    fn a_slip_is_told_from_nonsense() {
        let error = "sequentail".parse::<Offload>().unwrap_err();
        assert_eq!(
            error,
            "`sequentail` is unknown (did you mean sequential?); use none, model or sequential"
        );
        let error = "x".parse::<Offload>().unwrap_err();
        assert_eq!(error, "`x` is unknown; use none, model or sequential");
    }
}
