//! `open_clip_config.json`, as OpenCLIP puts its models on the hub, in; what of `model.toml` it amounts to out, for folders
//! without Hugging Face's own files. Where each tower has a folder, its two halves are `config.json` and
//! `visual/preprocess_cfg.json`.
//!
//! # Source
//!
//! open_clip 3, `factory.py` (the image tower's size, stated or not, takes the place of that of `preprocess_cfg`),
//! `transform.py` (defaults and resize modes) and `tokenizer.py`. `init_logit_scale` and `init_logit_bias` are what training
//! began with, and not taken.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::CaptionForm;
use super::error::ModelError;
use super::folder::{TOWER_FOLDERS, read_file};
use super::manifest::{Manifest, ResizeRule, Size};
use crate::embed::image::{CropStart, Resample};

/// All that is read of the file; what it leaves out is OpenCLIP's default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OpenClip {
    model_cfg: ModelConfig,
    preprocess_cfg: PreprocessConfig,
    /// Whether `config.json` is the first of them, and not Hugging Face's.
    #[serde(skip)]
    is_config: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    vision_cfg: VisionConfig,
    text_cfg: TextConfig,
    /// The logarithm.
    init_logit_scale: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VisionConfig {
    image_size: Option<HeightWidth>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TextConfig {
    context_length: Option<u64>,
    hf_tokenizer_name: Option<String>,
    tokenizer_kwargs: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PreprocessConfig {
    mean: Option<Channels>,
    std: Option<Channels>,
    interpolation: Option<Interpolation>,
    resize_mode: Option<ResizeMode>,
    fill_color: Option<u8>,
    mode: Option<Mode>,
}

/// In pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum HeightWidth {
    Square(u32),
    Both([u32; 2]),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Channels {
    All(f64),
    Each([f64; 3]),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Interpolation {
    Bilinear,
    Bicubic,
    /// Of training alone; bicubic else.
    Random,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResizeMode {
    #[default]
    Shortest,
    Longest,
    Squash,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Mode {
    #[serde(rename = "RGB")]
    Rgb,
}

const FILE: &str = "open_clip_config.json";
const IMAGE_SIZE_PX: u32 = 224;
const CONTEXT_LENGTH: u64 = 77;
/// OpenAI's.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

impl OpenClip {
    /// Reads the folder's file, if it has one.
    pub fn read(folder: &Path) -> Result<Option<OpenClip>, ModelError> {
        if let Some(whole) = read(&folder.join(FILE))? {
            return Ok(Some(whole));
        }
        let Some(preprocess_cfg) = read(&folder.join(TOWER_FOLDERS[0]).join("preprocess_cfg.json"))? else {
            return Ok(None);
        };
        let path = folder.join("config.json");
        let model_cfg = read(&path)?.ok_or(ModelError::MissingFile { path })?;
        Ok(Some(OpenClip { model_cfg, preprocess_cfg, is_config: true }))
    }

    pub fn is_config(&self) -> bool {
        self.is_config
    }

    /// The logarithm of the scale that training began with.
    pub fn initial_log_scale(&self) -> Option<f64> {
        self.model_cfg.init_logit_scale
    }

    /// The manifest with what it leaves open of images.
    ///
    /// # Errors
    ///
    /// A shorter side brought to a tensor that is not square, which OpenCLIP resizes by a rule of its own.
    pub fn with_images(&self, manifest: &Manifest) -> Result<Manifest, ModelError> {
        let stated = &self.preprocess_cfg;
        let size = self.model_cfg.vision_cfg.image_size;
        let [height, width] = match size.unwrap_or(HeightWidth::Square(IMAGE_SIZE_PX)) {
            HeightWidth::Square(side) => [side; 2],
            HeightWidth::Both(sides) => sides,
        };
        let mode = stated.resize_mode.unwrap_or_default();
        if mode == ResizeMode::Shortest && width != height && manifest.resize.is_none() {
            return Err(unsupported(format!("resize_mode = shortest to {width}×{height}")));
        }
        let channels = |channels: Option<Channels>, default| match channels {
            Some(Channels::All(value)) => [value; 3],
            Some(Channels::Each(values)) => values,
            None => default,
        };
        Ok(Manifest {
            image_size: manifest.image_size.or(Some(Size::WidthHeight([width, height]))),
            resize: manifest.resize.or(Some(match mode {
                ResizeMode::Shortest => ResizeRule::ShortestSide,
                ResizeMode::Longest => ResizeRule::LongestSide,
                ResizeMode::Squash => ResizeRule::Squash,
            })),
            crop_start: manifest
                .crop_start
                .or((mode == ResizeMode::Shortest).then_some(CropStart::RoundedToEven)),
            fill: manifest.fill.or(stated.fill_color.map(|gray| [gray; 3])),
            resample: manifest.resample.or(Some(match stated.interpolation {
                Some(Interpolation::Bilinear) => Resample::Bilinear,
                Some(Interpolation::Bicubic | Interpolation::Random) | None => Resample::Bicubic,
            })),
            image_mean: manifest.image_mean.or(Some(channels(stated.mean, MEAN))),
            image_std: manifest.image_std.or(Some(channels(stated.std, STD))),
            ..manifest.clone()
        })
    }

    /// The manifest with what it leaves open of captions. `tokenizer` is what `tokenizer.json` says.
    ///
    /// # Errors
    ///
    /// An option of the tokenizer that is not known here.
    pub fn with_captions(&self, manifest: &Manifest, tokenizer: &Value) -> Result<Manifest, ModelError> {
        let text = &self.model_cfg.text_cfg;
        // OpenCLIP's own fills up with zeros
        let zero =
            (text.has_own_tokenizer() && tokenizer["model"]["vocab"]["!"] == 0).then(|| "!".to_owned());
        Ok(Manifest {
            context_length: manifest.context_length.or(text.context_length).or(Some(CONTEXT_LENGTH)),
            pad_token: manifest.pad_token.clone().or(zero),
            caption_form: match manifest.caption_form {
                Some(form) => Some(form),
                None => Some(text.form()?),
            },
            ..manifest.clone()
        })
    }
}

impl TextConfig {
    /// What is done to a caption before the tokenizer, but for the repair of broken text and of HTML.
    fn form(&self) -> Result<CaptionForm, ModelError> {
        // the vocabulary of OpenCLIP's own tokenizer comes with CLIP's `tokenizer.json`, which cleans
        let mut form =
            if self.has_own_tokenizer() { CaptionForm::AsIs } else { CaptionForm::OpenClipWhitespace };
        for (option, value) in &self.tokenizer_kwargs {
            form = match (option.as_str(), value) {
                (_, Value::Null | Value::Bool(false)) => continue,
                ("clean", value) if value == "whitespace" => CaptionForm::OpenClipWhitespace,
                ("clean", value) if value == "lower" => CaptionForm::OpenClipLower,
                ("clean", value) if value == "canonicalize" => CaptionForm::OpenClip,
                _ => return Err(unsupported(format!("tokenizer_kwargs.{option} = {value}"))),
            };
        }
        Ok(form)
    }

    /// Whether the tokenizer is OpenCLIP's, with CLIP's vocabulary, and not Hugging Face's.
    fn has_own_tokenizer(&self) -> bool {
        self.hf_tokenizer_name.as_ref().is_none_or(String::is_empty)
    }
}

/// A file of JSON, if it is there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| ModelError::Json { path: path.to_owned(), source })
}

fn unsupported(value: String) -> ModelError {
    ModelError::Unsupported { setting: "setting of OpenCLIP", value }
}
