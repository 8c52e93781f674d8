//! A model folder in, a model whose graphs are loaded and agree out.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::runtime::Driver;

use super::model::{Model, ModelChoice};
use super::session::SessionSettings;
use super::tower::Towers;
use super::values::ModelRows;

/// A model that is ready to embed.
pub struct LoadedModel {
    pub model: Model,
    pub towers: Towers,
    /// Width of an embedding, the same for both towers; of a classifier, the number of its classes.
    pub embedding_dim: usize,
}

impl LoadedModel {
    pub fn open(
        folder: &Path,
        choice: ModelChoice,
        settings: &SessionSettings,
    ) -> Result<LoadedModel, Error> {
        LoadedModel::load(Model::open(folder, choice)?, settings)
    }

    /// Loads the graphs of a model whose folder was read, and runs them over a blank batch of two, so that what cannot
    /// work fails before work starts.
    pub fn load(model: Model, settings: &SessionSettings) -> Result<LoadedModel, Error> {
        let mut towers = Towers::open(&model, settings)?;
        let embedding_dim =
            towers.width().map_err(|source| Error::Model { folder: model.folder.clone(), source })?;
        Ok(LoadedModel { model, towers, embedding_dim })
    }

    /// No rows yet of what the model gives.
    pub fn no_rows(&self) -> ModelRows {
        ModelRows::empty(self.model.kind(), self.embedding_dim)
    }

    /// What the embeddings depend on beside the model and its inputs.
    pub fn numerics(&self) -> BTreeMap<String, String> {
        let place = self.towers.place();
        let entries = [
            ("runtime", crate::runtime::library::build_info().to_owned()),
            ("provider", place.provider.name().to_owned()),
            ("nodes", self.towers.nodes().to_string()),
            ("instruction_set", instruction_set().to_owned()),
        ];
        let mut numerics: BTreeMap<String, String> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        if let (true, Ok(driver)) = (place.is_gpu(), Driver::find())
            && let Some(gpu) = driver.gpus.get(place.number as usize)
        {
            numerics.insert("gpu".to_owned(), gpu.name.clone());
        }
        numerics
    }
}

fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    std::env::consts::ARCH
}
