//! The stage: embeddings of the pool in; `divide/` with centroids, banks, clusters and hardness out.
//!
//! ```text
//! divide.fit     one task      centroids and levels from a seeded sample of the pool, or those of another run
//! divide.assign  a task a run of shards    each sample's cluster
//! divide.bank    one task      the seeded negatives of each cluster and of the pool
//! divide         a task a run of shards    hardness of each sample against the banks
//! ```

use crate::embed::{complete_tasks, tasks_at_once};
use crate::engine::Engine;
use crate::error::Error;
use crate::executor::Executor;
use crate::plan::row_bytes;
use crate::run_folder::RunFolder;

use super::assign::commit_assignments;
use super::bank::commit_banks;
use super::fit::{check_n_samples, commit_centroids, read_centroids};
use super::measure::{Measure, commit_hardness};

/// Does every undone step of the stage.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let Some(settings) = &run.plan().divide else { return Ok(()) };
    let step = |name| run.divide(name).expect("the plan has the stage");
    let tasks = complete_tasks(run)?.tasks;
    if !run.undone(&step("divide.fit"), &[0])?.is_empty() {
        check_n_samples(run, settings, &tasks)?;
    }
    executor.run(run, &step("divide.fit"), &[0], 1, |_| commit_centroids(run, settings, &tasks))?;
    let is_bank_done = run.undone(&step("divide.bank"), &[0])?.is_empty();
    // the report wants the counts of a step whose files may be gone
    let is_counted = run.are_counted(&step("divide.assign"), &tasks)?;
    if is_bank_done && is_counted && run.undone(&step("divide"), &tasks)?.is_empty() {
        return Ok(());
    }
    let centroids = read_centroids(run)?;
    let assign = step("divide.assign");
    let engine = match executor.todo(run, &assign, &tasks)?.is_empty() {
        true => Engine::Kernels,
        false => Engine::of(settings.device, settings.products)?,
    };
    let n_fitting = tasks_at_once(run, executor, row_bytes(&run.plan().models, settings.model))?;
    let n_at_once = match &engine {
        Engine::Kernels => n_fitting,
        // one is read while another is on the device, where the points of both lie
        Engine::Device(_) => n_fitting.min(2),
    };
    executor.run(run, &assign, &tasks, n_at_once, |task| {
        commit_assignments(run, &engine, settings.model, task, &centroids)
    })?;
    executor.run(run, &step("divide.bank"), &[0], 1, |_| commit_banks(run, settings, &tasks))?;
    if !executor.todo(run, &step("divide"), &tasks)?.is_empty() {
        let measure = Measure::open(run, settings)?;
        // hardness shares out the processors itself
        executor.run(run, &step("divide"), &tasks, 1, |task| commit_hardness(run, &measure, task))?;
    }
    executor.wait_for_others(run, &step("divide"), &tasks)
}
