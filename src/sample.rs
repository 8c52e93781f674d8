//! Which sample: its shard's position in the pool and its position in the shard.

use crate::error::Error;
use crate::noise::SampleId;
use crate::plan::Pool;
use crate::table::Rows;

/// A sample of the pool, small enough to hold one for each sample of a task or a group.
///
/// Shards are sorted by id, so the order of `SampleRef`s is the order of sample ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleRef {
    pub shard_idx: u32,
    pub sample_idx: u64,
}

impl SampleRef {
    pub fn id(self, pool: &Pool) -> SampleId<'_> {
        SampleId { shard: &pool.shards[self.shard_idx as usize].id, sample_idx: self.sample_idx }
    }

    /// The samples of a table's rows.
    ///
    /// # Errors
    ///
    /// A shard that the plan does not name.
    pub fn of_rows(rows: &Rows, pool: &Pool) -> Result<Vec<SampleRef>, Error> {
        let (shards, sample_idxs) = (rows.text("shard"), rows.u64("sample_idx"));
        let mut samples = Vec::with_capacity(sample_idxs.len());
        let mut last = (0, pool.shards[0].id.as_str());
        for (shard, &sample_idx) in shards.iter().zip(sample_idxs.values()) {
            let shard = shard.expect("every row has a shard");
            if shard != last.1 {
                let position = pool.shards.binary_search_by(|planned| planned.id.as_str().cmp(shard));
                let position = position.map_err(|_| Error::UnknownShard { shard: shard.to_owned() })?;
                last = (position, &pool.shards[position].id);
            }
            samples.push(SampleRef { shard_idx: last.0 as u32, sample_idx });
        }
        Ok(samples)
    }
}
