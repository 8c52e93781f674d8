//! The exchange of embeddings to clusters: a task's samples in, an exchange file by partition out.
//!
//! A partition is a cluster, or, where a cluster is too large for one group, a part of it by keyed hash. A cluster too
//! small for a super-batch joins its nearest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::divide::{merge_small, read_centroids, read_divided};
use crate::error::Error;
use crate::exchange::{self, ExchangeWriter, Index};
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::{Done, RunFolder};
use crate::table::Columns;

use super::scored::{UsableRows, read_usable, score_counts};

/// Counts of one task of `select.deal`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DealCounts {
    pub index: Index,
}

/// Where each cluster's samples go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// By cluster: the cluster that it is drawn with.
    pub joined: Vec<u32>,
    /// By cluster that others join or that stands alone: its first partition and how many it has.
    pub ranges: BTreeMap<u32, (usize, usize)>,
}

/// Fixes the partitions from the clusters' sizes over the pool.
pub fn plan_partitions(run: &RunFolder, tasks: &[usize]) -> Result<Partitions, Error> {
    run.stage_plan(&run.select("select.deal"), || {
        let plan = run.plan();
        let n_clusters = plan.divide.as_ref().expect("checked with the settings").n_clusters;
        let mut sizes = vec![0usize; n_clusters];
        for &task in tasks {
            for (cluster, n) in score_counts(run, task)?.clusters {
                sizes[cluster as usize] += n as usize;
            }
        }
        let super_batch_size = plan.select.draw.deal().expect("a draw in super-batches").super_batch_size;
        let joined = merge_small(&read_centroids(run)?.rows, &sizes, super_batch_size);
        let mut joined_sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for (cluster, &size) in sizes.iter().enumerate() {
            *joined_sizes.entry(joined[cluster]).or_default() += size;
        }
        let group_size = plan.select.super_batches_per_group * super_batch_size;
        let mut ranges = BTreeMap::new();
        let mut n_partitions = 0;
        for (cluster, size) in joined_sizes {
            let n_parts = size.div_ceil(group_size).max(1);
            ranges.insert(cluster, (n_partitions, n_parts));
            n_partitions += n_parts;
        }
        Ok(Partitions { joined, ranges })
    })
}

/// Deals and commits one task.
pub fn commit(run: &RunFolder, partitions: &Partitions, task: usize) -> Result<(), Error> {
    let plan = run.plan();
    let usable = read_usable(run, task)?;
    let divided = read_divided(run, task)?;
    let mut by_partition: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, sample) in usable.samples.iter().enumerate() {
        let (first, n_parts) = partitions.ranges[&partitions.joined[divided.cluster(*sample) as usize]];
        let id = sample.id(&plan.pool);
        let hash = keyed_hash(Purpose::DealShards, plan.seed, plan.round, id.shard, id.sample_idx);
        by_partition.entry(first + (hash % n_parts as u64) as usize).or_default().push(row);
    }
    let stage = run.select("select.deal");
    let schema = dealt_table(run, &usable, &[]).schema();
    let mut writer = ExchangeWriter::new(run.run(), &exchange::file_name(&stage, task), schema)?;
    for (partition, rows) in by_partition {
        writer.push(partition, dealt_table(run, &usable, &rows))?;
    }
    let written = writer.finish()?;
    let mut read = usable.read;
    read.push(divided.file);
    run.commit(&stage, task, Done::new(vec![written.file], read, DealCounts { index: written.index }))?;
    Ok(())
}

fn dealt_table(run: &RunFolder, usable: &UsableRows, rows: &[usize]) -> arrow::array::RecordBatch {
    let ids = || rows.iter().map(|&row| usable.samples[row].id(&run.plan().pool));
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)));
    usable.models.add_columns(&mut columns, rows, run.plan().embed.embedding_dtype);
    columns.build()
}
