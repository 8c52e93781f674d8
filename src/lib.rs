//! Curates image–text pools offline: reads tar shards, embeds them with a reference and a learner model, divides
//! them into clusters of hard negatives, draws jointly learnable sub-batches and writes them as Parquet.
//!
//! The modules stand in the order in which a sample meets them; nothing calls backwards.

// what everything stands on
pub mod error;
pub mod matrix;
pub mod noise;
pub mod tile;
pub mod rejection;

// the stages
pub mod read;
pub mod embed;
pub mod divide;
pub mod select;
