//! Embeddings in; centroids, each sample's cluster and its hardness out.

mod kmeans;
mod hardness;

pub use hardness::{Banks, Exclusions, Hardness, HardnessParams, Negatives, Samples, exclusions, hardness};
pub use kmeans::{Assignment, Fit, FitError, FitParams, assign, fit, merge_small, refine};
