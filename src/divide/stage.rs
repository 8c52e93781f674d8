//! The stage: embeddings of the pool in; `divide/` with centroids, banks, clusters and hardness out.
//!
//! ```text
//! divide.fit     one task      centroids from a seeded sample of the pool
//! divide.assign  a task a run of shards    each sample's cluster
//! divide.bank    one task      the seeded negatives of each cluster and of the pool
//! divide         a task a run of shards    hardness of each sample against the banks
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::embed::{complete_tasks, read_embedded_samples, read_embeddings};
use crate::error::Error;
use crate::executor::Executor;
use crate::matrix::Matrix;
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::{Done, Marker, RunFolder};
use crate::sample::SampleRef;
use crate::settings::DivideSettings;
use crate::smallest::Smallest;
use crate::table::{self, Columns, Rows};

use super::bank::commit_banks;
use super::kmeans::{FitParams, assign, fit};
use super::measure::{Measure, commit_hardness};

const CENTROIDS: &str = "divide/centroids.parquet";

/// A fit ends when an iteration improves its objective by no more than this part of it.
const FIT_TOLERANCE: f64 = 1e-4;

/// Counts of one task of `divide.assign`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignCounts {
    pub rows: u64,
    /// Samples of each cluster that has any.
    pub clusters: BTreeMap<u32, u64>,
}

/// How the centroids were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitCounts {
    pub n_points: u64,
    /// `Σ (1 − cos)` over the points of the fit.
    pub objective: f64,
    pub n_iterations: usize,
}

/// Does every undone step of the stage.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let Some(settings) = &run.plan().divide else { return Ok(()) };
    let step = |name| run.divide(name).expect("the plan has the stage");
    let tasks = complete_tasks(run, &step("divide"))?.tasks;
    if run.undone(&step("divide"), &tasks)?.is_empty() {
        return Ok(());
    }

    executor.run(run, &step("divide.fit"), &[0], 1, |_| commit_fit(run, settings, &tasks))?;
    let centroids = read_centroids(run)?;
    executor.run(run, &step("divide.assign"), &tasks, executor.n_threads, |task| {
        commit_assignments(run, settings, task, &centroids)
    })?;
    executor.run(run, &step("divide.bank"), &[0], 1, |_| commit_banks(run, settings, &tasks))?;
    if !executor.todo(run, &step("divide"), &tasks)?.is_empty() {
        let measure = Measure::open(run, settings)?;
        // hardness shares out the processors itself
        executor.run(run, &step("divide"), &tasks, 1, |task| commit_hardness(run, &measure, task))?;
    }
    executor.wait_for_others(run, &step("divide"), &tasks)
}

/// Fits centroids on the samples of smallest keyed hash.
fn commit_fit(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<(), Error> {
    let plan = run.plan();
    let mut chosen = Smallest::new(settings.fit_samples_per_cluster * settings.n_clusters);
    for &task in tasks {
        for sample in read_embedded_samples(run, settings.model, task)? {
            let id = sample.id(&plan.pool);
            chosen.push((keyed_hash(Purpose::Fit, plan.seed, 0, id.shard, id.sample_idx), sample, task));
        }
    }
    let mut by_task: BTreeMap<usize, Vec<SampleRef>> = BTreeMap::new();
    for (_, sample, task) in chosen.into_sorted() {
        by_task.entry(task).or_default().push(sample);
    }
    let mut points: Option<Matrix> = None;
    let mut read = Vec::new();
    for (task, mut samples) in by_task {
        samples.sort_unstable();
        let (embedded, file) = read_embeddings(run, settings.model, task)?;
        read.push(file);
        let points = points.get_or_insert_with(|| Matrix::zeros(0, embedded.images.n_cols()));
        for (row, sample) in embedded.samples.iter().enumerate() {
            if embedded.is_present[row] && samples.binary_search(sample).is_ok() {
                points.push_row(embedded.images.row(row));
            }
        }
    }
    let points = points.ok_or(Error::NothingEmbedded)?;
    let params = FitParams {
        n_clusters: settings.n_clusters,
        n_restarts: settings.n_restarts,
        n_iterations_max: settings.n_iterations_max,
        tolerance: FIT_TOLERANCE,
        seed: plan.seed,
    };
    let fitted = fit(&points, &params).map_err(|source| Error::Fit { source })?;
    let is_present = vec![true; fitted.centroids.n_rows()];
    let mut columns = Columns::default();
    columns.u32("cluster", (0..fitted.centroids.n_rows() as u32).map(Some)).embeddings(
        "centroid",
        &fitted.centroids,
        &is_present,
        crate::settings::EmbeddingDtype::F32,
    );
    let stage = run.divide("divide.fit").expect("the plan has the stage");
    let digest = [("divide_digest", stage.digest.to_string())];
    let file = table::write(run.run(), CENTROIDS, &columns.build(), &digest)?;
    let counts = FitCounts {
        n_points: points.n_rows() as u64,
        objective: fitted.objective,
        n_iterations: fitted.n_iterations,
    };
    run.commit(&stage, 0, Done::new(vec![file], read, counts))?;
    Ok(())
}

/// The committed centroids, `[n_clusters, d]`.
pub fn read_centroids(run: &RunFolder) -> Result<Matrix, Error> {
    let stage = run.divide("divide.fit").expect("the plan has the stage");
    let marker: Marker<FitCounts> = run.committed(&stage, 0)?;
    let batch = table::read(run.run(), marker.file(), &[])?;
    Ok(Rows(&batch).embeddings("centroid").0)
}

fn commit_assignments(
    run: &RunFolder,
    settings: &DivideSettings,
    task: usize,
    centroids: &Matrix,
) -> Result<(), Error> {
    let (embedded, file) = read_embeddings(run, settings.model, task)?;
    let rows: Vec<usize> = (0..embedded.samples.len()).filter(|&row| embedded.is_present[row]).collect();
    let assignments = assign(&embedded.images.gather(&rows), centroids);
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
    let written = table::write(run.run(), &name, &columns.build(), &[])?;
    let counts = AssignCounts { rows: rows.len() as u64, clusters };
    run.commit(&stage, task, Done::new(vec![written], vec![file], counts))?;
    Ok(())
}
