//! `[divide]`: clusters, banks and hardness.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::divide::Seeding;
use crate::runtime::{Device, Products};

use super::{ModelRole, ModelSettings, Models, SettingsError, check_engine, check_sizes, out_of_range};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DivideSettings {
    /// The model whose image embeddings are clustered.
    pub model: ModelRole,
    /// How many clusters. The default of 10 lies in Divide and Contrast's range of 5, 10 or more groups and does not
    /// grow with the pool: every cluster is to hold whole super-batches, however small the pool, and may get an expert
    /// of its own, which costs a training. For balanced sampling and SemDeDup take thousands, and `parent_levels`.
    pub n_clusters: usize,
    /// Clusters of each coarser level, such as `[100, 10]`: k-means on the centroids of the level below.
    pub parent_levels: Vec<usize>,
    /// A `centroids.parquet` of another run with the same model, whose centroids and levels are taken instead of
    /// fitting; `n_clusters` and `parent_levels` are then left out.
    pub centroids: Option<PathBuf>,
    /// How the points are drawn from which centroids start.
    pub seeding: Seeding,
    /// When centroids move: after a pass over all points of the fit, or after each mini-batch.
    pub fit: FitKind,
    /// Points of a mini-batch.
    pub mini_batch_size: usize,
    /// Fits from other starts, of which the best is kept.
    pub n_restarts: usize,
    /// Passes over the points of the fit.
    pub n_iterations_max: usize,
    /// Points for the fit, for each cluster.
    pub fit_samples_per_cluster: usize,
    /// Where the nearest centroids are found, in the fit and after it: `cpu` by this program's own kernels, one GPU
    /// (`cuda:0`) through the runtime. Cosines differ in their last digits, so it is part of what makes clusters, and no
    /// machine chooses it. The points that centroids start from are drawn on the processor.
    pub device: Device,
    /// How a GPU multiplies: `f32`, or `tf32` with operands of 11 bits.
    pub products: Products,
    /// Members of each cluster's bank at most; fewer where the memory limit says so.
    pub bank_size: usize,
    /// τ of the hardness.
    pub hardness_temperature: f64,
    /// Image cosine above which two samples are near-duplicates.
    pub near_duplicate_similarity: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FitKind {
    #[default]
    FullSample,
    MiniBatch,
}

impl Default for DivideSettings {
    fn default() -> Self {
        DivideSettings {
            model: ModelRole::Reference,
            n_clusters: 10,
            parent_levels: Vec::new(),
            centroids: None,
            seeding: Seeding::default(),
            fit: FitKind::default(),
            mini_batch_size: 4096,
            n_restarts: 3,
            n_iterations_max: 50,
            fit_samples_per_cluster: 256,
            device: Device::Cpu,
            products: Products::Exact,
            bank_size: 1024,
            hardness_temperature: 0.1,
            near_duplicate_similarity: 0.95,
        }
    }
}

impl DivideSettings {
    pub(super) fn check(&self, models: &Models<ModelSettings>) -> Result<(), SettingsError> {
        check_sizes(&[
            ("divide.n_clusters", self.n_clusters),
            ("divide.mini_batch_size", self.mini_batch_size),
            ("divide.n_restarts", self.n_restarts),
            ("divide.n_iterations_max", self.n_iterations_max),
            ("divide.fit_samples_per_cluster", self.fit_samples_per_cluster),
            ("divide.bank_size", self.bank_size),
        ])?;
        check_engine("divide.device", self.device)?;
        // with `centroids` the finest level is known when the file is read
        let finest = self.centroids.is_none().then_some(self.n_clusters);
        let levels: Vec<usize> = finest.into_iter().chain(self.parent_levels.iter().copied()).collect();
        if !levels.is_sorted_by(|finer, coarser| finer > coarser) || levels.contains(&0) {
            let value = format!("{:?}", self.parent_levels);
            return Err(out_of_range("divide.parent_levels", value, "falling, below `divide.n_clusters`"));
        }
        let temperature = self.hardness_temperature;
        if !(1e-3..=1e3).contains(&temperature) {
            return Err(out_of_range("divide.hardness_temperature", temperature, "between 0.001 and 1000"));
        }
        let similarity = self.near_duplicate_similarity;
        if !(-1.0..=1.0).contains(&similarity) {
            return Err(out_of_range("divide.near_duplicate_similarity", similarity, "between -1 and 1"));
        }
        match self.model {
            ModelRole::Learner | ModelRole::Reference | ModelRole::Base if models.has(self.model) => Ok(()),
            model => Err(SettingsError::DivideModel { model }),
        }
    }
}
