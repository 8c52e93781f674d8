//! Why a model folder cannot be used, and what the user can do about it.

use std::io;
use std::path::PathBuf;

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
    #[error("no file states `{setting}`")]
    MissingSetting { setting: &'static str },
    #[error("{setting} `{value}` is not supported")]
    Unsupported { setting: &'static str, value: String },
    #[error("no file states the logit scale")]
    MissingLogitScale {
        /// What training began with, as a logarithm, if `config.json` says so.
        initial_log: Option<f64>,
    },
    #[error("a logit scale must be finite and above 0, not {value}")]
    InvalidLogitScale { value: f64 },
    #[error("a logit bias must be finite, not {value}")]
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
    #[error("output `{output}` of graph `{graph}` has shape {shape:?}, not [samples, width]")]
    OutputShape { graph: PathBuf, output: String, shape: Vec<i64> },
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
            ModelError::MissingLogitScale { initial_log: None } => {
                "put `logit_scale = …` into `model.toml`: the linear value, exp of the checkpoint's `logit_scale`".to_owned()
            }
            ModelError::MissingLogitScale { initial_log: Some(log) } => format!(
                "put `logit_scale = …` into `model.toml`: the linear value, exp of the checkpoint's `logit_scale`; the \
                 {:.4} of `config.json` is only what training began with",
                log.exp()
            ),
            ModelError::NoInput { .. } => "name it in `model.toml`: `image_input`, `text_input`".to_owned(),
            ModelError::NoOutput { .. } | ModelError::OutputShape { .. } => {
                "name the output with one embedding a sample in `model.toml`: `image_output`, `text_output`".to_owned()
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
