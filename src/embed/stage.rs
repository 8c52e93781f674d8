//! The stage: tars in; `samples/` and, for every model, `embeddings/<model digest>/` out.
//!
//! Reading, decoding and inference run side by side with bounded queues between them, across the borders of tasks, so
//! that the models wait for no decoder:
//!
//! ```text
//! reader ─ blocks of samples → decoders (rayon) ─ decoded blocks → inference ─ embedded tasks → writer
//! ```
//!
//! One pool of decoders serves all devices. Inference batches are cut at fixed multiples from the start of each task, so
//! that they are the same in every run, and embeddings go back into the order of the shard, so that the files are the
//! same for any number of devices and sessions.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;

use crate::error::Error;
use crate::executor::{Executor, with_retries};
use crate::plan::{PlannedModel, PlannedVectors};
use crate::progress::Progress;
use crate::read::ReadSample;
use crate::run_folder::{RunFolder, Stage};
use crate::runtime::{Device, Place};
use crate::settings::ModelRole;

use super::decoded::{DecodedSample, Encoders};
use super::feed::{self, Block, Event, TaskWork};
use super::infer::{Cutter, Sharing, Step, Worker, rows_at_once};
use super::model::Model;
use super::precomputed;
use super::writer::{EmbeddedTask, ModelFacts, write_task};

/// Blocks that wait between two threads.
const BLOCKS_WAITING: usize = 2;

/// What inference may use of this machine; nothing of it changes what an embedding means.
#[derive(Clone, Copy, Debug)]
pub struct InferenceSettings {
    pub device: Device,
    /// Sets of sessions on each device; absent: as many as threads and memory have room for.
    pub sessions: Option<usize>,
    /// Weights take a quarter of it at most, unless `sessions` says otherwise.
    pub memory_limit_bytes: u64,
}

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

impl NeededModel {
    /// The embeddings that were made before, if it has any.
    fn vectors<'a>(&self, run: &'a RunFolder) -> Option<&'a PlannedVectors> {
        run.plan().models.get(self.role).expect("the plan names the model").vectors.as_ref()
    }
}

/// Does every undone embed task of this process's part, and returns those that failed.
pub fn run(
    run: &RunFolder,
    executor: &Executor,
    settings: &InferenceSettings,
) -> Result<Vec<FailedTask>, Error> {
    let (given, needed): (Vec<NeededModel>, Vec<NeededModel>) =
        needed_models(run, executor)?.into_iter().partition(|model| model.vectors(run).is_some());
    let mut failed = match needed.is_empty() {
        true => precomputed::read_samples(run, executor)?,
        false => run_models(run, executor, settings, needed)?,
    };
    for model in &given {
        let vectors = model.vectors(run).expect("it was just found to have them");
        let embedding_dim =
            run.plan().models.get(model.role).expect("the plan names the model").embedding_dim;
        // what could not be read is left out of every model
        for &task in &model.todo {
            if failed.iter().any(|failed| failed.task == task) {
                continue;
            }
            let embed = || precomputed::embed_task(run, &model.stage, vectors, embedding_dim, task);
            if let Err(error) = with_retries("embed", task, embed) {
                failed.push(FailedTask { task, error });
            }
        }
    }
    Ok(failed)
}

/// Reads, decodes and embeds with models that run.
fn run_models(
    run: &RunFolder,
    executor: &Executor,
    settings: &InferenceSettings,
    needed: Vec<NeededModel>,
) -> Result<Vec<FailedTask>, Error> {
    let work = undone_work(run, executor, &needed)?;
    if work.is_empty() {
        return Ok(Vec::new());
    }
    let mut models = Vec::with_capacity(needed.len());
    for model in &needed {
        let planned = run.plan().models.get(model.role).expect("the plan names the model");
        let opened = Model::open(&planned.folder, planned.choice())?;
        if PlannedModel::digest_of(&opened, &run.plan().embed) != planned.digest {
            return Err(Error::ModelChanged { folder: planned.folder.clone() });
        }
        models.push(opened);
    }
    let read = &run.plan().read;
    let encoders = Encoders::new(&models, read.limits.clone())?.within(&read.bounds);
    let mut workers = open_workers(run, executor, settings, &models, &encoders)?;
    let facts = ModelFacts::of_workers(&workers);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(executor.n_threads)
        .build()
        .expect("threads of a pool can be started");
    let progress = Progress::bytes("embed", work.iter().map(|work| task_bytes(run, work.task)).sum(), 0);
    let (read_sender, read_receiver) = sync_channel(BLOCKS_WAITING);
    let (decoded_sender, decoded_receiver) = sync_channel(BLOCKS_WAITING);
    let (job_sender, job_receiver) = sync_channel(workers.len());
    let (step_sender, step_receiver) = sync_channel(4 * workers.len());
    let (embedded_sender, embedded_receiver) = sync_channel(1);
    let job_receiver = Mutex::new(job_receiver);
    let inference_batch_size = run.plan().embed.inference_batch_size;
    let rows_at_once = rows_at_once(workers[0].place.provider, inference_batch_size);
    std::thread::scope(|scope| {
        let (pool, encoders, work, needed) = (&pool, &encoders, &work, &needed);
        let (progress, job_receiver) = (&progress, &job_receiver);
        // each thread owns its ends of the channels, so that one that stops stops those around it
        scope.spawn(move || feed::read_tasks(run, work, &read_sender));
        scope.spawn(move || decode_blocks(pool, encoders, &read_receiver, &decoded_sender));
        scope.spawn(move || {
            let cutter = Cutter { work, inference_batch_size, rows_at_once };
            cutter.run(&decoded_receiver, &job_sender, &step_sender);
        });
        for worker in &mut workers {
            scope.spawn(move || worker.work(job_receiver));
        }
        let writer = scope.spawn(move || write_tasks(run, needed, progress, &embedded_receiver));
        let assembled = assemble_tasks(work, &facts, &step_receiver, &embedded_sender, progress);
        // with both ends dropped the other threads end, whether or not all was done
        drop((step_receiver, embedded_sender));
        let written = writer.join().expect("the writer does not panic");
        let failed = assembled?;
        written?;
        progress.finish();
        Ok(failed)
    })
}

/// A set of sessions for each device, or several, as its threads and the memory limit have room for.
fn open_workers(
    run: &RunFolder,
    executor: &Executor,
    settings: &InferenceSettings,
    models: &[Model],
    encoders: &Encoders,
) -> Result<Vec<Worker>, Error> {
    let places = settings.device.places()?;
    let graph_bytes = models.iter().map(|model| model.graph_bytes).sum();
    let sharing = Sharing::on(&places, executor.n_threads, graph_bytes, settings);
    let shown: Vec<String> = places.iter().map(Place::to_string).collect();
    tracing::info!(
        devices = shown.join(" "),
        sessions_a_device = sharing.n_sessions,
        threads_a_session = sharing.n_threads,
        "inference"
    );
    Worker::open_all(models, encoders, &places, sharing, run.plan().embed.inference_batch_size)
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

/// Puts embeddings beside their samples, task by task, and hands on each task that is complete.
fn assemble_tasks(
    work: &[TaskWork],
    models: &[ModelFacts],
    receiver: &Receiver<Step>,
    sender: &SyncSender<EmbeddedTask>,
    progress: &Progress,
) -> Result<Vec<FailedTask>, Error> {
    let mut failed = Vec::new();
    let mut n_embedded = 0;
    let mut current: Option<EmbeddedTask> = None;
    const STARTED: &str = "a task starts before its samples";
    for step in receiver {
        match step {
            Step::Start { work_idx } => {
                let work = &work[work_idx];
                let facts = work.models.iter().map(|&model| models[model].clone());
                current = Some(EmbeddedTask::new(work.clone(), facts.collect()));
            }
            Step::Rows { shard_idx, rows } => current.as_mut().expect(STARTED).push_rows(shard_idx, rows),
            Step::Inferred(result) => {
                let inferred = result.recv().expect("a worker answers each job")?;
                let task = current.as_mut().expect(STARTED);
                n_embedded += task.push_embeddings(&inferred);
                progress.message(format!("{:.0} images/s", n_embedded as f64 / progress.elapsed_secs()));
            }
            Step::End { reads } => {
                let mut task = current.take().expect(STARTED);
                task.reads = reads;
                if sender.send(task).is_err() {
                    break; // the writer failed and says why
                }
            }
            Step::Failed { task, error } => failed.push(FailedTask { task, error }),
            Step::Broken { error } => return Err(error),
        }
    }
    let secs = progress.elapsed_secs();
    tracing::info!(n_embedded, secs, "embedded");
    Ok(failed)
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
        with_retries("embed", task.work.task, || write_task(run, &stages, &task))?;
        progress.add(n_bytes);
    }
    Ok(())
}
