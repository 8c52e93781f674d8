//! Seeded randomness as a function of what it is for: the Gumbel noise of a draw and the keyed order of samples.
//!
//! No generator has a state, so the order in which samples are read or threads run changes nothing.

use blake2::Blake2b;
use blake2::digest::{Digest, consts::U8};

/// A sample's place in the pool. Its order decides ties, so that nothing depends on the order of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId<'a> {
    pub shard: &'a str,
    /// Position in the shard.
    pub sample_idx: u64,
}

/// A draw's place in a run, beside the sample: `seed`, `round`, `pass`, `chunk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    pub seed: u64,
    pub round: u64,
    pub pass: u64,
    pub chunk: u64,
}

/// Standard Gumbel noise of one sample in one chunk.
///
/// ```text
/// h = BLAKE2b-8(seed ‖ round ‖ pass ‖ chunk ‖ shard ‖ 0x00 ‖ sample_idx)     integers u64 little-endian
/// u = ((h >> 11) + ½)·2⁻⁵³,  g = −ln(−ln u)
/// ```
///
/// # Source
///
/// Gumbel-top-k: adding it to log-weights and taking the largest draws without replacement (Plackett–Luce).
pub fn gumbel(key: DrawKey, shard: &str, sample_idx: u64) -> f64 {
    let mut hash = Blake2b::<U8>::new();
    for part in [key.seed, key.round, key.pass, key.chunk] {
        hash.update(part.to_le_bytes());
    }
    let h = finish(hash, shard, sample_idx);
    let u = ((h >> 11) as f64 + 0.5) * (-53f64).exp2();
    -(-u.ln()).ln()
}

/// What a keyed order is for, so that two uses never share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which shard goes to which dealing group.
    DealShards,
    /// The order of the samples inside a dealing group.
    DealSamples,
    /// The sample on which centroids are fitted.
    Fit,
    /// The points from which the centroids start.
    Seeding,
    /// The order in which a fit by mini-batches takes its points.
    MiniBatches,
    /// The clusters that get one more where a target does not share out evenly.
    Balance,
    /// The pairs on which logit scale and bias are fitted.
    Calibrate,
    /// The partitions of the pool into batches over which negCLIPLoss is averaged.
    Partition,
    /// The members of the banks.
    Bank,
    /// The negatives of a contrastive score.
    Negatives,
    /// Kept samples dealt anew, to see what joint selection was worth.
    Reshuffle,
    /// The random control of the report.
    Control,
    /// The samples from which the report takes deciles.
    Summary,
    /// The tasks that are audited by a full model.
    Audit,
}

impl Purpose {
    fn text(self) -> &'static str {
        match self {
            Purpose::DealShards => "deal_shards",
            Purpose::DealSamples => "deal_samples",
            Purpose::Fit => "fit",
            Purpose::Seeding => "seeding",
            Purpose::MiniBatches => "mini_batches",
            Purpose::Balance => "balance",
            Purpose::Calibrate => "calibrate",
            Purpose::Partition => "partition",
            Purpose::Bank => "bank",
            Purpose::Negatives => "negatives",
            Purpose::Reshuffle => "reshuffle",
            Purpose::Control => "control",
            Purpose::Summary => "summary",
            Purpose::Audit => "audit",
        }
    }
}

/// A uniform 64-bit value for one sample (or, with `sample_idx` 0, one shard):
/// `BLAKE2b-8(purpose ‖ 0x00 ‖ seed ‖ round ‖ shard ‖ 0x00 ‖ sample_idx)`, read little-endian.
pub fn keyed_hash(purpose: Purpose, seed: u64, round: u64, shard: &str, sample_idx: u64) -> u64 {
    let mut hash = Blake2b::<U8>::new();
    hash.update(purpose.text().as_bytes());
    hash.update([0]);
    hash.update(seed.to_le_bytes());
    hash.update(round.to_le_bytes());
    finish(hash, shard, sample_idx)
}

fn finish(mut hash: Blake2b<U8>, shard: &str, sample_idx: u64) -> u64 {
    hash.update(shard.as_bytes());
    hash.update([0]);
    hash.update(sample_idx.to_le_bytes());
    u64::from_le_bytes(hash.finalize().into())
}
