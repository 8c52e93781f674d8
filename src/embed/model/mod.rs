//! A model folder in, a checked model out: which graphs, how images and captions are prepared, and which
//! linear logit scale and bias turn cosines into logits.
//!
//! The folder is laid out as Hugging Face exports it; a `model.toml` in it completes or overrides what the
//! other files say. Nothing is guessed: what no file states is an error that names the setting.

mod digest;
mod error;
mod logits;
mod manifest;
mod preprocessor;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::image::Preprocessing;
use crate::error::Error;
use manifest::Manifest;

pub use error::ModelError;
pub use logits::{LogitBias, LogitScale, Sourced};

/// Which of a folder's exports of the same model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    #[default]
    Default,
    Fp16,
    Quantized,
}

impl Variant {
    /// What stands before `.onnx` in the file's name.
    fn suffix(self) -> &'static str {
        match self {
            Variant::Default => "",
            Variant::Fp16 => "_fp16",
            Variant::Quantized => "_quantized",
        }
    }
}

/// The graph files: one a tower, or one with both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Graphs {
    Split { image: PathBuf, text: PathBuf },
    Combined(PathBuf),
}

impl Graphs {
    fn files(&self) -> Vec<&Path> {
        match self {
            Graphs::Split { image, text } => vec![image, text],
            Graphs::Combined(graph) => vec![graph],
        }
    }
}

/// How captions become token ids.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextPreparation {
    /// Token ids of a caption, special tokens and padding included.
    pub context_length: usize,
    /// The token that fills a short caption up.
    pub pad_token: String,
    /// Whether captions are lower-cased before the tokenizer sees them.
    pub lower_case: bool,
}

/// Names of graph inputs and outputs that `model.toml` fixes; where it does not, the graph decides (see
/// [`Towers`](super::Towers)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GraphNames {
    pub image_input: Option<String>,
    pub image_output: Option<String>,
    pub text_input: Option<String>,
    pub text_output: Option<String>,
}

/// A model whose folder was read and checked; its graphs are not loaded yet.
#[derive(Clone, Debug)]
pub struct Model {
    pub folder: PathBuf,
    pub variant: Variant,
    pub graphs: Graphs,
    pub names: GraphNames,
    pub preprocessing: Preprocessing,
    pub text: TextPreparation,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    pub logit_scale: Sourced<LogitScale>,
    /// A CLIP checkpoint has none.
    pub logit_bias: Option<Sourced<LogitBias>>,
    /// BLAKE3, in hex, of all that decides an embedding but the inference batch size.
    pub digest: String,
}

impl Model {
    /// Reads a model folder.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] with what is missing or cannot be used, and in which file it should stand.
    pub fn open(folder: &Path, variant: Variant) -> Result<Model, Error> {
        read(folder, variant).map_err(|source| Error::Model { folder: folder.to_owned(), source })
    }

    /// Bytes of the graph files and of their external data, about those of the weights.
    pub fn graph_bytes(&self) -> u64 {
        let graphs = self.graphs.files();
        let data = graphs.iter().filter_map(|graph| digest::external_data(graph).ok()).flatten();
        let files = graphs.iter().map(|graph| graph.to_path_buf()).chain(data);
        files.filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
    }
}

fn read(folder: &Path, variant: Variant) -> Result<Model, ModelError> {
    if !folder.is_dir() {
        return Err(ModelError::MissingFile { path: folder.to_owned() });
    }
    let manifest = Manifest::read(folder)?;
    let config = read_json(&folder.join("config.json"))?.unwrap_or(Value::Null);
    let graphs = find_graphs(folder, variant, &manifest)?;
    let processor = read_json(&folder.join("preprocessor_config.json"))?;
    let preprocessing = preprocessor::resolve(processor.as_ref(), &manifest)?;
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = read_file(&tokenizer_path)?.ok_or(ModelError::MissingFile { path: tokenizer_path })?;
    let text = text_preparation(folder, &manifest, &config, &tokenizer)?;
    let (logit_scale, logit_bias) = logits::resolve(&manifest, &config)?;
    let names = GraphNames {
        image_input: manifest.image_input,
        image_output: manifest.image_output,
        text_input: manifest.text_input,
        text_output: manifest.text_output,
    };
    let mut model = Model {
        folder: folder.to_owned(),
        variant,
        graphs,
        names,
        preprocessing,
        text,
        tokenizer,
        logit_scale,
        logit_bias,
        digest: String::new(),
    };
    model.digest = digest::digest(&model)?;
    Ok(model)
}

/// The files that `model.toml` names, else the names of Hugging Face exports, in `onnx/` or beside the
/// configuration.
fn find_graphs(folder: &Path, variant: Variant, manifest: &Manifest) -> Result<Graphs, ModelError> {
    let mut searched = Vec::new();
    let mut find = |path: PathBuf| {
        let is_file = path.is_file();
        searched.push(path.clone());
        is_file.then_some(path)
    };
    let named = |file: &str| folder.join(with_suffix(file, variant));
    if let (Some(image), Some(text)) = (&manifest.image_graph, &manifest.text_graph) {
        let (image, text) = (named(image), named(text));
        if image == text {
            return find(image).map(Graphs::Combined).ok_or(ModelError::MissingGraph { searched });
        }
        return match (find(image), find(text)) {
            (Some(image), Some(text)) => Ok(Graphs::Split { image, text }),
            _ => Err(ModelError::MissingGraph { searched }),
        };
    }
    for place in ["onnx", "."] {
        let file = |name: &str| folder.join(place).join(with_suffix(name, variant));
        if let (Some(image), Some(text)) = (find(file("vision_model.onnx")), find(file("text_model.onnx"))) {
            return Ok(Graphs::Split { image, text });
        }
        if let Some(graph) = find(file("model.onnx")) {
            return Ok(Graphs::Combined(graph));
        }
    }
    Err(ModelError::MissingGraph { searched })
}

fn with_suffix(file: &str, variant: Variant) -> String {
    match file.strip_suffix(".onnx") {
        Some(stem) => format!("{stem}{}.onnx", variant.suffix()),
        None => file.to_owned(),
    }
}

fn text_preparation(
    folder: &Path,
    manifest: &Manifest,
    config: &Value,
    tokenizer: &[u8],
) -> Result<TextPreparation, ModelError> {
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
    let context_length = manifest
        .context_length
        .or_else(|| config["text_config"]["max_position_embeddings"].as_u64())
        .or_else(|| tokenizer_config["model_max_length"].as_u64())
        .or(class_default)
        .ok_or(ModelError::MissingSetting { setting: "context_length" })?;
    if !(1..=CONTEXT_LENGTH_MAX).contains(&context_length) {
        return Err(ModelError::Unsupported { setting: "context length", value: context_length.to_string() });
    }
    let tokenizer: Value = serde_json::from_slice(tokenizer)
        .map_err(|source| ModelError::Json { path: folder.join("tokenizer.json"), source })?;
    let pad_token = (manifest.pad_token.clone())
        .or_else(|| token_text(&tokenizer_config["pad_token"]))
        .or_else(|| token_text(&special_tokens["pad_token"]))
        .or_else(|| token_text(&tokenizer["padding"]["pad_token"]))
        .ok_or(ModelError::MissingSetting { setting: "pad_token" })?;
    Ok(TextPreparation {
        context_length: context_length as usize,
        pad_token,
        lower_case: manifest
            .lower_case
            .or_else(|| tokenizer_config["do_lower_case"].as_bool())
            .unwrap_or(is_siglip),
    })
}

/// Tokenizers without a limit state 10³⁰ for it; no text tower of an image–text model has more positions than
/// this.
const CONTEXT_LENGTH_MAX: u64 = 8192;

/// A token stands in these files as text or as an object with its text in `content`.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// The file's bytes, or nothing if there is no such file.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::Read { path: path.to_owned(), source }),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes)
        .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests;
