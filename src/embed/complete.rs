//! Which embed tasks are complete, so that later stages can stand on them.

use serde::{Deserialize, Serialize};

use super::writer::SamplesCounts;
use crate::error::Error;
use crate::executor::Executor;
use crate::run_folder::RunFolder;

/// The embed tasks that later stages stand on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteTasks {
    pub tasks: Vec<usize>,
    /// Shards of tasks that failed, which `failed_shards_max` allows leaving out.
    pub left_out_shards: Vec<String>,
    /// Samples of the largest of these tasks.
    pub n_samples_max: u64,
}

/// Of a task's embeddings in memory: as read, as gathered in another order, as a table to write.
const COPIES_OF_A_TASK: u64 = 3;

/// The embed tasks that are complete, fixed for all later stages by whoever comes first.
///
/// # Errors
///
/// More shards without embeddings than `read.failed_shards_max`, or none with.
pub fn complete_tasks(run: &RunFolder) -> Result<CompleteTasks, Error> {
    run.stage_plan(&run.embed(), || {
        let pool = &run.plan().pool;
        let all: Vec<usize> = (0..pool.n_tasks()).collect();
        let mut missing = run.undone(&run.samples(), &all)?;
        for (role, _) in run.plan().models.iter() {
            let stage = run.embeddings(role).expect("a model of the plan");
            missing.extend(run.undone(&stage, &run.plan().tasks_of(role))?);
        }
        missing.sort_unstable();
        missing.dedup();
        let shards = missing.iter().flat_map(|&task| pool.shards_of(task));
        let left_out_shards: Vec<String> = shards.map(|shard| shard.id.clone()).collect();
        if left_out_shards.len() > run.plan().read.failed_shards_max {
            return Err(Error::NotEmbedded { shards: left_out_shards });
        }
        let tasks: Vec<usize> = all.into_iter().filter(|task| missing.binary_search(task).is_err()).collect();
        if tasks.is_empty() {
            return Err(Error::NothingEmbedded);
        }
        let mut n_samples_max = 0;
        for &task in &tasks {
            n_samples_max =
                n_samples_max.max(run.committed_counts::<SamplesCounts>(&run.samples(), task)?.n_read());
        }
        Ok(CompleteTasks { tasks, left_out_shards, n_samples_max })
    })
}

/// How many tasks a step does at once that holds so many bytes of embeddings a sample.
pub fn tasks_at_once(run: &RunFolder, executor: &Executor, sample_bytes: u64) -> Result<usize, Error> {
    Ok(executor.n_fitting(COPIES_OF_A_TASK * sample_bytes * complete_tasks(run)?.n_samples_max))
}
