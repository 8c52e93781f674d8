//! Counts of the pool in; which samples meet in which super-batch, and how many of each are kept, out.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::exchange::Source;
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::RunFolder;

use super::counts::{kept_in, super_batch_sizes};
use super::scored::score_counts;

/// Every dealing group and super-batch of the pool, in pool order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawPlans {
    /// Samples that come to the draw.
    pub n_samples: u64,
    pub n_kept: u64,
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
    /// A partition of the exchange to clusters.
    Partition(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperBatch {
    /// Position in the pool's order of super-batches.
    pub super_batch: u64,
    pub n_samples: usize,
    pub n_kept: usize,
}

impl DrawPlans {
    pub fn super_batches(&self) -> impl Iterator<Item = &SuperBatch> {
        self.groups.iter().flat_map(|group| &group.super_batches)
    }
}

/// Deals the pool, or counts what the exchange has dealt, and fixes every count.
pub fn plan_draws(run: &RunFolder, tasks: &[usize], dealt: Option<&[Source]>) -> Result<DrawPlans, Error> {
    run.stage_plan(&run.select("select.draw"), || {
        let members = match dealt {
            None => deal_tasks(run, tasks)?,
            Some(sources) => count_partitions(sources),
        };
        let n_samples: usize = members.iter().map(|(_, n)| n).sum();
        if n_samples == 0 {
            return Err(Error::NothingScored);
        }
        Ok(count(run, members, n_samples as u64))
    })
}

/// Whole tasks, in the order of their keyed hashes, in groups of about `super_batches_per_group` super-batches.
fn deal_tasks(run: &RunFolder, tasks: &[usize]) -> Result<Vec<(Members, usize)>, Error> {
    let plan = run.plan();
    let super_batch_size = plan.select.draw.deal().expect("a draw in super-batches").super_batch_size;
    let mut dealt = Vec::with_capacity(tasks.len());
    for &task in tasks {
        let shard = &plan.pool.shards_of(task)[0].id;
        let n = score_counts(run, task)?.scored as usize;
        dealt.push((keyed_hash(Purpose::DealShards, plan.seed, plan.round, shard, 0), task, n));
    }
    dealt.sort_unstable();
    let group_size = plan.select.super_batches_per_group * super_batch_size;
    let mut groups: Vec<(Vec<usize>, usize)> = Vec::new();
    for (_, task, n) in dealt {
        match groups.last_mut() {
            Some((members, n_group)) if *n_group + n / 2 < group_size => {
                members.push(task);
                *n_group += n;
            }
            _ => groups.push((vec![task], n)),
        }
    }
    // what is left over for the last group must not make a super-batch of half the size
    if groups.len() > 1 && groups[groups.len() - 1].1 < super_batch_size {
        let (members, n) = groups.pop().expect("more than one");
        let last = groups.last_mut().expect("more than one");
        last.0.extend(members);
        last.1 += n;
    }
    Ok(groups.into_iter().map(|(members, n)| (Members::Tasks(members), n)).collect())
}

fn count_partitions(sources: &[Source]) -> Vec<(Members, usize)> {
    let partitions: std::collections::BTreeSet<usize> =
        sources.iter().flat_map(|source| source.index.targets.keys().copied()).collect();
    let counted = partitions.into_iter().map(|partition| {
        let n = sources.iter().map(|source| source.index.n_rows(partition)).sum();
        (Members::Partition(partition), n)
    });
    counted.collect()
}

fn count(run: &RunFolder, members: Vec<(Members, usize)>, n_samples: u64) -> DrawPlans {
    let deal = run.plan().select.draw.deal().expect("a draw in super-batches");
    let n_kept = deal.filter_ratio.kept(n_samples);
    let (mut position, mut super_batch) = (0, 0);
    let groups = members.into_iter().map(|(members, n_group)| {
        let super_batches = super_batch_sizes(n_group, deal.super_batch_size).into_iter().map(|n| {
            let range = position..position + n as u64;
            position = range.end;
            super_batch += 1;
            let n_kept = kept_in(range, n_kept, n_samples) as usize;
            SuperBatch { super_batch: super_batch - 1, n_samples: n, n_kept }
        });
        Group { members, n_samples: n_group, super_batches: super_batches.collect() }
    });
    let plans = DrawPlans { n_samples, n_kept, groups: groups.collect() };
    assert_eq!(plans.super_batches().map(|planned| planned.n_kept as u64).sum::<u64>(), n_kept);
    assert_eq!(plans.super_batches().map(|planned| planned.n_samples as u64).sum::<u64>(), n_samples);
    plans
}
