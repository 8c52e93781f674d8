//! The stage: embeddings and clusters in; `select/` with every score and a verdict a sample out.
//!
//! ```text
//! select.bank    one task                   the banks' embeddings under both models
//! select.score   a task a run of shards     the scores that a sample has by itself
//! select.deal    a task a run of shards     exchange of embeddings to groups, for super-batches within clusters
//! select.draw    a task a dealing group     super-batches: score, draw; exchange of what was drawn to the shards
//! select         a task a run of shards     all columns and the verdict
//! ```

use crate::embed::complete_tasks;
use crate::error::Error;
use crate::exchange::{self, Index};
use crate::executor::Executor;
use crate::run_folder::RunFolder;
use crate::settings::SuperBatches;

use super::deal::{self, DealCounts};
use super::draw::{DrawCounts, Drawer};
use super::draw_plan::{DrawPlans, plan_draws};
use super::gather::commit_verdicts;
use super::scored::{Scorer, commit_bank};

/// Does every undone step of the stage.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let step = |name| run.select(name);
    let tasks = complete_tasks(run)?.tasks;
    // the report wants the counts of a step whose files may be gone
    let is_counted = match run.stage_plan_if_present::<DrawPlans>(&step("select.draw"))? {
        Some(plans) => run.are_counted(&step("select.draw"), &(0..plans.groups.len()).collect::<Vec<_>>())?,
        None => false,
    };
    if is_counted && run.undone(&step("select"), &tasks)?.is_empty() {
        return Ok(());
    }

    if Scorer::needs_bank(run) {
        executor.run(run, &step("select.bank"), &[0], 1, |_| commit_bank(run, &tasks))?;
    }
    if !executor.todo(run, &step("select.score"), &tasks)?.is_empty() {
        let scorer = Scorer::open(run)?;
        // scoring shares out the processors itself
        executor.run(run, &step("select.score"), &tasks, 1, |task| scorer.commit(run, task))?;
    }
    executor.wait_for_others(run, &step("select.score"), &tasks)?;

    let dealt = match run.plan().select.draw.deal().expect("a draw in super-batches").super_batches {
        SuperBatches::OverPool => None,
        SuperBatches::WithinClusters => {
            let partitions = deal::plan_partitions(run, &tasks)?;
            executor.run(run, &step("select.deal"), &tasks, executor.n_threads, |task| {
                deal::commit(run, &partitions, task)
            })?;
            let index = |counts: DealCounts| counts.index;
            let deal = step("select.deal");
            Some(exchange::sources(run, executor, &deal, &tasks, index, exchange::FILES_PER_LEVEL_MAX)?)
        }
    };
    let plans: DrawPlans = plan_draws(run, &tasks, dealt.as_deref())?;
    let groups: Vec<usize> = (0..plans.groups.len()).collect();
    let drawer = Drawer { run, plans: &plans, dealt: dealt.as_deref() };
    // a draw shares out the processors itself, and one group at a time bounds the memory
    executor.run(run, &step("select.draw"), &groups, 1, |group| drawer.commit(group))?;

    let index = |counts: DrawCounts| -> Index { counts.index };
    let draw = step("select.draw");
    let drawn = exchange::sources(run, executor, &draw, &groups, index, exchange::FILES_PER_LEVEL_MAX)?;
    executor.run(run, &step("select"), &tasks, executor.n_threads, |task| {
        commit_verdicts(run, &plans, &drawn, task)
    })
}
