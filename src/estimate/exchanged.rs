//! Filters, or a draw, in; what they read and write beside a sample's rows, and what stays of it in the exchange, out.

use std::iter::Sum;
use std::ops::Add;

use crate::exchange::FILES_PER_LEVEL_MAX;
use crate::plan::{Plan, PlannedModel, scored_bytes};
use crate::select::{batches_size_max, group_size_max, has_experts, n_scans};
use crate::settings::{Deal, Draw, Filter, PoolDraw, SuperBatches};

use super::pool_size::PoolSize;
use super::work::DIVIDE_ROW_BYTES;

/// Of a sample's id and a score.
const RANKED_ROW_BYTES: u64 = 24;

/// What a step of a stage takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub n_files: u64,
    /// Of what is written: what lies in the exchange until the run is complete.
    pub exchanged_bytes: u64,
}

impl Add for StepWork {
    type Output = StepWork;

    fn add(self, other: StepWork) -> StepWork {
        StepWork {
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            n_files: self.n_files + other.n_files,
            exchanged_bytes: self.exchanged_bytes + other.exchanged_bytes,
        }
    }
}

impl Sum for StepWork {
    fn sum<I: Iterator<Item = StepWork>>(steps: I) -> StepWork {
        steps.fold(StepWork::default(), StepWork::add)
    }
}

impl StepWork {
    fn reading(read_bytes: u64) -> StepWork {
        StepWork { read_bytes, ..StepWork::default() }
    }

    fn files(n_files: u64) -> StepWork {
        StepWork { n_files, ..StepWork::default() }
    }

    /// An exchange of so many files: all of it is written and read once, and once more in each level of merges.
    pub fn exchange(mut n_files: u64, bytes: u64) -> StepWork {
        let level =
            |n_files| StepWork { read_bytes: bytes, written_bytes: bytes, n_files, exchanged_bytes: bytes };
        let mut work = level(n_files);
        while n_files > FILES_PER_LEVEL_MAX as u64 {
            n_files = n_files.div_ceil(FILES_PER_LEVEL_MAX as u64);
            work = work + level(n_files);
        }
        work
    }

    /// All filters, so far as embeddings go through them.
    pub fn of_filters(plan: &Plan, size: &PoolSize) -> StepWork {
        plan.select.filters.iter().map(|filter| of_filter(plan, size, &filter.filter)).sum()
    }

    /// The draw, of so many samples.
    pub fn of_draw(plan: &Plan, size: &PoolSize, n_reaching: u64) -> StepWork {
        match &plan.select.draw {
            Draw::InSuperBatches(draw) => of_deal(plan, size, n_reaching, &draw.deal),
            Draw::OverPool(draw) => of_pool_draw(plan, n_reaching, draw),
            Draw::Keep => StepWork::default(),
        }
    }
}

fn of_filter(plan: &Plan, size: &PoolSize, filter: &Filter) -> StepWork {
    let embeddings = |role| {
        let model: Option<&PlannedModel> = plan.models.get(role);
        StepWork::reading(
            model.map_or(0, |model| size.n_samples * model.row_bytes(plan.embed.embedding_dtype)),
        )
    };
    let scores = StepWork::files(size.n_tasks);
    match filter {
        Filter::Metadata(_) | Filter::Threshold(_) | Filter::ClipScore(_) => scores,
        Filter::NormSim(filter) => embeddings(filter.model) + scores,
        Filter::Decontaminate(filter) => embeddings(filter.model) + scores,
        Filter::NegClipLoss(filter) => {
            let n_groups = n_task_groups(size.n_tasks, size.n_samples, batches_size_max(filter) as u64);
            embeddings(filter.model) + StepWork::exchange(n_groups, 0) + scores
        }
        Filter::Semdedup(_) => {
            let Some(divide) = &plan.divide else { return scores };
            let width = plan.models.get(divide.model).map_or(0, |model| model.embedding_dim as u64);
            let images_bytes = size.n_samples * width * plan.embed.embedding_dtype.size_bytes();
            embeddings(divide.model)
                + StepWork::exchange(size.n_tasks, images_bytes)
                + StepWork::exchange(divide.n_clusters as u64, 0)
                + scores
        }
    }
}

/// Embeddings come to their super-batches, over the pool out of the store and within clusters through the exchange; what
/// was drawn goes back.
fn of_deal(plan: &Plan, size: &PoolSize, n_reaching: u64, deal: &Deal) -> StepWork {
    let row_bytes = scored_bytes(&plan.models, plan.embed.embedding_dtype);
    let size_max = group_size_max(plan, deal) as u64;
    let (n_groups, dealt) = match deal.super_batches {
        SuperBatches::OverPool => (n_task_groups(size.n_tasks, n_reaching, size_max), StepWork::default()),
        SuperBatches::WithinClusters => {
            let n_clusters = plan.divide.as_ref().map_or(1, |divide| divide.n_clusters as u64);
            // those too small for a super-batch are drawn with their nearest
            let n_full = (n_reaching / deal.super_batch_size as u64).max(1);
            let n_drawn = if has_experts(plan) { n_clusters } else { n_clusters.min(n_full) };
            let n_parts = n_reaching.div_ceil(n_drawn).div_ceil(size_max).max(1);
            (n_drawn * n_parts, StepWork::exchange(size.n_tasks, n_reaching * row_bytes))
        }
    };
    let draws = if deal.n_passes > 1 { n_groups } else { 0 };
    StepWork::reading(size.n_samples * row_bytes)
        + dealt
        + StepWork::exchange(n_groups, 0)
        + StepWork::files(draws)
}

/// Ranks are read once for each digit of the cut.
fn of_pool_draw(plan: &Plan, n_reaching: u64, draw: &PoolDraw) -> StepWork {
    let n_clusters = plan.divide.as_ref().map_or(1, |divide| divide.n_clusters);
    let (row_bytes, n_scans) = match draw {
        PoolDraw::Top(_) => (RANKED_ROW_BYTES, n_scans(1)),
        PoolDraw::Balanced(_) => (RANKED_ROW_BYTES + DIVIDE_ROW_BYTES, n_scans(n_clusters)),
        PoolDraw::Dbp(_) => (RANKED_ROW_BYTES + DIVIDE_ROW_BYTES, n_scans(n_clusters) + 1),
    };
    StepWork::reading(u64::from(n_scans) * row_bytes * n_reaching)
}

/// Groups of whole tasks of at most so many samples each, or of one task.
fn n_task_groups(n_tasks: u64, n_samples: u64, size_max: u64) -> u64 {
    let of_task = n_samples.div_ceil(n_tasks).max(1);
    n_tasks.div_ceil((size_max / of_task).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_of_many_files_is_merged() {
        let of = |n_files| StepWork::exchange(n_files, 7);
        let level = |n: u64, n_files| StepWork {
            read_bytes: 7 * n,
            written_bytes: 7 * n,
            n_files,
            exchanged_bytes: 7 * n,
        };
        assert_eq!([of(1), of(1_000), of(1_001)], [level(1, 1), level(1, 1_000), level(2, 1_003)]);
        assert_eq!(of(2_000_000), level(3, 2_000_000 + 2_000 + 2));
    }

    #[test]
    fn tasks_are_dealt_whole() {
        // ten tasks of a hundred samples
        let groups = |size_max| n_task_groups(10, 1_000, size_max);
        assert_eq!([50, 100, 299, 450, 1_000, 5_000].map(groups), [10, 10, 5, 3, 1, 1]);
    }
}
