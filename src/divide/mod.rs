//! Embeddings in; centroids, each sample's cluster and its hardness out.

mod tree;
mod kmeans;
mod hardness;

pub use hardness::{
    Bank, BankIndex, Banks, Exclusions, Hardness, HardnessParams, Negatives, Samples, exclusions, hardness,
};
pub use kmeans::{
    Assignment, Fit, FitError, FitMethod, FitParams, Seeding, assign, assign_on, fit, fit_levels,
    merge_small, refine, starting_points,
};
pub use tree::ClusterTree;

mod saved;
mod fit;
mod assign;
mod bank;
mod measure;
mod stage;

pub use assign::AssignCounts;
pub use bank::{Gathered, LoadedBank, Texts, read_banks};
pub use fit::{Centroids, FitCounts, read_centroids, read_tree};
pub use measure::{DividedTask, read_divided};
pub use saved::{CentroidsError, PlannedCentroids, SavedCentroids};
pub use stage::run;
