//! A model folder in, a model whose graphs are loaded and agree out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Error;

use super::model::{ImageSide, Model, ModelChoice, ModelParts, TextSide};
use super::session::SessionSettings;
use super::tokenize::{Tokenizer, Tokens};
use super::tower::{BatchInputs, Towers};
use super::values::ModelRows;

/// Long enough for a rate that is right within a few per cent.
const TIMED_MIN: Duration = Duration::from_millis(300);

/// A model that is ready to embed.
pub struct LoadedModel {
    pub model: Model,
    pub towers: Towers,
    /// Width of an embedding, the same for both towers; of a classifier, the number of its classes.
    pub embedding_dim: usize,
}

impl LoadedModel {
    /// Loads a model and runs it over a blank batch of two, so that what cannot work fails before work starts.
    pub fn open(
        folder: &Path,
        choice: ModelChoice,
        settings: &SessionSettings,
    ) -> Result<LoadedModel, Error> {
        let model = Model::open(folder, choice)?;
        let mut towers = Towers::open(&model, settings)?;
        let in_model = |source| Error::Model { folder: folder.to_owned(), source };
        let embedding_dim = towers.width().map_err(in_model)?;
        Ok(LoadedModel { model, towers, embedding_dim })
    }

    /// No rows yet of what the model gives.
    pub fn no_rows(&self) -> ModelRows {
        ModelRows::empty(self.model.kind(), self.embedding_dim)
    }

    /// How many samples the model takes in a second, blank images and short captions, after one batch to warm up.
    pub fn samples_per_sec(&mut self, inference_batch_size: usize) -> Result<f64, Error> {
        let inputs = self.blank_inputs(inference_batch_size)?;
        self.towers.embed(&inputs)?;
        let start = Instant::now();
        let mut n_samples = 0;
        while start.elapsed() < TIMED_MIN {
            self.towers.embed(&inputs)?;
            n_samples += inference_batch_size;
        }
        Ok(n_samples as f64 / start.elapsed().as_secs_f64())
    }

    fn blank_inputs(&self, n: usize) -> Result<BatchInputs, Error> {
        let pixels = |image: &ImageSide| vec![0.0; n * image.preprocessing.n_values()];
        let tokens = |text: &TextSide| -> Result<Tokens, Error> {
            let tokenizer = Tokenizer::open(&self.model.folder, text)?;
            let mut tokens = Tokens::new(tokenizer.context_length());
            (0..n).try_for_each(|_| tokenizer.encode("a photo", &mut tokens))?;
            Ok(tokens)
        };
        Ok(match &self.model.parts {
            ModelParts::Pair { image, text } => {
                BatchInputs::Pairs { pixels: pixels(image), tokens: tokens(text)? }
            }
            ModelParts::Image(image) | ModelParts::Classifier(image) => {
                BatchInputs::Images { pixels: pixels(image), n_images: n }
            }
            ModelParts::Text(text) => BatchInputs::Captions(tokens(text)?),
        })
    }

    /// What the embeddings depend on beside the model and its inputs.
    pub fn numerics(&self) -> BTreeMap<String, String> {
        let entries = [
            ("runtime", super::runtime::build_info().to_owned()),
            ("device", self.towers.device_taken().to_string()),
            ("instruction_set", instruction_set().to_owned()),
        ];
        entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
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
