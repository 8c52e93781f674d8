//! Tar shards in, samples out: one after another, in the order of the shard.
//!
//! Per sample: a [`Sample`] that has an image and what its [`SampleKind`] asks for, or a [`RejectedSample`] that says what is wrong
//! with it. Every byte is foreign: limits come before allocations, no path from a tar reaches the file
//! system, and a broken shard costs the samples after the break only.

mod decompress;
mod group;
mod label;
mod limits;
mod member;

pub use decompress::{decompress, is_plain};
pub use group::{ReadSample, RejectedSample, Sample, Samples};
pub use label::{LabelSource, SampleKind};
pub use limits::Limits;

#[cfg(test)]
mod tests;
