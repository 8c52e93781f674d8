//! `[embed]`: how models run over samples, and how embeddings are stored.

use serde::{Deserialize, Serialize};

use crate::embed::DEFAULT_INFERENCE_BATCH_SIZE;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedSettings {
    /// Samples that go through a model at once; part of the model digest.
    pub inference_batch_size: usize,
    /// How embeddings are stored.
    pub embedding_dtype: EmbeddingDtype,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingDtype {
    #[default]
    F16,
    F32,
}

impl EmbeddingDtype {
    /// Of one value.
    pub fn size_bytes(self) -> u64 {
        match self {
            EmbeddingDtype::F16 => 2,
            EmbeddingDtype::F32 => 4,
        }
    }
}

impl Default for EmbedSettings {
    fn default() -> Self {
        EmbedSettings {
            inference_batch_size: DEFAULT_INFERENCE_BATCH_SIZE,
            embedding_dtype: EmbeddingDtype::default(),
        }
    }
}
