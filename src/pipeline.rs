//! The run on one screen: a plan in, curated shards and a report out.

use crate::embed::{FailedTask, InferenceSettings, SessionSettings};
use crate::error::Error;
use crate::executor::Executor;
use crate::run_folder::{OtherPlan, RunFolder};
use crate::settings::ModelSettings;
use crate::{divide, embed, select, write};

/// Does every undone stage, in the order of the flow.
pub fn run(run: &RunFolder, executor: &Executor, inference: &InferenceSettings) -> Result<(), Error> {
    embed(run, executor, inference)?;
    wait_for_other_embeddings(run, executor)?;
    divide::run(run, executor)?;
    select::run(run, executor)?;
    write::run(run, executor)
}

/// Opens the run folder of the next round: the last one if it is not complete, whose learner this one replaces if it is
/// another, else a new one.
///
/// # Errors
///
/// A run that is not complete, or a learner that cannot be used.
pub fn open_round(
    run: &RunFolder,
    learner: &ModelSettings,
    session: &SessionSettings,
    memory_limit_bytes: u64,
) -> Result<RunFolder, Error> {
    if !run.is_complete()? {
        return Err(Error::RunIncomplete { folder: run.run().root().to_owned() });
    }
    let rounds = run.rounds()?;
    let n_complete = match rounds.last() {
        Some(last) if !last.is_complete()? => rounds.len() - 1,
        _ => rounds.len(),
    };
    let round = n_complete as u64 + 1;
    let plan = run.plan().next_round(round, learner, session, memory_limit_bytes)?;
    RunFolder::create(run.round_folder(round), plan, OtherPlan::Replace)
}

/// With `--tasks`: the stages after `embed` stand on what every part has embedded.
fn wait_for_other_embeddings(run: &RunFolder, executor: &Executor) -> Result<(), Error> {
    let plan = run.plan();
    let embeddings =
        plan.models.iter().filter_map(|(role, _)| Some((run.embeddings(role)?, plan.tasks_of(role))));
    let samples = (run.samples(), (0..plan.pool.n_tasks()).collect());
    for (stage, mut others) in std::iter::once(samples).chain(embeddings) {
        others.retain(|&task| !executor.part.holds(task));
        match executor.wait_for_others(run, &stage, &others) {
            // what others failed at is left out, as far as it may be
            Err(Error::OtherParts { .. }) if plan.read.failed_shards_max > 0 => return Ok(()),
            waited => waited?,
        }
    }
    Ok(())
}

/// The embed stage; shards that fail may be left out up to `read.failed_shards_max`.
pub fn embed(run: &RunFolder, executor: &Executor, inference: &InferenceSettings) -> Result<(), Error> {
    let failed = embed::run(run, executor, inference)?;
    let pool = &run.plan().pool;
    let n_shards: usize = failed.iter().map(|failed| pool.shards_of(failed.task).len()).sum();
    for FailedTask { task, error } in &failed {
        tracing::error!(task, %error, "shards cannot be read");
    }
    match failed.into_iter().next() {
        Some(FailedTask { error, .. }) if n_shards > run.plan().read.failed_shards_max => Err(error),
        _ => Ok(()),
    }
}
