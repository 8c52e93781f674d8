//! Classifiers' logits and labels of a task in; the cross-entropy of each sample's label out.

use crate::embed::read_embeddings;
use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::FileRecord;
use crate::table::Rows;

use super::column::read_sample_columns;
use super::cross_entropy::cross_entropies;

/// The cross-entropy of each sample's label under a classifier, nats; all none without the model.
pub fn class_losses(
    run: &RunFolder,
    role: ModelRole,
    task: usize,
    samples: &[SampleRef],
    label_smoothing: f64,
    read: &mut Vec<FileRecord>,
) -> Result<Vec<Option<f64>>, Error> {
    if !run.plan().models.has(role) {
        return Ok(vec![None; samples.len()]);
    }
    let (embedded, _) = read_embeddings(run, role, task)?;
    let logits = embedded.rows.logits().expect("checked with the plan: a classifier");
    let (labels, file) = read_labels(run, task, samples)?;
    read.push(file);
    let logits = logits.gather(&embedded.rows_of(samples));
    let losses = cross_entropies(&logits, &labels, label_smoothing);
    Ok(losses.into_iter().map(Some).collect())
}

/// The labels of samples that have one.
fn read_labels(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
) -> Result<(Vec<usize>, FileRecord), Error> {
    let (table, file) = read_sample_columns(run, task, samples, &["label"])?;
    let labels = Rows(&table).u32("label").values().iter().map(|&label| label as usize).collect();
    Ok((labels, file))
}
