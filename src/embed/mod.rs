//! Samples in, unit embeddings of every model out, one row a sample, in the order of the shard.

pub mod image;
mod model;

pub use model::ModelError;
