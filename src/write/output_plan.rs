//! Exact counts in; where each kept sample stands in the output, and where output shards end, out.

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::embed::{SamplesCounts, complete_tasks};
use crate::error::Error;
use crate::plan::Plan;
use crate::run_folder::RunFolder;
use crate::select::{DrawCounts, DrawPlans, Verdict, VerdictCounts};
use crate::settings::Order;
use crate::table::Rows;

use super::distil::target_bytes;

/// What a row holds beside its image: caption, JSON and numbers, about.
const ROW_BYTES: u64 = 1024;

/// What a row of the run's output holds beside its image.
pub fn row_bytes(plan: &Plan) -> u64 {
    ROW_BYTES + target_bytes(plan)
}

/// Which kept samples are in which output shard. A kept sample's **position** is its place in the whole output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPlan {
    /// Where each block of adjacent samples starts: tasks, or the super-batches of the first pass, of the second …
    block_starts: Vec<u64>,
    order: Order,
    n_super_batches: u64,
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
    /// The position of each row of a task's verdicts, none of those that are not kept.
    pub fn positions(
        &self,
        run: &RunFolder,
        task: usize,
        verdicts: &RecordBatch,
    ) -> Result<Vec<Option<u64>>, Error> {
        let rows = Rows(verdicts);
        let is_kept = |row: &usize| rows.text("verdict").value(*row) == Verdict::Kept.text();
        let mut positions = vec![None; verdicts.num_rows()];
        let kept = (0..verdicts.num_rows()).filter(is_kept);
        match self.order {
            Order::SubBatch => {
                let (super_batches, passes, places) =
                    (rows.u64("super_batch"), rows.u32("pass"), rows.u64("place"));
                for row in kept {
                    let block =
                        u64::from(passes.value(row)) * self.n_super_batches + super_batches.value(row);
                    positions[row] = Some(self.block_starts[block as usize] + places.value(row));
                }
            }
            Order::Shard => {
                let tasks = complete_tasks(run)?.tasks;
                let block = tasks.binary_search(&task).expect("only complete tasks have verdicts");
                for (place, row) in kept.enumerate() {
                    positions[row] = Some(self.block_starts[block] + place as u64);
                }
            }
        }
        Ok(positions)
    }

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
        let rows_max = (settings.shard_bytes / (mean_bytes + row_bytes(run.plan()))).max(1);
        // without super-batches there is no order but that of the shards
        let by_super_batch = match (settings.order, run.plan().select.draw.deal()) {
            (Order::SubBatch, Some(deal)) => Some(deal.n_passes),
            _ => None,
        };
        let (blocks, order, n_super_batches) = match by_super_batch {
            None => (kept_of_tasks, Order::Shard, 0),
            Some(n_passes) => {
                let blocks = blocks_of_super_batches(run, n_passes)?;
                let n_super_batches = (blocks.len() / n_passes) as u64;
                (blocks, Order::SubBatch, n_super_batches)
            }
        };
        Ok(OutputPlan { order, n_super_batches, ..cut(&blocks, rows_max) })
    })
}

/// The samples that each super-batch's first pass kept, then those that its second pass added, and so on.
fn blocks_of_super_batches(run: &RunFolder, n_passes: usize) -> Result<Vec<u64>, Error> {
    let stage = run.select("select.draw");
    let plans: Option<DrawPlans> = run.stage_plan_if_present(&stage)?;
    let plans = plans.ok_or_else(|| Error::NotCommitted { stage: stage.name.clone(), task: 0 })?;
    let n_groups = plans.groups.len();
    let mut passes = vec![Vec::new(); n_passes];
    for group in 0..n_groups {
        for counts in run.committed_counts::<DrawCounts>(&stage, group)?.super_batches {
            for (blocks, n) in passes.iter_mut().zip(counts.n_first) {
                blocks.push(n);
            }
        }
    }
    Ok(passes.concat())
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
    OutputPlan { block_starts, order: Order::Shard, n_super_batches: 0, n_kept, shards }
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
