//! A sample's members in, its class out, in pools of labelled images.

use serde_json::Value;

use crate::bounds::field_of;
use crate::rejection::Rejection;

/// What a sample has beside its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SampleKind {
    /// A caption.
    #[default]
    ImageText,
    /// The number of a class; a caption is read where there is one.
    ImageClass(LabelSource),
    /// Nothing; a caption is read where there is one.
    Image,
    /// A caption, and no image or one that nobody looks at.
    Text,
}

/// Where the number of a sample's class stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelSource {
    /// The member `cls`, decimal digits, as webdataset writes it.
    Member,
    /// A field of the JSON member; dots go into objects.
    JsonField(String),
}

/// Bytes of a `cls` member that are read; the largest label has ten digits.
pub(super) const CLS_BYTES_MAX: u64 = 64;

/// The class that a `cls` member names; white space around it does not count.
pub(super) fn of_member(bytes: &[u8]) -> Result<u32, Rejection> {
    let text = std::str::from_utf8(bytes).map_err(|_| Rejection::InvalidLabel)?.trim();
    // `parse` would take a sign
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| Rejection::InvalidLabel),
        false => Err(Rejection::InvalidLabel),
    }
}

/// The class that a field of the JSON member names, which must be a whole number.
pub(super) fn of_json(json: &Value, field: &str) -> Result<u32, Rejection> {
    match field_of(json, field) {
        None | Some(Value::Null) => Err(Rejection::MissingLabel),
        Some(value) => {
            let label = value.as_u64().and_then(|label| u32::try_from(label).ok());
            label.ok_or(Rejection::InvalidLabel)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_label_and_nothing_else_is() {
        for (text, label) in [("0", 0), ("7\n", 7), (" 0042 ", 42), ("4294967295", u32::MAX)] {
            assert_eq!(of_member(text.as_bytes()), Ok(label), "{text:?}");
        }
        for text in ["", "-1", "+1", "1.0", "4294967296", "cat", "1 2", "\u{0663}"] {
            assert_eq!(of_member(text.as_bytes()), Err(Rejection::InvalidLabel), "{text:?}");
        }
        assert_eq!(of_member(b"\xff"), Err(Rejection::InvalidLabel));
    }

    #[test]
    fn dots_go_into_objects() {
        let json = serde_json::json!({"label": 3, "a": {"b": {"c": 5}}, "half": 0.5, "text": "1", "no": null, "big": 1u64 << 32});
        assert_eq!(of_json(&json, "label"), Ok(3));
        assert_eq!(of_json(&json, "a.b.c"), Ok(5));
        for absent in ["labels", "a.c", "label.x", "no"] {
            assert_eq!(of_json(&json, absent), Err(Rejection::MissingLabel), "{absent}");
        }
        for wrong in ["half", "text", "a", "big"] {
            assert_eq!(of_json(&json, wrong), Err(Rejection::InvalidLabel), "{wrong}");
        }
    }
}
