//! What is known of a task's samples, from every step, in; `select/NNNNN.parquet` with a verdict a sample out.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, RecordBatch, UInt64Array, new_null_array};
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
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::draw::outcome_table;
use super::draw_plan::DrawPlans;
use super::scored::ScoreCounts;

/// What became of a sample that was not rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Kept,
    NotDrawn,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::NotDrawn => "not_drawn",
        }
    }
}

/// Counts of one task of `select`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCounts {
    pub kept: u64,
    pub not_drawn: u64,
    /// Samples for which a model gave no direction: read, but in no row of `select/`.
    pub degenerate: u64,
}

/// Joins and commits one task.
pub fn commit_verdicts(
    run: &RunFolder,
    plans: &DrawPlans,
    drawn: &[Source],
    task: usize,
) -> Result<(), Error> {
    let score_marker = run.committed::<ScoreCounts>(&run.select("select.score"), task)?;
    let scored = table::read(run.run(), score_marker.file(), &[])?;
    let samples = SampleRef::of_rows(&Rows(&scored), &run.plan().pool)?;
    let divided = match run.plan().divide {
        Some(_) => Some(read_divided(run, task)?),
        None => None,
    };
    let (keys, samples_file) = read_keys(run, task, &samples)?;
    let outcomes = Outcomes::read(run, plans, drawn, task, &samples)?;
    let table = verdict_table(&scored, &samples, &keys, divided.as_ref(), &outcomes);

    let kept = (0..samples.len()).filter(|&row| outcomes.is_kept(row)).count() as u64;
    let counts = VerdictCounts {
        kept,
        not_drawn: samples.len() as u64 - kept,
        degenerate: score_marker.counts.degenerate,
    };
    let read = run.committed::<SamplesCounts>(&run.samples(), task)?.counts;
    assert_eq!(
        read.n_read(),
        counts.kept + counts.not_drawn + counts.degenerate + read.n_rejected(),
        "read = kept + not drawn + rejected in task {task}"
    );
    let stage = run.select("select");
    let entries = table_metadata(run, &run.plan().digests.up_to_select());
    let file = table::write(run.run(), &format!("select/{task:05}.parquet"), &table, &entries)?;
    let mut files = vec![score_marker.file().clone(), samples_file];
    files.extend(divided.map(|divided| divided.file));
    files.extend(
        drawn.iter().filter(|source| source.index.n_rows(task) > 0).map(|source| source.file.clone()),
    );
    run.commit(&stage, task, Done::new(vec![file], files, counts))?;
    Ok(())
}

/// What `select/` and `curated/` files say of how they were made; `digests` are those of the file's stage and of the
/// stages before it, so that later stages' settings change no byte.
pub fn table_metadata(run: &RunFolder, digests: &Value) -> Vec<(&'static str, String)> {
    let plan = run.plan();
    let models: BTreeMap<String, &Digest> =
        plan.models.iter().map(|(role, model)| (role.to_string(), &model.digest)).collect();
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
    scored: &RecordBatch,
    samples: &[SampleRef],
    keys: &[String],
    divided: Option<&DividedTask>,
    outcomes: &Outcomes,
) -> RecordBatch {
    let n = samples.len();
    let super_batches = outcomes.column("super_batch");
    let mut columns = Columns::default();
    let scored_column =
        |name: &str| scored.column_by_name(name).expect("a scored sample has these columns").clone();
    for name in ["shard", "sample_idx"] {
        columns.array(name, scored_column(name));
    }
    columns.text("key", keys.iter().map(Some));
    for name in [
        "learner_similarity",
        "reference_similarity",
        "learner_loss",
        "reference_loss",
        "learnability",
        "score",
    ] {
        columns.array(name, scored_column(name));
    }
    add_divided(&mut columns, samples, divided);
    columns.f64("hard_learnability", outcomes.hard_learnability(&Rows(scored)));
    columns.array("super_batch", super_batches);
    for name in ["chunk", "draw_rank", "conditional_score"] {
        columns.array(name, outcomes.column(name));
    }
    let is_kept = |row: usize| outcomes.is_kept(row);
    let verdict = |row| if is_kept(row) { Verdict::Kept } else { Verdict::NotDrawn };
    let none = || std::iter::repeat_n(None::<&str>, n);
    columns
        .text("verdict", (0..n).map(|row| Some(verdict(row).text())))
        .text("removed_by", none())
        .text("duplicate_of", none())
        .u32("n_repeats", (0..n).map(|row| is_kept(row).then_some(1)));
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

/// What the draws said of a task's samples, in the order of the task.
struct Outcomes<'a> {
    batch: RecordBatch,
    /// For each sample its row in `batch`.
    order: UInt64Array,
    plans: &'a DrawPlans,
}

impl<'a> Outcomes<'a> {
    fn read(
        run: &RunFolder,
        plans: &'a DrawPlans,
        drawn: &[Source],
        task: usize,
        samples: &[SampleRef],
    ) -> Result<Outcomes<'a>, Error> {
        let batch = exchange::read_target(run.run(), drawn, task)?;
        let batch = batch.unwrap_or_else(|| outcome_table(run, &[]));
        let found = SampleRef::of_rows(&Rows(&batch), &run.plan().pool)?;
        let mut order: Vec<u64> = (0..found.len() as u64).collect();
        order.sort_unstable_by_key(|&row| found[row as usize]);
        let in_order = order.iter().map(|&row| &found[row as usize]);
        assert!(in_order.eq(samples), "every scored sample of task {task} comes to one draw");
        Ok(Outcomes { batch, order: UInt64Array::from(order), plans })
    }

    /// A column, in the order of the task's samples.
    fn column(&self, name: &str) -> ArrayRef {
        let column = self.batch.column_by_name(name).expect("an outcome has these columns");
        take(column, &self.order, None).expect("the rows are there")
    }

    fn is_kept(&self, row: usize) -> bool {
        let ranks = self.batch.column_by_name("draw_rank").expect("an outcome has these columns");
        ranks.is_valid(self.order.value(row) as usize)
    }

    /// `S[i, i] + (b − 1)·(beside_hard_negative − S[i, i])`, b the kept of the sample's super-batch.
    fn hard_learnability(&self, scored: &Rows) -> Vec<Option<f64>> {
        let n_kept: HashMap<u64, usize> =
            self.plans.super_batches().map(|planned| (planned.super_batch, planned.n_kept)).collect();
        let super_batches = Rows(&self.batch).u64("super_batch");
        let beside = scored.f64("beside_hard_negative").iter().zip(scored.f64("score").values());
        let shares = beside.enumerate().map(|(row, (beside, own))| {
            let b = n_kept[&super_batches.value(self.order.value(row) as usize)];
            beside.filter(|_| b > 0).map(|beside| own + (b - 1) as f64 * (beside - own))
        });
        shares.collect()
    }
}
