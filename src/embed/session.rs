//! A graph file of a model in, an inference session on a device out.

use std::path::Path;

use super::model::{Model, ModelError};
use crate::error::Error;
use crate::runtime::{self, DeviceError, OpenSession, Place, Provider, SessionOptions};

/// How a graph is run; nothing of this changes what an embedding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    pub place: Place,
    /// Threads inside one operator.
    pub n_threads: usize,
}

/// Loads a graph.
///
/// # Errors
///
/// [`Error::Device`] if the device cannot be used, or not for this graph; [`Error::Model`] if nothing can load the
/// graph.
pub(super) fn open(model: &Model, graph: &Path, settings: &SessionSettings) -> Result<OpenSession, Error> {
    let place = settings.place;
    let engine_folder = match place.provider {
        Provider::TensorRt => runtime::engine_folder(&model.digest)?,
        Provider::Cpu | Provider::Cuda => None,
    };
    let options =
        SessionOptions { n_threads: settings.n_threads, engine_folder, ..SessionOptions::on(place) };
    let open_on = |place| runtime::open(graph, &SessionOptions { place, ..options.clone() });
    let in_model = |source| Error::Model {
        folder: model.folder.clone(),
        source: ModelError::Graph { graph: graph.to_owned(), source },
    };
    match open_on(place) {
        Ok(opened) => Ok(opened),
        Err(source) if !place.is_gpu() => Err(in_model(source)),
        Err(source) => {
            // a graph that no device can load is not the GPU's fault
            open_on(Place::CPU).map_err(in_model)?;
            let source = Box::new(DeviceError::Session(source));
            Err(Error::Device { device: place.to_string(), source })
        }
    }
}
