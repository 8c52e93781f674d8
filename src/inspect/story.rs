//! A key in; every sample of a run that has it, with all its columns and one sentence on what became of it, out.

use std::collections::HashMap;
use std::path::PathBuf;

use arrow::array::{Array, RecordBatch};
use rayon::prelude::*;
use serde::Serialize;
use serde::de::IgnoredAny;

use crate::embed::CompleteTasks;
use crate::error::Error;
use crate::rejection::Rejection;
use crate::run_folder::{RunFolder, Stage};
use crate::select::{DrawPlans, SuperBatch, Verdict};
use crate::settings::{Draw, PassPool};
use crate::table::{self, Rows};
use crate::write::OutputPlan;

use super::grid::printable;
use super::row::Row;

/// The samples of one key, a key being unique in a shard only.
#[derive(Debug, Serialize)]
pub struct Stories {
    path: PathBuf,
    key: String,
    samples: Vec<Story>,
}

/// All that a run's files say of one sample.
#[derive(Debug, Serialize)]
struct Story {
    shard: String,
    sample_idx: u64,
    sentence: String,
    samples: Row,
    divide: Option<Row>,
    select: Option<Row>,
    curated: Option<CuratedRow>,
}

/// Where a kept sample is in the output.
#[derive(Debug, PartialEq, Serialize)]
struct CuratedRow {
    file: String,
    row_idx: u64,
}

/// What the stages have planned so far.
struct Plans {
    complete: Option<CompleteTasks>,
    super_batches: HashMap<u64, SuperBatch>,
    n_passes: usize,
    outputs: Option<OutputPlan>,
}

/// How far a sample came.
enum Fate<'a> {
    Rejected(&'a str),
    /// Its shard was left out.
    LeftOut,
    /// `select` has not done its shard yet.
    Undecided,
    /// Drawn or not, as the row of `select/` says.
    Decided(&'a Row),
}

impl Stories {
    pub fn read(run: &RunFolder, key: &str) -> Result<Stories, Error> {
        let plans = Plans::read(run)?;
        let tasks: Vec<usize> = (0..run.plan().pool.n_tasks()).collect();
        let found = tasks.into_par_iter().map(|task| stories_of_task(run, &plans, task, key));
        let samples: Vec<Story> = found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if samples.is_empty() {
            return Err(Error::KeyMissing { path: run.run().root().to_owned(), key: key.to_owned() });
        }
        Ok(Stories { path: run.run().root().to_owned(), key: key.to_owned(), samples })
    }

    pub fn text(&self) -> String {
        self.samples.iter().map(Story::text).collect::<Vec<_>>().join("\n\n")
    }
}

impl Story {
    fn text(&self) -> String {
        let mut parts =
            vec![format!("{}, sample {}", printable(&self.shard), self.sample_idx), self.sentence.clone()];
        let stages = [
            ("samples", Some(&self.samples)),
            ("divide", self.divide.as_ref()),
            ("select", self.select.as_ref()),
        ];
        for (stage, row) in stages {
            parts.extend(row.map(|row| format!("\n{stage}\n{}", row.text())));
        }
        parts.extend(
            self.curated
                .as_ref()
                .map(|curated| format!("\ncurated\n  {}, row {}", curated.file, curated.row_idx)),
        );
        parts.join("\n")
    }
}

impl Plans {
    fn read(run: &RunFolder) -> Result<Plans, Error> {
        let draws: Option<DrawPlans> = run.stage_plan_if_present(&run.select("select.draw"))?;
        let super_batches = draws.iter().flat_map(DrawPlans::super_batches);
        Ok(Plans {
            complete: run.stage_plan_if_present(&run.embed())?,
            super_batches: super_batches.map(|planned| (planned.super_batch, *planned)).collect(),
            n_passes: draws.as_ref().map_or(1, |draws| draws.n_passes),
            outputs: run.stage_plan_if_present(&run.write("write"))?,
        })
    }
}

/// The samples of a task that have the key; none where the task is not embedded yet.
fn stories_of_task(run: &RunFolder, plans: &Plans, task: usize, key: &str) -> Result<Vec<Story>, Error> {
    let Some(keys) = read_stage(run, &run.samples(), task, &["key"])? else { return Ok(Vec::new()) };
    let keys = Rows(&keys).text("key");
    let found: Vec<usize> = (0..keys.len()).filter(|&row| keys.value(row) == key).collect();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let samples = read_stage(run, &run.samples(), task, &[])?.expect("its keys were read");
    let divided = match run.divide("divide") {
        Some(divide) => read_stage(run, &divide, task, &[])?,
        None => None,
    };
    let selected = read_stage(run, &run.select("select"), task, &[])?;
    let stories = found.into_iter().map(|row| {
        let rows = Rows(&samples);
        let (shard, sample_idx) = (rows.text("shard").value(row), rows.u64("sample_idx").value(row));
        let of_sample = |table: &RecordBatch| row_of(table, shard, sample_idx);
        let sample = Row::of(&samples, row);
        let select_row = selected.as_ref().and_then(of_sample);
        let select = selected.as_ref().zip(select_row).map(|(table, row)| Row::of(table, row));
        let is_selected = selected.is_some();
        let fate = match (sample.text_of("rejection"), &select) {
            (Some(rejection), _) => Fate::Rejected(rejection),
            (None, Some(select)) => Fate::Decided(select),
            (None, None) if is_selected => Fate::Rejected(Rejection::DegenerateEmbedding.text()),
            (None, None) if plans.leaves_out(task) => Fate::LeftOut,
            (None, None) => Fate::Undecided,
        };
        Ok(Story {
            shard: shard.to_owned(),
            sample_idx,
            sentence: plans.sentence(&fate, &run.plan().select.draw),
            curated: match (selected.as_ref(), select_row) {
                (Some(table), Some(row)) => plans.curated_row(run, task, table, row)?,
                _ => None,
            },
            divide: divided.as_ref().and_then(|table| of_sample(table).map(|row| Row::of(table, row))),
            select,
            samples: sample,
        })
    });
    stories.collect()
}

/// A task's table of a stage, if it is committed.
fn read_stage(
    run: &RunFolder,
    stage: &Stage,
    task: usize,
    columns: &[&str],
) -> Result<Option<RecordBatch>, Error> {
    let Some(marker) = run.marker::<IgnoredAny>(stage, task)? else { return Ok(None) };
    table::read(run.storage(stage), marker.file(), columns).map(Some)
}

fn row_of(table: &RecordBatch, shard: &str, sample_idx: u64) -> Option<usize> {
    let rows = Rows(table);
    let (shards, sample_idxs) = (rows.text("shard"), rows.u64("sample_idx"));
    (0..table.num_rows()).find(|&row| sample_idxs.value(row) == sample_idx && shards.value(row) == shard)
}

impl Plans {
    fn leaves_out(&self, task: usize) -> bool {
        self.complete.as_ref().is_some_and(|complete| complete.tasks.binary_search(&task).is_err())
    }

    /// Where a row of `select/` is in the output, if it was kept and its curated shard is written.
    fn curated_row(
        &self,
        run: &RunFolder,
        task: usize,
        verdicts: &RecordBatch,
        row: usize,
    ) -> Result<Option<CuratedRow>, Error> {
        let Some(outputs) = &self.outputs else { return Ok(None) };
        let Some(position) = outputs.positions(run, task, verdicts)?[row] else { return Ok(None) };
        let shard = outputs.shard_of(position);
        let marker = run.marker::<IgnoredAny>(&run.write("write"), shard)?;
        Ok(marker.map(|marker| CuratedRow {
            file: marker.file().name.clone(),
            row_idx: position - outputs.shards[shard].start,
        }))
    }

    /// Why a sample was kept or not, as far as the run has come.
    fn sentence(&self, fate: &Fate, draw: &Draw) -> String {
        let row = match fate {
            Fate::Rejected(rejection) => return format!("rejected: {rejection}"),
            Fate::LeftOut => return "left out: a model has no embeddings of its shard".to_owned(),
            Fate::Undecided => return "undecided: `select` has not come to its shard yet".to_owned(),
            Fate::Decided(row) => *row,
        };
        let what = match (row.text_of("removed_by"), row.position("super_batch")) {
            (Some(filter), _) => filtered(row, filter),
            (None, Some(super_batch)) => self.in_super_batch(row, super_batch, draw),
            (None, None) => over_pool(row, draw),
        };
        what + &scores(row)
    }

    fn in_super_batch(&self, row: &Row, super_batch: u64, draw: &Draw) -> String {
        let planned = self.super_batches.get(&super_batch);
        let is_one_of_several = self.n_passes > 1;
        let Some(rank) = row.position("draw_rank") else {
            let passes = if is_one_of_several {
                format!(" in each of {} passes", self.n_passes)
            } else {
                String::new()
            };
            let is_remaining = draw.deal().is_some_and(|deal| deal.pass_pool == PassPool::Remaining);
            let of = if is_one_of_several && is_remaining { "what was left of " } else { "" };
            let drew = planned.map_or_else(String::new, |SuperBatch { n_kept, n_samples, .. }| {
                let times = if *n_kept == 1 { "once".to_owned() } else { format!("{n_kept} times") };
                format!(", which drew {times}{passes} from {of}{n_samples} samples")
            });
            return format!("not drawn: it came to the draw of super-batch {super_batch}{drew}");
        };
        let of = planned.map_or_else(String::new, |planned| format!(" of {}", planned.n_kept));
        let how = match (draw.name(), row.position("chunk"), row.number("conditional_score")) {
            ("random", ..) => ", uniformly".to_owned(),
            (_, Some(chunk), Some(score)) => {
                format!(", chunk {chunk}, with a conditional score of {}", number(score))
            }
            _ => String::new(),
        };
        let pass = match row.position("pass") {
            Some(pass) if is_one_of_several => format!(", pass {pass}"),
            _ => String::new(),
        };
        let repeats = match row.position("n_repeats") {
            Some(n) if n > 1 => format!(", the first of {n} times"),
            _ => String::new(),
        };
        format!("kept: drawn as number {}{of} in super-batch {super_batch}{pass}{repeats}{how}", rank + 1)
    }
}

fn filtered(row: &Row, filter: &str) -> String {
    // of a filter of several parts the one column
    let column = filter.split('.').next().unwrap_or(filter);
    let score =
        row.number(column).map_or_else(String::new, |score| format!(", where it has {}", number(score)));
    let of =
        row.text_of("duplicate_of").map_or_else(String::new, |other| format!(", as a duplicate of {other}"));
    format!("filtered: taken out by `{filter}`{score}{of}")
}

fn over_pool(row: &Row, draw: &Draw) -> String {
    let score =
        row.number("score").map_or_else(String::new, |score| format!(", with a score of {}", number(score)));
    match (draw, row.text_of("verdict") == Some(Verdict::Kept.text())) {
        (Draw::Keep, _) => "kept: no filter took it out".to_owned(),
        (draw, true) => format!("kept: by `{}` over the whole pool{score}", draw.name()),
        (draw, false) => format!("not drawn: by `{}` over the whole pool{score}", draw.name()),
    }
}

/// What the sample scores by itself, as far as there are models.
fn scores(row: &Row) -> String {
    let [learnability, learner, reference] =
        ["learnability", "learner_loss", "reference_loss"].map(|name| row.number(name).map(number));
    match (learnability, learner, reference) {
        (Some(learnability), Some(learner), Some(reference)) => {
            format!("; learnability {learnability} (learner loss {learner} − reference loss {reference})")
        }
        (_, Some(learner), _) => format!("; learner loss {learner}"),
        (_, _, Some(reference)) => format!("; reference loss {reference}"),
        _ => String::new(),
    }
}

fn number(value: f64) -> String {
    format!("{value:.2}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SelectSettings;
    use crate::table::Columns;

    fn row(verdict: Verdict, rank: Option<u32>, losses: Option<(f64, f64)>) -> Row {
        let mut columns = Columns::default();
        columns
            .u64("super_batch", [Some(3)])
            .u32("chunk", [rank.map(|_| 2)])
            .u32("draw_rank", [rank])
            .f64("conditional_score", [rank.map(|_| 3.214)])
            .f64("learnability", [losses.map(|(learner, reference)| learner - reference)])
            .f64("learner_loss", [losses.map(|(learner, _)| learner)])
            .f64("reference_loss", [losses.map(|(_, reference)| reference)])
            .text("verdict", [Some(verdict.text())]);
        Row::of(&columns.build(), 0)
    }

    fn said(fate: &Fate, method: &str) -> String {
        said_of(fate, method, 1)
    }

    fn said_of(fate: &Fate, method: &str, n_passes: usize) -> String {
        let step = format!("[[step]]\nmethod = '{method}'\nfilter_ratio = 0.8\nsuper_batch_size = 400");
        let select: SelectSettings = toml::from_str(&step).unwrap();
        let planned = SuperBatch { super_batch: 3, n_samples: 400, n_kept: 80 };
        let super_batches = [(3, planned)].into();
        Plans { complete: None, super_batches, n_passes, outputs: None }.sentence(fate, &select.draw)
    }

    #[test]
    fn every_fate_has_a_sentence() {
        let kept = row(Verdict::Kept, Some(11), Some((2.1, 0.3)));
        assert_eq!(
            said(&Fate::Decided(&kept), "jest"),
            "kept: drawn as number 12 of 80 in super-batch 3, chunk 2, with a conditional score of 3.21; \
             learnability 1.80 (learner loss 2.10 − reference loss 0.30)"
        );
        let uniform = row(Verdict::Kept, Some(0), None);
        assert_eq!(
            said(&Fate::Decided(&uniform), "random"),
            "kept: drawn as number 1 of 80 in super-batch 3, uniformly"
        );
        let not_drawn = row(Verdict::NotDrawn, None, Some((0.25, 1.0)));
        assert_eq!(
            said(&Fate::Decided(&not_drawn), "jest"),
            "not drawn: it came to the draw of super-batch 3, which drew 80 times from 400 samples; \
             learnability −0.75 (learner loss 0.25 − reference loss 1.00)"
        );
        let of_passes = said_of(&Fate::Decided(&not_drawn), "jest", 3);
        assert!(
            of_passes.contains("which drew 80 times in each of 3 passes from 400 samples; "),
            "{of_passes}"
        );
        assert_eq!(said(&Fate::Rejected("undecodable_image"), "jest"), "rejected: undecodable_image");
        assert!(
            said(&Fate::Undecided, "jest").starts_with("undecided: ")
                && said(&Fate::LeftOut, "jest").starts_with("left out: ")
        );
    }
}
