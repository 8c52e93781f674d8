//! Exact counts in; where each kept sample stands in the output, and where output shards end, out.

use serde::{Deserialize, Serialize};

use crate::embed::SamplesCounts;
use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::select::{DrawPlans, VerdictCounts};
use crate::settings::Order;

/// What a row holds beside its image: caption, JSON and numbers, about.
pub const ROW_BYTES: u64 = 1024;

/// Which kept samples are in which output shard. A kept sample's **position** is its place in the whole output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPlan {
    /// Where each block of adjacent samples starts: super-batches, or tasks, by [`Order`].
    pub block_starts: Vec<u64>,
    pub n_kept: u64,
    pub shards: Vec<OutputShard>,
}

/// The positions `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputShard {
    pub start: u64,
    pub end: u64,
}

impl OutputPlan {
    /// The output shard of a position.
    pub fn shard_of(&self, position: u64) -> usize {
        assert!(position < self.n_kept, "position {position} of {}", self.n_kept);
        self.shards.partition_point(|shard| shard.end <= position)
    }
}

/// Fixes where output shards end.
///
/// Sizes are known on average only, before the tars are read again; so shards are cut by counts that give about
/// `write.shard_bytes`, at the end of a sub-batch where there is one in the last half of a shard.
pub fn plan_outputs(run: &RunFolder, tasks: &[usize]) -> Result<OutputPlan, Error> {
    let stage = run.write("write");
    run.stage_plan(&stage, || {
        let mut image_bytes = 0;
        let mut n_samples = 0;
        let mut kept_of_tasks = Vec::with_capacity(tasks.len());
        for &task in tasks {
            let read = run.committed::<SamplesCounts>(&run.samples(), task)?.counts;
            image_bytes += read.image_bytes();
            n_samples += read.n_read() - read.n_rejected();
            kept_of_tasks.push(run.committed::<VerdictCounts>(&run.select("select"), task)?.counts.kept);
        }
        let settings = &run.plan().write;
        let mean_bytes = if settings.images { image_bytes / n_samples.max(1) } else { 0 };
        let rows_max = (settings.shard_bytes / (mean_bytes + ROW_BYTES)).max(1);
        let blocks: Vec<u64> = match settings.order {
            Order::Shard => kept_of_tasks,
            Order::SubBatch => {
                let plans: Option<DrawPlans> = run.stage_plan_if_present(&run.select("select.draw"))?;
                let plans = plans.expect("drawn before it is written");
                plans.super_batches().map(|planned| planned.n_kept as u64).collect()
            }
        };
        Ok(cut(&blocks, rows_max))
    })
}

fn cut(blocks: &[u64], rows_max: u64) -> OutputPlan {
    let mut block_starts = Vec::with_capacity(blocks.len());
    let mut n_kept = 0;
    for n in blocks {
        block_starts.push(n_kept);
        n_kept += n;
    }
    let mut shards: Vec<OutputShard> = Vec::new();
    let mut start = 0;
    while start < n_kept {
        let limit = (start + rows_max).min(n_kept);
        // the last block that ends in this shard, if that leaves it at least half full
        let after = block_starts.partition_point(|&block| block <= limit);
        let cut = block_starts[after - 1];
        let is_cut_there = limit < n_kept && cut >= start + rows_max.div_ceil(2);
        let end = if is_cut_there { cut } else { limit };
        shards.push(OutputShard { start, end });
        start = end;
    }
    OutputPlan { block_starts, n_kept, shards }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(blocks: &[u64], rows_max: u64) -> Vec<u64> {
        let plan = cut(blocks, rows_max);
        for position in 0..plan.n_kept {
            let shard = plan.shards[plan.shard_of(position)];
            assert!((shard.start..shard.end).contains(&position));
        }
        plan.shards.iter().map(|shard| shard.end).collect()
    }

    #[test]
    fn shards_end_with_a_sub_batch_where_they_can() {
        assert_eq!(ends(&[4, 4, 4, 4], 10), [8, 16]);
        assert_eq!(ends(&[4, 4, 4, 4], 100), [16]);
        // a sub-batch larger than a shard is cut
        assert_eq!(ends(&[25, 5], 10), [10, 20, 30]);
        assert_eq!(ends(&[0, 3, 0], 2), [2, 3]);
        assert_eq!(ends(&[], 2), [0u64; 0]);
    }
}
