//! `model.toml`: what a model folder's other files leave open, or say wrongly.

use std::path::Path;

use serde::Deserialize;

use super::CaptionForm;
use super::error::ModelError;
use super::folder::read_file;
use super::kind::ModelKind;
use super::pooling::TextPooling;
use crate::embed::image::{CropStart, Resample};

/// The manifest's file name.
pub(super) const MANIFEST: &str = "model.toml";

/// All of `model.toml`; every setting may be left out.
///
/// ```toml
/// kind = "pair"                  # or "image", "text", "classifier"
/// logit_scale = 117.3            # linear: exp of what the checkpoint stores
/// logit_bias = -12.9             # SigLIP's sign; leave out for CLIP
///
/// image_graph = "onnx/vision_model.onnx"
/// image_input = "pixel_values"
/// image_output = "image_embeds"
/// image_size = 224               # or [width, height]
/// resize = "squash"              # or "shortest_side", then the centre; or "longest_side", on a field of `fill`
/// crop_start = "rounded_down"    # or "rounded_to_even", torchvision's: of a centre that lies at half a pixel
/// fill = [0, 0, 0]               # red, green, blue
/// resample = "bicubic"           # or "bilinear", "lanczos"
/// image_mean = [0.5, 0.5, 0.5]
/// image_std = [0.5, 0.5, 0.5]
///
/// text_graph = "onnx/text_model.onnx"
/// text_input = "input_ids"
/// text_output = "text_embeds"
/// text_pooling = "mean"          # or "cls", "last": of a graph that gives a vector a token
/// context_length = 64
/// pad_token = "</s>"
/// caption_form = "lower_case"    # or "as_is", "siglip", "open_clip" …: see `CaptionForm`
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Manifest {
    pub kind: Option<ModelKind>,
    pub logit_scale: Option<f64>,
    pub logit_bias: Option<f64>,
    pub image_graph: Option<String>,
    pub image_input: Option<String>,
    pub image_output: Option<String>,
    pub image_size: Option<Size>,
    /// The shorter side before the crop, if it is not the crop's.
    pub shortest_side: Option<u32>,
    pub resize: Option<ResizeRule>,
    pub crop_start: Option<CropStart>,
    /// Colour around an image that was fitted by its longest side; black if absent.
    pub fill: Option<[u8; 3]>,
    pub resample: Option<Resample>,
    pub rescale_factor: Option<f64>,
    pub image_mean: Option<[f64; 3]>,
    pub image_std: Option<[f64; 3]>,
    pub text_graph: Option<String>,
    pub text_input: Option<String>,
    pub text_output: Option<String>,
    pub text_pooling: Option<TextPooling>,
    pub context_length: Option<u64>,
    pub pad_token: Option<String>,
    pub caption_form: Option<CaptionForm>,
}

/// Pixels of the tensor that the image tower takes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Square(u32),
    WidthHeight([u32; 2]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResizeRule {
    Squash,
    ShortestSide,
    LongestSide,
}

impl Manifest {
    /// Reads the folder's manifest; an empty one if there is none.
    pub fn read(folder: &Path) -> Result<Manifest, ModelError> {
        let path = folder.join(MANIFEST);
        let Some(bytes) = read_file(&path)? else { return Ok(Manifest::default()) };
        toml::from_slice(&bytes).map_err(|source| ModelError::Toml { path, source: Box::new(source) })
    }
}
