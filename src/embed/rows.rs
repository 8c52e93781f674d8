//! What later stages read of this one: the embeddings of a task's samples under one model.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::matrix::Matrix;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::PlannedModel;
use crate::rejection::Rejection;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::smallest::Smallest;
use crate::storage::FileRecord;
use crate::table::{self, Rows};

use super::values::{ModelRows, REJECTION};
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

    /// Samples of which a model of this kind and width says nothing yet.
    pub fn blank(samples: Vec<SampleRef>, model: &PlannedModel) -> EmbeddedRows {
        let rows = ModelRows::zeros(model.kind, samples.len(), model.embedding_dim);
        EmbeddedRows { rejections: vec![None; samples.len()], samples, rows }
    }

    /// Takes over what another model of the same kind and width says of some of the same samples.
    pub fn take(&mut self, other: &EmbeddedRows, is_taken: impl Fn(&SampleRef) -> bool) {
        assert_eq!(self.samples, other.samples, "every model embeds the same samples");
        for row in (0..self.samples.len()).filter(|&row| is_taken(&other.samples[row])) {
            self.rejections[row] = other.rejections[row];
            self.rows.take(row, &other.rows);
        }
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

/// The `n` samples of smallest keyed hash that a model embedded, in order by task.
pub fn smallest_by_hash(
    run: &RunFolder,
    role: ModelRole,
    tasks: &[usize],
    purpose: Purpose,
    n: usize,
) -> Result<BTreeMap<usize, Vec<SampleRef>>, Error> {
    let plan = run.plan();
    let stage = run.embeddings(role).expect("only models of the plan are asked for");
    let mut chosen = Smallest::new(n);
    for &task in tasks {
        let marker = run.committed::<EmbeddingsCounts>(&stage, task)?;
        let columns = ["shard", "sample_idx", REJECTION];
        let batch = table::read(run.storage(&stage), marker.file(), &columns)?;
        let rows = Rows(&batch);
        let samples = SampleRef::of_rows(&rows, &plan.pool)?.into_iter().zip(rows.text(REJECTION));
        for (sample, _) in samples.filter(|(_, rejection)| rejection.is_none()) {
            let id = sample.id(&plan.pool);
            chosen.push((keyed_hash(purpose, plan.seed, 0, id.shard, id.sample_idx), sample, task));
        }
    }
    let mut by_task: BTreeMap<usize, Vec<SampleRef>> = BTreeMap::new();
    for (_, sample, task) in chosen.into_sorted() {
        by_task.entry(task).or_default().push(sample);
    }
    by_task.values_mut().for_each(|samples| samples.sort_unstable());
    Ok(by_task)
}
