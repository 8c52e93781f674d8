//! A seeded sample of the pool's embeddings in, committed centroids out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::embed::{EmbeddingsCounts, read_embeddings, smallest_by_hash};
use crate::engine::{Engine, numerics_for_files};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::noise::Purpose;
use crate::run_folder::{Done, Marker, RunFolder};
use crate::settings::{DivideSettings, FitKind};
use crate::storage::FileRecord;
use crate::table::{self, Rows};

use super::kmeans::{FitError, FitMethod, FitParams, fit, fit_levels};
use super::saved::{PlannedCentroids, SavedCentroids, centroids_table, tree_of};
use super::tree::ClusterTree;

const CENTROIDS: &str = "divide/centroids.parquet";

/// A fit ends when an iteration improves its objective by no more than this part of it.
const FIT_TOLERANCE: f64 = 1e-4;

/// Where the centroids came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum FitCounts {
    Fitted {
        n_points: u64,
        /// `Σ (1 − cos)` over the points of the fit.
        objective: f64,
        n_iterations: usize,
    },
    /// From another run.
    Taken(PlannedCentroids),
}

impl FitParams {
    pub fn of(settings: &DivideSettings, seed: u64) -> FitParams {
        FitParams {
            n_clusters: settings.n_clusters,
            seeding: settings.seeding,
            method: match settings.fit {
                FitKind::FullSample => FitMethod::FullSample,
                FitKind::MiniBatch => FitMethod::MiniBatch { size: settings.mini_batch_size },
            },
            n_restarts: settings.n_restarts,
            n_iterations_max: settings.n_iterations_max,
            tolerance: FIT_TOLERANCE,
            seed,
        }
    }
}

/// Says whether there are enough samples for the clusters before anything of them is read.
///
/// # Errors
///
/// Fewer embedded samples than clusters.
pub fn check_n_samples(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<(), Error> {
    let stage = run.embeddings(settings.model).expect("checked with the settings");
    let mut n_points = 0;
    for &task in tasks {
        let counts = run.committed::<EmbeddingsCounts>(&stage, task)?.counts;
        n_points += (counts.rows - counts.rejected.values().sum::<u64>()) as usize;
    }
    if n_points == 0 {
        return Err(Error::NothingEmbedded);
    }
    let n_clusters = settings.n_clusters;
    match n_points < n_clusters && run.plan().centroids.is_none() {
        true => Err(Error::Fit { source: FitError::TooFewPoints { n_points, n_clusters } }),
        false => Ok(()),
    }
}

/// Commits the centroids: those of another run, or else fitted ones.
pub fn commit_centroids(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<(), Error> {
    let Found { rows, tree, read, counts, numerics } = match &run.plan().centroids {
        Some(planned) => {
            let SavedCentroids { rows, tree, .. } = planned.read()?;
            let counts = FitCounts::Taken(planned.clone());
            Found { rows, tree, read: Vec::new(), counts, numerics: BTreeMap::new() }
        }
        None => fit_to_pool(run, settings, tasks)?,
    };
    let model = run.plan().models.get(settings.model).expect("checked with the settings");
    let (table, description) = centroids_table(&rows, &tree, &model.digest);
    let stage = run.divide("divide.fit").expect("the plan has the stage");
    let made = [
        ("divide_digest", stage.digest.to_string()),
        ("numerics", json!(numerics_for_files(&numerics)).to_string()),
    ];
    let description: Vec<_> = made.into_iter().chain(description).collect();
    let file = run.put_table(&stage, 0, CENTROIDS, &table, &description)?;
    run.commit(&stage, 0, Done { data: vec![file], read, counts, numerics })?;
    Ok(())
}

/// Centroids that are to be committed.
struct Found {
    rows: Matrix,
    tree: ClusterTree,
    read: Vec<FileRecord>,
    counts: FitCounts,
    numerics: BTreeMap<String, String>,
}

/// Fits centroids and levels on the samples of smallest keyed hash.
fn fit_to_pool(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<Found, Error> {
    let (points, read) = points_of_fit(run, settings, tasks)?;
    let params = FitParams::of(settings, run.plan().seed);
    let engine = Engine::of(settings.device, settings.products)?;
    let fitted = fit(&engine, &points, &params)?;
    let tree = fit_levels(&engine, &fitted.centroids, &settings.parent_levels, &params)?;
    let counts = FitCounts::Fitted {
        n_points: points.n_rows() as u64,
        objective: fitted.objective,
        n_iterations: fitted.n_iterations,
    };
    Ok(Found { rows: fitted.centroids, tree, read, counts, numerics: engine.numerics_of_nearest(None)? })
}

/// The embeddings of the samples of smallest keyed hash, in pool order, and the files that they came from.
fn points_of_fit(
    run: &RunFolder,
    settings: &DivideSettings,
    tasks: &[usize],
) -> Result<(Matrix, Vec<FileRecord>), Error> {
    let n = settings.fit_samples_per_cluster * settings.n_clusters;
    let by_task = smallest_by_hash(run, settings.model, tasks, Purpose::Fit, n)?;
    let mut points = Matrix::default();
    let mut read = Vec::new();
    for (task, samples) in by_task {
        let (embedded, file) = read_embeddings(run, settings.model, task)?;
        read.push(file);
        let images = embedded.rows.images().expect("the plan checked that the model embeds images");
        points.append(&images.gather(&embedded.rows_of(&samples)));
    }
    if points.n_rows() == 0 {
        return Err(Error::NothingEmbedded);
    }
    Ok((points, read))
}

/// The committed centroids, and the file that they came from.
pub struct Centroids {
    /// `[n_clusters, d]`.
    pub rows: Matrix,
    pub tree: ClusterTree,
    pub file: FileRecord,
}

pub fn read_centroids(run: &RunFolder) -> Result<Centroids, Error> {
    let stage = run.divide("divide.fit").expect("the plan has the stage");
    let marker: Marker<FitCounts> = run.committed(&stage, 0)?;
    let batch = table::read(run.storage(&stage), marker.file(), &[])?;
    let settings = run.plan().divide.as_ref().expect("the plan has the stage");
    Ok(Centroids {
        rows: Rows(&batch).embeddings("centroid").0,
        tree: tree_of(&batch, &settings.parent_levels),
        file: marker.file().clone(),
    })
}

/// The committed levels above the clusters.
pub fn read_tree(run: &RunFolder) -> Result<ClusterTree, Error> {
    Ok(read_centroids(run)?.tree)
}
