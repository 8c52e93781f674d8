//! A model folder in, a model whose graphs are loaded and agree out.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::runtime::numerics;

use super::decoded::{EmbeddedBatch, ModelInputs, embed_batch};
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
    pub padding: Padding,
}

/// How far the captions of a batch are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    ContextLength,
    /// As far as the longest needs.
    Longest,
}

/// What padding may change a cosine by where it is said to change nothing.
const PADDING_CHANGE_MAX: f64 = 1e-5;

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
        Ok(LoadedModel { model, towers, embedding_dim, padding: Padding::ContextLength })
    }

    /// Finds the padding for one session of a model and gives it to all; they are of one model.
    pub fn share_padding<'a>(
        sessions: impl IntoIterator<Item = &'a mut LoadedModel>,
        model_idx: usize,
        probe: &[ModelInputs],
    ) -> Result<(), Error> {
        let mut sessions = sessions.into_iter();
        let Some(first) = sessions.next() else { return Ok(()) };
        first.find_padding(model_idx, probe)?;
        sessions.for_each(|session| session.padding = first.padding);
        Ok(())
    }

    /// Pads captions no further than a batch needs where `probe` is embedded the same way then. A model that pools the
    /// end token after causal attention, or that masks what is no token, gives the same; one that attends to padding or
    /// pools the last position, as SigLIP does, gives something else. `model_idx` is the model's position in the
    /// encoders that made the probe.
    pub fn find_padding(&mut self, model_idx: usize, probe: &[ModelInputs]) -> Result<(), Error> {
        if self.towers.has_fixed_caption_length() != Some(false) {
            return Ok(());
        }
        // the first alone too: where the context is short, a longer caption leaves nothing to cut
        for captions in [&probe[..1], probe] {
            self.padding = Padding::ContextLength;
            let padded = embed_batch(self, model_idx, captions)?;
            self.padding = Padding::Longest;
            let is_same = embed_batch(self, model_idx, captions).map(|cut| are_same(&padded, &cut));
            if let Err(error) = &is_same {
                tracing::info!(model = %self.model.folder.display(), %error,
                    "shorter captions do not pass: all are padded to the context length");
            }
            if !is_same.unwrap_or(false) {
                self.padding = Padding::ContextLength;
                return Ok(());
            }
        }
        Ok(())
    }

    /// No rows yet of what the model gives.
    pub fn no_rows(&self) -> ModelRows {
        ModelRows::zeros(self.model.kind(), 0, self.embedding_dim)
    }

    /// What the embeddings depend on beside the model and its inputs.
    pub fn numerics(&self) -> BTreeMap<String, String> {
        let mut numerics = numerics(self.towers.place(), &self.towers.nodes());
        numerics.insert("caption_padding".to_owned(), self.padding.name().to_owned());
        numerics
    }
}

impl Padding {
    fn name(self) -> &'static str {
        match self {
            Padding::ContextLength => "context length",
            Padding::Longest => "longest of the batch",
        }
    }
}

/// Whether the captions of both are embedded alike.
fn are_same(left: &EmbeddedBatch, right: &EmbeddedBatch) -> bool {
    let (Some(left), Some(right)) = (left.outputs.text(), right.outputs.text()) else { return false };
    let is_near = |row: usize| {
        let pairs = left.rows.row(row).iter().zip(right.rows.row(row));
        let cosine: f64 = pairs.map(|(&left, &right)| f64::from(left) * f64::from(right)).sum();
        1.0 - cosine < PADDING_CHANGE_MAX
    };
    (0..left.rows.n_rows()).all(is_near)
}
