//! A seeded sample of the pool's embeddings in, committed centroids out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::embed::{read_embedded_samples, read_embeddings};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::{Done, Marker, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{DivideSettings, EmbeddingDtype};
use crate::smallest::Smallest;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::kmeans::{FitParams, fit};

const CENTROIDS: &str = "divide/centroids.parquet";

/// A fit ends when an iteration improves its objective by no more than this part of it.
const FIT_TOLERANCE: f64 = 1e-4;

/// How the centroids were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitCounts {
    pub n_points: u64,
    /// `Σ (1 − cos)` over the points of the fit.
    pub objective: f64,
    pub n_iterations: usize,
}

/// Fits centroids on the samples of smallest keyed hash.
pub fn commit_fit(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<(), Error> {
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
        let images = embedded.rows.images().expect("the plan checked that the model embeds images");
        let points = points.get_or_insert_with(|| Matrix::zeros(0, images.n_cols()));
        for (row, sample) in embedded.samples.iter().enumerate() {
            if embedded.is_present(row) && samples.binary_search(sample).is_ok() {
                points.push_row(images.row(row));
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
        EmbeddingDtype::F32,
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

/// The committed centroids, and the file that they came from.
pub struct Centroids {
    /// `[n_clusters, d]`.
    pub rows: Matrix,
    pub file: FileRecord,
}

pub fn read_centroids(run: &RunFolder) -> Result<Centroids, Error> {
    let stage = run.divide("divide.fit").expect("the plan has the stage");
    let marker: Marker<FitCounts> = run.committed(&stage, 0)?;
    let batch = table::read(run.run(), marker.file(), &[])?;
    Ok(Centroids { rows: Rows(&batch).embeddings("centroid").0, file: marker.file().clone() })
}
