//! Curates image–text pools offline: reads tar shards, embeds them with a reference and a learner model, divides
//! them into clusters of hard negatives, draws jointly learnable sub-batches and writes them as Parquet.
//!
//! The modules stand in the order in which a sample meets them; nothing calls backwards.

// the run on one screen
pub mod pipeline;

// what everything stands on
pub mod error;
pub mod rejection;
pub mod digest;
pub mod storage;
pub mod matrix;
pub mod npy;
pub mod vector;
pub mod tile;
pub mod fold;
pub mod noise;
pub mod smallest;
pub mod rank;
pub mod caption;
pub mod table;
pub mod sample;
mod bounds;
mod foreign;
mod numbers;

// what a run is to do, what it has done, and who does it
pub mod settings;
pub mod plan;
pub mod run_folder;
pub mod progress;
pub mod executor;
pub mod exchange;
pub mod runtime;
pub mod algebra;
pub mod engine;

// the stages
pub mod read;
pub mod embed;
pub mod divide;
pub mod select;
pub mod write;
pub mod compare;
pub mod report;
pub mod export;

// what looks at a run or a machine
pub mod cost;
pub mod estimate;
pub mod status;
pub mod verify;
pub mod inspect;
pub mod doctor;
pub mod setup;
pub mod cli;
