//! Verdicts in, the product out: curated Parquet shards with every kept sample, and statistics of each input shard.
//!
//! ```text
//! write.stats    a task a run of shards     `stats/NNNNN_stats.json` of each
//! write.gather   a task a run of shards     streams the tars once more; exchange of kept rows to output shards
//! write          a task an output shard     `curated/NNNNN.parquet`
//! ```

mod output_plan;
mod distil;
mod gather;
mod curated;
mod stats;

use std::collections::BTreeSet;

use crate::embed::complete_tasks;
use crate::error::Error;
use crate::exchange::{self, FILES_PER_LEVEL_MAX};
use crate::executor::Executor;
use crate::run_folder::RunFolder;

pub use distil::{TARGETS, target_bytes};
pub use gather::GatherCounts;
pub use output_plan::{OutputPlan, OutputShard};
pub use stats::{Distribution, ShardStats, rows_by_shard, score_columns};

/// Does every undone step of the stage.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let tasks = complete_tasks(run)?.tasks;
    let outputs = output_plan::plan_outputs(run, &tasks)?;
    let shards: Vec<usize> = (0..outputs.shards.len()).collect();
    executor
        .run(run, &run.write("write.stats"), &tasks, executor.n_threads, |task| stats::commit(run, task))?;

    remove_other_shards(run, &shards)?;
    if run.undone(&run.write("write"), &shards)?.is_empty() {
        return Ok(());
    }
    let gather = run.write("write.gather");
    let n_at_once = executor.n_fitting(gather::HELD_BYTES_MAX);
    executor.run(run, &gather, &tasks, n_at_once, |task| gather::commit(run, &outputs, task))?;

    let index = |counts: GatherCounts| counts.index;
    let sources = exchange::sources(run, executor, &gather, &tasks, index, FILES_PER_LEVEL_MAX)?;
    // one output shard at a time bounds the memory
    executor
        .run(run, &run.write("write"), &shards, 1, |shard| curated::commit(run, &outputs, &sources, shard))
}

/// Removes curated shards of an earlier plan that a stop between marker and file has left: whoever reads the folder
/// would take them for kept samples.
fn remove_other_shards(run: &RunFolder, shards: &[usize]) -> Result<(), Error> {
    let planned: BTreeSet<String> = shards.iter().map(|&shard| curated::name(shard)).collect();
    for name in run.run().list("curated")? {
        let name = format!("curated/{name}");
        if name.ends_with(".parquet") && !planned.contains(&name) {
            run.run().remove(&name)?;
        }
    }
    Ok(())
}
