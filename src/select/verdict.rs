//! What is known of a task's samples, from every step, in; `select/NNNNN.parquet` with a verdict a sample out.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt64Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::divide::{DividedTask, read_divided};
use crate::embed::SamplesCounts;
use crate::error::Error;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::table::{self, Columns, Rows};

use super::column::read_sample_columns;
use super::draw_columns::{DrawColumns, Drawn};
use super::reach::{ReachCounts, Reached, read_reached};
use super::scored::ScoreCounts;
use super::usable::Unusable;

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

/// Joins and commits one task.
pub fn commit_verdicts(run: &RunFolder, drawn: &Drawn, task: usize) -> Result<(), Error> {
    let score_marker = run.committed::<ScoreCounts>(&run.score("select.score"), task)?;
    let scored = table::read(run.run(), score_marker.file(), &[])?;
    let reached = read_reached(run, task)?;
    let more = DIVIDED_COLUMNS.map(|(name, _)| name);
    let divided = run.plan().divide.as_ref().map(|_| read_divided(run, task, &more)).transpose()?;
    let (samples, samples_file) = read_sample_columns(run, task, &reached.samples, &["key"])?;
    let mut read = vec![score_marker.file().clone(), reached.file.clone(), samples_file];
    read.extend(divided.iter().map(|divided| divided.file.clone()));
    let outcomes = DrawColumns::read(run, drawn, task, &reached, &mut read)?;
    let table = verdict_table(run, &scored, &reached, &samples, divided.as_ref(), &outcomes);

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
    let file = run.put_table(&stage, task, &format!("select/{task:05}.parquet"), &table, &entries)?;
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
    samples: &RecordBatch,
    divided: Option<&DividedTask>,
    outcomes: &DrawColumns,
) -> RecordBatch {
    let mut columns = Columns::default();
    let column_of = |table: &RecordBatch, name: &str| {
        table.column_by_name(name).expect("a committed table has its columns").clone()
    };
    for name in ["shard", "sample_idx"] {
        columns.array(name, column_of(scored, name));
    }
    columns.array("key", column_of(samples, "key"));
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
