//! `preprocessor_config.json` and `model.toml` in, one image preprocessing out.

use serde_json::Value;

use super::error::ModelError;
use super::manifest::{Manifest, ResizeRule, Size};
use crate::embed::image::{JpegDecoding, Preprocessing, Resample, Resize};

/// Beyond this a size is a mistake: the largest image towers take about 1,000 pixels a side.
const SIDE_PX_MAX: u64 = 4096;

/// Fields of processors that change pixels in ways that are not done here.
const UNDONE: [&str; 9] = [
    "do_align_long_axis",
    "do_convert_grayscale",
    "do_crop_margin",
    "do_flip_channel_order",
    "do_image_splitting",
    "do_pad",
    "do_thumbnail",
    "include_top",
    "rescale_offset",
];

/// What the configuration says in its old form (`"size": 224`) or its new one (`"size": {"shortest_edge":
/// 224}`), with the manifest's settings in place of its own, and the tensor's size in place of both.
pub(super) fn resolve(
    processor: Option<&Value>,
    manifest: &Manifest,
    image_size_px: Option<u32>,
) -> Result<Preprocessing, ModelError> {
    let null = Value::Null;
    let processor = processor.unwrap_or(&null);
    check(processor)?;
    let is_off = |field: &str| processor[field] == Value::Bool(false);
    let channels = |given: Option<[f64; 3]>, field: &str, unnormalised: f64, setting| match given {
        Some(values) => Ok(values),
        None if is_off("do_normalize") => Ok([unnormalised; 3]),
        None => three_numbers(&processor[field]).ok_or(ModelError::MissingSetting { setting }),
    };
    let stated = resize_rule(processor, manifest)?;
    let own_rescale_factor = match processor["rescale_factor"].as_f64() {
        _ if is_off("do_rescale") => 1.0,
        factor => factor.unwrap_or(1.0 / 255.0),
    };
    let preprocessing = Preprocessing {
        resize: image_size_px.map_or(Ok(stated), |size| resized(stated, size))?,
        resample: match (manifest.resample, processor["resample"].as_u64()) {
            (Some(resample), _) => resample,
            (None, Some(number)) => Resample::from_pillow(number)
                .ok_or_else(|| ModelError::Unsupported { setting: "resample", value: number.to_string() })?,
            (None, None) => return Err(ModelError::MissingSetting { setting: "resample" }),
        },
        rescale_factor: manifest.rescale_factor.unwrap_or(own_rescale_factor),
        mean: channels(manifest.image_mean, "image_mean", 0.0, "image_mean")?,
        std: channels(manifest.image_std, "image_std", 1.0, "image_std")?,
        crop_start: manifest.crop_start.unwrap_or_default(),
        jpeg_decoding: JpegDecoding::default(),
    };
    let numbers = [preprocessing.mean, preprocessing.std, [preprocessing.rescale_factor; 3]];
    if !numbers.iter().flatten().all(|value| value.is_finite()) || preprocessing.std.contains(&0.0) {
        return Err(ModelError::Unsupported {
            setting: "image mean, deviation and factor",
            value: format!("{numbers:?}"),
        });
    }
    Ok(preprocessing)
}

/// Refuses a processor that does what is not done here.
fn check(processor: &Value) -> Result<(), ModelError> {
    let refused = |value: String| Err(ModelError::Unsupported { setting: "image processor", value });
    if !processor["max_num_patches"].is_null() || class(processor).starts_with("Siglip2") {
        return refused(
            "NaFlex, which cuts images of any shape into patches: a checkpoint of fixed resolution is needed"
                .to_owned(),
        );
    }
    if processor["do_resize"] == Value::Bool(false) {
        return refused("do_resize = false".to_owned());
    }
    match UNDONE.iter().find(|field| processor[**field] == Value::Bool(true)) {
        Some(field) => refused(format!("{field} = true")),
        None => Ok(()),
    }
}

/// The processor's class without `ImageProcessor`, `FeatureExtractor` and `Fast`: `CLIP`, `ViT`.
fn class(processor: &Value) -> &str {
    let fields = ["image_processor_type", "feature_extractor_type"].iter();
    let name = fields.filter_map(|field| processor[*field].as_str()).next().unwrap_or_default();
    let name = name.strip_suffix("Fast").unwrap_or(name);
    name.strip_suffix("ImageProcessor").or(name.strip_suffix("FeatureExtractor")).unwrap_or(name)
}

fn resize_rule(processor: &Value, manifest: &Manifest) -> Result<Resize, ModelError> {
    let (rule, side) = stated_rule(processor, manifest)?;
    let size = &processor["size"];
    let given = manifest.image_size.map(|size| match size {
        Size::Square(side) => (u64::from(side), u64::from(side)),
        Size::WidthHeight([width, height]) => (u64::from(width), u64::from(height)),
    });
    let missing = || ModelError::MissingSetting { setting: "image_size" };
    let crop_size = || width_height(&processor["crop_size"]);
    let refused = || ModelError::Unsupported { setting: "image size", value: size.to_string() };
    let fit = |length: u64| (1..=SIDE_PX_MAX).contains(&length).then_some(length as u32).ok_or_else(refused);
    let both = |(width, height): (u64, u64)| Ok::<_, ModelError>((fit(width)?, fit(height)?));
    Ok(match rule {
        Rule::Squash => {
            let square = || shortest_edge(size).map(|side| (side, side));
            let stated = given.or_else(|| width_height(size)).or_else(square);
            let (width, height) = both(stated.ok_or_else(missing)?)?;
            Resize::Squash { width, height }
        }
        Rule::LongestSide => {
            let (width, height) = both(given.or_else(|| width_height(size)).ok_or_else(missing)?)?;
            Resize::LongestSide { width, height, fill: manifest.fill.unwrap_or([0; 3]) }
        }
        Rule::SquashThenCrop => {
            let (width, height) = both(width_height(size).ok_or_else(missing)?)?;
            let (crop_width, crop_height) = both(given.or_else(crop_size).ok_or_else(missing)?)?;
            Resize::SquashThenCrop { width, height, crop_width, crop_height }
        }
        Rule::ShortestSide => {
            // Without a crop the tensor would have the image's own shape, which no batch can hold.
            let square = || width_height(size).or(shortest_edge(size).map(|side| (side, side)));
            let crop = given.or_else(crop_size).or_else(square).ok_or_else(missing)?;
            let own = if given.is_some() { None } else { side };
            let side = manifest.shortest_side.map(u64::from).or(own).unwrap_or(crop.0.min(crop.1));
            let (crop_width, crop_height) = both(crop)?;
            Resize::ShortestSide { side: fit(side)?, crop_width, crop_height }
        }
    })
}

enum Rule {
    Squash,
    SquashThenCrop,
    ShortestSide,
    LongestSide,
}

/// The rule, and the length that a shorter side gets by it where the processor says so.
fn stated_rule(processor: &Value, manifest: &Manifest) -> Result<(Rule, Option<u64>), ModelError> {
    let size = &processor["size"];
    let side = shortest_edge(size);
    match manifest.resize {
        Some(ResizeRule::Squash) => return Ok((Rule::Squash, None)),
        Some(ResizeRule::LongestSide) => return Ok((Rule::LongestSide, None)),
        Some(ResizeRule::ShortestSide) => return Ok((Rule::ShortestSide, side)),
        None => {}
    }
    let is_cropped = processor["do_center_crop"] == Value::Bool(true);
    let class = class(processor);
    let crop_ratio = processor["crop_pct"].as_f64();
    match (class, side) {
        // ConvNeXt looks at a fraction of small pictures, and squashes to large sizes
        ("ConvNext", Some(side)) if side < 384 => {
            let enlarged = (side as f64 / crop_ratio.unwrap_or(224.0 / 256.0)) as u64;
            return Ok((Rule::ShortestSide, Some(enlarged)));
        }
        ("ConvNext", Some(_)) => return Ok((Rule::Squash, None)),
        ("PoolFormer", Some(side)) => {
            let enlarged = (side as f64 / crop_ratio.unwrap_or(0.9)) as u64;
            return Ok((Rule::ShortestSide, Some(enlarged)));
        }
        ("Levit", Some(side)) => {
            return Ok((Rule::ShortestSide, Some((256.0 / 224.0 * side as f64) as u64)));
        }
        _ if crop_ratio.is_some() => {
            return Err(ModelError::Unsupported {
                setting: "image processor",
                value: format!("crop_pct with {class}"),
            });
        }
        _ => {}
    }
    // An old `"size": 224` means the shorter side to processors that crop, CLIP's above all, and a square to the others.
    let is_square =
        size.is_u64() && (matches!(class, "DeiT" | "Beit") || !is_cropped && !class.contains("CLIP"));
    if !size["longest_edge"].is_null() {
        // where processors pad, and with what, is not one rule
        return Err(ModelError::Unsupported {
            setting: "resize by the longest edge",
            value: size.to_string(),
        });
    }
    Ok(match side {
        Some(_) if !is_square => (Rule::ShortestSide, side),
        _ if is_cropped && !size.is_null() => (Rule::SquashThenCrop, None),
        _ => (Rule::Squash, None),
    })
}

/// The shorter side that a size states, or a size that is one number.
fn shortest_edge(size: &Value) -> Option<u64> {
    size["shortest_edge"].as_u64().or(size.as_u64())
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
        Resize::SquashThenCrop { width, height, crop_width, crop_height } => {
            let (width, height) = (scaled(width, size, crop_width), scaled(height, size, crop_height));
            let resize = Resize::SquashThenCrop { width, height, crop_width: size, crop_height: size };
            if is_fit(width) && is_fit(height) { Ok(resize) } else { Err(refused) }
        }
        Resize::ShortestSide { side, crop_width, crop_height } => {
            let side = scaled(side, size, crop_width.min(crop_height));
            let resize = Resize::ShortestSide { side, crop_width: size, crop_height: size };
            if is_fit(side) { Ok(resize) } else { Err(refused) }
        }
    }
}

/// A length before a crop, for a crop of another size. Lengths are at most 2^12, so that nothing overflows.
fn scaled(length: u32, size: u32, crop: u32) -> u32 {
    ((length * size + crop / 2) / crop).max(1)
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
