//! Two runs of one pool in; what both kept, and how far their scores agree, out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::PathBuf;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use serde::{Deserialize, Serialize};

use crate::embed::complete_tasks;
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::Pool;
use crate::rank::{Overlap, spearman};
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::select::VerdictCounts;
use crate::smallest::Smallest;
use crate::table::{self, Rows};

use super::{SharedPart, number};

/// Samples that ranks are compared over at most: those of smallest keyed hash.
const RANKED_MAX: usize = 200_000;

/// How far two runs agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunsComparison {
    pub left: PathBuf,
    pub right: PathBuf,
    /// Samples that both scored.
    pub n_common: usize,
    pub kept: SharedPart,
    /// Of each score that both runs have.
    pub rank_correlations: BTreeMap<String, RankCorrelation>,
}

/// How far two runs put samples in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankCorrelation {
    /// Spearman's; null where a run gives every sample the same score.
    pub spearman: Option<f64>,
    /// Samples with the score in both.
    pub n: usize,
}

/// Compares what two runs kept and scored.
///
/// # Errors
///
/// [`Error::OtherPool`] for runs of different shards, [`Error::NotCommitted`] for one that has not selected.
///
/// # Memory
///
/// One task's tables of both runs, and the scores of 200,000 samples.
pub fn compare_runs(left: &RunFolder, right: &RunFolder) -> Result<RunsComparison, Error> {
    let (left_pool, right_pool) = (&left.plan().pool, &right.plan().pool);
    let ids = |run: &RunFolder| -> Vec<_> {
        run.plan().pool.shards.iter().map(|shard| (shard.id.clone(), shard.size_bytes)).collect()
    };
    if left_pool.shards_per_task != right_pool.shards_per_task || ids(left) != ids(right) {
        let folder = |run: &RunFolder| run.run().root().to_owned();
        return Err(Error::OtherPool { left: folder(left), right: folder(right) });
    }
    let common = tasks_of(left)?.intersection(&tasks_of(right)?).copied().collect::<Vec<_>>();
    let mut overlap = Overlap { n_left: 0, n_right: 0, n_both: 0 };
    let (mut n_common, mut n_scored, mut scores) = (0, 0, Scores::default());
    for task in common {
        let (left, right) = (Verdicts::read(left, task)?, Verdicts::read(right, task)?);
        let of_task = Overlap::of_sorted(&left.kept(), &right.kept());
        overlap.n_left += of_task.n_left;
        overlap.n_right += of_task.n_right;
        overlap.n_both += of_task.n_both;
        let n_of_both = scores.add(&left, &right, left_pool);
        n_common += n_of_both;
        n_scored += left.samples.len() + right.samples.len() - n_of_both;
    }
    Ok(RunsComparison {
        left: left.run().root().to_owned(),
        right: right.run().root().to_owned(),
        n_common,
        kept: SharedPart::of(overlap, n_scored),
        rank_correlations: scores.correlations(),
    })
}

fn tasks_of(run: &RunFolder) -> Result<BTreeSet<usize>, Error> {
    Ok(complete_tasks(run)?.tasks.into_iter().collect())
}

/// The verdicts of a task: one row for each sample that was scored.
struct Verdicts {
    table: RecordBatch,
    samples: Vec<SampleRef>,
}

impl Verdicts {
    fn read(run: &RunFolder, task: usize) -> Result<Verdicts, Error> {
        let marker = run.committed::<VerdictCounts>(&run.select("select"), task)?;
        let table = table::read(run.run(), marker.file(), &[])?;
        let samples = SampleRef::of_rows(&Rows(&table), &run.plan().pool)?;
        Ok(Verdicts { table, samples })
    }

    /// Ascending.
    fn kept(&self) -> Vec<SampleRef> {
        let verdicts = Rows(&self.table).text("verdict");
        let kept = self.samples.iter().zip(verdicts).filter(|(_, verdict)| *verdict == Some("kept"));
        let mut kept: Vec<SampleRef> = kept.map(|(sample, _)| *sample).collect();
        kept.sort_unstable();
        kept
    }

    /// The columns of real numbers, as f64.
    fn scores(&self) -> BTreeMap<String, Vec<Option<f64>>> {
        let schema = self.table.schema();
        let is_score = |data_type: &DataType| matches!(data_type, DataType::Float32 | DataType::Float64);
        let columns =
            schema.fields().iter().zip(self.table.columns()).filter(|(field, _)| is_score(field.data_type()));
        columns
            .map(|(field, column)| {
                let column = arrow::compute::cast(column, &DataType::Float64).expect("a number");
                (field.name().clone(), column.as_primitive::<Float64Type>().iter().collect())
            })
            .collect()
    }
}

/// The scores of a bounded sample of what both runs have.
#[derive(Default)]
struct Scores {
    /// By column: keyed hash and the bits of both values, of those of smallest hash.
    columns: BTreeMap<String, Smallest<(u64, u64, u64)>>,
}

impl Scores {
    /// Takes the samples of a task that both runs have; returns how many they are.
    fn add(&mut self, left: &Verdicts, right: &Verdicts, pool: &Pool) -> usize {
        let right_rows: HashMap<SampleRef, usize> =
            right.samples.iter().enumerate().map(|(row, &sample)| (sample, row)).collect();
        let common: Vec<(u64, usize, usize)> = left
            .samples
            .iter()
            .enumerate()
            .filter_map(|(row, sample)| {
                let id = sample.id(pool);
                let hash = keyed_hash(Purpose::Summary, 0, 0, id.shard, id.sample_idx);
                Some((hash, row, *right_rows.get(sample)?))
            })
            .collect();
        let right_scores = right.scores();
        for (name, left_values) in left.scores() {
            let Some(right_values) = right_scores.get(&name) else { continue };
            let sampled = self.columns.entry(name).or_insert_with(|| Smallest::new(RANKED_MAX));
            for &(hash, left_row, right_row) in &common {
                if let (Some(left), Some(right)) = (left_values[left_row], right_values[right_row]) {
                    sampled.push((hash, left.to_bits(), right.to_bits()));
                }
            }
        }
        common.len()
    }

    fn correlations(&self) -> BTreeMap<String, RankCorrelation> {
        let of_column = |sampled: &Smallest<(u64, u64, u64)>| {
            let pairs =
                sampled.iter().map(|(_, left, right)| (f64::from_bits(*left), f64::from_bits(*right)));
            let (left, right): (Vec<f64>, Vec<f64>) = pairs.unzip();
            RankCorrelation { spearman: spearman(&left, &right), n: left.len() }
        };
        self.columns.iter().map(|(name, sampled)| (name.clone(), of_column(sampled))).collect()
    }
}

impl RunsComparison {
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n", self.left.display(), self.right.display());
        let _ = writeln!(text, "{} samples were scored in both", self.n_common);
        let _ = writeln!(text, "kept by both  {}", self.kept.text());
        let _ = write!(text, "rank correlation of the scores (Spearman)");
        for (name, correlation) in &self.rank_correlations {
            let _ = write!(text, "\n  {name:29} {:>7}  n = {}", number(correlation.spearman), correlation.n);
        }
        text
    }
}
