//! Samples that every model embedded in, those that pass each filter out, filter after filter.
//!
//! ```text
//! select.filter.NAME.deal    a task a run of shards   exchange of embeddings to clusters, for SemDeDup
//! select.filter.NAME.group   a task a group           what only neighbours can tell; exchange back to the shards
//! select.filter.NAME         a task a run of shards   the filter's score of each sample that comes to it
//! select.filter              a task a run of shards   who passed them all
//! ```
//!
//! Where a filter keeps the best of the pool, its stage plan holds the cut.

mod measure;
mod neg_clip_loss;
mod semdedup;
mod targets;

use crate::embed::tasks_at_once;
use crate::error::Error;
use crate::executor::Executor;
use crate::plan::row_bytes;
use crate::run_folder::RunFolder;
use crate::settings::Filter;

pub use measure::{Measurement, measured_scores, measurement};
pub use neg_clip_loss::{BATCHES_HELD, batches_size_max};

use measure::{Measurer, plan_cutoff};

/// Does every undone step of every filter.
pub fn run(run: &RunFolder, executor: &Executor, tasks: &[usize]) -> Result<(), Error> {
    for (position, named) in run.plan().select.filters.iter().enumerate() {
        let stage = run.filter(position, "");
        // of all parts: one without tasks of its own may hold groups that the others wait for
        if !run.undone(&stage, tasks)?.is_empty() {
            let found = match &named.filter {
                Filter::NegClipLoss(filter) => neg_clip_loss::run(run, executor, tasks, position, filter)?,
                Filter::Semdedup(filter) => semdedup::run(run, executor, tasks, position, filter)?,
                _ => Vec::new(),
            };
            let measurer = Measurer::open(run, position, found)?;
            let sample_bytes = named.filter.model().map_or(0, |model| row_bytes(&run.plan().models, model));
            let n_at_once = tasks_at_once(run, executor, sample_bytes)?;
            executor.run(run, &stage, tasks, n_at_once, |task| measurer.commit(run, task))?;
        }
        executor.wait_for_others(run, &stage, tasks)?;
        plan_cutoff(run, position, tasks)?;
    }
    Ok(())
}
