//! What a model is, in one digest: everything that decides an embedding, and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::ModelError;
use super::{ImageSide, ModelParts, TextSide, Variant};

/// Changes when the same files would give other embeddings.
const ALGORITHM_VERSION: u32 = 2;

/// BLAKE3, in hex, over a canonical JSON description and the bytes of graphs, their external data and the
/// tokenizer. Where the folder lies, and scale and bias, are not part of it: they do not change an embedding.
///
/// `graphs` are the graph files, each with the files of its weights.
pub(super) fn digest(
    parts: &ModelParts,
    variant: Variant,
    graphs: &[Vec<PathBuf>],
) -> Result<String, ModelError> {
    let digests = |files: &Vec<PathBuf>| files.iter().map(|path| file_digest(path)).collect();
    let graphs: Vec<Vec<String>> = graphs.iter().map(digests).collect::<Result<_, _>>()?;
    // Object keys are sorted, so the text does not depend on the order here.
    let description = json!({
        "algorithm": ALGORITHM_VERSION,
        "kind": parts.kind(),
        "graphs": graphs,
        "precision": variant,
        "image": parts.image().map(describe_image),
        "text": parts.text().map(describe_text),
    });
    Ok(blake3::hash(description.to_string().as_bytes()).to_hex().to_string())
}

fn describe_image(side: &ImageSide) -> Value {
    json!({"input": side.input, "output": side.output, "preprocessing": side.preprocessing})
}

fn describe_text(side: &TextSide) -> Value {
    json!({
        "input": side.input,
        "output": side.output,
        "pooling": side.pooling,
        "preparation": side.preparation,
        "tokenizer": blake3::hash(&side.tokenizer).to_hex().as_str(),
    })
}

fn file_digest(path: &Path) -> Result<String, ModelError> {
    let read = || -> std::io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    read().map_err(|source| ModelError::Read { path: path.to_owned(), source })
}
