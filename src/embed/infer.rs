//! Decoded samples in, their embeddings out in the same order: inference batches shared out to whichever set of
//! sessions is free, on every device.
//!
//! ```text
//! decoded blocks → cut ─┬─ jobs ──→ workers, a set of sessions each ─┐
//!                       └─ steps, with a place for each job's result ┴→ in order, by task
//! ```
//!
//! On the processor the rows of a batch go through in runs of [`CPU_ROWS_MAX`] and each worker has one thread where
//! memory allows it. Both decide speed alone: more rows at once push the activations out of the core's cache (a
//! small convolutional tower does 1,480 images a CPU-second with 4 to 8 rows and 840 with 64), and threads inside
//! an operator wait for each other.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::Error;
use crate::runtime::{Place, Provider, in_pieces};

use super::decoded::{DecodedSample, EmbeddedBatch, Encoders, ModelInputs, SampleRow, embed_batch};
use super::feed::{Event, ShardRead, TaskWork};
use super::loaded::LoadedModel;
use super::model::Model;
use super::session::SessionSettings;
use super::stage::InferenceSettings;

/// Samples of an inference batch where the settings do not say: enough for a GPU.
pub const DEFAULT_INFERENCE_BATCH_SIZE: usize = 64;

/// Rows that go through a graph at once on the processor.
pub const CPU_ROWS_MAX: usize = 8;

/// Sessions on a GPU: one computes while the inputs of the other are copied.
const SESSIONS_PER_GPU: usize = 2;

/// The share of the memory limit that weights may take on the processor.
const WEIGHTS_SHARE: u64 = 4;

/// A set of sessions: every model on one place.
pub struct Worker {
    pub place: Place,
    pub models: Vec<LoadedModel>,
    /// Rows that each model runs at once: fewer after the device's memory did not do.
    rows_max: Vec<usize>,
}

/// How many sets of sessions there are on each place, and their threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    pub n_sessions: usize,
    /// Inside one operator.
    pub n_threads: usize,
}

impl Sharing {
    /// Of `n_threads` on these places together, for models whose graph files have `graph_bytes` together.
    pub fn on(
        places: &[Place],
        n_threads: usize,
        graph_bytes: u64,
        inference: &InferenceSettings,
    ) -> Sharing {
        let n_threads = (n_threads / places.len()).max(1);
        let graph_bytes = graph_bytes * places.len() as u64;
        Sharing::of(
            places[0].provider,
            n_threads,
            graph_bytes,
            inference.memory_limit_bytes,
            inference.sessions,
        )
    }

    /// The same on one place. On the processor there are as many sessions as threads, unless their weights, twice for
    /// what the runtime prepares, would take more than a quarter of the memory limit.
    fn of(
        provider: Provider,
        n_threads: usize,
        graph_bytes: u64,
        memory_limit_bytes: u64,
        asked: Option<usize>,
    ) -> Sharing {
        let n_fitting = memory_limit_bytes / WEIGHTS_SHARE / (2 * graph_bytes).max(1);
        let n_sessions = match (asked, provider) {
            (Some(n), _) => n,
            (None, Provider::Cpu) => (n_fitting as usize).clamp(1, n_threads),
            (None, Provider::Cuda | Provider::TensorRt) => SESSIONS_PER_GPU,
        };
        Sharing {
            n_sessions,
            n_threads: if provider == Provider::Cpu { (n_threads / n_sessions).max(1) } else { 1 },
        }
    }
}

/// Rows that go through a graph at once.
pub fn rows_at_once(provider: Provider, inference_batch_size: usize) -> usize {
    match provider {
        Provider::Cpu => inference_batch_size.min(CPU_ROWS_MAX),
        Provider::Cuda | Provider::TensorRt => inference_batch_size,
    }
}

impl Worker {
    /// Opens every model on every place, as often as the place has sessions, all at once. `encoders` are the models'.
    pub fn open_all(
        models: &[Model],
        encoders: &Encoders,
        places: &[Place],
        sharing: Sharing,
        inference_batch_size: usize,
    ) -> Result<Vec<Worker>, Error> {
        let open = |place: Place| {
            let settings = SessionSettings { place, n_threads: sharing.n_threads };
            let rows = rows_at_once(place.provider, inference_batch_size);
            let loaded = models.iter().map(|model| LoadedModel::load(model.clone(), &settings));
            Ok(Worker {
                place,
                models: loaded.collect::<Result<_, Error>>()?,
                rows_max: vec![rows; models.len()],
            })
        };
        let mut workers: Vec<Worker> = std::thread::scope(|scope| {
            let opening: Vec<_> = (0..sharing.n_sessions)
                .flat_map(|_| places)
                .map(|&place| scope.spawn(move || open(place)))
                .collect();
            opening
                .into_iter()
                .map(|worker| worker.join().expect("opening does not panic"))
                .collect::<Result<_, Error>>()
        })?;
        let probe = encoders.probe()?;
        for model_idx in 0..models.len() {
            let sessions = workers.iter_mut().map(|worker| &mut worker.models[model_idx]);
            LoadedModel::share_padding(sessions, model_idx, &probe)?;
        }
        Ok(workers)
    }

    /// Does jobs until no more come.
    pub fn work(&mut self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = jobs.lock().expect("no holder panics").recv();
            let Ok(job) = job else { return };
            let mut inferred = Vec::with_capacity(job.models.len());
            let result = job.models.iter().try_for_each(|&model_idx| {
                inferred.push(self.run(model_idx, &job.inputs)?);
                Ok(())
            });
            // where nobody waits for it any more, the run is stopping
            let _ = job.reply.send(result.map(|()| inferred));
        }
    }

    fn run(&mut self, model_idx: usize, inputs: &[ModelInputs]) -> Result<InferredRows, Error> {
        let (model, rows_max) = (&mut self.models[model_idx], &mut self.rows_max[model_idx]);
        let embed = |rows: Range<usize>| embed_batch(model, model_idx, &inputs[rows]);
        let pieces = in_pieces(inputs.len(), rows_max, runtime_fault, embed)?;
        Ok(InferredRows { pieces, rows_at_once: *rows_max })
    }
}

fn runtime_fault(error: &Error) -> Option<&ort::Error> {
    match error {
        Error::Inference { source, .. } => Some(source),
        _ => None,
    }
}

/// Adjacent samples that some models are to embed.
pub struct Job {
    models: Vec<usize>,
    inputs: Vec<ModelInputs>,
    reply: SyncSender<Result<Vec<InferredRows>, Error>>,
}

/// One model's embeddings of a job's samples.
pub struct InferredRows {
    /// Of runs of adjacent samples, in order.
    pub pieces: Vec<EmbeddedBatch>,
    pub rows_at_once: usize,
}

/// What happens to a task on its way through the models, in the order of its samples.
pub enum Step {
    Start {
        work_idx: usize,
    },
    /// Samples of one shard.
    Rows {
        shard_idx: usize,
        rows: Vec<SampleRow>,
    },
    /// The embeddings of the next samples, by model of the task, once they are there.
    Inferred(Receiver<Result<Vec<InferredRows>, Error>>),
    End {
        reads: Vec<ShardRead>,
    },
    Failed {
        task: usize,
        error: Error,
    },
    Broken {
        error: Error,
    },
}

/// Cuts what is decoded into jobs: batches at fixed multiples from the start of each task, and runs of
/// `rows_at_once` inside a batch.
pub struct Cutter<'a> {
    pub work: &'a [TaskWork],
    pub inference_batch_size: usize,
    pub rows_at_once: usize,
}

/// The other end is gone: the run is stopping.
struct Stopped;

impl Cutter<'_> {
    /// Ends when the samples do, or when nobody takes the jobs.
    pub fn run(
        &self,
        decoded: &Receiver<Event<DecodedSample>>,
        jobs: &SyncSender<Job>,
        steps: &SyncSender<Step>,
    ) {
        let mut current = Cut { models: &[], waiting: Vec::new(), n_in_batch: 0 };
        for event in decoded {
            let cut = match event {
                Event::Start { work_idx } => {
                    current = Cut { models: &self.work[work_idx].models, waiting: Vec::new(), n_in_batch: 0 };
                    send(steps, Step::Start { work_idx })
                }
                Event::Samples(block) => {
                    let (rows, inputs): (Vec<_>, Vec<_>) =
                        block.samples.into_iter().map(|sample| (sample.row, sample.inputs)).unzip();
                    send(steps, Step::Rows { shard_idx: block.shard_idx, rows }).and_then(|()| {
                        inputs
                            .into_iter()
                            .flatten()
                            .try_for_each(|inputs| self.push(&mut current, inputs, jobs, steps))
                    })
                }
                Event::End { reads } => {
                    current.flush(jobs, steps).and_then(|()| send(steps, Step::End { reads }))
                }
                Event::Failed { task, error } => send(steps, Step::Failed { task, error }),
                Event::Broken { error } => send(steps, Step::Broken { error }),
            };
            if cut.is_err() {
                return;
            }
        }
    }

    fn push(
        &self,
        current: &mut Cut,
        inputs: ModelInputs,
        jobs: &SyncSender<Job>,
        steps: &SyncSender<Step>,
    ) -> Result<(), Stopped> {
        current.waiting.push(inputs);
        current.n_in_batch += 1;
        let is_batch_full = current.n_in_batch == self.inference_batch_size;
        if is_batch_full {
            current.n_in_batch = 0;
        }
        if is_batch_full || current.waiting.len() == self.rows_at_once {
            current.flush(jobs, steps)
        } else {
            Ok(())
        }
    }
}

/// A task that is being cut.
struct Cut<'a> {
    models: &'a [usize],
    waiting: Vec<ModelInputs>,
    /// Samples of the present inference batch, those that are on their way included.
    n_in_batch: usize,
}

impl Cut<'_> {
    fn flush(&mut self, jobs: &SyncSender<Job>, steps: &SyncSender<Step>) -> Result<(), Stopped> {
        let inputs = std::mem::take(&mut self.waiting);
        if inputs.is_empty() || self.models.is_empty() {
            return Ok(());
        }
        let (reply, result) = sync_channel(1);
        send(jobs, Job { models: self.models.to_vec(), inputs, reply })?;
        send(steps, Step::Inferred(result))
    }
}

fn send<T>(sender: &SyncSender<T>, value: T) -> Result<(), Stopped> {
    sender.send(value).map_err(|_| Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_fill_the_threads_as_far_as_memory_goes() {
        let gib = 1 << 30;
        let on_cpu = |n_threads, graph_bytes, asked| {
            Sharing::of(Provider::Cpu, n_threads, graph_bytes, 8 * gib, asked)
        };
        assert_eq!(on_cpu(16, gib / 100, None), Sharing { n_sessions: 16, n_threads: 1 });
        // 2 GiB for weights, 1 GiB a session
        assert_eq!(on_cpu(16, gib / 2, None), Sharing { n_sessions: 2, n_threads: 8 });
        assert_eq!(on_cpu(16, 100 * gib, None), Sharing { n_sessions: 1, n_threads: 16 });
        assert_eq!(on_cpu(2, 1, Some(4)), Sharing { n_sessions: 4, n_threads: 1 });
        assert_eq!(Sharing::of(Provider::Cuda, 16, gib, gib, None), Sharing { n_sessions: 2, n_threads: 1 });
    }
}
