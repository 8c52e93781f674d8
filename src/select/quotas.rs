//! Sizes of clusters and a total in, how many of each are kept out.

use serde::{Deserialize, Serialize};

/// What the kept are shared out over clusters by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// By the clusters' sizes: the same fraction of each.
    #[default]
    Size,
    /// By the roots of their sizes.
    Sqrt,
    /// The same number of each, as far as it has so many.
    Uniform,
}
