//! The last step of `[select]`, where it ranks or caps the whole pool.

use serde::{Deserialize, Serialize};

use crate::select::FilterRatio;

use super::filter::NamedFilter;
use super::select::check_column;
use super::{ModelSettings, Models, SettingsError, check_sizes, out_of_range};

/// A draw over the whole pool.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum PoolDraw {
    Top(Top),
    Balanced(Balanced),
    Dbp(Dbp),
}

pub(super) const POOL_METHODS: [&str; 3] = ["top", "balanced", "dbp"];

/// The best of a column.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    pub filter_ratio: FilterRatio,
    /// The column that is ranked by: one of those that a sample has by itself, or a filter's.
    pub by: String,
    #[serde(default)]
    pub order: Ranking,
}

/// Which end of a column is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    #[default]
    Highest,
    Lowest,
}

/// As equal shares of all clusters as their sizes allow (arXiv:2405.15613).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balanced {
    pub filter_ratio: FilterRatio,
}

/// Density-based pruning (arXiv:2401.04578): more of clusters that are spread out and lie alone, and of each the samples
/// farthest from its centroid.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dbp {
    pub filter_ratio: FilterRatio,
    #[serde(default = "default_dbp_temperature")]
    pub temperature: f64,
    #[serde(default = "default_dbp_neighbours")]
    pub n_neighbours: usize,
}

/// The paper's T.
fn default_dbp_temperature() -> f64 {
    0.1
}

/// The paper's number of nearest centroids.
fn default_dbp_neighbours() -> usize {
    20
}

impl PoolDraw {
    /// The fraction that is not kept.
    pub fn filter_ratio(&self) -> FilterRatio {
        match self {
            PoolDraw::Top(top) => top.filter_ratio,
            PoolDraw::Balanced(balanced) => balanced.filter_ratio,
            PoolDraw::Dbp(dbp) => dbp.filter_ratio,
        }
    }

    pub(super) fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
        filters: &[NamedFilter],
    ) -> Result<(), SettingsError> {
        let what = match self {
            PoolDraw::Top(top) => return check_column(&top.by, filters, models, has_clusters),
            PoolDraw::Balanced(_) => "balanced sampling",
            PoolDraw::Dbp(_) => "density-based pruning",
        };
        if !has_clusters {
            return Err(SettingsError::NoClusters { what });
        }
        let PoolDraw::Dbp(dbp) = self else { return Ok(()) };
        check_sizes(&[("select.step.n_neighbours", dbp.n_neighbours)])?;
        if !(dbp.temperature > 0.0 && dbp.temperature.is_finite()) {
            return Err(out_of_range("select.step.temperature", dbp.temperature, "above 0"));
        }
        Ok(())
    }
}
