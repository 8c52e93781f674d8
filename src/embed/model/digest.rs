//! What a model is, in one digest: everything that decides an embedding, and nothing else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Model;
use super::error::ModelError;

/// Changes when the same files would give other embeddings.
const ALGORITHM_VERSION: u32 = 1;

/// BLAKE3, in hex, over a canonical JSON description and the bytes of graphs, their external data and the
/// tokenizer. Where the folder lies, and scale and bias, are not part of it: they do not change an embedding.
pub(super) fn digest(model: &Model) -> Result<String, ModelError> {
    let mut graphs = Vec::new();
    for graph in model.graphs.files() {
        let mut files = vec![file_digest(graph)?];
        for data in external_data(graph)? {
            files.push(file_digest(&data)?);
        }
        graphs.push(files);
    }
    // Object keys are sorted, so the text does not depend on the order here.
    let description = json!({
        "algorithm": ALGORITHM_VERSION,
        "graphs": graphs,
        "names": model.names,
        "precision": model.variant,
        "preprocessing": model.preprocessing,
        "text": model.text,
        "tokenizer": blake3::hash(&model.tokenizer).to_hex().as_str(),
    });
    Ok(blake3::hash(description.to_string().as_bytes()).to_hex().to_string())
}

fn file_digest(path: &Path) -> Result<String, ModelError> {
    let read = || -> std::io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    read().map_err(|source| ModelError::Read { path: path.to_owned(), source })
}

/// Files with a graph's weights: `model.onnx_data`, `model.onnx_data_1`, `model.onnx.data`, in the order of
/// their names.
pub(super) fn external_data(graph: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let folder = graph.parent().expect("a graph lies in the model's folder");
    let fault = |source| ModelError::Read { path: folder.to_owned(), source };
    let name = graph.file_name().expect("a graph is a file").to_string_lossy().into_owned();
    let mut files = Vec::new();
    for file in fs::read_dir(folder).map_err(fault)? {
        let path = file.map_err(fault)?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rest = file_name.strip_prefix(&name).unwrap_or_default();
        if rest.starts_with("_data") || rest.starts_with(".data") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
