//! What later stages read of this one: the embeddings of a task's samples under one model.

use crate::error::Error;
use crate::matrix::Matrix;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::FileRecord;
use crate::table::{self, Rows};

use super::writer::EmbeddingsCounts;

/// One model's embeddings of a task: row i of both matrices, `[n, d]`, belongs to sample i.
#[derive(Clone, Debug)]
pub struct EmbeddedRows {
    pub samples: Vec<SampleRef>,
    pub images: Matrix,
    pub captions: Matrix,
    /// False where the model gave no direction; those rows are zero.
    pub is_present: Vec<bool>,
}

impl EmbeddedRows {
    /// The rows at which these samples stand, all of which are embedded.
    pub fn rows_of(&self, samples: &[SampleRef]) -> Vec<usize> {
        let row = |sample| self.samples.binary_search(sample).expect("an embedded sample");
        samples.iter().map(row).collect()
    }

    pub fn images(&self) -> &Matrix {
        &self.images
    }

    pub fn captions(&self) -> Option<&Matrix> {
        Some(&self.captions)
    }

    /// Both towers, where the model has both.
    pub fn pairs(&self) -> Option<(&Matrix, &Matrix)> {
        Some((&self.images, &self.captions))
    }

    pub fn logits(&self) -> Option<&Matrix> {
        None
    }
}

/// The committed embeddings of a task, and the file that they came from.
pub fn read_embeddings(
    run: &RunFolder,
    role: ModelRole,
    task: usize,
) -> Result<(EmbeddedRows, FileRecord), Error> {
    let stage = run.embeddings(role).expect("only models of the plan are asked for");
    let marker = run.committed::<EmbeddingsCounts>(&stage, task)?;
    let file = marker.file();
    let batch = table::read(run.storage(&stage), file, &[])?;
    let rows = Rows(&batch);
    let (images, is_present) = rows.embeddings("image_embedding");
    let (captions, _) = rows.embeddings("text_embedding");
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
    Ok((EmbeddedRows { samples, images, captions, is_present }, file.clone()))
}

/// Which samples of a task the model embedded, without their embeddings.
pub fn read_embedded_samples(run: &RunFolder, role: ModelRole, task: usize) -> Result<Vec<SampleRef>, Error> {
    let stage = run.embeddings(role).expect("only models of the plan are asked for");
    let marker = run.committed::<EmbeddingsCounts>(&stage, task)?;
    let file = marker.file();
    let batch = table::read(run.storage(&stage), file, &["shard", "sample_idx"])?;
    SampleRef::of_rows(&Rows(&batch), &run.plan().pool)
}
