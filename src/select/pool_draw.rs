//! Counts of the pool and the draw's ranking in; where in the pool each part's kept samples end out.

use serde::{Deserialize, Serialize};

use crate::divide::{read_centroids, read_divided, read_tree};
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::{PoolDraw, Ranking, Top};
use crate::storage::FileRecord;
use crate::table::Rows;

use super::balanced::balanced_counts;
use super::column::read_column;
use super::cutoff::{Cutoff, Rank, Ranked, cutoffs, rank_of};
use super::density::{DensityParams, density_quotas};
use super::reach::{reach_counts, read_reaching};

/// What a draw over the whole pool keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCuts {
    /// Samples that come to the draw.
    pub n_samples: u64,
    pub n_kept: u64,
    /// One for the pool, or one a cluster.
    cuts: Vec<Cutoff>,
}

/// A sample as a draw over the pool ranks it.
#[derive(Clone, Copy, Debug)]
pub struct PoolRank {
    pub sample: SampleRef,
    /// The log-weight by which it is ranked; none where it is drawn by its hash.
    pub score: Option<f64>,
    group: usize,
    rank: Rank,
}

impl PoolCuts {
    pub fn keeps(&self, run: &RunFolder, ranked: &PoolRank) -> bool {
        let id = ranked.sample.id(&run.plan().pool);
        self.cuts[ranked.group].passes(ranked.rank, id.shard, id.sample_idx)
    }
}

/// Fixes the cuts of a draw over the pool.
pub fn plan_cuts(run: &RunFolder, tasks: &[usize], draw: &PoolDraw) -> Result<PoolCuts, Error> {
    run.stage_plan(&run.select("select"), || {
        let mut n_samples = 0;
        for &task in tasks {
            n_samples += reach_counts(run, task)?.reaching;
        }
        if n_samples == 0 {
            return Err(Error::NothingScored);
        }
        let n_kept = draw.filter_ratio().kept(n_samples);
        let wanted = match draw {
            PoolDraw::Top(_) => vec![n_kept],
            PoolDraw::Balanced(_) => balanced_targets(run, tasks, n_kept)?,
            PoolDraw::Dbp(dbp) => {
                let params = DensityParams { temperature: dbp.temperature, n_neighbours: dbp.n_neighbours };
                density_targets(run, tasks, draw, &params, n_kept)?
            }
        };
        let shard_of = |sample: SampleRef| sample.id(&run.plan().pool).shard.to_owned();
        let cuts = cutoffs(&wanted, shard_of, |take| {
            for &task in tasks {
                for ranked in pool_ranks(run, task, draw, &mut Vec::new())? {
                    take(Ranked { group: ranked.group, rank: ranked.rank, sample: ranked.sample });
                }
            }
            Ok(())
        })?;
        Ok(PoolCuts { n_samples, n_kept: wanted.iter().sum(), cuts })
    })
}

/// How many samples each cluster keeps.
fn balanced_targets(run: &RunFolder, tasks: &[usize], n_kept: u64) -> Result<Vec<u64>, Error> {
    let tree = read_tree(run)?;
    let mut sizes = vec![0; tree.n_clusters(0)];
    for &task in tasks {
        for (cluster, n) in reach_counts(run, task)?.clusters {
            sizes[cluster as usize] += n;
        }
    }
    Ok(balanced_counts(&tree, &sizes, n_kept, run.plan().seed, run.plan().round))
}

/// How many samples each cluster keeps, by how spread out those are that come to the draw.
fn density_targets(
    run: &RunFolder,
    tasks: &[usize],
    draw: &PoolDraw,
    params: &DensityParams,
    n_kept: u64,
) -> Result<Vec<u64>, Error> {
    let centroids = read_centroids(run)?.rows;
    let mut sizes = vec![0; centroids.n_rows()];
    let mut distances = vec![0.0; centroids.n_rows()];
    for &task in tasks {
        for ranked in pool_ranks(run, task, draw, &mut Vec::new())? {
            sizes[ranked.group] += 1;
            distances[ranked.group] += ranked.score.expect("a distance to the centroid");
        }
    }
    let mean_distances: Vec<f64> =
        distances.iter().zip(&sizes).map(|(distance, size)| distance / (*size).max(1) as f64).collect();
    Ok(density_quotas(&centroids, &mean_distances, &sizes, n_kept, params))
}

/// The samples of a task that come to the draw, as it ranks them, in the order of the shards.
pub fn pool_ranks(
    run: &RunFolder,
    task: usize,
    draw: &PoolDraw,
    read: &mut Vec<FileRecord>,
) -> Result<Vec<PoolRank>, Error> {
    let (samples, file) = read_reaching(run, task)?;
    read.push(file);
    match draw {
        PoolDraw::Top(Top { by, order, .. }) => {
            let sign = match order {
                Ranking::Highest => 1.0,
                Ranking::Lowest => -1.0,
            };
            let values = read_column(run, task, by, &samples, read)?;
            let ranked = samples.into_iter().zip(values).map(|(sample, value)| {
                let score = value.map(|value| sign * value);
                PoolRank { sample, score, group: 0, rank: rank_of(score, Ranking::Highest) }
            });
            Ok(ranked.collect())
        }
        PoolDraw::Balanced(_) | PoolDraw::Dbp(_) => {
            let divided = read_divided(run, task, &["centroid_similarity"])?;
            read.push(divided.file.clone());
            let similarities = Rows(&divided.table).f32("centroid_similarity");
            let plan = run.plan();
            let ranked = samples.into_iter().map(|sample| {
                let score = match draw {
                    PoolDraw::Dbp(_) => Some(1.0 - f64::from(similarities.value(divided.row(sample)))),
                    _ => None,
                };
                let id = sample.id(&plan.pool);
                let rank = match score {
                    Some(_) => rank_of(score, Ranking::Highest),
                    None => keyed_hash(Purpose::Balance, plan.seed, plan.round, id.shard, id.sample_idx),
                };
                PoolRank { sample, score, group: divided.cluster(sample) as usize, rank }
            });
            Ok(ranked.collect())
        }
    }
}
