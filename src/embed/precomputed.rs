//! Embeddings that were made before in, `samples/` and `embeddings/` as if a model had made them, out. By task.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::Error;
use crate::executor::{Executor, with_retries};
use crate::matrix::Matrix;
use crate::npy::NpyError;
use crate::plan::{PlannedVectors, VectorFiles};
use crate::read::ReadSample;
use crate::rejection::Rejection;
use crate::run_folder::{RunFolder, Stage};
use crate::sample::SampleRef;
use crate::table::{self, Rows};

use super::decoded::{DecodedSample, Encoders};
use super::feed::{ShardRead, TaskWork, now_secs, open_shard};
use super::stage::FailedTask;
use super::tower::{BatchOutputs, Embeddings, PairEmbeddings, unit_rows};
use super::values::ModelRows;
use super::writer::{EmbeddedTask, SamplesCounts, write_given, write_task};

/// Samples that are decoded at once.
const BLOCK_SAMPLES: usize = 64;

/// Rows of embeddings that are read at once.
const ROWS_READ: usize = 1024;

/// Makes `samples/` where no model runs that would make it on its way.
pub fn read_samples(run: &RunFolder, executor: &Executor) -> Result<Vec<FailedTask>, Error> {
    let tasks: Vec<usize> = (0..run.plan().pool.n_tasks()).collect();
    let read = &run.plan().read;
    let encoders = Encoders::new([], read.limits.clone())?.within(&read.bounds);
    let mut failed = Vec::new();
    for task in executor.todo(run, &run.samples(), &tasks)? {
        match with_retries("embed", task, || read_task(run, task, &encoders)) {
            Ok(read) => with_retries("embed", task, || write_task(run, &[], &read))?,
            Err(error) => failed.push(FailedTask { task, error }),
        }
    }
    Ok(failed)
}

fn read_task(run: &RunFolder, task: usize, encoders: &Encoders) -> Result<EmbeddedTask, Error> {
    let pool = &run.plan().pool;
    let work = TaskWork { task, needs_samples: true, models: Vec::new() };
    let mut read = EmbeddedTask::new(work, Vec::new());
    for (position, shard) in pool.shards_of(task).iter().enumerate() {
        let start_secs = now_secs();
        let mut samples = open_shard(pool, shard, &run.plan().read)?;
        loop {
            let block: Vec<ReadSample> = samples
                .by_ref()
                .take(BLOCK_SAMPLES)
                .collect::<Result<_, _>>()
                .map_err(|source| Error::Shard { shard: shard.id.clone(), source })?;
            if block.is_empty() {
                break;
            }
            let decoded: Vec<DecodedSample> =
                block.into_par_iter().map(|sample| encoders.decode(sample)).collect::<Result<_, _>>()?;
            let rows = decoded.into_iter().map(|sample| sample.row).collect();
            read.push_rows(pool.first_shard_idx(task) + position, rows);
        }
        let fingerprint = pool.fingerprint(shard)?;
        read.reads.push(ShardRead { start_secs, end_secs: now_secs(), fingerprint });
    }
    Ok(read)
}

/// Embeds a task's committed samples with what the files hold for them.
///
/// # Errors
///
/// A file with more or fewer rows than its shard has samples, or of another width.
///
/// # Memory
///
/// The task's embeddings.
pub fn embed_task(
    run: &RunFolder,
    stage: &Stage,
    vectors: &PlannedVectors,
    embedding_dim: usize,
    task: usize,
) -> Result<(), Error> {
    let marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
    let columns = ["shard", "sample_idx", "rejection"];
    let table = table::read(run.storage(&run.samples()), marker.file(), &columns)?;
    let rejections = Rows(&table).text("rejection").clone();
    let all = SampleRef::of_rows(&Rows(&table), &run.plan().pool)?;
    let samples: Vec<SampleRef> = all
        .into_iter()
        .zip(rejections.iter())
        .filter(|(_, rejection)| rejection.is_none())
        .map(|(sample, _)| sample)
        .collect();
    let counts: BTreeMap<&str, u64> =
        marker.counts.shards.iter().map(|shard| (shard.shard.as_str(), shard.read)).collect();
    let rows_of =
        |tower: &VectorFiles| rows_of_task(run, task, tower, &samples, &counts, embedding_dim).map(unit_rows);
    let outputs = match (&vectors.image, &vectors.text) {
        (Some(image), Some(text)) => {
            BatchOutputs::Pairs(PairEmbeddings { image: rows_of(image)?, text: rows_of(text)? })
        }
        (Some(image), None) => BatchOutputs::Images(rows_of(image)?),
        (None, Some(text)) => BatchOutputs::Captions(rows_of(text)?),
        (None, None) => panic!("checked with the settings"),
    };
    let mut rejections = vec![None; samples.len()];
    let mut reject = |embeddings: &Embeddings| {
        embeddings.degenerate.iter().for_each(|&row| rejections[row] = Some(Rejection::DegenerateEmbedding));
    };
    match &outputs {
        BatchOutputs::Pairs(pairs) => [&pairs.image, &pairs.text].into_iter().for_each(&mut reject),
        BatchOutputs::Images(rows) | BatchOutputs::Captions(rows) => reject(rows),
        BatchOutputs::Logits(_) => {}
    }
    let mut rows = ModelRows::zeros(vectors.kind(), 0, embedding_dim);
    rows.append(&outputs);
    write_given(run, stage, task, &samples, rows, rejections)
}

/// One tower's rows of the samples that were not rejected, in their order.
fn rows_of_task(
    run: &RunFolder,
    task: usize,
    tower: &VectorFiles,
    samples: &[SampleRef],
    counts: &BTreeMap<&str, u64>,
    embedding_dim: usize,
) -> Result<Matrix, Error> {
    let pool = &run.plan().pool;
    let mut taken = Matrix::zeros(0, embedding_dim);
    for (position, shard) in pool.shards_of(task).iter().enumerate() {
        let shard_idx = pool.first_shard_idx(task) + position;
        let wanted: Vec<u64> = samples
            .iter()
            .filter(|sample| sample.shard_idx as usize == shard_idx)
            .map(|sample| sample.sample_idx)
            .collect();
        let file = &tower.files[shard_idx];
        let n_samples = counts.get(shard.id.as_str()).copied().unwrap_or(0);
        let n_rows = file.read(tower.array.as_deref(), |rows| {
            if rows.n_cols() != embedding_dim {
                return Err(NpyError::Width { found: rows.n_cols(), expected: embedding_dim });
            }
            let n_rows = rows.n_rows();
            let (mut first, mut next) = (0, 0);
            while n_rows == n_samples && first < n_rows {
                let block = rows.next_rows(ROWS_READ)?;
                let end = first + block.n_rows() as u64;
                while next < wanted.len() && wanted[next] < end {
                    taken.push_row(block.row((wanted[next] - first) as usize));
                    next += 1;
                }
                first = end;
            }
            Ok(n_rows)
        })?;
        if n_rows != n_samples {
            let (path, shard) = (file.path.clone(), shard.id.clone());
            return Err(Error::VectorRows { path, n_rows, shard, n_samples });
        }
    }
    Ok(taken)
}
