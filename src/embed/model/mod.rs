//! A model folder in, a checked model out: which graphs, how images and captions are prepared, and which
//! linear logit scale and bias turn cosines into logits.
//!
//! The folder is laid out as Hugging Face exports it, or has OpenCLIP's configuration in place of Hugging Face's; a
//! `model.toml` in it completes or overrides what the other files say. Nothing is guessed: what no file states is an error
//! that names the setting.

mod graph_file;
mod error;
mod kind;
mod variant;
mod manifest;
mod open_clip;
mod folder;
mod preprocessor;
mod pooling;
mod logits;
mod digest;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::image::{JpegDecoding, Preprocessing};
use crate::error::Error;
use folder::{
    GraphPaths, TOWER_FOLDERS, combined_graph, external_paths, find_graphs, read_file, read_graph, read_json,
};
use graph_file::GraphFile;
use manifest::Manifest;
use open_clip::OpenClip;

pub use error::ModelError;
pub use kind::ModelKind;
pub use logits::{LogitBias, LogitScale, Sourced, StatedLogits};
pub use pooling::TextPooling;
pub use variant::Variant;

/// What of a model folder is taken, where it offers a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelChoice {
    pub variant: Variant,
    /// Width and height of the image tensor, in place of what the folder states.
    pub image_size_px: Option<u32>,
    pub jpeg_decoding: JpegDecoding,
}

/// How images come into a graph, and what comes out.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSide {
    pub graph: PathBuf,
    pub preprocessing: Preprocessing,
    /// The graph's input, where `model.toml` names it; else the graph decides (see [`Towers`](super::Towers)).
    pub input: Option<String>,
    /// The graph's output, likewise.
    pub output: Option<String>,
}

/// How captions come into a graph, and what comes out.
#[derive(Clone, Debug, PartialEq)]
pub struct TextSide {
    pub graph: PathBuf,
    pub preparation: TextPreparation,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Arc<[u8]>,
    pub input: Option<String>,
    pub output: Option<String>,
    /// None where the graph gives one vector a caption.
    pub pooling: Option<TextPooling>,
}

/// What is done to a caption before its `tokenizer.json` takes it; special tokens in it are left alone by Hugging Face's
/// forms, and not by OpenCLIP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionForm {
    AsIs,
    /// SigLIP 2.
    LowerCase,
    /// SigLIP's canonical text: lower case, without ASCII punctuation, white space as single spaces, none at the ends.
    Siglip,
    /// OpenCLIP's canonical text: the same, with underscores as spaces.
    OpenClip,
    /// What OpenCLIP does before tokenizers of Hugging Face unless it is told otherwise: white space as single spaces, none
    /// at the ends.
    OpenClipWhitespace,
    /// The same in lower case.
    OpenClipLower,
}

/// How captions become token ids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextPreparation {
    /// Token ids of a caption, special tokens and padding included.
    pub context_length: usize,
    /// The token that fills a short caption up.
    pub pad_token: String,
    /// Whether padding comes before the caption.
    pub pads_left: bool,
    pub form: CaptionForm,
}

/// What a model is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelParts {
    /// The two graphs may be one.
    Pair {
        image: ImageSide,
        text: TextSide,
    },
    Image(ImageSide),
    Text(TextSide),
    Classifier(ImageSide),
}

impl ModelParts {
    pub fn kind(&self) -> ModelKind {
        match self {
            ModelParts::Pair { .. } => ModelKind::Pair,
            ModelParts::Image(_) => ModelKind::Image,
            ModelParts::Text(_) => ModelKind::Text,
            ModelParts::Classifier(_) => ModelKind::Classifier,
        }
    }

    pub fn image(&self) -> Option<&ImageSide> {
        match self {
            ModelParts::Pair { image, .. } | ModelParts::Image(image) | ModelParts::Classifier(image) => {
                Some(image)
            }
            ModelParts::Text(_) => None,
        }
    }

    pub fn text(&self) -> Option<&TextSide> {
        match self {
            ModelParts::Pair { text, .. } | ModelParts::Text(text) => Some(text),
            ModelParts::Image(_) | ModelParts::Classifier(_) => None,
        }
    }

    /// The graph files, one a tower, or one with both.
    pub fn graphs(&self) -> Vec<&Path> {
        match self {
            ModelParts::Pair { image, text } if image.graph != text.graph => vec![&image.graph, &text.graph],
            ModelParts::Pair { image: ImageSide { graph, .. }, .. }
            | ModelParts::Image(ImageSide { graph, .. })
            | ModelParts::Classifier(ImageSide { graph, .. })
            | ModelParts::Text(TextSide { graph, .. }) => vec![graph],
        }
    }
}

/// A model whose folder was read and checked; its graphs are not loaded yet.
#[derive(Clone, Debug)]
pub struct Model {
    pub folder: PathBuf,
    pub choice: ModelChoice,
    pub parts: ModelParts,
    pub logits: StatedLogits,
    /// What the configuration says that training of the logit scale began with: never taken, but worth a hint.
    pub initial_logit_scale: Option<LogitScale>,
    /// Bytes of the graph files and of the files with their weights, about those of the weights alone.
    pub graph_bytes: u64,
    /// BLAKE3, in hex, of all that decides an embedding but the inference batch size.
    pub digest: String,
}

impl Model {
    /// Reads a model folder.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] with what is missing or cannot be used, and in which file it should stand.
    pub fn open(folder: &Path, choice: ModelChoice) -> Result<Model, Error> {
        read(folder, choice).map_err(|source| Error::Model { folder: folder.to_owned(), source })
    }

    pub fn kind(&self) -> ModelKind {
        self.parts.kind()
    }
}

/// What a folder's files say of the model as a whole.
struct Stated {
    manifest: Manifest,
    /// `config.json`; null where there is none of Hugging Face's.
    config: Value,
    /// Looked at where Hugging Face's file on the subject is not there.
    open_clip: Option<OpenClip>,
}

impl Stated {
    fn initial_log_scale(&self) -> Option<f64> {
        let of_open_clip = || self.open_clip.as_ref().and_then(OpenClip::initial_log_scale);
        self.config["logit_scale_init_value"].as_f64().or_else(of_open_clip)
    }
}

fn read(folder: &Path, choice: ModelChoice) -> Result<Model, ModelError> {
    if !folder.is_dir() {
        return Err(ModelError::MissingFile { path: folder.to_owned() });
    }
    let open_clip = OpenClip::read(folder)?;
    let config = match &open_clip {
        Some(open_clip) if open_clip.is_config() => None,
        _ => read_json(&folder.join("config.json"))?,
    };
    let config = config.unwrap_or(Value::Null);
    let stated = Stated { manifest: Manifest::read(folder)?, config, open_clip };
    let image = |graph| image_side(folder, &stated, choice, graph);
    let text = |graph| text_side(folder, &stated, graph);
    let parts = match find_graphs(folder, choice.variant, &stated.manifest, &stated.config)? {
        GraphPaths::Pair { image: image_graph, text: text_graph } => {
            ModelParts::Pair { image: image(image_graph)?, text: text(text_graph)? }
        }
        GraphPaths::Image(graph) => ModelParts::Image(image(graph)?),
        GraphPaths::Text(graph) => ModelParts::Text(text(graph)?),
        GraphPaths::Classifier(graph) => ModelParts::Classifier(image(graph)?),
    };
    let mut files = Vec::new();
    for path in parts.graphs() {
        let external = external_paths(folder, path, &read_graph(path)?)?;
        files.push([vec![path.to_owned()], external].concat());
    }
    Ok(Model {
        folder: folder.to_owned(),
        choice,
        logits: logits::resolve(&stated.manifest, combined(folder, choice.variant, &parts)?)?,
        initial_logit_scale: stated.initial_log_scale().and_then(|log| LogitScale::from_log(log).ok()),
        graph_bytes: files
            .iter()
            .flatten()
            .filter_map(|path| path.metadata().ok())
            .map(|file| file.len())
            .sum(),
        digest: digest::digest(&parts, choice.variant, &files)?,
        parts,
    })
}

/// The graph that holds scale and bias, with its name in the folder: one with both towers, whether it is the model's own or
/// lies beside those of one tower.
fn combined(
    folder: &Path,
    variant: Variant,
    parts: &ModelParts,
) -> Result<Option<(String, GraphFile)>, ModelError> {
    let path = match parts {
        ModelParts::Pair { image, text } if image.graph == text.graph => Some(image.graph.clone()),
        ModelParts::Pair { .. } => combined_graph(folder, variant),
        _ => None,
    };
    let Some(path) = path else { return Ok(None) };
    let name = path.strip_prefix(folder).unwrap_or(&path).components().collect::<PathBuf>();
    Ok(Some((name.display().to_string(), read_graph(&path)?)))
}

fn image_side(
    folder: &Path,
    stated: &Stated,
    choice: ModelChoice,
    graph: PathBuf,
) -> Result<ImageSide, ModelError> {
    let mut processor = read_json(&folder.join("preprocessor_config.json"))?;
    if processor.is_none() {
        // where newer releases keep it, beside the tokenizer's
        let both = read_json(&folder.join("processor_config.json"))?.unwrap_or(Value::Null);
        processor = both.get("image_processor").cloned();
    }
    let manifest = match (&processor, &stated.open_clip) {
        (None, Some(open_clip)) => &open_clip.with_images(&stated.manifest)?,
        _ => &stated.manifest,
    };
    let preprocessing = preprocessor::resolve(processor.as_ref(), manifest, choice.image_size_px)?;
    Ok(ImageSide {
        graph,
        preprocessing: Preprocessing { jpeg_decoding: choice.jpeg_decoding, ..preprocessing },
        input: manifest.image_input.clone(),
        output: manifest.image_output.clone(),
    })
}

fn text_side(folder: &Path, stated: &Stated, graph: PathBuf) -> Result<TextSide, ModelError> {
    let pooling = pooling::resolve(folder, &stated.manifest, &read_graph(&graph)?)?;
    let (path, beside_graph) = (folder.join("tokenizer.json"), folder.join(TOWER_FOLDERS[1]));
    let (folder, tokenizer) = match read_file(&path)? {
        Some(tokenizer) => (folder, tokenizer),
        None => {
            let tokenizer = read_file(&beside_graph.join("tokenizer.json"))?;
            (beside_graph.as_path(), tokenizer.ok_or(ModelError::MissingFile { path })?)
        }
    };
    Ok(TextSide {
        graph,
        pooling,
        preparation: text_preparation(folder, stated, &tokenizer)?,
        tokenizer: tokenizer.into(),
        input: stated.manifest.text_input.clone(),
        output: stated.manifest.text_output.clone(),
    })
}

fn text_preparation(folder: &Path, stated: &Stated, tokenizer: &[u8]) -> Result<TextPreparation, ModelError> {
    let tokenizer: Value = serde_json::from_slice(tokenizer)
        .map_err(|source| ModelError::Json { path: folder.join("tokenizer.json"), source })?;
    let config = &stated.config;
    let manifest = match (config, &stated.open_clip) {
        (Value::Null, Some(open_clip)) => &open_clip.with_captions(&stated.manifest, &tokenizer)?,
        _ => &stated.manifest,
    };
    let tokenizer_config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let special_tokens = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let is_siglip = model_type.starts_with("siglip");
    // Hugging Face leaves out of config.json what equals the model class's default.
    let class_default = match model_type {
        "clip" => Some(77),
        _ if is_siglip => Some(64),
        _ => None,
    };
    let sentences = read_json(&folder.join("sentence_bert_config.json"))?.unwrap_or(Value::Null);
    let context_length = manifest
        .context_length
        .or_else(|| sentences["max_seq_length"].as_u64())
        .or_else(|| config["text_config"]["max_position_embeddings"].as_u64())
        .or_else(|| tokenizer_config["model_max_length"].as_u64())
        .or_else(|| config["max_position_embeddings"].as_u64())
        .or(class_default)
        .ok_or(ModelError::MissingSetting { setting: "context_length" })?;
    if !(1..=CONTEXT_LENGTH_MAX).contains(&context_length) {
        return Err(ModelError::Unsupported { setting: "context length", value: context_length.to_string() });
    }
    let pad_token = (manifest.pad_token.clone())
        .or_else(|| token_text(&tokenizer_config["pad_token"]))
        .or_else(|| token_text(&special_tokens["pad_token"]))
        .or_else(|| token_text(&tokenizer["padding"]["pad_token"]))
        .ok_or(ModelError::MissingSetting { setting: "pad_token" })?;
    Ok(TextPreparation {
        context_length: context_length as usize,
        pad_token,
        pads_left: tokenizer_config["padding_side"] == "left",
        form: caption_form(manifest, is_siglip, &tokenizer_config, &tokenizer),
    })
}

/// What the model's tokenizer class does to captions before the tokenizer that `tokenizer.json` describes.
///
/// Only SigLIP's classes do anything: those of other models leave it to the normaliser that is in `tokenizer.json`, even
/// where `do_lower_case` is stated. A SigLIP 2 checkpoint calls itself `siglip`, and its tokenizer Gemma's.
fn caption_form(
    manifest: &Manifest,
    is_siglip: bool,
    tokenizer_config: &Value,
    tokenizer: &Value,
) -> CaptionForm {
    if let Some(form) = manifest.caption_form {
        return form;
    }
    let class = tokenizer_config["tokenizer_class"].as_str().unwrap_or_default();
    match class.trim_end_matches("Fast") {
        "SiglipTokenizer" => CaptionForm::Siglip,
        "Siglip2Tokenizer" => CaptionForm::LowerCase,
        "" if is_siglip && tokenizer["model"]["type"] == "Unigram" => CaptionForm::Siglip,
        _ if is_siglip && tokenizer_config["do_lower_case"] != Value::Bool(false) => CaptionForm::LowerCase,
        _ => CaptionForm::AsIs,
    }
}

/// Tokenizers without a limit state 10³⁰ for it; no text tower of an image–text model has more positions than
/// this.
const CONTEXT_LENGTH_MAX: u64 = 8192;

/// A token stands in these files as text or as an object with its text in `content`.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(super) mod small_graph;
#[cfg(test)]
mod tests;
