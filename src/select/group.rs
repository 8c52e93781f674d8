//! The tasks or the partition of a dealing group in; its samples with all that their draw looks at out.

use arrow::array::RecordBatch;

use crate::error::Error;
use crate::exchange;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::{Draw, ScoreKind, SuperBatchMethod};
use crate::storage::FileRecord;
use crate::table::{Columns, Rows};

use super::column::read_column;
use super::draw_plan::{Dealt, Group, Members};
use super::reach::read_reaching;
use super::usable::{ScoredModels, read_scored};

/// Samples that come to a draw.
#[derive(Default)]
pub struct GroupRows {
    pub samples: Vec<SampleRef>,
    pub models: ScoredModels,
    /// The log-weight of each where the draw takes it from a column, higher is better; minus infinity without one.
    pub weights: Option<Vec<f64>>,
    /// The files that the rows came from.
    pub read: Vec<FileRecord>,
}

impl GroupRows {
    /// The samples at these rows.
    pub fn gather(&self, rows: &[usize]) -> GroupRows {
        GroupRows {
            samples: rows.iter().map(|&row| self.samples[row]).collect(),
            models: self.models.gather(rows),
            weights: self.weights.as_ref().map(|weights| rows.iter().map(|&row| weights[row]).collect()),
            read: Vec::new(),
        }
    }

    /// Adds the samples of another task after these.
    pub fn append(&mut self, other: GroupRows) {
        self.samples.extend(other.samples);
        self.models.append(&other.models);
        if let Some(weights) = other.weights {
            self.weights.get_or_insert_default().extend(weights);
        }
        self.read.extend(other.read);
    }

    /// As a table of the exchange.
    pub fn table(&self, run: &RunFolder) -> RecordBatch {
        let ids = || self.samples.iter().map(|sample| sample.id(&run.plan().pool));
        let mut columns = Columns::default();
        columns
            .text("shard", ids().map(|id| Some(id.shard)))
            .u64("sample_idx", ids().map(|id| Some(id.sample_idx)));
        if let Some(weights) = &self.weights {
            columns.f64("weight", weights.iter().copied().map(Some));
        }
        self.models.add_columns(&mut columns, run.plan().embed.embedding_dtype);
        columns.build()
    }
}

/// Reads the rows of a group.
pub fn read_group(run: &RunFolder, group: &Group, dealt: Option<&Dealt>) -> Result<GroupRows, Error> {
    match &group.members {
        Members::Tasks(tasks) => {
            let mut all = GroupRows::default();
            for &task in tasks {
                all.append(read_task(run, task)?.0);
            }
            Ok(all)
        }
        Members::Partition { partition, cluster } => {
            let dealt = dealt.expect("partitions come from an exchange");
            let mut all = GroupRows::default();
            for batch in exchange::target_batches(run.run(), &dealt.sources, *partition) {
                let batch = batch?;
                let rows = Rows(&batch);
                all.append(GroupRows {
                    samples: SampleRef::of_rows(&rows, &run.plan().pool)?,
                    models: ScoredModels::of_rows(run, &rows, Some(*cluster))?,
                    weights: batch.column_by_name("weight").map(|_| rows.f64("weight").values().to_vec()),
                    read: Vec::new(),
                });
            }
            let used = dealt.sources.iter().filter(|source| source.index.n_rows(*partition) > 0);
            all.read = used.map(|source| source.file.clone()).collect();
            Ok(all)
        }
    }
}

/// A task's samples that come to the draw, and their clusters.
pub fn read_task(run: &RunFolder, task: usize) -> Result<(GroupRows, Option<Vec<u32>>), Error> {
    let (samples, file) = read_reaching(run, task)?;
    let (mut rows, clusters) = read_rows(run, task, samples)?;
    rows.read.push(file);
    Ok((rows, clusters))
}

/// The same of these samples of the task.
pub fn read_rows(
    run: &RunFolder,
    task: usize,
    samples: Vec<SampleRef>,
) -> Result<(GroupRows, Option<Vec<u32>>), Error> {
    let mut read = Vec::new();
    let (models, clusters) = read_scored(run, task, &samples, &mut read)?;
    let weights = read_weights(run, task, &samples, &mut read)?;
    Ok((GroupRows { models, samples, weights, read }, clusters))
}

/// The column that a draw is weighted by, signed so that higher is better.
fn read_weights(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
    read: &mut Vec<FileRecord>,
) -> Result<Option<Vec<f64>>, Error> {
    let Draw::InSuperBatches(draw) = &run.plan().select.draw else { return Ok(None) };
    let (column, sign) = match &draw.method {
        SuperBatchMethod::SoftCap(soft_cap) => (soft_cap.by.as_str(), 1.0),
        SuperBatchMethod::ClassAct(class_act) => match class_act.score {
            ScoreKind::Learnability => ("learnability", 1.0),
            ScoreKind::HardLearner => ("learner_loss", 1.0),
            ScoreKind::EasyReference => ("reference_loss", -1.0),
        },
        SuperBatchMethod::Jest(_)
        | SuperBatchMethod::ActiveClip(_)
        | SuperBatchMethod::FullLoss(_)
        | SuperBatchMethod::Random(_) => return Ok(None),
    };
    let values = read_column(run, task, column, samples, read)?;
    Ok(Some(values.into_iter().map(|value| value.map_or(f64::NEG_INFINITY, |value| sign * value)).collect()))
}
