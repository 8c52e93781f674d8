//! The exchange of embeddings to clusters: a task's samples in, an exchange file by partition out.
//!
//! A partition is a cluster, or, where a cluster is too large for one group, a part of it by keyed hash. A cluster too
//! small for a super-batch joins its nearest; with experts each cluster stays by itself, as its reference is its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::divide::{merge_small, read_centroids};
use crate::embed::tasks_at_once;
use crate::error::Error;
use crate::exchange::{self, ExchangeWriter, Index};
use crate::executor::Executor;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::scored_bytes;
use crate::run_folder::{Done, RunFolder};
use crate::settings::{Deal, EmbeddingDtype};

use super::draw_plan::{Dealt, group_size_max};
use super::group::read_task;
use super::losses::has_experts;
use super::reach::reach_counts;

/// Where each cluster's samples go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// By cluster: the cluster that it is drawn with.
    pub joined: Vec<u32>,
    /// By cluster that others join or that stands alone: its first partition and how many it has.
    pub ranges: BTreeMap<u32, (usize, usize)>,
}

/// Deals every task's samples to the clusters.
pub fn run(run: &RunFolder, executor: &Executor, tasks: &[usize], deal: &Deal) -> Result<Dealt, Error> {
    let partitions = plan_partitions(run, tasks, deal)?;
    let stage = run.select("select.deal");
    let n_at_once = tasks_at_once(run, executor, scored_bytes(&run.plan().models, EmbeddingDtype::F32))?;
    executor.run(run, &stage, tasks, n_at_once, |task| commit(run, &partitions, task))?;
    let index = |index: Index| index;
    let sources = exchange::sources(run, executor, &stage, tasks, index, exchange::FILES_PER_LEVEL_MAX)?;
    Ok(Dealt { partitions, sources })
}

/// Fixes the partitions from the clusters' sizes over the pool.
fn plan_partitions(run: &RunFolder, tasks: &[usize], deal: &Deal) -> Result<Partitions, Error> {
    run.stage_plan(&run.select("select.deal"), || {
        let plan = run.plan();
        let centroids = read_centroids(run)?.rows;
        let mut sizes = vec![0usize; centroids.n_rows()];
        for &task in tasks {
            for (cluster, n) in reach_counts(run, task)?.clusters {
                sizes[cluster as usize] += n as usize;
            }
        }
        let joined = match has_experts(plan) {
            true => (0..sizes.len() as u32).collect(),
            false => merge_small(&centroids, &sizes, deal.super_batch_size),
        };
        let n_joined = n_joined(&joined);
        if n_joined > 0 {
            let super_batch_size = deal.super_batch_size;
            tracing::warn!(
                n_joined,
                super_batch_size,
                "clusters of fewer samples than a super-batch are drawn with their nearest, and quotas are of those together"
            );
        }
        let mut joined_sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for (cluster, &size) in sizes.iter().enumerate() {
            *joined_sizes.entry(joined[cluster]).or_default() += size;
        }
        let size_max = group_size_max(plan, deal);
        let mut ranges = BTreeMap::new();
        let mut n_partitions = 0;
        for (cluster, size) in joined_sizes {
            let n_parts = size.div_ceil(size_max).max(1);
            ranges.insert(cluster, (n_partitions, n_parts));
            n_partitions += n_parts;
        }
        Ok(Partitions { joined, ranges })
    })
}

/// How many clusters were too small for a super-batch, and are drawn with their nearest.
pub fn joined_clusters(run: &RunFolder) -> Result<usize, Error> {
    let partitions: Option<Partitions> = run.stage_plan_if_present(&run.select("select.deal"))?;
    Ok(partitions.map_or(0, |partitions| n_joined(&partitions.joined)))
}

fn n_joined(joined: &[u32]) -> usize {
    joined.iter().enumerate().filter(|(cluster, with)| *cluster != **with as usize).count()
}

/// Deals and commits one task.
fn commit(run: &RunFolder, partitions: &Partitions, task: usize) -> Result<(), Error> {
    let plan = run.plan();
    let (rows, clusters) = read_task(run, task)?;
    let clusters = clusters.expect("checked with the settings");
    let mut by_partition: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, sample) in rows.samples.iter().enumerate() {
        let (first, n_parts) = partitions.ranges[&partitions.joined[clusters[row] as usize]];
        let id = sample.id(&plan.pool);
        let hash = keyed_hash(Purpose::DealShards, plan.seed, plan.round, id.shard, id.sample_idx);
        by_partition.entry(first + (hash % n_parts as u64) as usize).or_default().push(row);
    }
    let stage = run.select("select.deal");
    let schema = rows.gather(&[]).table(run).schema();
    let mut writer = ExchangeWriter::new(run, &stage, task, schema)?;
    for (partition, members) in by_partition {
        writer.push(partition, rows.gather(&members).table(run))?;
    }
    let written = writer.finish()?;
    run.commit(&stage, task, Done::new(vec![written.file], rows.read, written.index))?;
    Ok(())
}
