//! `[divide]`: clusters, banks and hardness.

use serde::{Deserialize, Serialize};

use super::{ModelRole, ModelSettings, Models, SettingsError, check_sizes, out_of_range};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DivideSettings {
    /// The model whose image embeddings are clustered.
    pub model: ModelRole,
    pub n_clusters: usize,
    /// Fits from other seeds, of which the best is kept.
    pub n_restarts: usize,
    pub n_iterations_max: usize,
    /// Points for the fit, for each cluster.
    pub fit_samples_per_cluster: usize,
    /// Members of each cluster's bank at most; fewer where the memory limit says so.
    pub bank_size: usize,
    /// τ of the hardness.
    pub hardness_temperature: f64,
    /// Image cosine above which two samples are near-duplicates.
    pub near_duplicate_similarity: f64,
}

impl Default for DivideSettings {
    fn default() -> Self {
        DivideSettings {
            model: ModelRole::Reference,
            // the middle of the Divide and Contrast paper's range of 5 to 10 and more, for pools of its size
            n_clusters: 10,
            n_restarts: 3,
            n_iterations_max: 50,
            fit_samples_per_cluster: 256,
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
            ("divide.n_restarts", self.n_restarts),
            ("divide.n_iterations_max", self.n_iterations_max),
            ("divide.fit_samples_per_cluster", self.fit_samples_per_cluster),
            ("divide.bank_size", self.bank_size),
        ])?;
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
