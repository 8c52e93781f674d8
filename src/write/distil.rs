//! A task's kept samples in; what distillation predicts of each out: its image embeddings under the base model and under
//! its cluster's expert.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;

use crate::embed::read_embeddings;
use crate::error::Error;
use crate::matrix::Matrix;
use crate::plan::Plan;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::FileRecord;
use crate::table::{Columns, Rows};

/// The columns of the targets: under the base model, under the expert.
pub const TARGETS: [&str; 2] = ["base_embedding", "expert_embedding"];

/// Bytes of both targets of a sample, if the run has them.
pub fn target_bytes(plan: &Plan) -> u64 {
    let Some(divide) = plan.divide.as_ref().filter(|_| plan.write.distil) else { return 0 };
    let widths = [divide.model, plan.reference_of(0)].map(|role| plan.models.get(role).expect("planned"));
    let n_values: usize = widths.iter().map(|model| model.embedding_dim).sum();
    n_values as u64 * plan.embed.embedding_dtype.size_bytes()
}

/// Adds both columns, `FixedSizeList` of the run's embedding type, `[n_kept, d]` of each model: the values that
/// `embeddings/` holds, so unit vectors.
///
/// The base is `divide.model`; the expert is `models.expert_N` of the sample's cluster N, or, in a run without experts,
/// `models.reference`.
///
/// # Source
///
/// Divide and Contrast, arXiv:2105.08054, §3: every image predicts the base's representation and that of its own
/// cluster's expert.
pub fn add_targets(
    run: &RunFolder,
    task: usize,
    kept: &RecordBatch,
    columns: &mut Columns,
    read: &mut Vec<FileRecord>,
) -> Result<(), Error> {
    let plan = run.plan();
    let base = plan.divide.as_ref().expect("checked with the settings").model;
    let samples = SampleRef::of_rows(&Rows(kept), &plan.pool)?;
    let clusters = Rows(kept).u32("cluster").values();
    let bases = vec![base; samples.len()];
    let experts: Vec<ModelRole> = clusters.iter().map(|&cluster| plan.reference_of(cluster)).collect();
    // all experts are of one width
    let widths =
        [base, plan.reference_of(0)].map(|role| plan.models.get(role).expect("planned").embedding_dim);
    for ((name, models), width) in TARGETS.into_iter().zip([bases, experts]).zip(widths) {
        let rows = images_under(run, task, &samples, &models, width, read)?;
        columns.embeddings(name, &rows, &vec![true; samples.len()], plan.embed.embedding_dtype);
    }
    Ok(())
}

/// Each sample's image embedding under a model of its own.
fn images_under(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
    models: &[ModelRole],
    width: usize,
    read: &mut Vec<FileRecord>,
) -> Result<Matrix, Error> {
    let mut by_model: BTreeMap<ModelRole, Vec<usize>> = BTreeMap::new();
    for (row, &model) in models.iter().enumerate() {
        by_model.entry(model).or_default().push(row);
    }
    let mut rows = Matrix::zeros(samples.len(), width);
    for (model, of_model) in by_model {
        let (embedded, file) = read_embeddings(run, model, task)?;
        read.push(file);
        let samples: Vec<SampleRef> = of_model.iter().map(|&row| samples[row]).collect();
        let images = embedded.rows.images().expect("checked with the plan: it embeds images");
        for (row, at) in of_model.into_iter().zip(embedded.rows_of(&samples)) {
            assert!(embedded.is_present(at), "what every model embedded is kept, and nothing else");
            rows.row_mut(row).copy_from_slice(images.row(at));
        }
    }
    Ok(rows)
}
