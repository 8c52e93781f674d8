//! A task's embeddings and the centroids in, each sample's cluster out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::embed::read_embeddings;
use crate::engine::Engine;
use crate::error::Error;
use crate::run_folder::{Done, RunFolder};
use crate::settings::ModelRole;
use crate::table::Columns;

use super::fit::Centroids;
use super::kmeans::assign_and_rows;

/// Counts of one task of `divide.assign`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignCounts {
    pub rows: u64,
    /// Samples of each cluster that has any.
    pub clusters: BTreeMap<u32, u64>,
}

/// Assigns and commits one task.
pub fn commit_assignments(
    run: &RunFolder,
    engine: &Engine,
    model: ModelRole,
    task: usize,
    centroids: &Centroids,
) -> Result<(), Error> {
    let (embedded, file) = read_embeddings(run, model, task)?;
    let rows: Vec<usize> = (0..embedded.samples.len()).filter(|&row| embedded.is_present(row)).collect();
    let images = embedded.rows.images().expect("the plan checked that the model embeds images");
    let (assignments, rows_at_once) = assign_and_rows(engine, &images.gather(&rows), &centroids.rows)?;
    let mut clusters = BTreeMap::new();
    for assignment in &assignments {
        *clusters.entry(assignment.cluster).or_default() += 1;
    }
    let ids = || rows.iter().map(|&row| embedded.samples[row].id(&run.plan().pool));
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .u32("cluster", assignments.iter().map(|assignment| Some(assignment.cluster)))
        .f32("centroid_similarity", assignments.iter().map(|assignment| Some(assignment.centroid_similarity)))
        .f32("centroid_margin", assignments.iter().map(|assignment| assignment.centroid_margin));
    let stage = run.divide("divide.assign").expect("the plan has the stage");
    let name = crate::exchange::file_name(&stage, task);
    let written = run.put_table(&stage, task, &name, &columns.build(), &[])?;
    let counts = AssignCounts { rows: rows.len() as u64, clusters };
    let (read, numerics) = (vec![file, centroids.file.clone()], engine.numerics_of_nearest(rows_at_once)?);
    run.commit(&stage, task, Done { data: vec![written], read, counts, numerics })?;
    Ok(())
}
