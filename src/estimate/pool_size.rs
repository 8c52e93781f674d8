//! A pool's shards in, about how many samples are in them out.

use crate::embed::{check_shard, open_shard};
use crate::plan::{Plan, Shard, shards_per_task};
use crate::read::{ShardFormat, n_rows};
use crate::settings::AssumedPool;

/// Samples of a tar that are counted at most.
const SAMPLES_COUNTED_MAX: usize = 1_000;

/// How large a pool is, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    pub n_shards: u64,
    pub n_tasks: u64,
    pub n_samples: u64,
    /// Mean bytes of a shard for each sample, at least one.
    pub sample_bytes: u64,
}

impl PoolSize {
    /// Counts three shards spread over the pool, and scales by the shards' sizes; none where they have no sample that could
    /// be counted.
    pub fn count(plan: &Plan) -> Option<PoolSize> {
        let pool = &plan.pool;
        let sample_bytes = mean_sample_bytes(plan)?;
        Some(PoolSize {
            n_shards: pool.shards.len() as u64,
            n_tasks: pool.n_tasks() as u64,
            n_samples: pool.size_bytes() / sample_bytes,
            sample_bytes,
        })
    }

    /// The same of a pool that is not there.
    pub fn assume(plan: &Plan, assumed: &AssumedPool) -> PoolSize {
        let n_shards = assumed.n_samples.div_ceil(assumed.samples_per_shard);
        let shards_per_task = plan.read.shards_per_task.unwrap_or(shards_per_task(n_shards as usize));
        PoolSize {
            n_shards,
            n_tasks: n_shards.div_ceil(shards_per_task as u64),
            n_samples: assumed.n_samples,
            sample_bytes: assumed.sample_bytes,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.n_samples * self.sample_bytes
    }
}

fn mean_sample_bytes(plan: &Plan) -> Option<u64> {
    let (mut n_samples, mut n_bytes) = (0u64, 0u64);
    for shard in spread_shards(plan) {
        // what cannot be read now may be readable when its turn comes
        let Some((n_of_shard, bytes_of_shard)) = counted(plan, shard) else { continue };
        n_samples += n_of_shard;
        n_bytes += bytes_of_shard;
    }
    Some(n_bytes.checked_div(n_samples)?.max(1))
}

/// The first shard, the last and the one between.
fn spread_shards(plan: &Plan) -> impl Iterator<Item = &Shard> {
    let last = plan.pool.shards.len() - 1;
    let mut positions = vec![0, last / 2, last];
    positions.dedup();
    positions.into_iter().map(|position| &plan.pool.shards[position])
}

/// Samples of a shard, or of its beginning, and the bytes that they take.
fn counted(plan: &Plan, shard: &Shard) -> Option<(u64, u64)> {
    if ShardFormat::of(&shard.id) == ShardFormat::Parquet {
        let file = check_shard(&plan.pool, shard).and_then(|storage| storage.stream(&shard.id)).ok()?;
        return Some((n_rows(file)?, shard.size_bytes));
    }
    let (mut n_samples, mut image_bytes) = (0, 0);
    for sample in open_shard(&plan.pool, shard, &plan.read).ok()?.take(SAMPLES_COUNTED_MAX).flatten() {
        n_samples += 1;
        image_bytes += sample.image_size();
    }
    // of a shard that is not read to its end: a caption, a JSON member and three tar headers beside each image
    let is_whole = n_samples < SAMPLES_COUNTED_MAX as u64;
    Some((n_samples, if is_whole { shard.size_bytes } else { image_bytes + n_samples * 3 * 1024 }))
}
