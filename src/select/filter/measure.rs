//! The samples of a task that come to a filter in, the filter's score of each and whether it passes out.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use serde::{Deserialize, Serialize};

use crate::bounds::{fits_size, fits_texts};
use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::select::column::{read_column, read_sample_columns};
use crate::select::cutoff::{Cutoff, Ranked, cutoffs, rank_of};
use crate::select::scored::{ScoreCounts, scored_samples};
use crate::settings::{Filter, FractionOf, Keep, ModelRole};
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::targets::Targets;

/// Counts of one task of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterCounts {
    /// Samples of the task that came to the filter.
    pub reaching: u64,
    /// Samples of the task that came to `select`.
    pub scored: u64,
}

/// A filter's committed scores of a task's samples, and which of them pass.
pub struct Measurement {
    /// The samples that came to the filter, in the order of the shards.
    pub samples: Vec<SampleRef>,
    pub scores: Vec<Option<f64>>,
    pub duplicate_of: Vec<Option<String>>,
    /// Which part of the filter takes the sample out.
    pub parts: Vec<Option<String>>,
    pub passes: Vec<bool>,
    pub file: FileRecord,
}

impl Measurement {
    /// The samples that pass.
    pub fn passing(&self) -> Vec<SampleRef> {
        let passing = self.samples.iter().zip(&self.passes);
        passing.filter_map(|(sample, passes)| passes.then_some(*sample)).collect()
    }

    /// The row of a sample, if it came to the filter.
    pub fn row(&self, sample: SampleRef) -> Option<usize> {
        self.samples.binary_search(&sample).ok()
    }
}

/// The measurement of a task by a filter whose cut, if it has one, is planned.
pub fn measurement(run: &RunFolder, position: usize, task: usize) -> Result<Measurement, Error> {
    let stage = run.filter(position, "");
    let (batch, samples, file) = read(run, position, task, &[])?;
    let rows = Rows(&batch);
    let scores: Vec<Option<f64>> = rows.f64("score").iter().collect();
    let is_within = rows.0.column_by_name("is_within").expect("a measurement has it").as_boolean();
    let passes = match run.plan().select.filters[position].filter.best() {
        None => is_within.values().iter().collect(),
        Some(best) => {
            let cut: Option<Cutoff> = run.stage_plan_if_present(&stage)?;
            let cut = cut.ok_or(Error::NotCommitted { stage: stage.name, task })?;
            let ranked = samples.iter().zip(&scores);
            let passes = ranked.map(|(sample, &score)| {
                let id = sample.id(&run.plan().pool);
                score.is_some() && cut.passes(rank_of(score, best.order), id.shard, id.sample_idx)
            });
            passes.collect()
        }
    };
    let texts = |name| rows.text(name).iter().map(|text| text.map(str::to_owned)).collect();
    Ok(Measurement {
        scores,
        duplicate_of: texts("duplicate_of"),
        parts: texts("part"),
        passes,
        samples,
        file,
    })
}

/// The samples of a task that came to a filter, in the order of the shards, and its score of each.
pub fn measured_scores(
    run: &RunFolder,
    position: usize,
    task: usize,
    files: &mut Vec<FileRecord>,
) -> Result<(Vec<SampleRef>, Vec<Option<f64>>), Error> {
    let (batch, samples, file) = read(run, position, task, &["shard", "sample_idx", "score"])?;
    files.push(file);
    Ok((samples, Rows(&batch).f64("score").iter().collect()))
}

/// The named columns (all, if none are named) of what a filter committed of a task.
fn read(
    run: &RunFolder,
    position: usize,
    task: usize,
    columns: &[&str],
) -> Result<(RecordBatch, Vec<SampleRef>, FileRecord), Error> {
    let marker = run.committed::<FilterCounts>(&run.filter(position, ""), task)?;
    let batch = table::read(run.run(), marker.file(), columns)?;
    let samples = SampleRef::of_rows(&Rows(&batch), &run.plan().pool)?;
    Ok((batch, samples, marker.file().clone()))
}

/// The samples of a task that come to a filter, with the files that say so.
pub fn reaching(
    run: &RunFolder,
    position: usize,
    task: usize,
) -> Result<(Vec<SampleRef>, FileRecord), Error> {
    match position.checked_sub(1) {
        None => scored_samples(run, task),
        Some(before) => {
            let measured = measurement(run, before, task)?;
            Ok((measured.passing(), measured.file))
        }
    }
}

/// Fixes where the best of the pool end, if the filter keeps the best.
pub fn plan_cutoff(run: &RunFolder, position: usize, tasks: &[usize]) -> Result<(), Error> {
    let Some(best) = run.plan().select.filters[position].filter.best() else { return Ok(()) };
    run.stage_plan(&run.filter(position, ""), || {
        let (mut n_reaching, mut n_scored) = (0, 0);
        for &task in tasks {
            let counts = run.committed_counts::<FilterCounts>(&run.filter(position, ""), task)?;
            n_reaching += counts.reaching;
            n_scored += counts.scored;
        }
        let of = match best.of {
            FractionOf::Reaching => n_reaching,
            FractionOf::Pool => n_scored,
        };
        let wanted = best.filter_ratio.kept(of);
        let shard_of = |sample: SampleRef| sample.id(&run.plan().pool).shard.to_owned();
        let mut found = cutoffs(&[wanted], shard_of, |take| {
            for &task in tasks {
                let (samples, scores) = measured_scores(run, position, task, &mut Vec::new())?;
                for (sample, score) in samples.into_iter().zip(scores) {
                    take(Ranked { group: 0, rank: rank_of(score, best.order), sample });
                }
            }
            Ok(())
        })?;
        Ok(found.pop().expect("one cut"))
    })?;
    Ok(())
}

/// What a filter found of one sample.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub score: Option<f64>,
    /// Whether it is within the filter's bounds; a filter that keeps the best of the pool says so of every sample.
    pub is_within: bool,
    /// `shard:key` of the sample that it duplicates.
    pub duplicate_of: Option<String>,
    /// Which part of the filter takes it out: the evaluation set that it is too close to.
    pub part: Option<String>,
}

/// What every task of a filter takes.
pub struct Measurer {
    position: usize,
    /// What groups found of the samples, on its way back to the shards.
    found: Vec<Source>,
    targets: Option<Targets>,
}

impl Measurer {
    pub fn open(run: &RunFolder, position: usize, found: Vec<Source>) -> Result<Measurer, Error> {
        let targets = Targets::open(run, &run.plan().select.filters[position].filter)?;
        Ok(Measurer { position, found, targets })
    }

    /// Measures and commits one task.
    pub fn commit(&self, run: &RunFolder, task: usize) -> Result<(), Error> {
        let (samples, file) = reaching(run, self.position, task)?;
        let mut read = vec![file];
        let found = self.measure(run, task, &samples, &mut read)?;
        assert_eq!(found.len(), samples.len(), "a filter measures every sample that comes to it");
        let stage = run.filter(self.position, "");
        let table = found_table(run, &samples, &found);
        let file = run.put_table(&stage, task, &exchange::file_name(&stage, task), &table, &[])?;
        let scored = run.committed_counts::<ScoreCounts>(&run.score("select.score"), task)?.scored;
        let counts = FilterCounts { reaching: samples.len() as u64, scored };
        run.commit(&stage, task, Done::new(vec![file], read, counts))?;
        Ok(())
    }

    fn measure(
        &self,
        run: &RunFolder,
        task: usize,
        samples: &[SampleRef],
        read: &mut Vec<FileRecord>,
    ) -> Result<Vec<Found>, Error> {
        let by_column = |column: &str, keep: &Keep, read: &mut Vec<FileRecord>| {
            Ok(bounded(read_column(run, task, column, samples, read)?, keep))
        };
        match &run.plan().select.filters[self.position].filter {
            Filter::Metadata(filter) => {
                let columns = ["caption", "width", "height", "json"];
                let (table, file) = read_sample_columns(run, task, samples, &columns)?;
                read.push(file);
                let columns = Rows(&table);
                let (widths, heights) = (columns.u32("width"), columns.u32("height"));
                let (captions, jsons) = (columns.text("caption"), columns.text("json"));
                let is_within = |row: usize| {
                    let caption = captions.is_valid(row).then(|| captions.value(row));
                    let json = jsons.is_valid(row).then(|| jsons.value(row));
                    fits_size(filter, widths.value(row), heights.value(row))
                        && fits_texts(filter, caption, json)
                };
                let found = |row| Found { is_within: is_within(row), ..Found::default() };
                Ok((0..samples.len()).map(found).collect())
            }
            Filter::Threshold(filter) => by_column(&filter.by, &filter.keep, read),
            Filter::ClipScore(filter) => {
                let column = match filter.model {
                    ModelRole::Learner => "learner_similarity",
                    _ => "reference_similarity",
                };
                by_column(column, &filter.keep, read)
            }
            Filter::NormSim(filter) => {
                let targets = self.targets.as_ref().expect("opened with the filter");
                Ok(bounded(targets.norms(run, task, samples, read)?, &filter.keep))
            }
            Filter::Decontaminate(filter) => {
                let targets = self.targets.as_ref().expect("opened with the filter");
                let nearest = targets.nearest(run, task, samples, read)?;
                Ok(nearest.into_iter().map(|nearest| nearest.found(filter.similarity_max)).collect())
            }
            Filter::NegClipLoss(filter) => {
                let found = self.found_by_groups(run, task, samples, read)?;
                let scores = found.into_iter().map(|found| found.score).collect();
                Ok(bounded(scores, &filter.keep))
            }
            Filter::Semdedup(_) => self.found_by_groups(run, task, samples, read),
        }
    }

    /// What the groups found, in the order of the task's samples.
    fn found_by_groups(
        &self,
        run: &RunFolder,
        task: usize,
        samples: &[SampleRef],
        read: &mut Vec<FileRecord>,
    ) -> Result<Vec<Found>, Error> {
        let of_task = self.found.iter().filter(|source| source.index.n_rows(task) > 0);
        read.extend(of_task.map(|source| source.file.clone()));
        let Some(batch) = exchange::read_target(run.run(), &self.found, task)? else { return Ok(Vec::new()) };
        let rows = Rows(&batch);
        let is_within = batch.column_by_name("is_within").expect("a measurement has it").as_boolean();
        let mut found: Vec<(SampleRef, Found)> = SampleRef::of_rows(&rows, &run.plan().pool)?
            .into_iter()
            .enumerate()
            .map(|(row, sample)| {
                let scores = rows.f64("score");
                let duplicates = rows.text("duplicate_of");
                let found = Found {
                    score: scores.is_valid(row).then(|| scores.value(row)),
                    is_within: is_within.value(row),
                    duplicate_of: duplicates.is_valid(row).then(|| duplicates.value(row).to_owned()),
                    part: None,
                };
                (sample, found)
            })
            .collect();
        found.sort_unstable_by_key(|(sample, _)| *sample);
        assert!(
            found.iter().map(|(sample, _)| sample).eq(samples),
            "every sample of task {task} is in one group"
        );
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }
}

/// Scores against the bounds; a sample without a score is within none.
fn bounded(scores: Vec<Option<f64>>, keep: &Keep) -> Vec<Found> {
    let is_within = |score: f64| match keep {
        Keep::Min(bound) => score >= bound.min,
        Keep::Max(bound) => score <= bound.max,
        Keep::Best(_) => true,
    };
    let found =
        |score: Option<f64>| Found { score, is_within: score.is_some_and(is_within), ..Found::default() };
    scores.into_iter().map(found).collect()
}

/// What a filter found, a row a sample.
pub fn found_table(run: &RunFolder, samples: &[SampleRef], found: &[Found]) -> RecordBatch {
    let ids = || samples.iter().map(|sample| sample.id(&run.plan().pool));
    let is_within: BooleanArray = found.iter().map(|found| Some(found.is_within)).collect();
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .f64("score", found.iter().map(|found| found.score))
        .array("is_within", Arc::new(is_within))
        .text("duplicate_of", found.iter().map(|found| found.duplicate_of.as_ref()))
        .text("part", found.iter().map(|found| found.part.as_ref()));
    columns.build()
}
