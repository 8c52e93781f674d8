//! The committed tables and counts of a run in, the figures of its report out.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use serde::{Deserialize, Serialize};

use crate::compare::{RankCorrelation, RunsComparison, SharedPart, compare_runs};
use crate::divide::{AssignCounts, FitCounts};
use crate::embed::{CompleteTasks, SamplesCounts, ShardCounts, complete_tasks};
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::plan::FORMAT_VERSION;
use crate::plan::Plan;
use crate::rejection::Rejection;
use crate::run_folder::{Marker, RunFolder};
use crate::select::{
    Audit, CalibratedLogits, DrawCounts, DrawPlans, ReachCounts, ScoreCounts, SuperBatchCounts, Verdict,
    VerdictCounts, audit, calibrated_models, joined_clusters,
};
use crate::smallest::Smallest;
use crate::table::{self, Rows};
use crate::write::{Distribution, rows_by_shard, score_columns};

use super::inference::{Inference, inference, ways};
use super::planted::{Planted, PlantedCounts};

/// Samples from which deciles are taken at most: those of smallest keyed hash.
const DECILE_SAMPLES_MAX: usize = 100_000;

/// The figures of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format_version: u32,
    pub software_version: String,
    pub method: String,
    pub seed: u64,
    pub counts: Counts,
    /// Rejected over read, over the pool.
    pub rejection_ratio: f64,
    /// The same in the shard where it is highest.
    pub rejection_ratio_max_of_shards: f64,
    pub worst_shard: Option<String>,
    /// Shards of failed tasks that the settings allow leaving out.
    pub left_out_shards: Vec<String>,
    /// Shards that break off, of which only what comes before the break was read.
    pub broken_shards: Vec<String>,
    /// What ran each model, by role.
    pub inference: BTreeMap<String, Vec<Inference>>,
    /// Of all samples with a verdict, by column.
    pub scores: BTreeMap<String, Distribution>,
    /// Of those that were kept.
    pub kept_scores: BTreeMap<String, Distribution>,
    pub divide: Option<DivideReport>,
    pub select: SelectReport,
    /// Where cheaper models scored in the place of full ones.
    pub audit: Option<Audit>,
    pub planted: Option<Planted>,
    /// With the run that a round belongs to, and with the rounds before it.
    pub rounds: Vec<RoundComparison>,
    pub curated: Vec<CuratedShard>,
}

/// How far a round agrees with an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundComparison {
    /// The earlier one; 0 for the run itself.
    pub round: u64,
    pub n_common: usize,
    pub kept: SharedPart,
    /// Of each score, Spearman's: how stale the earlier round's are by now.
    pub rank_correlations: BTreeMap<String, RankCorrelation>,
}

/// read = kept + not drawn + filtered + rejected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub read: u64,
    pub kept: u64,
    pub not_drawn: u64,
    /// By step.
    pub filtered: BTreeMap<String, u64>,
    /// By reason, `degenerate_embedding` included.
    pub rejected: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivideReport {
    pub fit: FitCounts,
    /// What found each sample's cluster.
    pub assignment: Vec<Inference>,
    pub cluster_sizes: BTreeMap<u32, u64>,
    pub kept_cluster_sizes: BTreeMap<u32, u64>,
    /// `exp(entropy)` of the clusters, over the pool and over what was kept.
    pub effective_clusters: f64,
    pub effective_clusters_kept: f64,
    /// Whether every cluster fits into its bank, so that hardness is over the whole cluster.
    pub is_hardness_exact: bool,
    /// Mean of `hardness_gain` over its standard error.
    pub hardness_gain_standard_errors: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectReport {
    pub n_super_batches: u64,
    /// Draws of kept samples: more than samples where one may be drawn again.
    pub n_draws: u64,
    /// Clusters that were drawn with a nearest one, having fewer samples than a super-batch.
    pub n_joined_clusters: usize,
    /// Mean over the drawn samples of their sub-batch's `F(A)/|A|`, nats; of several passes, as all that follows, the first's.
    pub batch_learnability: Option<f64>,
    /// The same after the kept samples of each dealing group were dealt anew.
    pub batch_learnability_reshuffled: Option<f64>,
    /// The same over uniform draws from the same super-batches.
    pub batch_learnability_random: Option<f64>,
    /// Samples over which the first chunk's draw is as good as uniform, of a super-batch: `e^entropy`, `(Σp)²/Σp²`.
    pub effective_samples: Option<f64>,
    pub effective_samples_of_collisions: Option<f64>,
    /// Mean score of the drawn, of as many of the best, and of all of a super-batch.
    pub mean_score_of_drawn: Option<f64>,
    pub mean_score_of_best: Option<f64>,
    pub mean_score_of_all: Option<f64>,
    /// Logit scale and bias of the models that were calibrated.
    pub calibrated: BTreeMap<String, CalibratedLogits>,
}

/// What takes out samples before any model sees them, among the filters.
pub const READ_BOUNDS: &str = "read.bounds";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CuratedShard {
    pub name: String,
    pub rows: u64,
    pub size_bytes: u64,
}

impl Report {
    /// Reads every committed verdict, and what the audit and the rounds are measured on.
    pub fn of(run: &RunFolder) -> Result<Report, Error> {
        let complete = complete_tasks(run)?;
        let mut counts = Counts::default();
        let mut worst: Option<(f64, String)> = None;
        let mut columns = ColumnSummaries::default();
        let mut broken_shards = Vec::new();
        let mut planted = PlantedCounts::read(run, &complete.tasks)?;
        for &task in &complete.tasks {
            let read = run.committed::<SamplesCounts>(&run.samples(), task)?.counts;
            let marker = run.committed::<VerdictCounts>(&run.select("select"), task)?;
            counts.add(&read, &marker.counts);
            let verdicts = table::read(run.run(), marker.file(), &[])?;
            let by_shard = rows_by_shard(&verdicts);
            for shard in &read.shards {
                if shard.rejected.contains_key(Rejection::ShardBroken.text()) {
                    broken_shards.push(shard.shard.clone());
                }
                let n_rows = by_shard.get(shard.shard.as_str()).map_or(0, ExactSizeIterator::len);
                let ratio = rejection_ratio(shard, n_rows as u64);
                if worst.as_ref().is_none_or(|(highest, _)| ratio > *highest) {
                    worst = Some((ratio, shard.shard.clone()));
                }
            }
            columns.add(&verdicts, run.plan());
            if let Some(planted) = &mut planted {
                planted.add(&verdicts);
            }
        }
        let rejected: u64 = counts.rejected.values().sum();
        let filtered: u64 = counts.filtered.values().sum();
        assert_eq!(
            counts.read,
            counts.kept + counts.not_drawn + filtered + rejected,
            "every sample counted once"
        );
        let (worst_ratio, worst_shard) = worst.unzip();
        Ok(Report {
            format_version: FORMAT_VERSION,
            software_version: run.plan().software_version.clone(),
            method: run.plan().select.draw.name().to_owned(),
            seed: run.plan().seed,
            rejection_ratio: rejected as f64 / counts.read.max(1) as f64,
            rejection_ratio_max_of_shards: worst_ratio.unwrap_or(0.0),
            worst_shard: worst_shard.filter(|_| worst_ratio > Some(0.0)),
            counts,
            divide: divide_report(run, &complete, &columns)?,
            inference: inference(run, &complete.tasks)?,
            left_out_shards: complete.left_out_shards,
            broken_shards,
            select: select_report(run, columns.n_draws)?,
            audit: audit(run)?,
            planted: planted.map(PlantedCounts::finish),
            rounds: compare_rounds(run)?,
            curated: curated_shards(run)?,
            scores: columns.distributions(false),
            kept_scores: columns.distributions(true),
        })
    }
}

/// What took out samples before the draw, by filter or reason, as far as the run has come.
pub fn taken_out(run: &RunFolder) -> Result<BTreeMap<String, u64>, Error> {
    let mut by_cause: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |cause: &String, n: u64| *by_cause.entry(cause.clone()).or_default() += n;
    for task in 0..run.plan().pool.n_tasks() {
        if let Some(marker) = run.marker::<SamplesCounts>(&run.samples(), task)? {
            let rejected = marker.counts.shards.iter().flat_map(|shard| &shard.rejected);
            rejected.for_each(|(cause, &n)| add(cause, n));
        }
        if let Some(marker) = run.marker::<ScoreCounts>(&run.score("select.score"), task)? {
            marker.counts.unusable.values().flatten().for_each(|(cause, &n)| add(cause, n));
        }
        if let Some(marker) = run.marker::<ReachCounts>(&run.filtered(), task)? {
            marker.counts.filtered.iter().for_each(|(cause, &n)| add(cause, n));
        }
    }
    Ok(by_cause)
}

impl Counts {
    /// In one line.
    pub fn sentence(&self) -> String {
        let Counts { read, kept, not_drawn, filtered, rejected } = self;
        let (filtered, rejected): (u64, u64) = (filtered.values().sum(), rejected.values().sum());
        format!(
            "{read} read = {kept} kept + {not_drawn} not drawn + {filtered} filtered + {rejected} rejected"
        )
    }

    fn add(&mut self, read: &SamplesCounts, verdicts: &VerdictCounts) {
        self.read += read.n_read();
        self.kept += verdicts.kept;
        self.not_drawn += verdicts.not_drawn;
        for (text, n) in read.shards.iter().flat_map(|shard| &shard.rejected) {
            // what the settings take out is no fault of the pool's
            match text == Rejection::OutOfBounds.text() {
                true => *self.filtered.entry(READ_BOUNDS.to_owned()).or_default() += n,
                false => *self.rejected.entry(text.clone()).or_default() += n,
            }
        }
        for (reason, n) in verdicts.unusable.values().flatten() {
            *self.rejected.entry(reason.clone()).or_default() += n;
        }
        for (filter, n) in &verdicts.filtered {
            *self.filtered.entry(filter.clone()).or_default() += n;
        }
    }
}

/// Samples of a shard without a verdict, but for those outside `read.bounds`, over all of them.
fn rejection_ratio(shard: &ShardCounts, n_verdicts: u64) -> f64 {
    let n_outside = shard.rejected.get(Rejection::OutOfBounds.text()).copied().unwrap_or(0);
    (shard.read - n_verdicts - n_outside) as f64 / shard.read.max(1) as f64
}

/// Running summaries of every score column, of all rows and of the kept, in bounded memory.
#[derive(Default)]
struct ColumnSummaries {
    columns: BTreeMap<(String, bool), ColumnSummary>,
    n_draws: u64,
    cluster_sizes: BTreeMap<u32, u64>,
    kept_cluster_sizes: BTreeMap<u32, u64>,
}

struct ColumnSummary {
    n: u64,
    sum: f64,
    sum_of_squares: f64,
    sample: Smallest<(u64, u64)>,
}

impl ColumnSummaries {
    fn add(&mut self, verdicts: &RecordBatch, plan: &Plan) {
        let rows = Rows(verdicts);
        let verdict = rows.text("verdict");
        let is_kept = |row: usize| verdict.value(row) == Verdict::Kept.text();
        let hashes: Vec<u64> = (0..verdicts.num_rows())
            .map(|row| {
                keyed_hash(
                    Purpose::Summary,
                    plan.seed,
                    0,
                    rows.text("shard").value(row),
                    rows.u64("sample_idx").value(row),
                )
            })
            .collect();
        for name in score_columns(plan) {
            let column = verdicts.column_by_name(name).expect("`select/` has these columns");
            let column = arrow::compute::cast(column, &DataType::Float64).expect("a number");
            let values = column.as_primitive::<Float64Type>();
            for row in (0..values.len()).filter(|&row| values.is_valid(row)) {
                self.columns.entry((name.to_owned(), false)).or_default().add(hashes[row], values.value(row));
                if is_kept(row) {
                    self.columns
                        .entry((name.to_owned(), true))
                        .or_default()
                        .add(hashes[row], values.value(row));
                }
            }
        }
        self.n_draws += rows.u32("n_repeats").iter().flatten().map(u64::from).sum::<u64>();
        for (row, cluster) in rows.u32("cluster").iter().enumerate() {
            let Some(cluster) = cluster else { continue };
            *self.cluster_sizes.entry(cluster).or_default() += 1;
            if is_kept(row) {
                *self.kept_cluster_sizes.entry(cluster).or_default() += 1;
            }
        }
    }

    fn distributions(self: &ColumnSummaries, of_kept: bool) -> BTreeMap<String, Distribution> {
        let of_kind = self.columns.iter().filter(|((_, is_kept), _)| *is_kept == of_kept);
        of_kind.map(|((name, _), summary)| (name.clone(), summary.distribution())).collect()
    }
}

impl Default for ColumnSummary {
    fn default() -> ColumnSummary {
        ColumnSummary { n: 0, sum: 0.0, sum_of_squares: 0.0, sample: Smallest::new(DECILE_SAMPLES_MAX) }
    }
}

impl ColumnSummary {
    fn add(&mut self, hash: u64, value: f64) {
        self.n += 1;
        self.sum += value;
        self.sum_of_squares += value * value;
        self.sample.push((hash, value.to_bits()));
    }

    fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    fn distribution(&self) -> Distribution {
        let sample = self.sample.iter().map(|(_, bits)| f64::from_bits(*bits)).collect();
        let of_sample = Distribution::of(sample).expect("a column with values");
        Distribution { count: self.n, mean: self.mean(), deciles: of_sample.deciles }
    }

    /// The mean over its standard error.
    fn standard_errors(&self) -> Option<f64> {
        let n = self.n as f64;
        let variance = (self.sum_of_squares - n * self.mean().powi(2)) / (n - 1.0);
        (self.n > 1 && variance > 0.0).then(|| self.mean() / (variance / n).sqrt())
    }
}

fn divide_report(
    run: &RunFolder,
    complete: &CompleteTasks,
    columns: &ColumnSummaries,
) -> Result<Option<DivideReport>, Error> {
    let Some(settings) = &run.plan().divide else { return Ok(None) };
    let fit: Marker<FitCounts> = run.committed(&run.divide("divide.fit").expect("the plan has it"), 0)?;
    let assign = run.divide("divide.assign").expect("the plan has it");
    let mut assigned: BTreeMap<u32, u64> = BTreeMap::new();
    for &task in &complete.tasks {
        for (cluster, n) in run.committed_counts::<AssignCounts>(&assign, task)?.clusters {
            *assigned.entry(cluster).or_default() += n;
        }
    }
    let gain = columns.columns.get(&("hardness_gain".to_owned(), false));
    Ok(Some(DivideReport {
        fit: fit.counts,
        assignment: ways(run, &assign, &complete.tasks)?,
        effective_clusters: effective(&columns.cluster_sizes),
        effective_clusters_kept: effective(&columns.kept_cluster_sizes),
        cluster_sizes: columns.cluster_sizes.clone(),
        kept_cluster_sizes: columns.kept_cluster_sizes.clone(),
        is_hardness_exact: assigned.values().all(|&n| n <= settings.bank_size as u64),
        hardness_gain_standard_errors: gain.and_then(ColumnSummary::standard_errors),
    }))
}

/// `exp(entropy)`: how many clusters of equal size are as diverse.
fn effective(sizes: &BTreeMap<u32, u64>) -> f64 {
    let total: u64 = sizes.values().sum();
    let shares = sizes.values().map(|&n| n as f64 / total.max(1) as f64);
    shares.map(|share| -share * share.ln()).sum::<f64>().exp()
}

fn compare_rounds(run: &RunFolder) -> Result<Vec<RoundComparison>, Error> {
    // those that came before another plan of the run are of another series
    let is_alike = |earlier: &RunFolder| {
        let (earlier, plan) = (earlier.plan(), run.plan());
        let of_pool = |plan: &Plan| (plan.digests.samples.clone(), plan.digests.divide.clone());
        let of_select = |plan: &Plan| (plan.seed, plan.select.objective, plan.select.precision);
        of_pool(earlier) == of_pool(plan)
            && of_select(earlier) == of_select(plan)
            && earlier.select.draw == plan.select.draw
            && earlier.select.filters == plan.select.filters
    };
    let compared = run.rounds_before()?.into_iter().filter(is_alike).map(|earlier| {
        let RunsComparison { n_common, kept, rank_correlations, .. } = compare_runs(&earlier, run)?;
        Ok(RoundComparison { round: earlier.plan().round, n_common, kept, rank_correlations })
    });
    compared.collect()
}

fn select_report(run: &RunFolder, n_draws: u64) -> Result<SelectReport, Error> {
    let stage = run.select("select.draw");
    let plans: Option<DrawPlans> = run.stage_plan_if_present(&stage)?;
    let mut super_batches: Vec<SuperBatchCounts> = Vec::new();
    for group in 0..plans.map_or(0, |plans| plans.groups.len()) {
        super_batches.extend(run.committed_counts::<DrawCounts>(&stage, group)?.super_batches);
    }
    // over samples and not over super-batches, which differ in size within clusters
    let mean_by = |weight: fn(&SuperBatchCounts) -> usize, value: fn(&SuperBatchCounts) -> Option<f64>| {
        let values = super_batches.iter().filter_map(|counts| Some((weight(counts) as f64, value(counts)?)));
        let (weight, sum) =
            values.fold((0.0, 0.0), |(all, sum), (weight, value)| (all + weight, sum + weight * value));
        (weight > 0.0).then(|| sum / weight)
    };
    let mean = |value| mean_by(|counts| counts.n_kept, value);
    let mut calibrated = BTreeMap::new();
    for (task, role) in calibrated_models(run.plan()).into_iter().enumerate() {
        calibrated.insert(role.to_string(), run.committed_counts(&run.score("select.calibrate"), task)?);
    }
    Ok(SelectReport {
        n_super_batches: super_batches.len() as u64,
        n_draws,
        n_joined_clusters: joined_clusters(run)?,
        batch_learnability: mean(|counts| counts.batch_learnability),
        batch_learnability_reshuffled: mean(|counts| counts.batch_learnability_reshuffled),
        batch_learnability_random: mean(|counts| counts.batch_learnability_random),
        effective_samples: mean_by(|_| 1, |counts| Some(counts.weights?.effective_samples)),
        effective_samples_of_collisions: mean_by(
            |_| 1,
            |counts| Some(counts.weights?.effective_samples_of_collisions),
        ),
        mean_score_of_drawn: mean(|counts| Some(counts.weights?.mean_of_drawn)),
        mean_score_of_best: mean(|counts| Some(counts.weights?.mean_of_best)),
        mean_score_of_all: mean_by(|counts| counts.n_samples, |counts| Some(counts.weights?.mean_of_all)),
        calibrated,
    })
}

fn curated_shards(run: &RunFolder) -> Result<Vec<CuratedShard>, Error> {
    let markers = run.markers_in(&run.write("write"))?.into_iter();
    let shards = markers.map(|(_, marker)| CuratedShard {
        name: marker.file().name.clone(),
        rows: marker.counts.as_u64().unwrap_or(0),
        size_bytes: marker.file().size_bytes,
    });
    Ok(shards.collect())
}
