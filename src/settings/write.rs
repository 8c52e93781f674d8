//! `[write]` and `[report]`: what comes out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ModelRole, ModelSettings, Models, SettingsError, out_of_range};

/// An output shard is in memory while it is written.
const SHARD_BYTES_MAX: u64 = 1 << 30;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WriteSettings {
    /// Curated shards are cut at about this many bytes of images.
    pub shard_bytes: u64,
    pub row_group_bytes_max: u64,
    pub order: Order,
    /// Whether the original image bytes are written.
    pub images: bool,
    /// Whether each kept sample's image embeddings under the base model (`divide.model`) and under its cluster's expert
    /// (`models.expert_N`, else `models.reference`) are written, as `base_embedding` and `expert_embedding`: what
    /// distillation predicts of every image (Divide and Contrast, arXiv:2105.08054).
    pub distil: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Super-batch by super-batch, in the order in which samples were drawn.
    #[default]
    SubBatch,
    /// As in the pool.
    Shard,
}

impl Default for WriteSettings {
    fn default() -> Self {
        WriteSettings {
            shard_bytes: 512 << 20,
            row_group_bytes_max: 64 << 20,
            order: Order::default(),
            images: true,
            distil: false,
        }
    }
}

impl WriteSettings {
    pub(super) fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
    ) -> Result<(), SettingsError> {
        if self.row_group_bytes_max == 0 {
            return Err(out_of_range("write.row_group_bytes_max", 0, "at least 1"));
        }
        if !(1..=SHARD_BYTES_MAX).contains(&self.shard_bytes) {
            return Err(out_of_range("write.shard_bytes", self.shard_bytes, "between 1 byte and 1 GiB"));
        }
        if self.distil && !has_clusters {
            return Err(SettingsError::NoClusters { what: "`write.distil`" });
        }
        if self.distil && models.experts().next().is_none() && !models.has(ModelRole::Reference) {
            return Err(SettingsError::NoExperts);
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSettings {
    /// A CSV file `shard,key` of samples known to be bad; the report says how many were kept.
    pub planted: Option<PathBuf>,
    /// Fraction of the pool's tasks that `full_learner` and `full_reference` embed too.
    pub audit_fraction: f64,
}

impl Default for ReportSettings {
    fn default() -> Self {
        ReportSettings { planted: None, audit_fraction: 0.1 }
    }
}

impl ReportSettings {
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if self.audit_fraction > 0.0 && self.audit_fraction <= 1.0 {
            return Ok(());
        }
        Err(out_of_range("report.audit_fraction", self.audit_fraction, "above 0 and at most 1"))
    }
}
