//! Why a run could not go on: what we were doing, with what, and what the user can do about it.

use std::io;
use std::path::PathBuf;

use crate::embed::ModelError;

/// A run that cannot go on. A bad sample is a [`Rejection`](crate::rejection::Rejection) instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load model `{folder}`")]
    Model { folder: PathBuf, source: ModelError },
    #[error("cannot find the ONNX Runtime library")]
    RuntimeMissing { searched: Vec<PathBuf> },
    #[error("cannot load the ONNX Runtime library `{path}`")]
    RuntimeLoad { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot use device `{device}`")]
    Device { device: String, source: ort::Error },
    #[error("cannot run the {tower} tower of model `{folder}`")]
    Inference { tower: &'static str, folder: PathBuf, source: ort::Error },
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`")]
    Write { path: PathBuf, source: io::Error },
}
