//! The writing end of the stage: an embedded task in; `samples/` and `embeddings/` files and their markers out.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::rejection::Rejection;
use crate::run_folder::{Done, RunFolder, Stage};
use crate::sample::SampleRef;
use crate::storage;
use crate::table::{self, Columns};

use super::decoded::SampleRow;
use super::feed::{ShardRead, TaskWork};
use super::infer::{InferredRows, Worker};
use super::values::ModelRows;

/// Counts of one task of `samples/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplesCounts {
    pub shards: Vec<ShardCounts>,
}

/// Counts of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardCounts {
    pub shard: String,
    /// Samples of the shard, rejected ones included.
    pub read: u64,
    /// By the text of the rejection.
    pub rejected: BTreeMap<String, u64>,
    /// Bytes of the images of the samples that were not rejected.
    pub image_bytes: u64,
    /// Seconds since 1970.
    pub start_secs: f64,
    pub end_secs: f64,
    /// Of the shard as it was read.
    pub modified_ns: u64,
    pub fingerprint: Digest,
}

impl SamplesCounts {
    pub fn n_read(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read).sum()
    }

    pub fn n_rejected(&self) -> u64 {
        self.shards.iter().map(ShardCounts::n_rejected).sum()
    }

    /// Bytes of the images of the samples that were not rejected.
    pub fn image_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.image_bytes).sum()
    }
}

impl ShardCounts {
    pub fn n_rejected(&self) -> u64 {
        self.rejected.values().sum()
    }
}

/// Counts of one task of `embeddings/<model digest>/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingsCounts {
    /// Samples that were not rejected when they were read.
    pub rows: u64,
    /// Those that the model has nothing for, by the text of the rejection; their rows are null.
    pub rejected: BTreeMap<String, u64>,
}

/// A task with everything that its files hold.
pub struct EmbeddedTask {
    pub work: TaskWork,
    pub reads: Vec<ShardRead>,
    /// All samples, with the position of their shard in the pool.
    rows: Vec<(usize, SampleRow)>,
    /// One for each of `work.models`.
    models: Vec<TaskRows>,
}

/// One model's rows of a task, one for each sample that was not rejected when it was read.
struct TaskRows {
    rows: ModelRows,
    rejections: Vec<Option<Rejection>>,
    /// The fewest that went through the model at once: fewer than asked where a GPU's memory did not do.
    rows_at_once: usize,
    numerics: BTreeMap<String, String>,
}

impl EmbeddedTask {
    /// `models` has one for each of `work.models`.
    pub fn new(work: TaskWork, models: Vec<ModelFacts>) -> EmbeddedTask {
        let models = models.into_iter().map(|facts| TaskRows {
            rows: facts.no_rows,
            rejections: Vec::new(),
            rows_at_once: usize::MAX,
            numerics: facts.numerics,
        });
        EmbeddedTask { work, reads: Vec::new(), rows: Vec::new(), models: models.collect() }
    }

    /// Takes the next samples of one shard.
    pub fn push_rows(&mut self, shard_idx: usize, rows: Vec<SampleRow>) {
        self.rows.extend(rows.into_iter().map(|row| (shard_idx, row)));
    }

    /// Takes what the task's models made of the next samples that were not rejected, one for each model; returns how
    /// many samples they are of.
    pub fn push_embeddings(&mut self, inferred: &[InferredRows]) -> usize {
        assert_eq!(inferred.len(), self.models.len(), "rows of every model of the task");
        for (rows, inferred) in self.models.iter_mut().zip(inferred) {
            for piece in &inferred.pieces {
                rows.rows.append(&piece.outputs);
                rows.rejections.extend(&piece.rejections);
            }
            rows.rows_at_once = rows.rows_at_once.min(inferred.rows_at_once);
        }
        inferred[0].pieces.iter().map(|piece| piece.rejections.len()).sum()
    }
}

impl TaskRows {
    /// What the embeddings depend on beside the model and its inputs.
    fn numerics(&self) -> BTreeMap<String, String> {
        let mut numerics = self.numerics.clone();
        if self.rows_at_once < usize::MAX {
            numerics.insert("rows_at_once".to_owned(), self.rows_at_once.to_string());
        }
        numerics
    }
}

/// What is known of a model before it embeds.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Of the model's kind and width.
    no_rows: ModelRows,
    /// See [`LoadedModel::numerics`](super::LoadedModel::numerics).
    numerics: BTreeMap<String, String>,
}

impl ModelFacts {
    /// Of each model that the workers have; where GPUs differ all are named.
    pub fn of_workers(workers: &[Worker]) -> Vec<ModelFacts> {
        let of_model = |model_idx: usize| {
            let mut numerics: BTreeMap<String, String> = BTreeMap::new();
            for worker in workers {
                for (key, value) in worker.models[model_idx].numerics() {
                    let known = numerics.entry(key).or_insert_with(|| value.clone());
                    if !known.split(" + ").any(|part| part == value) {
                        *known = format!("{known} + {value}");
                    }
                }
            }
            ModelFacts { no_rows: workers[0].models[model_idx].no_rows(), numerics }
        };
        (0..workers[0].models.len()).map(of_model).collect()
    }
}

/// Writes and commits what the task's work asks for.
pub fn write_task(run: &RunFolder, stages: &[Stage], task: &EmbeddedTask) -> Result<(), Error> {
    let task_idx = task.work.task;
    let counts = samples_counts(run, task);
    let samples = run.samples();
    if task.work.needs_samples {
        let file = run.put_table(
            &samples,
            task_idx,
            &format!("samples/{task_idx:05}.parquet"),
            &samples_table(run, &task.rows),
            &[("samples_digest", samples.digest.to_string())],
        )?;
        run.commit(&samples, task_idx, Done::new(vec![file], Vec::new(), counts))?;
    } else {
        // the same bytes under the same limits give the same samples
        let committed = run.committed::<SamplesCounts>(&samples, task_idx)?.counts;
        if (committed.n_read(), committed.n_rejected()) != (counts.n_read(), counts.n_rejected()) {
            let shard = run.plan().pool.shards_of(task_idx)[0].id.clone();
            return Err(Error::NotReproduced { shard });
        }
    }
    let embedded = task.rows.iter().filter(|(_, row)| row.rejection.is_none());
    let embedded: Vec<(usize, u64)> = embedded.map(|(shard_idx, row)| (*shard_idx, row.sample_idx)).collect();
    for (rows, &model) in task.models.iter().zip(&task.work.models) {
        assert_eq!(rows.rejections.len(), embedded.len(), "every sample that was not rejected is embedded");
        write_embeddings(run, &stages[model], task_idx, &embedded, rows)?;
    }
    Ok(())
}

fn write_embeddings(
    run: &RunFolder,
    stage: &Stage,
    task: usize,
    samples: &[(usize, u64)],
    rows: &TaskRows,
) -> Result<(), Error> {
    let folder = run.storage(stage);
    let shards = &run.plan().pool.shards;
    // embeddings may differ between kinds of hardware: two attempts never share a name
    let name = format!("{}/{task:05}-{}.parquet", stage.name, storage::attempt());
    let mut columns = Columns::default();
    columns
        .text("shard", samples.iter().map(|(shard_idx, _)| Some(&shards[*shard_idx].id)))
        .u64("sample_idx", samples.iter().map(|(_, sample_idx)| Some(*sample_idx)));
    rows.rows.add_columns(&mut columns, &rows.rejections, run.plan().embed.embedding_dtype);
    let numerics = rows.numerics();
    let json = serde_json::to_string(&numerics).expect("numerics are representable as JSON");
    let metadata = [("embeddings_digest", stage.digest.to_string()), ("numerics", json)];
    let file = table::write(folder, &name, &columns.build(), &metadata)?;
    let mut rejected = BTreeMap::new();
    for rejection in rows.rejections.iter().flatten() {
        *rejected.entry(rejection.text().to_owned()).or_default() += 1;
    }
    let counts = EmbeddingsCounts { rows: samples.len() as u64, rejected };
    let done = Done { data: vec![file], read: Vec::new(), counts, numerics };
    if !run.commit(stage, task, done)? {
        folder.remove(&name)?; // another attempt was first
    }
    Ok(())
}

/// Writes and commits embeddings that no model of this run made.
pub fn write_given(
    run: &RunFolder,
    stage: &Stage,
    task: usize,
    samples: &[SampleRef],
    rows: ModelRows,
    rejections: Vec<Option<Rejection>>,
) -> Result<(), Error> {
    let ids: Vec<(usize, u64)> =
        samples.iter().map(|sample| (sample.shard_idx as usize, sample.sample_idx)).collect();
    let rows = TaskRows { rows, rejections, rows_at_once: usize::MAX, numerics: BTreeMap::new() };
    write_embeddings(run, stage, task, &ids, &rows)
}

fn samples_table(run: &RunFolder, rows: &[(usize, SampleRow)]) -> RecordBatch {
    let shards = &run.plan().pool.shards;
    let samples = || rows.iter().map(|(_, row)| row);
    let mut columns = Columns::default();
    columns
        .text("key", samples().map(|row| Some(&row.key)))
        .text("shard", rows.iter().map(|(shard_idx, _)| Some(&shards[*shard_idx].id)))
        .u64("sample_idx", samples().map(|row| Some(row.sample_idx)))
        .text("uid", samples().map(|row| row.uid.as_ref()))
        .text("caption", samples().map(|row| row.caption.as_ref()))
        .u32("label", samples().map(|row| row.label))
        .u32("width", samples().map(|row| row.width))
        .u32("height", samples().map(|row| row.height))
        .u64("image_offset", samples().map(|row| row.image_offset))
        .u64("image_size", samples().map(|row| row.image_offset.map(|_| row.image_size)))
        .text("json", samples().map(|row| row.json.as_ref()))
        .text("rejection", samples().map(|row| row.rejection.map(Rejection::text)));
    columns.build()
}

fn samples_counts(run: &RunFolder, task: &EmbeddedTask) -> SamplesCounts {
    let pool = &run.plan().pool;
    let first = pool.first_shard_idx(task.work.task);
    let shards = pool.shards_of(task.work.task).iter().zip(&task.reads);
    let mut counts: Vec<ShardCounts> = shards
        .map(|(shard, read)| ShardCounts {
            shard: shard.id.clone(),
            read: 0,
            rejected: BTreeMap::new(),
            image_bytes: 0,
            start_secs: read.start_secs,
            end_secs: read.end_secs,
            modified_ns: shard.modified_ns,
            fingerprint: read.fingerprint.clone(),
        })
        .collect();
    for (shard_idx, row) in &task.rows {
        let counts = &mut counts[shard_idx - first];
        counts.read += 1;
        match row.rejection {
            Some(rejection) => *counts.rejected.entry(rejection.text().to_owned()).or_default() += 1,
            None => counts.image_bytes += row.image_size,
        }
    }
    SamplesCounts { shards: counts }
}
