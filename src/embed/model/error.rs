//! Why a model folder cannot be used, and what the user can do about it.

use std::io;
use std::path::PathBuf;

use super::graph_file::WireError;

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no `{path}`")]
    MissingFile { path: PathBuf },
    #[error("`{path}` is not valid JSON")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("`{path}` is not a valid model manifest")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("none of the graph files is there: {}", paths(searched))]
    MissingGraph { searched: Vec<PathBuf> },
    #[error("`{path}` holds more than {bytes_max} bytes")]
    TooLarge { path: PathBuf, bytes_max: u64 },
    #[error("cannot read graph file `{path}`")]
    GraphFile { path: PathBuf, source: WireError },
    #[error("`{named_by}` names file `{file}`, which is not in the model's folder")]
    OutsideFolder { file: String, named_by: String },
    #[error("cannot tell from graph `{graph}` what the model is; its inputs are {}", names(offered))]
    UnknownKind { graph: PathBuf, offered: Vec<String> },
    #[error("no file states `{setting}`")]
    MissingSetting { setting: &'static str },
    #[error("{setting} `{value}` is not supported")]
    Unsupported { setting: &'static str, value: String },
    #[error("a logit scale must be above 0 and at most a million, not {value}")]
    InvalidLogitScale { value: f64 },
    #[error("a logit bias must be within a million of 0, not {value}")]
    InvalidLogitBias { value: f64 },
    #[error("cannot use the tokenizer: {reason}")]
    Tokenizer { reason: String },
    #[error("cannot load graph `{graph}`")]
    Graph { graph: PathBuf, source: ort::Error },
    #[error("graph `{graph}` has no input for {wanted}; its inputs are {}", names(offered))]
    NoInput { graph: PathBuf, wanted: &'static str, offered: Vec<String> },
    #[error("graph `{graph}` wants an input `{input}` that is neither pixels nor tokens")]
    UnknownInput { graph: PathBuf, input: String },
    #[error("graph `{graph}` has no output {}; its outputs are {}", names(wanted), names(offered))]
    NoOutput { graph: PathBuf, wanted: Vec<String>, offered: Vec<String> },
    #[error("input `{input}` of graph `{graph}` takes {takes}, not {given}")]
    InputShape { graph: PathBuf, input: String, takes: String, given: String },
    #[error("input `{input}` of graph `{graph}` takes bytes, but the configuration normalises pixels")]
    WholePixels { graph: PathBuf, input: String },
    #[error("output `{output}` of graph `{graph}` has shape {shape:?}, not {wanted}")]
    OutputShape { graph: PathBuf, output: String, shape: Vec<i64>, wanted: &'static str },
    #[error("graph `{graph}` cannot embed a batch of two")]
    DryRun { graph: PathBuf, source: ort::Error },
    #[error("the image tower gives embeddings of width {image}, the text tower of width {text}")]
    TowersDisagree { image: usize, text: usize },
}

impl ModelError {
    /// What the user can do about it, if we know.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ModelError::MissingFile { .. } => "name a folder with a Hugging Face ONNX export".to_owned(),
            ModelError::MissingGraph { .. } => {
                "export the model to ONNX, or name its files in `model.toml`: `image_graph`, `text_graph`".to_owned()
            }
            ModelError::MissingSetting { setting } => format!("put `{setting}` into `model.toml`"),
            ModelError::OutsideFolder { .. } => "put the file beside the graph".to_owned(),
            ModelError::UnknownKind { .. } => {
                "state `kind` in `model.toml`: \"pair\", \"image\", \"text\" or \"classifier\"; and its inputs: \
                 `image_input`, `text_input`"
                    .to_owned()
            }
            ModelError::NoInput { .. } => "name it in `model.toml`: `image_input`, `text_input`".to_owned(),
            ModelError::OutputShape { shape, .. } if shape.len() == 3 => {
                "name the output with one embedding a sample in `model.toml`: `image_output`, `text_output`; or state how \
                 the vectors of a caption's tokens become one: `text_pooling = \"mean\"`, \"cls\" or \"last\""
                    .to_owned()
            }
            ModelError::Unsupported { setting: "image processor", .. } => {
                "if the preprocessing comes to a resize, a crop and a normalisation, state them in `model.toml`, and take \
                 `preprocessor_config.json` out of the folder"
                    .to_owned()
            }
            ModelError::Unsupported { setting: "setting of OpenCLIP", .. } => {
                "state what it comes to in `model.toml`, and take `open_clip_config.json` out of the folder".to_owned()
            }
            ModelError::Unsupported { setting: "text pooling" | "module of sentence-transformers", .. } => {
                "export the whole model, so that the graph has an output `sentence_embedding`; or state `text_pooling` in \
                 `model.toml`"
                    .to_owned()
            }
            ModelError::NoOutput { .. } | ModelError::OutputShape { .. } => {
                "name the output with one embedding a sample in `model.toml`: `image_output`, `text_output`".to_owned()
            }
            ModelError::InputShape { .. } => {
                "state the graph's own size: `image_size` or `context_length` in `model.toml`, and no `image_size_px` in the \
                 pipeline file; a graph that is exported with dynamic axes takes any"
                    .to_owned()
            }
            ModelError::WholePixels { .. } => {
                "the graph normalises by itself: state `rescale_factor = 1`, `image_mean = [0, 0, 0]` and `image_std = [1, 1, 1]` \
                 in `model.toml`"
                    .to_owned()
            }
            ModelError::DryRun { .. } => {
                "the graph must take any number of samples, and the size and context length of its configuration; \
                 export it with a dynamic batch axis"
                    .to_owned()
            }
            ModelError::TowersDisagree { .. } => {
                "name the projected outputs in `model.toml`: `image_output`, `text_output`".to_owned()
            }
            _ => return None,
        };
        Some(hint)
    }
}

fn names(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn paths(paths: &[PathBuf]) -> String {
    names(&paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
}
