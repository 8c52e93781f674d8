//! What is known of a task's samples, from every step, in; `select/NNNNN.parquet` with a verdict a sample out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, UInt32Array, UInt64Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::divide::{DividedTask, read_divided};
use crate::embed::SamplesCounts;
use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::PoolDraw;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::draw_plan::DrawPlans;
use super::hard_negatives::read_among;
use super::outcome::outcome_table;
use super::pool_draw::{PoolCuts, pool_ranks};
use super::reach::{ReachCounts, Reached, read_reached};
use super::score::{Learner, Reference, ScoredBy};
use super::scored::ScoreCounts;
use super::usable::Unusable;
use crate::settings::ScoreKind;

/// What became of a sample that was not rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Kept,
    NotDrawn,
    Filtered,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::NotDrawn => "not_drawn",
            Verdict::Filtered => "filtered",
        }
    }
}

/// Counts of one task of `select`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCounts {
    pub kept: u64,
    pub not_drawn: u64,
    /// By what took them out.
    pub filtered: BTreeMap<String, u64>,
    /// Read, but in no row of `select/`.
    pub unusable: Unusable,
}

/// How the samples that passed the filters were drawn.
pub enum Drawn<'a> {
    InSuperBatches { plans: &'a DrawPlans, outcomes: &'a [Source] },
    OverPool { draw: &'a PoolDraw, cuts: &'a PoolCuts },
    Keep,
}

/// Joins and commits one task.
pub fn commit_verdicts(run: &RunFolder, drawn: &Drawn, task: usize) -> Result<(), Error> {
    let score_marker = run.committed::<ScoreCounts>(&run.score("select.score"), task)?;
    let scored = table::read(run.run(), score_marker.file(), &[])?;
    let reached = read_reached(run, task)?;
    let divided = run.plan().divide.as_ref().map(|_| read_divided(run, task)).transpose()?;
    let (keys, samples_file) = read_keys(run, task, &reached.samples)?;
    let mut read = vec![score_marker.file().clone(), reached.file.clone(), samples_file];
    read.extend(divided.iter().map(|divided| divided.file.clone()));
    let outcomes = Outcomes::read(run, drawn, task, &reached, &mut read)?;
    let table = verdict_table(run, &scored, &reached, &keys, divided.as_ref(), &outcomes);

    let reach: ReachCounts = run.committed_counts(&run.filtered(), task)?;
    let kept = outcomes.n_repeats.iter().flatten().count() as u64;
    let counts = VerdictCounts {
        kept,
        not_drawn: reach.reaching - kept,
        filtered: reach.filtered,
        unusable: score_marker.counts.unusable,
    };
    let of_task = run.committed::<SamplesCounts>(&run.samples(), task)?.counts;
    assert_eq!(
        of_task.n_read(),
        counts.n_decided() + counts.n_unusable() + of_task.n_rejected(),
        "read = kept + not drawn + filtered + rejected in task {task}"
    );
    let stage = run.select("select");
    let entries = table_metadata(run, &run.plan().digests.up_to_select());
    let file = table::write(run.run(), &format!("select/{task:05}.parquet"), &table, &entries)?;
    run.commit(&stage, task, Done::new(vec![file], read, counts))?;
    Ok(())
}

impl VerdictCounts {
    /// Samples with a verdict: the rows of `select/`.
    pub fn n_decided(&self) -> u64 {
        self.kept + self.not_drawn + self.filtered.values().sum::<u64>()
    }

    fn n_unusable(&self) -> u64 {
        self.unusable.values().flat_map(BTreeMap::values).sum()
    }
}

/// What `select/` and `curated/` files say of how they were made; `digests` are those of the file's stage and of the
/// stages before it, so that later stages' settings change no byte.
pub fn table_metadata(run: &RunFolder, digests: &Value) -> Vec<(&'static str, String)> {
    let plan = run.plan();
    // what audits changes no byte of what it audits
    let chosen_by = plan.models.iter().filter(|(role, _)| !role.is_audit());
    let models: BTreeMap<String, &Digest> =
        chosen_by.map(|(role, model)| (role.to_string(), &model.digest)).collect();
    vec![
        ("superbatch_software_version", plan.software_version.clone()),
        ("superbatch_stage_digests", json(digests)),
        ("superbatch_seed", plan.seed.to_string()),
        ("superbatch_select", json(&plan.select)),
        ("superbatch_model_digests", json(&models)),
    ]
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("settings and digests are representable as JSON")
}

/// Every column that `select/` and `curated/` share, in the order of the contract.
fn verdict_table(
    run: &RunFolder,
    scored: &RecordBatch,
    reached: &Reached,
    keys: &[String],
    divided: Option<&DividedTask>,
    outcomes: &Outcomes,
) -> RecordBatch {
    let mut columns = Columns::default();
    let column_of = |table: &RecordBatch, name: &str| {
        table.column_by_name(name).expect("a committed table has its columns").clone()
    };
    for name in ["shard", "sample_idx"] {
        columns.array(name, column_of(scored, name));
    }
    columns.text("key", keys.iter().map(Some));
    for name in
        ["learner_similarity", "reference_similarity", "learner_loss", "reference_loss", "learnability"]
    {
        columns.array(name, column_of(scored, name));
    }
    columns.array("score", Arc::new(outcomes.scores.clone()));
    for filter in &run.plan().select.filters {
        columns.array(&filter.name, column_of(&reached.table, &filter.name));
    }
    add_divided(&mut columns, &reached.samples, divided);
    columns.f64("hard_learnability", outcomes.hard_learnability(run, &Rows(scored)));
    for (name, column) in &outcomes.columns {
        columns.array(name, column.clone());
    }
    let removed_by = Rows(&reached.table).text("removed_by");
    let verdict = |row: usize| match outcomes.n_repeats.is_valid(row) {
        true => Verdict::Kept,
        false if removed_by.is_valid(row) => Verdict::Filtered,
        false => Verdict::NotDrawn,
    };
    columns
        .text("verdict", (0..reached.samples.len()).map(|row| Some(verdict(row).text())))
        .array("removed_by", column_of(&reached.table, "removed_by"))
        .array("duplicate_of", column_of(&reached.table, "duplicate_of"))
        .array("n_repeats", Arc::new(outcomes.n_repeats.clone()));
    columns.build()
}

/// The columns of `divide/`; all null where the run has no clusters.
fn add_divided(columns: &mut Columns, samples: &[SampleRef], divided: Option<&DividedTask>) {
    let order = |divided: &DividedTask| {
        UInt64Array::from_iter_values(samples.iter().map(|sample| divided.row(*sample) as u64))
    };
    let order = divided.map(order);
    for (name, data_type) in DIVIDED_COLUMNS {
        let column = match (divided, &order) {
            (Some(divided), Some(order)) => {
                let column = divided.table.column_by_name(name).expect("a divided sample has these columns");
                take(column, order, None).expect("the rows are there")
            }
            _ => new_null_array(&data_type, samples.len()),
        };
        columns.array(name, column);
    }
}

const DIVIDED_COLUMNS: [(&str, DataType); 12] = [
    ("cluster", DataType::UInt32),
    ("centroid_similarity", DataType::Float32),
    ("centroid_margin", DataType::Float32),
    ("hardness", DataType::Float32),
    ("hardness_gain", DataType::Float32),
    ("cross_modal_hardness", DataType::Float32),
    ("effective_negatives", DataType::Float32),
    ("n_negatives", DataType::UInt32),
    ("hardest_negative_similarity", DataType::Float32),
    ("hardest_negative_shard", DataType::Utf8),
    ("hardest_negative_key", DataType::Utf8),
    ("n_false_negatives", DataType::UInt32),
];

fn read_keys(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
) -> Result<(Vec<String>, FileRecord), Error> {
    let marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
    let storage = run.storage(&run.samples());
    let batch = table::read(storage, marker.file(), &["shard", "sample_idx", "key"])?;
    let rows = Rows(&batch);
    let all = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let keys = rows.text("key");
    let key = |sample| keys.value(all.binary_search(sample).expect("a scored sample was read")).to_owned();
    Ok((samples.iter().map(key).collect(), marker.file().clone()))
}

/// What the draw said of a task's samples, in their order; null for those that did not come to it.
struct Outcomes {
    scores: Float64Array,
    n_repeats: UInt32Array,
    /// `super_batch`, `pass`, `place`, `chunk`, `draw_rank`, `conditional_score`.
    columns: Vec<(&'static str, ArrayRef)>,
    /// The size of each sample's sub-batch, where there are sub-batches.
    sub_batch_sizes: Vec<Option<usize>>,
}

const DRAW_COLUMNS: [(&str, DataType); 6] = [
    ("super_batch", DataType::UInt64),
    ("pass", DataType::UInt32),
    ("place", DataType::UInt64),
    ("chunk", DataType::UInt32),
    ("draw_rank", DataType::UInt32),
    ("conditional_score", DataType::Float64),
];

impl Outcomes {
    fn read(
        run: &RunFolder,
        drawn: &Drawn,
        task: usize,
        reached: &Reached,
        read: &mut Vec<FileRecord>,
    ) -> Result<Outcomes, Error> {
        match drawn {
            Drawn::InSuperBatches { plans, outcomes } => {
                let of_task = outcomes.iter().filter(|source| source.index.n_rows(task) > 0);
                read.extend(of_task.map(|source| source.file.clone()));
                let batch = exchange::read_target(run.run(), outcomes, task)?;
                let batch = batch.unwrap_or_else(|| outcome_table(run, &[]));
                Outcomes::in_super_batches(run, plans, &batch, task, reached)
            }
            Drawn::OverPool { draw, cuts } => {
                let ranked = pool_ranks(run, task, draw, read)?;
                let found: HashMap<SampleRef, (Option<f64>, bool)> = ranked
                    .iter()
                    .map(|ranked| (ranked.sample, (ranked.score, cuts.keeps(run, ranked))))
                    .collect();
                Ok(Outcomes::over_pool(&reached.samples, |sample| found.get(&sample).copied()))
            }
            Drawn::Keep => {
                let reaching = reached.reaching();
                let keep = |sample| reaching.binary_search(&sample).is_ok().then_some((None, true));
                Ok(Outcomes::over_pool(&reached.samples, keep))
            }
        }
    }

    fn in_super_batches(
        run: &RunFolder,
        plans: &DrawPlans,
        batch: &RecordBatch,
        task: usize,
        reached: &Reached,
    ) -> Result<Outcomes, Error> {
        let found = SampleRef::of_rows(&Rows(batch), &run.plan().pool)?;
        let row_of: HashMap<SampleRef, u64> = found.iter().copied().zip(0..).collect();
        assert_eq!(row_of.len(), reached.reaching().len(), "every sample of task {task} comes to one draw");
        let order: UInt64Array = reached.samples.iter().map(|sample| row_of.get(sample).copied()).collect();
        let column = |name: &str| {
            let column = batch.column_by_name(name).expect("an outcome has these columns");
            take(column, &order, None).expect("the rows are there")
        };
        let n_kept: HashMap<u64, usize> =
            plans.super_batches().map(|planned| (planned.super_batch, planned.n_kept)).collect();
        let columns: Vec<(&str, ArrayRef)> =
            DRAW_COLUMNS.iter().map(|(name, _)| (*name, column(name))).collect();
        let (scores, n_repeats, super_batches) =
            (column("score"), column("n_repeats"), column("super_batch"));
        let taken = |name, array| RecordBatch::try_from_iter([(name, array)]).expect("one column");
        let (scores, n_repeats, super_batches) =
            (taken("score", scores), taken("n_repeats", n_repeats), taken("super_batch", super_batches));
        Ok(Outcomes {
            scores: Rows(&scores).f64("score").clone(),
            n_repeats: Rows(&n_repeats).u32("n_repeats").clone(),
            sub_batch_sizes: Rows(&super_batches)
                .u64("super_batch")
                .iter()
                .map(|super_batch| super_batch.map(|super_batch| n_kept[&super_batch]))
                .collect(),
            columns,
        })
    }

    /// `found` says of a sample that comes to the draw by what it was ranked and whether it is kept.
    fn over_pool(
        samples: &[SampleRef],
        found: impl Fn(SampleRef) -> Option<(Option<f64>, bool)>,
    ) -> Outcomes {
        let found: Vec<Option<(Option<f64>, bool)>> = samples.iter().map(|sample| found(*sample)).collect();
        let n_repeats = |found: &Option<(Option<f64>, bool)>| found.and_then(|(_, kept)| kept.then_some(1));
        let columns = DRAW_COLUMNS.iter();
        Outcomes {
            scores: found.iter().map(|found| found.and_then(|(score, _)| score)).collect(),
            n_repeats: found.iter().map(n_repeats).collect(),
            columns: columns.map(|(name, kind)| (*name, new_null_array(kind, samples.len()))).collect(),
            sub_batch_sizes: vec![None; samples.len()],
        }
    }

    /// Each sample's score among the negatives of its cluster's bank, in a sub-batch of its super-batch's size.
    fn hard_learnability(&self, run: &RunFolder, scored: &Rows) -> Vec<Option<f64>> {
        let objective = run.plan().select.objective;
        let score = run.plan().pair_score();
        let share = |role: &str| {
            let among = read_among(scored, role);
            let losses = scored.f64(&format!("{role}_loss"));
            let shares = among.into_iter().zip(losses).zip(&self.sub_batch_sizes);
            let shares = shares.map(|((among, loss), size)| {
                let size = size.filter(|&size| size > 0)?;
                Some(objective.share(loss?, among?, size))
            });
            shares.collect::<Vec<Option<f64>>>()
        };
        let (learner, reference) = (share("learner"), share("reference"));
        let of_sample = |row: usize| {
            let learner = || Some(Learner(learner[row]?));
            let reference = || Some(Reference(reference[row]?));
            let shares = match score? {
                ScoreKind::HardLearner => ScoredBy::HardLearner { learner: learner()? },
                ScoreKind::EasyReference => ScoredBy::EasyReference { reference: reference()? },
                ScoreKind::Learnability => {
                    ScoredBy::Learnability { learner: learner()?, reference: reference()? }
                }
            };
            Some(shares.score())
        };
        (0..self.sub_batch_sizes.len()).map(of_sample).collect()
    }
}
