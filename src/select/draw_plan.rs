//! Counts of the pool in; which samples meet in which super-batch, and how many of each are kept, out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::exchange::Source;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::Plan;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::Deal;

use super::counts::{kept_in, super_batch_sizes};
use super::deal::Partitions;
use super::quotas::quotas;
use super::reach::reach_counts;

/// Every dealing group and super-batch of the pool, in pool order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawPlans {
    /// Samples that come to the draw.
    pub n_samples: u64,
    /// Draws of one pass.
    pub n_kept: u64,
    pub n_passes: usize,
    pub groups: Vec<Group>,
}

/// A dealing group: one task of `select.draw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub members: Members,
    pub n_samples: usize,
    pub super_batches: Vec<SuperBatch>,
}

/// Where the samples of a group come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Members {
    /// All samples of these tasks.
    Tasks(Vec<usize>),
    /// A partition of the exchange to clusters; its samples are of this cluster, or of clusters that joined it.
    Partition { partition: usize, cluster: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperBatch {
    /// Position in the pool's order of super-batches.
    pub super_batch: u64,
    pub n_samples: usize,
    /// Draws of one pass.
    pub n_kept: usize,
}

impl DrawPlans {
    pub fn super_batches(&self) -> impl Iterator<Item = &SuperBatch> {
        self.groups.iter().flat_map(|group| &group.super_batches)
    }
}

/// What the exchange to clusters has dealt.
pub struct Dealt {
    pub partitions: Partitions,
    pub sources: Vec<Source>,
}

/// Deals the pool, or counts what the exchange has dealt, and fixes every count.
pub fn plan_draws(
    run: &RunFolder,
    tasks: &[usize],
    deal: &Deal,
    dealt: Option<&Dealt>,
) -> Result<DrawPlans, Error> {
    run.stage_plan(&run.select("select.draw"), || {
        let members = match dealt {
            None => deal_tasks(run, tasks, deal)?,
            Some(dealt) => count_partitions(dealt),
        };
        let n_samples: usize = members.iter().map(|(_, n)| n).sum();
        if n_samples == 0 {
            return Err(Error::NothingScored);
        }
        Ok(count(deal, members, n_samples as u64))
    })
}

/// Samples of the largest dealing group, up to which tasks or the parts of a cluster come together: those of
/// `super_batches_per_group` super-batches, rounded.
pub fn group_size_max(plan: &Plan, deal: &Deal) -> usize {
    rounded_size_max(plan.select.super_batches_per_group, deal.super_batch_size)
}

/// Samples of n batches and half a batch more, so that sizes are rounded and not cut off.
pub fn rounded_size_max(n_batches: usize, batch_size: usize) -> usize {
    n_batches * batch_size + batch_size / 2
}

/// Tasks that are dealt together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskGroup {
    pub tasks: Vec<usize>,
    pub n_samples: usize,
}

/// Whole tasks, in the order of their keyed hashes, in groups of at most `size_max` samples, or of one task that has
/// more. A last group of less than `size_min` joins the one before it.
pub fn group_tasks(
    run: &RunFolder,
    tasks: &[usize],
    count: impl Fn(usize) -> Result<usize, Error>,
    size_max: usize,
    size_min: usize,
) -> Result<Vec<TaskGroup>, Error> {
    let plan = run.plan();
    let mut dealt = Vec::with_capacity(tasks.len());
    for &task in tasks {
        let shard = &plan.pool.shards_of(task)[0].id;
        let n = count(task)?;
        dealt.push((keyed_hash(Purpose::DealShards, plan.seed, plan.round, shard, 0), task, n));
    }
    dealt.sort_unstable();
    Ok(in_groups(dealt.into_iter().map(|(_, task, n)| (task, n)), size_max, size_min))
}

/// Tasks with their sizes in groups, in their order.
fn in_groups(
    tasks: impl IntoIterator<Item = (usize, usize)>,
    size_max: usize,
    size_min: usize,
) -> Vec<TaskGroup> {
    let mut groups: Vec<TaskGroup> = Vec::new();
    for (task, n) in tasks {
        match groups.last_mut() {
            Some(group) if group.n_samples + n <= size_max => {
                group.tasks.push(task);
                group.n_samples += n;
            }
            _ => groups.push(TaskGroup { tasks: vec![task], n_samples: n }),
        }
    }
    if groups.len() > 1 && groups[groups.len() - 1].n_samples < size_min {
        let left_over = groups.pop().expect("more than one");
        let last = groups.last_mut().expect("more than one");
        last.tasks.extend(left_over.tasks);
        last.n_samples += left_over.n_samples;
    }
    groups
}

fn deal_tasks(run: &RunFolder, tasks: &[usize], deal: &Deal) -> Result<Vec<(Members, usize)>, Error> {
    let count = |task| Ok(reach_counts(run, task)?.reaching as usize);
    let groups = group_tasks(run, tasks, count, group_size_max(run.plan(), deal), deal.super_batch_size)?;
    Ok(groups.into_iter().map(|group| (Members::Tasks(group.tasks), group.n_samples)).collect())
}

fn count_partitions(dealt: &Dealt) -> Vec<(Members, usize)> {
    let mut counted = Vec::new();
    for (&cluster, &(first, n_parts)) in &dealt.partitions.ranges {
        for partition in first..first + n_parts {
            let n: usize = dealt.sources.iter().map(|source| source.index.n_rows(partition)).sum();
            if n > 0 {
                counted.push((Members::Partition { partition, cluster }, n));
            }
        }
    }
    counted
}

fn count(deal: &Deal, members: Vec<(Members, usize)>, n_samples: u64) -> DrawPlans {
    let n_kept = deal.filter_ratio.kept(n_samples);
    let mut share = Share::new(deal, &members, n_kept, n_samples);
    let mut super_batch = 0;
    let groups = members.into_iter().map(|(members, n_group)| {
        let super_batches = super_batch_sizes(n_group, deal.super_batch_size).into_iter().map(|n| {
            super_batch += 1;
            let n_kept = share.next(&members, n as u64) as usize;
            SuperBatch { super_batch: super_batch - 1, n_samples: n, n_kept }
        });
        let super_batches = super_batches.collect();
        Group { members, n_samples: n_group, super_batches }
    });
    let plans = DrawPlans { n_samples, n_kept, n_passes: deal.n_passes, groups: groups.collect() };
    assert_eq!(plans.super_batches().map(|planned| planned.n_kept as u64).sum::<u64>(), n_kept);
    assert_eq!(plans.super_batches().map(|planned| planned.n_samples as u64).sum::<u64>(), n_samples);
    plans
}

/// Shares out what is kept: over the whole pool, or over each cluster's quota, by size.
struct Share {
    /// By the cluster of a partition, or one for the whole pool.
    parts: BTreeMap<Option<u32>, PartShare>,
}

/// A part of the pool on its way through its super-batches.
struct PartShare {
    n_kept: u64,
    n_samples: u64,
    /// Samples of the super-batches so far.
    position: u64,
}

impl Share {
    fn new(deal: &Deal, members: &[(Members, usize)], n_kept: u64, n_samples: u64) -> Share {
        let whole = PartShare { n_kept, n_samples, position: 0 };
        let mut sizes: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        for (members, n) in members {
            *sizes.entry(cluster_of(members)).or_default() += *n as u64;
        }
        if sizes.contains_key(&None) {
            return Share { parts: [(None, whole)].into() };
        }
        let quotas = quotas(&sizes.values().copied().collect::<Vec<_>>(), n_kept, deal.quota);
        let parts = sizes
            .into_iter()
            .zip(quotas)
            .map(|((cluster, n_samples), n_kept)| (cluster, PartShare { n_kept, n_samples, position: 0 }));
        Share { parts: parts.collect() }
    }

    /// How many the next super-batch of a part keeps.
    fn next(&mut self, members: &Members, n: u64) -> u64 {
        let part = self.parts.get_mut(&cluster_of(members)).expect("every member's part was counted");
        let range = part.position..part.position + n;
        part.position = range.end;
        kept_in(range, part.n_kept, part.n_samples)
    }
}

fn cluster_of(members: &Members) -> Option<u32> {
    match members {
        Members::Tasks(_) => None,
        Members::Partition { cluster, .. } => Some(*cluster),
    }
}

/// The rows of these samples in the order of their keyed hashes, ties by sample id.
pub fn ordered(plan: &Plan, purpose: Purpose, round: u64, samples: &[SampleRef]) -> Vec<usize> {
    let mut order: Vec<(u64, SampleRef, usize)> = samples
        .iter()
        .enumerate()
        .map(|(row, sample)| {
            let id = sample.id(&plan.pool);
            (keyed_hash(purpose, plan.seed, round, id.shard, id.sample_idx), *sample, row)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_together_up_to_a_size() {
        let group = |tasks: &[usize], n_samples| TaskGroup { tasks: tasks.to_vec(), n_samples };
        let sizes = |sizes: &[usize]| in_groups(sizes.iter().copied().enumerate(), 90, 60);
        assert_eq!(sizes(&[30, 30, 30, 60, 1]), [group(&[0, 1, 2], 90), group(&[3, 4], 61)]);
        // a task of more is a group, and none joins it
        assert_eq!(sizes(&[80, 200, 80]), [group(&[0], 80), group(&[1], 200), group(&[2], 80)]);
        // too few for a super-batch of their own
        assert_eq!(sizes(&[80, 70, 20]), [group(&[0], 80), group(&[1, 2], 90)]);
        assert_eq!(sizes(&[80, 70, 30]), [group(&[0], 80), group(&[1, 2], 100)]);
        assert_eq!(sizes(&[5]), [group(&[0], 5)]);
    }

    #[test]
    fn no_group_is_larger_than_its_memory_was_counted_for() {
        let (super_batch_size, super_batches_per_group) = (100, 3);
        let size_max = super_batches_per_group * super_batch_size + super_batch_size / 2;
        for task_size in 1..=size_max {
            let tasks = (0..40).map(|task| (task, task_size));
            for group in in_groups(tasks, size_max, super_batch_size) {
                let n_super_batches = group.n_samples as f64 / super_batch_size as f64;
                assert!(n_super_batches < super_batches_per_group as f64 + 1.5, "tasks of {task_size}");
            }
        }
    }
}
