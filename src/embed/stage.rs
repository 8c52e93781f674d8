//! The stage: tars in; `samples/` and, for every model, `embeddings/<model digest>/` out.
//!
//! Reading, decoding and inference run side by side with bounded queues between them, across the borders of tasks, so
//! that the models wait for no decoder:
//!
//! ```text
//! reader ─ blocks of samples → decoders (rayon) ─ decoded blocks → inference ─ embedded tasks → writer
//! ```
//!
//! Inference batches are cut at fixed multiples from the start of each task, so that they are the same in every run.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;

use crate::error::Error;
use crate::executor::Executor;
use crate::progress::Progress;
use crate::read::ReadSample;
use crate::run_folder::{RunFolder, Stage};
use crate::settings::ModelRole;

use super::decoded::{DecodedSample, Encoders, ModelInputs, rejections};
use super::feed::{self, Block, Event, TaskWork};
use super::loaded::LoadedModel;
use super::session::{Device, SessionSettings};
use super::writer::{EmbeddedTask, write_task};

/// Blocks that wait between two threads.
const BLOCKS_WAITING: usize = 2;

/// Where a task's shards could not be read, after its retries.
#[derive(Debug)]
pub struct FailedTask {
    pub task: usize,
    pub error: Error,
}

/// A model some of whose embeddings are to be made.
struct NeededModel {
    role: ModelRole,
    stage: Stage,
    /// Tasks without embeddings, in order.
    todo: Vec<usize>,
}

/// Does every undone embed task of this process's part, and returns those that failed.
pub fn run(run: &RunFolder, executor: &Executor, device: Device) -> Result<Vec<FailedTask>, Error> {
    let models = needed_models(run, executor)?;
    let work = undone_work(run, executor, &models)?;
    if work.is_empty() {
        return Ok(Vec::new());
    }
    let settings = SessionSettings { device, n_threads: executor.n_threads };
    let mut loaded = Vec::with_capacity(models.len());
    for model in &models {
        let planned = run.plan().models.get(model.role).expect("the plan names the model");
        loaded.push(LoadedModel::open(&planned.folder, planned.choice(), &settings)?);
    }
    let encoders = Encoders::new(loaded.iter().map(|loaded| &loaded.model), run.plan().read.limits.clone())?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(executor.n_threads)
        .build()
        .expect("threads of a pool can be started");
    let progress = Progress::bytes("embed", work.iter().map(|work| task_bytes(run, work.task)).sum(), 0);
    std::thread::scope(|scope| {
        let (read_sender, read_receiver) = sync_channel(BLOCKS_WAITING);
        let (decoded_sender, decoded_receiver) = sync_channel(BLOCKS_WAITING);
        let (embedded_sender, embedded_receiver) = sync_channel(1);
        let (pool, encoders, work, models, progress) = (&pool, &encoders, &work, &models, &progress);
        scope.spawn(move || feed::read_tasks(run, work, &read_sender));
        scope.spawn(move || decode_blocks(pool, encoders, &read_receiver, &decoded_sender));
        let writer = scope.spawn(move || write_tasks(run, models, progress, &embedded_receiver));
        let mut models = Inference { loaded: &mut loaded, encoders };
        let inferred = infer_tasks(run, work, &mut models, &decoded_receiver, &embedded_sender, progress);
        // with both ends dropped the other threads end, whether or not inference did its share
        drop((decoded_receiver, embedded_sender));
        let written = writer.join().expect("the writer does not panic");
        let failed = inferred?;
        written?;
        progress.finish();
        Ok(failed)
    })
}

fn task_bytes(run: &RunFolder, task: usize) -> u64 {
    run.plan().pool.shards_of(task).iter().map(|shard| shard.size_bytes).sum()
}

/// The models with undone tasks; one that is learner and reference at once is run once.
fn needed_models(run: &RunFolder, executor: &Executor) -> Result<Vec<NeededModel>, Error> {
    let mut needed: Vec<NeededModel> = Vec::new();
    for (role, _) in run.plan().models.iter() {
        let stage = run.embeddings(role).expect("the plan names the model");
        let todo = executor.todo(run, &stage, &run.plan().tasks_of(role))?;
        if !todo.is_empty() && needed.iter().all(|present| present.stage != stage) {
            needed.push(NeededModel { role, stage, todo });
        }
    }
    Ok(needed)
}

fn undone_work(run: &RunFolder, executor: &Executor, models: &[NeededModel]) -> Result<Vec<TaskWork>, Error> {
    let tasks: Vec<usize> = (0..run.plan().pool.n_tasks()).collect();
    let without_samples = executor.todo(run, &run.samples(), &tasks)?;
    let work = tasks.into_iter().map(|task| TaskWork {
        task,
        needs_samples: without_samples.binary_search(&task).is_ok(),
        models: (0..models.len()).filter(|&model| models[model].todo.binary_search(&task).is_ok()).collect(),
    });
    Ok(work.filter(|work| work.needs_samples || !work.models.is_empty()).collect())
}

fn decode_blocks(
    pool: &rayon::ThreadPool,
    encoders: &Encoders,
    receiver: &Receiver<Event<ReadSample>>,
    sender: &SyncSender<Event<DecodedSample>>,
) {
    for event in receiver {
        let event = event.map_block(|block: Block<ReadSample>| {
            let samples = pool.install(|| {
                block.samples.into_par_iter().map(|sample| encoders.decode(sample)).collect::<Result<_, _>>()
            });
            Ok(Block { shard_idx: block.shard_idx, samples: samples? })
        });
        if sender.send(event).is_err() {
            return; // inference stopped
        }
    }
}

/// Runs the models over what is decoded, task by task, and hands on each task that is complete.
fn infer_tasks(
    run: &RunFolder,
    work: &[TaskWork],
    models: &mut Inference,
    receiver: &Receiver<Event<DecodedSample>>,
    sender: &SyncSender<EmbeddedTask>,
    progress: &Progress,
) -> Result<Vec<FailedTask>, Error> {
    let batch_size = run.plan().embed.inference_batch_size;
    let mut failed = Vec::new();
    let mut n_embedded = 0;
    let mut current: Option<TaskInference> = None;
    for event in receiver {
        match event {
            Event::Start { work_idx } => current = Some(TaskInference::new(&work[work_idx], models.loaded)),
            Event::Samples(block) => {
                let inference = current.as_mut().expect("a task starts before its samples");
                for sample in block.samples {
                    inference.push(block.shard_idx, sample);
                    if inference.waiting.len() == batch_size {
                        n_embedded += inference.run_batch(models)?;
                        progress
                            .message(format!("{:.0} images/s", n_embedded as f64 / progress.elapsed_secs()));
                    }
                }
            }
            Event::End { times } => {
                let mut inference = current.take().expect("a task starts before it ends");
                n_embedded += inference.run_batch(models)?;
                inference.task.times = times;
                if sender.send(inference.task).is_err() {
                    break; // the writer failed and says why
                }
            }
            Event::Failed { task, error } => failed.push(FailedTask { task, error }),
            Event::Broken { error } => return Err(error),
        }
    }
    Ok(failed)
}

/// The models, and what prepares their batches.
struct Inference<'a> {
    loaded: &'a mut [LoadedModel],
    encoders: &'a Encoders,
}

/// One task on its way through the models.
struct TaskInference {
    task: EmbeddedTask,
    /// The inputs of the next inference batch.
    waiting: Vec<ModelInputs>,
}

impl TaskInference {
    fn new(work: &TaskWork, models: &[LoadedModel]) -> TaskInference {
        let rows = work.models.iter().map(|&model| models[model].no_rows());
        TaskInference { task: EmbeddedTask::new(work.clone(), rows), waiting: Vec::new() }
    }

    fn push(&mut self, shard_idx: usize, sample: DecodedSample) {
        let inputs = self.task.push(shard_idx, sample);
        self.waiting.extend(inputs);
    }

    /// Runs every model of the task over the waiting samples; returns how many they were.
    fn run_batch(&mut self, models: &mut Inference) -> Result<usize, Error> {
        let batch = std::mem::take(&mut self.waiting);
        if !batch.is_empty() {
            for (slot, model_idx) in self.task.work.models.clone().into_iter().enumerate() {
                let model = &mut models.loaded[model_idx];
                let outputs = model.towers.embed(&models.encoders.batch(model_idx, &batch))?;
                self.task.push_outputs(slot, &outputs, rejections(&outputs, &batch), model.numerics());
            }
        }
        Ok(batch.len())
    }
}

fn write_tasks(
    run: &RunFolder,
    models: &[NeededModel],
    progress: &Progress,
    receiver: &Receiver<EmbeddedTask>,
) -> Result<(), Error> {
    let stages: Vec<Stage> = models.iter().map(|model| model.stage.clone()).collect();
    for task in receiver {
        let n_bytes = task_bytes(run, task.work.task);
        write_task(run, &stages, task)?;
        progress.add(n_bytes);
    }
    Ok(())
}
