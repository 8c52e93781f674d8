//! What a model gave for some samples, a row a sample: as it comes off the model, and as it is stored.

use crate::matrix::Matrix;
use crate::rejection::Rejection;
use crate::settings::EmbeddingDtype;
use crate::table::{Columns, Rows};

use super::model::ModelKind;
use super::tower::BatchOutputs;

const IMAGES: &str = "image_embedding";
const CAPTIONS: &str = "text_embedding";
const LOGITS: &str = "logits";
pub(super) const REJECTION: &str = "rejection";

/// Rows of one model, `[n, width]`, zero where the sample was rejected.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelRows {
    /// Unit vectors of image and caption.
    Pairs { images: Matrix, captions: Matrix },
    /// Unit vectors.
    Images(Matrix),
    /// Unit vectors.
    Captions(Matrix),
    /// One number for each class.
    Logits(Matrix),
}

impl ModelRows {
    /// Rows of zeros, of a model of this kind and width.
    pub fn zeros(kind: ModelKind, n_rows: usize, width: usize) -> ModelRows {
        let zeros = || Matrix::zeros(n_rows, width);
        match kind {
            ModelKind::Pair => ModelRows::Pairs { images: zeros(), captions: zeros() },
            ModelKind::Image => ModelRows::Images(zeros()),
            ModelKind::Text => ModelRows::Captions(zeros()),
            ModelKind::Classifier => ModelRows::Logits(zeros()),
        }
    }

    /// Adds an inference batch after these rows.
    pub fn append(&mut self, outputs: &BatchOutputs) {
        match (self, outputs) {
            (ModelRows::Pairs { images, captions }, BatchOutputs::Pairs(pairs)) => {
                images.append(&pairs.image.rows);
                captions.append(&pairs.text.rows);
            }
            (ModelRows::Images(rows), BatchOutputs::Images(embeddings))
            | (ModelRows::Captions(rows), BatchOutputs::Captions(embeddings)) => {
                rows.append(&embeddings.rows);
            }
            (ModelRows::Logits(rows), BatchOutputs::Logits(logits)) => rows.append(&logits.rows),
            _ => panic!("a model gives what its kind gives"),
        }
    }

    /// Takes over one row of another model's, of the same kind.
    pub fn take(&mut self, row: usize, other: &ModelRows) {
        let copy = |to: &mut Matrix, from: &Matrix| to.row_mut(row).copy_from_slice(from.row(row));
        match (self, other) {
            (ModelRows::Pairs { images, captions }, ModelRows::Pairs { images: x, captions: y }) => {
                copy(images, x);
                copy(captions, y);
            }
            (ModelRows::Images(to), ModelRows::Images(from))
            | (ModelRows::Captions(to), ModelRows::Captions(from))
            | (ModelRows::Logits(to), ModelRows::Logits(from)) => copy(to, from),
            _ => panic!("models of one kind"),
        }
    }

    /// The image embeddings, if the model gives them.
    pub fn images(&self) -> Option<&Matrix> {
        match self {
            ModelRows::Pairs { images, .. } | ModelRows::Images(images) => Some(images),
            ModelRows::Captions(_) | ModelRows::Logits(_) => None,
        }
    }

    /// The caption embeddings, if the model gives them.
    pub fn captions(&self) -> Option<&Matrix> {
        match self {
            ModelRows::Pairs { captions, .. } | ModelRows::Captions(captions) => Some(captions),
            ModelRows::Images(_) | ModelRows::Logits(_) => None,
        }
    }

    /// The logits of each class, if the model is a classifier.
    pub fn logits(&self) -> Option<&Matrix> {
        match self {
            ModelRows::Logits(rows) => Some(rows),
            _ => None,
        }
    }

    /// Adds the columns that the model has, null where a sample was rejected, and the rejections. Logits are f32
    /// whatever the type of embeddings: they have no bounds.
    pub fn add_columns(
        &self,
        columns: &mut Columns,
        rejections: &[Option<Rejection>],
        dtype: EmbeddingDtype,
    ) {
        let is_present: Vec<bool> = rejections.iter().map(Option::is_none).collect();
        let towers = [(IMAGES, self.images(), dtype), (CAPTIONS, self.captions(), dtype)];
        for (name, rows, dtype) in towers.into_iter().chain([(LOGITS, self.logits(), EmbeddingDtype::F32)]) {
            if let Some(rows) = rows {
                columns.embeddings(name, rows, &is_present, dtype);
            }
        }
        columns.text(REJECTION, rejections.iter().map(|rejection| rejection.map(Rejection::text)));
    }

    /// Takes rows and rejections out of such columns.
    pub fn of_table(rows: &Rows, kind: ModelKind) -> (ModelRows, Vec<Option<Rejection>>) {
        let column = |name| rows.embeddings(name).0;
        let values = match kind {
            ModelKind::Pair => ModelRows::Pairs { images: column(IMAGES), captions: column(CAPTIONS) },
            ModelKind::Image => ModelRows::Images(column(IMAGES)),
            ModelKind::Text => ModelRows::Captions(column(CAPTIONS)),
            ModelKind::Classifier => ModelRows::Logits(column(LOGITS)),
        };
        let texts = rows.text(REJECTION);
        let rejection = |text: Option<&str>| {
            text.map(|text| Rejection::from_text(text).expect("a table of this format has known rejections"))
        };
        (values, texts.iter().map(rejection).collect())
    }
}
