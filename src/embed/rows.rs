//! What later stages read of this one: the embeddings of a task's samples under one model.

use crate::error::Error;
use crate::matrix::Matrix;
use crate::rejection::Rejection;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::FileRecord;
use crate::table::{self, Rows};

use super::values::ModelRows;
use super::writer::EmbeddingsCounts;

/// What one model gave for a task's samples: row i belongs to sample i.
#[derive(Clone, Debug)]
pub struct EmbeddedRows {
    pub samples: Vec<SampleRef>,
    pub rows: ModelRows,
    /// Why the model has nothing for a sample; its rows are zero.
    pub rejections: Vec<Option<Rejection>>,
}

impl EmbeddedRows {
    /// Whether the model has something for the sample at this row.
    pub fn is_present(&self, row: usize) -> bool {
        self.rejections[row].is_none()
    }

    /// The rows at which these samples stand, all of which are embedded.
    pub fn rows_of(&self, samples: &[SampleRef]) -> Vec<usize> {
        let row = |sample| self.samples.binary_search(sample).expect("an embedded sample");
        samples.iter().map(row).collect()
    }

    /// Both towers, where the model has both.
    pub fn pairs(&self) -> Option<(&Matrix, &Matrix)> {
        self.rows.images().zip(self.rows.captions())
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
    let kind = run.plan().models.get(role).expect("only models of the plan are asked for").kind;
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let (rows, rejections) = ModelRows::of_table(&rows, kind);
    Ok((EmbeddedRows { samples, rows, rejections }, file.clone()))
}

/// Which samples of a task the model embedded, without their embeddings.
pub fn read_embedded_samples(run: &RunFolder, role: ModelRole, task: usize) -> Result<Vec<SampleRef>, Error> {
    let stage = run.embeddings(role).expect("only models of the plan are asked for");
    let marker = run.committed::<EmbeddingsCounts>(&stage, task)?;
    let file = marker.file();
    let batch = table::read(run.storage(&stage), file, &["shard", "sample_idx"])?;
    SampleRef::of_rows(&Rows(&batch), &run.plan().pool)
}
