//! A file of samples known to be bad in; how many of them were kept, and how many a uniform draw keeps, out.

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::PlantedSamples;
use crate::run_folder::RunFolder;
use crate::select::{Verdict, VerdictCounts};
use crate::table::Rows;

/// Seeds of the uniform control.
const N_CONTROL_SEEDS: u64 = 10;

/// Shares of planted samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planted {
    /// Samples that the file names.
    pub n_listed: u64,
    /// Those of them that the pool has and that were not rejected.
    pub n_planted: u64,
    /// Planted over all samples of the pool that were not rejected.
    pub pool_share: f64,
    /// Over those that came to the draw: what a uniform draw behind the same filters is expected to keep.
    pub reaching_share: f64,
    pub kept_share: f64,
    /// Over ten seeds of a uniform draw of as many samples of the pool.
    pub random_share_mean: f64,
    pub random_share_standard_deviation: f64,
}

/// Planted samples as they are counted.
pub struct PlantedCounts {
    planted: PlantedSamples,
    /// The share of the pool that is kept.
    chance: f64,
    pool: Share,
    reaching: Share,
    kept: Share,
    controls: Vec<Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    n_planted: u64,
    n: u64,
}

impl Share {
    fn add(&mut self, is_planted: bool) {
        self.n += 1;
        self.n_planted += u64::from(is_planted);
    }

    fn ratio(self) -> f64 {
        self.n_planted as f64 / self.n.max(1) as f64
    }
}

impl PlantedCounts {
    /// Reads the file that the settings name, if they name one.
    pub fn read(run: &RunFolder, tasks: &[usize]) -> Result<Option<PlantedCounts>, Error> {
        let Some(path) = &run.plan().report.planted else { return Ok(None) };
        let (mut n_kept, mut n_decided) = (0, 0);
        for &task in tasks {
            let counts: VerdictCounts = run.committed_counts(&run.select("select"), task)?;
            n_kept += counts.kept;
            n_decided += counts.n_decided();
        }
        Ok(Some(PlantedCounts {
            planted: PlantedSamples::read(path)?,
            chance: n_kept as f64 / n_decided.max(1) as f64,
            pool: Share::default(),
            reaching: Share::default(),
            kept: Share::default(),
            controls: vec![Share::default(); N_CONTROL_SEEDS as usize],
        }))
    }

    /// Counts the rows of one table of `select/`.
    pub fn add(&mut self, verdicts: &RecordBatch) {
        let rows = Rows(verdicts);
        let (shards, keys, sample_idxs) = (rows.text("shard"), rows.text("key"), rows.u64("sample_idx"));
        for row in 0..verdicts.num_rows() {
            let id = (shards.value(row).to_owned(), keys.value(row).to_owned());
            let is_planted = self.planted.contains(&id);
            let verdict = rows.text("verdict").value(row);
            self.pool.add(is_planted);
            if verdict != Verdict::Filtered.text() {
                self.reaching.add(is_planted);
            }
            if verdict == Verdict::Kept.text() {
                self.kept.add(is_planted);
            }
            for (seed, control) in self.controls.iter_mut().enumerate() {
                let hash = keyed_hash(Purpose::Control, seed as u64, 0, &id.0, sample_idxs.value(row));
                if (hash as f64) < self.chance * 64f64.exp2() {
                    control.add(is_planted);
                }
            }
        }
    }

    pub fn finish(self) -> Planted {
        let shares: Vec<f64> = self.controls.iter().map(|control| control.ratio()).collect();
        let n = shares.len() as f64;
        let mean = shares.iter().sum::<f64>() / n;
        let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Planted {
            n_listed: self.planted.n_samples() as u64,
            n_planted: self.pool.n_planted,
            pool_share: self.pool.ratio(),
            reaching_share: self.reaching.ratio(),
            kept_share: self.kept.ratio(),
            random_share_mean: mean,
            random_share_standard_deviation: variance.sqrt(),
        }
    }
}
