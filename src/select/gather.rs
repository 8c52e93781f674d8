//! What is known of a task's samples, from every step, in; `select/NNNNN.parquet` with a verdict a sample out.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::compute::take;
use serde::{Deserialize, Serialize};

use crate::divide::{DividedTask, read_divided};
use crate::embed::SamplesCounts;
use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::table::{self, Columns, Rows};

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
pub fn commit_verdicts(run: &RunFolder, plans: &DrawPlans, drawn: &[Source], task: usize) -> Result<(), Error> {
    let score_marker = run.committed::<ScoreCounts>(&run.select("select.score"), task)?;
    let scored = table::read(run.run(), score_marker.file(), &[])?;
    let samples = SampleRef::of_rows(&Rows(&scored), &run.plan().pool)?;
    let divided = match run.plan().divide {
        Some(_) => Some(read_divided(run, task)?),
        None => None,
    };
    let keys = read_keys(run, task, &samples)?;
    let outcomes = Outcomes::read(run, drawn, task, &samples)?;
    let table = verdict_table(plans, &scored, &samples, &keys, divided.as_ref(), &outcomes);

    let kept = outcomes.n_kept();
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
    let entries = table_metadata(run);
    let file = table::write(run.run(), &format!("select/{task:05}.parquet"), &table, &entries)?;
    let mut files = vec![score_marker.file().clone()];
    files.extend(divided.map(|divided| divided.file));
    files.extend(drawn.iter().filter(|source| source.index.n_rows(task) > 0).map(|source| source.file.clone()));
    run.commit(&stage, task, Done::new(vec![file], files, counts))?;
    Ok(())
}

/// What `select/` and `curated/` files say of how they were made.
pub fn table_metadata(run: &RunFolder) -> Vec<(&'static str, String)> {
    let plan = run.plan();
    let json = |value: &dyn erased::Json| value.text();
    let models: HashMap<&str, String> =
        plan.models.iter().map(|(role, model)| (role.name(), model.digest.to_string())).collect();
    let models: std::collections::BTreeMap<_, _> = models.into_iter().collect();
    vec![
        ("superbatch_software_version", plan.software_version.clone()),
        ("superbatch_stage_digests", json(&plan.digests)),
        ("superbatch_seed", plan.seed.to_string()),
        ("superbatch_select", json(&plan.select)),
        ("superbatch_model_digests", json(&models)),
    ]
}

fn read_keys(run: &RunFolder, task: usize, samples: &[SampleRef]) -> Result<Vec<String>, Error> {
    let marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
    let storage = run.storage(&run.samples());
    let batch = table::read(storage, marker.file(), &["shard", "sample_idx", "key"])?;
    let rows = Rows(&batch);
    let all = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let keys = rows.text("key");
    let key = |sample| keys.value(all.binary_search(sample).expect("a scored sample was read")).to_owned();
    Ok(samples.iter().map(key).collect())
}

/// What the draws said of a task's samples, in the order of the task.
struct Outcomes {
    batch: RecordBatch,
    /// For each sample its row in `batch`.
    rows: Vec<usize>,
}

impl Outcomes {
    fn read(run: &RunFolder, drawn: &[Source], task: usize, samples: &[SampleRef]) -> Result<Outcomes, Error> {
        let Some(batch) = exchange::read_target(run.run(), drawn, task)? else {
            assert!(samples.is_empty(), "every scored sample comes to a draw");
            return Ok(Outcomes { batch: RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())), rows: Vec::new() });
        };
        let found = SampleRef::of_rows(&Rows(&batch), &run.plan().pool)?;
        let row_of: HashMap<SampleRef, usize> = found.into_iter().enumerate().map(|(row, sample)| (sample, row)).collect();
        assert_eq!(row_of.len(), samples.len(), "every scored sample comes to one draw");
        let rows = samples.iter().map(|sample| row_of[sample]).collect();
        Ok(Outcomes { batch, rows })
    }

    /// A column, in the order of the task's samples.
    fn column(&self, name: &str) -> ArrayRef {
        let order = UInt64Array::from_iter_values(self.rows.iter().map(|&row| row as u64));
        let column = self.batch.column_by_name(name).expect("an outcome has these columns");
        take(column, &order, None).expect("the rows are there")
    }

    fn n_kept(&self) -> u64 {
        self.batch.column_by_name("draw_rank").map_or(0, |ranks| (ranks.len() - ranks.null_count()) as u64)
    }
}
