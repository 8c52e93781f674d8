//! What a model folder has in, what kind of model it is out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a model takes, and what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Images and captions, into one space of embeddings.
    Pair,
    /// Images alone, into embeddings.
    Image,
    /// Captions alone, into embeddings.
    Text,
    /// Images, into a logit for each class.
    Classifier,
}

impl ModelKind {
    pub fn takes_images(self) -> bool {
        self != ModelKind::Text
    }

    pub fn takes_captions(self) -> bool {
        matches!(self, ModelKind::Pair | ModelKind::Text)
    }

    /// Whether it gives an embedding of each image.
    pub fn embeds_images(self) -> bool {
        matches!(self, ModelKind::Pair | ModelKind::Image)
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ModelKind::Pair => "pair",
            ModelKind::Image => "image",
            ModelKind::Text => "text",
            ModelKind::Classifier => "classifier",
        })
    }
}
