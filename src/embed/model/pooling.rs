//! How the vectors of a caption's tokens become one, where the graph gives a vector a token: as sentence-transformers lays
//! its folders out.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::ModelError;
use super::folder::{inside, read_json};
use super::graph_file::GraphFile;
use super::manifest::Manifest;

/// Which of the tokens' vectors make the caption's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPooling {
    /// The mean over the caption's own tokens, without padding.
    Mean,
    /// The first.
    Cls,
    /// The last of the caption's own.
    Last,
}

/// Outputs of a graph that pools by itself.
const POOLED_OUTPUTS: [&str; 2] = ["text_embeds", "sentence_embedding"];

/// Modules of sentence-transformers after which the pooled vector is the embedding but for its length.
const MODULES: [&str; 3] = ["Transformer", "Pooling", "Normalize"];

const MODULES_FILE: &str = "modules.json";

/// What `model.toml` says; else, unless the graph pools by itself, what the folder's pooling module says, if it has one.
pub(super) fn resolve(
    folder: &Path,
    manifest: &Manifest,
    graph: &GraphFile,
) -> Result<Option<TextPooling>, ModelError> {
    if manifest.text_pooling.is_some() {
        return Ok(manifest.text_pooling);
    }
    if graph.outputs.iter().any(|output| POOLED_OUTPUTS.contains(&output.as_str())) {
        return Ok(None);
    }
    let mut module = "1_Pooling".to_owned();
    if let Some(modules) = read_json(&folder.join(MODULES_FILE))? {
        for (kind, path) in modules.as_array().into_iter().flatten().filter_map(kind_and_path) {
            if !MODULES.contains(&kind) {
                return Err(ModelError::Unsupported {
                    setting: "module of sentence-transformers",
                    value: kind.to_owned(),
                });
            }
            if kind == "Pooling" {
                module = path.to_owned();
            }
        }
    }
    let path = folder.join(inside(&module, MODULES_FILE)?).join("config.json");
    let Some(config) = read_json(&path)? else { return Ok(None) };
    let modes = modes(&config);
    match modes[..] {
        ["mean" | "mean_tokens"] => Ok(Some(TextPooling::Mean)),
        ["cls" | "cls_token"] => Ok(Some(TextPooling::Cls)),
        ["lasttoken"] => Ok(Some(TextPooling::Last)),
        _ => Err(ModelError::Unsupported { setting: "text pooling", value: format!("{modes:?}") }),
    }
}

/// The last part of a module's type, and its folder.
fn kind_and_path(module: &Value) -> Option<(&str, &str)> {
    let kind = module["type"].as_str()?.rsplit('.').next()?;
    Some((kind, module["path"].as_str()?))
}

/// The pooling modes that are on: one text in newer folders, a truth value each in older ones.
fn modes(config: &Value) -> Vec<&str> {
    if let Some(mode) = config["pooling_mode"].as_str() {
        return vec![mode];
    }
    let fields = config.as_object().into_iter().flatten();
    fields
        .filter(|(_, value)| **value == Value::Bool(true))
        .filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
        .collect()
}
