//! Digests of bytes and of settings: BLAKE3, cut to 128 bits, as 32 hexadecimal digits.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// 128 bits of BLAKE3, as lower-case hexadecimal text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    pub fn of_bytes(bytes: &[u8]) -> Digest {
        Digest::from_hash(&blake3::hash(bytes))
    }

    /// The digest of any value's canonical JSON: keys sorted, no white space.
    pub fn of_json(value: &impl Serialize) -> Digest {
        let value = serde_json::to_value(value).expect("settings and plans are representable as JSON");
        Digest::of_bytes(canonical_json(&value).as_bytes())
    }

    pub fn from_hash(hash: &blake3::Hash) -> Digest {
        Digest(hash.to_hex()[..32].to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// JSON text with the keys of every object in order, so that equal values have equal text.
pub fn canonical_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            let fields: Vec<String> = fields
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical_json(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(values) => {
            format!("[{}]", values.iter().map(canonical_json).collect::<Vec<_>>().join(","))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn key_order_does_not_matter_but_values_do() {
        let left: Value = serde_json::from_str(r#"{"b": [1, {"y": 2, "x": "ü\""}], "a": 0.8}"#).unwrap();
        let right: Value = serde_json::from_str(r#"{"a": 0.8, "b": [1, {"x": "ü\"", "y": 2}]}"#).unwrap();
        assert_eq!(canonical_json(&left), r#"{"a":0.8,"b":[1,{"x":"ü\"","y":2}]}"#);
        assert_eq!(Digest::of_json(&left), Digest::of_json(&right));
        assert_ne!(Digest::of_json(&json!({"a": 0.8})), Digest::of_json(&json!({"a": 0.81})));
    }
}
