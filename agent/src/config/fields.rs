//! The keys of a table, as the type says that reads it: so that a mistyped one is answered with the nearest.

use serde::de::{Deserialize, Deserializer, Error as _, Visitor, value::Error};

/// Names of the fields that a type's `Deserialize` asks for; empty where it is no struct.
pub(super) fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &[&str] = &[];
    // Nothing is read: the answer is what it asked for.
    let _refused = T::deserialize(Asked(&mut fields));
    fields
}

/// Refuses everything and keeps what a struct asked for.
struct Asked<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_the_type() {
        #[derive(serde::Deserialize)]
        struct Two {
            #[serde(rename = "type")]
            _kind: String,
            _name: Option<u32>,
        }
        assert_eq!(fields_of::<Two>(), ["type", "_name"]);
        assert!(fields_of::<Vec<u32>>().is_empty());
    }
}
