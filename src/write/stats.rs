//! A task's counts and verdicts in, `stats/NNNNN_stats.json` of each of its shards out.
//!
//! The first fields are those of img2dataset, in its order, so that the field's dashboards read them.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use serde::{Deserialize, Serialize};

use crate::embed::{SamplesCounts, ShardCounts};
use crate::error::Error;
use crate::plan::Plan;
use crate::rejection::Rejection;
use crate::run_folder::{Done, RunFolder};
use crate::select::VerdictCounts;
use crate::table::{self, Rows};

/// Statistics of one input shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Samples of the shard.
    pub count: u64,
    /// Samples that were not rejected.
    pub successes: u64,
    /// Rejected: a member is missing or cannot be read.
    pub failed_to_download: u64,
    /// Rejected: the image cannot be decoded.
    pub failed_to_resize: u64,
    /// Seconds.
    pub duration: f64,
    /// Seconds since 1970.
    pub start_time: f64,
    pub end_time: f64,
    /// Samples by outcome: `success`, or the reason of the rejection.
    pub status_dict: BTreeMap<String, u64>,
    pub shard: String,
    pub kept: u64,
    pub not_drawn: u64,
    /// By step.
    pub filtered: BTreeMap<String, u64>,
    /// By column.
    pub scores: BTreeMap<String, Distribution>,
    /// Samples of each cluster.
    pub clusters: BTreeMap<u32, u64>,
}

/// Mean and deciles (minimum and maximum included: eleven values) of a column's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub mean: f64,
    pub deciles: Vec<f64>,
}

impl Distribution {
    /// None without values. The q-quantile is the value at rank `round(q·(n − 1))`.
    pub fn of(mut values: Vec<f64>) -> Option<Distribution> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let decile = |tenth: usize| values[(tenth * last + 5) / 10];
        Some(Distribution {
            count: values.len() as u64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            deciles: (0..=10).map(decile).collect(),
        })
    }
}

/// The columns that statistics summarise.
const SCORES: [&str; 14] = [
    "learner_similarity",
    "reference_similarity",
    "learner_loss",
    "reference_loss",
    "learnability",
    "score",
    "conditional_score",
    "hard_learnability",
    "centroid_similarity",
    "centroid_margin",
    "hardness",
    "hardness_gain",
    "cross_modal_hardness",
    "effective_negatives",
];

/// The columns of `select/` that hold scores, those of the filters included.
pub fn score_columns(plan: &Plan) -> Vec<&str> {
    let filters = plan.select.filters.iter().map(|filter| filter.name.as_str());
    SCORES.into_iter().chain(filters).collect()
}

/// Where each shard's rows lie in a table of `select/`, which is in the order of the shards; nothing of a shard without
/// rows.
pub fn rows_by_shard(verdicts: &RecordBatch) -> BTreeMap<&str, Range<usize>> {
    let mut by_shard: BTreeMap<&str, Range<usize>> = BTreeMap::new();
    for (row, shard) in Rows(verdicts).text("shard").iter().enumerate() {
        let rows = by_shard.entry(shard.expect("every row has a shard")).or_insert(row..row);
        assert_eq!(rows.end, row, "the rows of a shard lie together");
        rows.end += 1;
    }
    by_shard
}

/// The distributions of score columns.
fn distributions(verdicts: &RecordBatch, columns: &[&str]) -> BTreeMap<String, Distribution> {
    let of_column = |name: &str| {
        let column = verdicts.column_by_name(name).expect("`select/` has these columns");
        let column = arrow::compute::cast(column, &DataType::Float64).expect("a number");
        let values = column.as_primitive::<Float64Type>().iter().flatten();
        Some((name.to_owned(), Distribution::of(values.collect())?))
    };
    columns.iter().filter_map(|name| of_column(name)).collect()
}

/// Writes and commits the statistics of a task's shards.
pub fn commit(run: &RunFolder, task: usize) -> Result<(), Error> {
    let select = run.committed::<VerdictCounts>(&run.select("select"), task)?;
    let verdicts_file = select.file().clone();
    let verdicts = table::read(run.run(), &verdicts_file, &[])?;
    let counts = run.committed_counts::<SamplesCounts>(&run.samples(), task)?;
    let first = run.plan().pool.first_shard_idx(task);
    let (by_shard, columns) = (rows_by_shard(&verdicts), score_columns(run.plan()));
    let stage = run.write("write.stats");
    let files = counts.shards.iter().enumerate().map(|(position, shard)| {
        let unusable = select.counts.unusable.get(&((first + position) as u32));
        let rows = by_shard.get(shard.shard.as_str()).cloned().unwrap_or(0..0);
        let stats = of_shard(shard, unusable, &verdicts.slice(rows.start, rows.len()), &columns);
        let text = serde_json::to_vec_pretty(&stats).expect("statistics are representable as JSON");
        run.put_bytes(&stage, task, &format!("stats/{:05}_stats.json", first + position), &text)
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    run.commit(&stage, task, Done::new(files, vec![verdicts_file], counts.shards.len() as u64))?;
    Ok(())
}

/// `verdicts` are the shard's rows.
fn of_shard(
    counts: &ShardCounts,
    unusable: Option<&BTreeMap<String, u64>>,
    verdicts: &RecordBatch,
    columns: &[&str],
) -> ShardStats {
    let rows = Rows(verdicts);
    let n_of =
        |verdict: &str| rows.text("verdict").iter().filter(|of_row| *of_row == Some(verdict)).count() as u64;
    let mut clusters = BTreeMap::new();
    for cluster in rows.u32("cluster").iter().flatten() {
        *clusters.entry(cluster).or_default() += 1;
    }
    let failed = |is_of_kind: fn(Rejection) -> bool| {
        let of_kind =
            counts.rejected.iter().filter(|(text, _)| Rejection::from_text(text).is_some_and(is_of_kind));
        of_kind.map(|(_, n)| n).sum()
    };
    let successes = verdicts.num_rows() as u64;
    let mut status_dict = counts.rejected.clone();
    for (reason, n) in unusable.into_iter().flatten() {
        *status_dict.entry(reason.clone()).or_default() += n;
    }
    let mut filtered = BTreeMap::new();
    for removed_by in rows.text("removed_by").iter().flatten() {
        *filtered.entry(removed_by.to_owned()).or_default() += 1;
    }
    status_dict.insert("success".to_owned(), successes);
    ShardStats {
        count: counts.read,
        successes,
        failed_to_download: failed(Rejection::is_unreadable_member),
        failed_to_resize: failed(Rejection::is_undecodable_image),
        duration: counts.end_secs - counts.start_secs,
        start_time: counts.start_secs,
        end_time: counts.end_secs,
        status_dict,
        shard: counts.shard.clone(),
        kept: n_of("kept"),
        not_drawn: n_of("not_drawn"),
        filtered,
        scores: distributions(verdicts, columns),
        clusters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Columns;

    fn table(shards: &[&str]) -> RecordBatch {
        Columns::default().text("shard", shards.iter().map(Some)).build()
    }

    #[test]
    fn rows_of_a_shard_lie_together() {
        assert_eq!(rows_by_shard(&table(&["a", "a", "c"])), [("a", 0..2), ("c", 2..3)].into());
        assert_eq!(rows_by_shard(&table(&[])), BTreeMap::new());
    }

    #[test]
    #[should_panic(expected = "lie together")]
    fn a_shard_comes_once() {
        rows_by_shard(&table(&["a", "b", "a"]));
    }
}
