//! The stage: embeddings and clusters in; `select/` with every score and a verdict a sample out.
//!
//! ```text
//! select.calibrate  a task a model             logit scale and bias, where they are fitted to the pool
//! select.bank       one task                   the banks' embeddings under both models
//! select.score      a task a run of shards     the scores that a sample has by itself
//! select.filter.…   see `filter`               who comes to the draw
//! select.deal       a task a run of shards     exchange of embeddings to groups, for super-batches within clusters
//! select.draw       a task a dealing group     super-batches: score, draw; exchange of what was drawn to the shards
//! select            a task a run of shards     all columns and the verdict
//! ```
//!
//! A draw over the whole pool has no groups: its stage plan `select` says where the kept samples end.

use crate::embed::complete_tasks;
use crate::engine::Engine;
use crate::error::Error;
use crate::exchange::{self, Index};
use crate::executor::Executor;
use crate::run_folder::RunFolder;
use crate::settings::{Draw, SuperBatchDraw, SuperBatchMethod, SuperBatches};

use super::calibrate_step::commit_calibration;
use super::deal;
use super::draw::{DrawCounts, Drawer};
use super::draw_columns::Drawn;
use super::draw_plan::{DrawPlans, plan_draws};
use super::filter;
use super::hard_negatives::{commit_bank, needs_bank};
use super::losses::calibrated_models;
use super::pool_draw::plan_cuts;
use super::reach;
use super::scored::Scorer;
use super::verdict::commit_verdicts;

/// Does every undone step of the stage.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let tasks = complete_tasks(run)?.tasks;
    if is_counted(run)? && run.undone(&run.select("select"), &tasks)?.is_empty() {
        return Ok(());
    }
    score(run, executor, &tasks)?;
    filter::run(run, executor, &tasks)?;
    executor.run(run, &run.filtered(), &tasks, executor.n_threads, |task| reach::commit(run, task))?;
    let decide = |drawn: Drawn| {
        let n_threads = executor.n_threads;
        executor.run(run, &run.select("select"), &tasks, n_threads, |task| commit_verdicts(run, &drawn, task))
    };
    match &run.plan().select.draw {
        Draw::InSuperBatches(draw) => {
            let (plans, outcomes) = draw_super_batches(run, executor, &tasks, draw)?;
            decide(Drawn::InSuperBatches { plans: &plans, outcomes: &outcomes })
        }
        Draw::OverPool(draw) => {
            let cuts = plan_cuts(run, &tasks, draw)?;
            decide(Drawn::OverPool { draw, cuts: &cuts })
        }
        Draw::Keep => decide(Drawn::Keep),
    }
}

/// Whether the counts that the report wants are there; their files may be gone.
fn is_counted(run: &RunFolder) -> Result<bool, Error> {
    if run.plan().select.draw.deal().is_none() {
        return Ok(true);
    }
    let stage = run.select("select.draw");
    match run.stage_plan_if_present::<DrawPlans>(&stage)? {
        Some(plans) => run.are_counted(&stage, &(0..plans.groups.len()).collect::<Vec<_>>()),
        None => Ok(false),
    }
}

/// What samples are worth by themselves.
fn score(run: &RunFolder, executor: &Executor, tasks: &[usize]) -> Result<(), Error> {
    let calibrated = calibrated_models(run.plan());
    let models: Vec<usize> = (0..calibrated.len()).collect();
    executor.run(run, &run.score("select.calibrate"), &models, 1, |model| {
        commit_calibration(run, tasks, model, calibrated[model])
    })?;
    if needs_bank(run.plan()) {
        executor.run(run, &run.score("select.bank"), &[0], 1, |_| commit_bank(run, tasks))?;
    }
    let stage = run.score("select.score");
    if !executor.todo(run, &stage, tasks)?.is_empty() {
        let scorer = Scorer::open(run)?;
        // scoring shares out the processors itself
        executor.run(run, &stage, tasks, 1, |task| scorer.commit(run, task))?;
    }
    executor.wait_for_others(run, &stage, tasks)
}

/// Deals, draws, and says where what was drawn is.
fn draw_super_batches(
    run: &RunFolder,
    executor: &Executor,
    tasks: &[usize],
    draw: &SuperBatchDraw,
) -> Result<(DrawPlans, Vec<exchange::Source>), Error> {
    let dealt = match draw.deal.super_batches {
        SuperBatches::OverPool => None,
        SuperBatches::WithinClusters => Some(deal::run(run, executor, tasks, &draw.deal)?),
    };
    let plans = plan_draws(run, tasks, &draw.deal, dealt.as_ref())?;
    let groups: Vec<usize> = (0..plans.groups.len()).collect();
    let stage = run.select("select.draw");
    let has_work = !executor.todo(run, &stage, &groups)?.is_empty();
    let engine = match &draw.method {
        SuperBatchMethod::Jest(jest) if has_work => Engine::of(jest.device, jest.products)?,
        _ => Engine::Kernels,
    };
    let drawer = Drawer { run, draw, plans: &plans, dealt: dealt.as_ref(), engine: &engine };
    // a draw shares out the processors itself, and one group at a time bounds the memory
    executor.run(run, &stage, &groups, 1, |group| drawer.commit(group))?;
    let index = |counts: DrawCounts| -> Index { counts.index };
    let outcomes = exchange::sources(run, executor, &stage, &groups, index, exchange::FILES_PER_LEVEL_MAX)?;
    Ok((plans, outcomes))
}
