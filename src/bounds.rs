//! What is known of a sample without any model in, whether it is within the bounds out.

use serde_json::Value;

use crate::settings::{JsonBound, MetadataFilter};

/// Whether an image of so many pixels is within the bounds.
pub fn fits_size(filter: &MetadataFilter, width: u32, height: u32) -> bool {
    let (shorter, longer) = (width.min(height), width.max(height));
    filter.side_min_px.is_none_or(|min| shorter >= min)
        && filter.pixels_max.is_none_or(|max| u64::from(width) * u64::from(height) <= max)
        && filter.aspect_ratio_max.is_none_or(|max| f64::from(longer) <= max * f64::from(shorter))
}

/// Whether caption and JSON member are within the bounds; a caption that is absent is empty.
pub fn fits_texts(filter: &MetadataFilter, caption: Option<&str>, json: Option<&str>) -> bool {
    fits_caption(filter, caption.unwrap_or_default())
        && (filter.json.is_empty() || fits_json(&filter.json, json))
}

fn fits_caption(filter: &MetadataFilter, caption: &str) -> bool {
    let is_within = |n: usize, min: Option<usize>, max: Option<usize>| {
        min.is_none_or(|min| n >= min) && max.is_none_or(|max| n <= max)
    };
    is_within(caption.chars().count(), filter.caption_chars_min, filter.caption_chars_max)
        && is_within(caption.split_whitespace().count(), filter.caption_words_min, filter.caption_words_max)
}

fn fits_json(bounds: &[JsonBound], json: Option<&str>) -> bool {
    let Some(json) = json.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return false };
    bounds.iter().all(|bound| field_of(&json, &bound.field).is_some_and(|field| fits_bound(bound, field)))
}

/// The value of a field; dots in its name go into objects.
pub fn field_of<'a>(json: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(json, |place, name| place.get(name))
}

fn fits_bound(bound: &JsonBound, field: &Value) -> bool {
    let is_equal = |wanted: &Value| match (wanted.as_f64(), field.as_f64()) {
        (Some(wanted), Some(field)) => wanted == field,
        _ => wanted == field,
    };
    let is_number = |holds: &dyn Fn(f64) -> bool| field.as_f64().is_some_and(holds);
    bound.equals.as_ref().is_none_or(is_equal)
        && bound.min.is_none_or(|min| is_number(&|value| value >= min))
        && bound.max.is_none_or(|max| is_number(&|value| value <= max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(filter: &str) -> Vec<usize> {
        let filter: MetadataFilter = toml::from_str(filter).unwrap();
        let captions = [Some("two words"), None, Some("größer als sieben"), Some("  x  ")];
        let sizes = [(100, 50), (400, 100), (300, 300), (64, 64)];
        let jsons = [
            Some(r#"{"punsafe": 0.25, "exif": {"lens": "a"}, "n": 3}"#),
            Some(r#"{"punsafe": "0.1"}"#),
            None,
            Some(r#"{"punsafe": 0.9, "exif": {"lens": "b"}, "n": 3.0}"#),
        ];
        let is_within = |row: &usize| {
            let (width, height) = sizes[*row];
            fits_size(&filter, width, height) && fits_texts(&filter, captions[*row], jsons[*row])
        };
        (0..4).filter(is_within).collect()
    }

    #[test]
    fn each_bound_holds_alone() {
        assert_eq!(passing(""), [0, 1, 2, 3]);
        assert_eq!(passing("side_min_px = 64"), [1, 2, 3]);
        assert_eq!(passing("pixels_max = 5000"), [0, 3]);
        assert_eq!(passing("aspect_ratio_max = 2.0"), [0, 2, 3]);
        assert_eq!(passing("caption_chars_min = 9"), [0, 2]);
        assert_eq!(passing("caption_chars_max = 16"), [0, 1, 3]);
        assert_eq!(passing("caption_words_min = 2"), [0, 2]);
        assert_eq!(passing("caption_words_max = 1\ncaption_chars_min = 1"), [3]);
    }

    #[test]
    fn a_json_bound_wants_its_field() {
        assert_eq!(passing("json = [{ field = 'punsafe', max = 0.5 }]"), [0]);
        assert_eq!(passing("json = [{ field = 'punsafe', min = 0.0 }]"), [0, 3]);
        assert_eq!(passing("json = [{ field = 'exif.lens', equals = 'b' }]"), [3]);
        assert_eq!(passing("json = [{ field = 'n', equals = 3 }]"), [0, 3]);
        assert_eq!(passing("json = [{ field = 'absent' }]"), [0usize; 0]);
    }
}
