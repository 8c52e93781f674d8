//! `preprocessor_config.json` and `model.toml` in, one image preprocessing out.

use serde_json::Value;

use super::error::ModelError;
use super::manifest::{Manifest, ResizeRule, Size};
use crate::embed::image::{JpegDecoding, Preprocessing, Resample, Resize};

/// Beyond this a size is a mistake: the largest image towers take about 1,000 pixels a side.
const SIDE_PX_MAX: u64 = 4096;

/// What the configuration says in its old form (`"size": 224`) or its new one (`"size": {"shortest_edge":
/// 224}`), with the manifest's settings in place of its own, and the tensor's size in place of both.
pub(super) fn resolve(
    processor: Option<&Value>,
    manifest: &Manifest,
    image_size_px: Option<u32>,
) -> Result<Preprocessing, ModelError> {
    let null = Value::Null;
    let processor = processor.unwrap_or(&null);
    for (setting, field) in [("do_resize = false", "do_resize"), ("do_rescale = false", "do_rescale")] {
        if processor[field] == Value::Bool(false) {
            return Err(ModelError::Unsupported { setting: "image processor", value: setting.to_owned() });
        }
    }
    let is_normalised = processor["do_normalize"] != Value::Bool(false);
    let channels = |given: Option<[f64; 3]>, field: &str, unnormalised: f64, setting| match given {
        Some(values) => Ok(values),
        None if !is_normalised => Ok([unnormalised; 3]),
        None => three_numbers(&processor[field]).ok_or(ModelError::MissingSetting { setting }),
    };
    let stated = resize_rule(processor, manifest)?;
    let preprocessing = Preprocessing {
        resize: image_size_px.map_or(Ok(stated), |size| resized(stated, size))?,
        resample: match (manifest.resample, processor["resample"].as_u64()) {
            (Some(resample), _) => resample,
            (None, Some(number)) => Resample::from_pillow(number)
                .ok_or_else(|| ModelError::Unsupported { setting: "resample", value: number.to_string() })?,
            (None, None) => return Err(ModelError::MissingSetting { setting: "resample" }),
        },
        rescale_factor: (manifest.rescale_factor)
            .or(processor["rescale_factor"].as_f64())
            .unwrap_or(1.0 / 255.0),
        mean: channels(manifest.image_mean, "image_mean", 0.0, "image_mean")?,
        std: channels(manifest.image_std, "image_std", 1.0, "image_std")?,
        jpeg_decoding: JpegDecoding::default(),
    };
    let is_finite = preprocessing.mean.iter().chain(&preprocessing.std).all(|value| value.is_finite());
    if !is_finite || preprocessing.std.contains(&0.0) {
        return Err(ModelError::Unsupported {
            setting: "image_std",
            value: format!("{:?}", preprocessing.std),
        });
    }
    Ok(preprocessing)
}

fn resize_rule(processor: &Value, manifest: &Manifest) -> Result<Resize, ModelError> {
    let size = &processor["size"];
    let is_cropped = processor["do_center_crop"] == Value::Bool(true);
    let named = ["image_processor_type", "feature_extractor_type"]
        .iter()
        .find_map(|field| processor[*field].as_str());
    // An old `"size": 224` means the shorter side to processors that crop, CLIP's above all, and a square to
    // the others.
    let is_shortest = !size["shortest_edge"].is_null()
        || (size.is_u64() && (is_cropped || named.is_some_and(|name| name.contains("CLIP"))));
    let rule = match manifest.resize {
        Some(rule) => rule,
        None if is_shortest => ResizeRule::ShortestSide,
        // where processors pad, and with what, is not one rule
        None if size["longest_edge"].is_u64() => {
            return Err(ModelError::Unsupported {
                setting: "resize by the longest edge",
                value: size.to_string(),
            });
        }
        None if is_cropped && !size.is_null() => {
            return Err(ModelError::Unsupported {
                setting: "resize to a fixed size before a crop",
                value: size.to_string(),
            });
        }
        None => ResizeRule::Squash,
    };
    let given = manifest.image_size.map(|size| match size {
        Size::Square(side) => (u64::from(side), u64::from(side)),
        Size::WidthHeight([width, height]) => (u64::from(width), u64::from(height)),
    });
    let missing = ModelError::MissingSetting { setting: "image_size" };
    let (side, (width, height)) = match rule {
        ResizeRule::Squash | ResizeRule::LongestSide => {
            let (width, height) = given.or_else(|| width_height(size)).ok_or(missing)?;
            (width.min(height), (width, height))
        }
        ResizeRule::ShortestSide => {
            let stated = size["shortest_edge"].as_u64().or(size.as_u64());
            let crop = given.or_else(|| width_height(&processor["crop_size"]));
            // Without a crop the tensor would have the image's own shape, which no batch can hold.
            let crop = crop.or_else(|| stated.map(|side| (side, side))).ok_or(missing)?;
            let own = if given.is_some() { None } else { stated };
            (manifest.shortest_side.map(u64::from).or(own).unwrap_or(crop.0.min(crop.1)), crop)
        }
    };
    let [side, width, height] =
        [side, width, height].map(|length| (1..=SIDE_PX_MAX).contains(&length).then_some(length as u32));
    let (Some(side), Some(width), Some(height)) = (side, width, height) else {
        return Err(ModelError::Unsupported { setting: "image size", value: size.to_string() });
    };
    Ok(match rule {
        ResizeRule::Squash => Resize::Squash { width, height },
        ResizeRule::ShortestSide => Resize::ShortestSide { side, crop_width: width, crop_height: height },
        ResizeRule::LongestSide => {
            Resize::LongestSide { width, height, fill: manifest.fill.unwrap_or([0; 3]) }
        }
    })
}

/// The same look at a picture with a tensor of another size: what a crop cuts off stays the same fraction.
fn resized(resize: Resize, size: u32) -> Result<Resize, ModelError> {
    let is_fit = |length: u32| (1..=SIDE_PX_MAX).contains(&u64::from(length));
    let refused = ModelError::Unsupported { setting: "image_size_px", value: size.to_string() };
    if !is_fit(size) {
        return Err(refused);
    }
    match resize {
        Resize::Squash { .. } => Ok(Resize::Squash { width: size, height: size }),
        Resize::LongestSide { fill, .. } => Ok(Resize::LongestSide { width: size, height: size, fill }),
        Resize::ShortestSide { side, crop_width, crop_height } => {
            // lengths are at most 2^12, so that nothing here overflows
            let crop = crop_width.min(crop_height);
            let side = ((side * size + crop / 2) / crop).max(1);
            match is_fit(side) {
                true => Ok(Resize::ShortestSide { side, crop_width: size, crop_height: size }),
                false => Err(refused),
            }
        }
    }
}

/// A size as one number or as an object with both.
fn width_height(size: &Value) -> Option<(u64, u64)> {
    match size.as_u64() {
        Some(side) => Some((side, side)),
        None => Some((size["width"].as_u64()?, size["height"].as_u64()?)),
    }
}

fn three_numbers(values: &Value) -> Option<[f64; 3]> {
    let values: Vec<f64> = values.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    values.try_into().ok()
}
