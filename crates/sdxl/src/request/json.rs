//! Requests from JSON, with errors that name the field.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor, value};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::Request;
use crate::error::{Error, Result};

impl Request {
    /// Reads a request: an object with the fields that are not to have their defaults. What the
    /// values mean is not looked at; [`Request::check`] does that.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field whose value is of another kind. Where a field is
    /// unknown, the error has none and its hint the known one that is most like it.
    pub fn from_json(json: &Value) -> Result<Request> {
        let Value::Object(object) = json else {
            return Err(of_none("a request is a JSON object".into(), None));
        };
        let whole = match Request::deserialize(json) {
            Ok(request) => return Ok(request),
            Err(error) => error,
        };
        // The error of the whole does not say where: each field is read alone.
        for (name, value) in object {
            let field = Self::field(name)?;
            let alone = Value::Object([(name.clone(), value.clone())].into_iter().collect());
            if let Err(error) = Request::deserialize(&alone) {
                return Err(Error::request(field, error.to_string()));
            }
        }
        Err(of_none(whole.to_string(), None))
    }

    /// The field of that name.
    ///
    /// # Errors
    /// [`Error::Request`] without a field, and with the known one that is most like the name as its
    /// hint.
    pub fn field(name: &str) -> Result<&'static str> {
        let field = Self::fields().iter().find(|field| **field == name);
        field.copied().ok_or_else(|| {
            let nearest = nearest(name).map(|near| format!("did you mean `{near}`?"));
            of_none(format!("there is no field `{name}`"), nearest)
        })
    }

    /// Puts a field back to its default.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that no field has, and for a request that cannot be written as
    /// JSON.
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let field = Self::field(name)?;
        // A path that is no Unicode has no JSON.
        let mut json = serde_json::to_value(&*self)
            .map_err(|error| Error::request(field, error.to_string()))?;
        if let Value::Object(object) = &mut json {
            object.remove(field);
        }
        *self = Self::from_json(&json)?;
        Ok(())
    }

    /// The names of all fields, as they are in JSON and in errors.
    pub fn fields() -> &'static [&'static str] {
        let mut fields: &'static [&'static str] = &[];
        // It notes the names and refuses then.
        let _ = Request::deserialize(FieldNames(&mut fields));
        fields
    }
}

fn of_none(message: String, hint: Option<String>) -> Error {
    Error::Request {
        field: None,
        message,
        hint,
    }
}

/// The field that is most like `name`.
fn nearest(name: &str) -> Option<&'static str> {
    let likeness = |field: &str| strsim::jaro_winkler(field, name);
    let fields = Request::fields().iter().copied();
    fields.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// A source of data that takes down which fields a structure asks it for, and has none.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> std::result::Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(Self::Error::custom("there are only names"))
    }

    fn deserialize_any<V: Visitor<'de>>(
        self,
        _visitor: V,
    ) -> std::result::Result<V::Value, Self::Error> {
        Err(Self::Error::custom("there are only names"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
