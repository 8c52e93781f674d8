//! Shards in, samples out: one after another, in the order of the shard. A shard is a tar, perhaps with a Parquet file
//! beside it, or a Parquet file whose rows are the samples.
//!
//! Per sample: a [`Sample`] that has an image and what its [`SampleKind`] asks for, or a [`RejectedSample`] that says what is wrong
//! with it. Every byte is foreign: limits come before allocations, no path from a tar reaches the file
//! system, and a broken shard costs the samples after the break only.

mod limits;
mod label;
mod columns;
mod decompress;
mod stored_file;
mod member;
mod group;
mod table_shard;
mod sidecar;
mod shard;

pub use columns::{ColumnNames, NoColumn};
pub use decompress::{decompress, is_plain};
pub use group::{ReadSample, RejectedSample, Sample, Samples};
pub use label::{LabelSource, SampleKind};
pub use limits::Limits;
pub use shard::{ReadRules, ShardError, ShardFormat, ShardSamples};
pub use sidecar::Sidecar;
pub(crate) use stored_file::StoredFile;
pub(crate) use table_shard::{Fault, guarded};
pub use table_shard::{TableSamples, extension_of, n_rows};

#[cfg(test)]
mod tests;
