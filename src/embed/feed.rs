//! The reading end of the stage: tasks in, blocks of samples out, in the order of the shards.

use std::sync::mpsc::SyncSender;
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::Error;
use crate::executor::with_retries;
use crate::plan::{Pool, Shard};
use crate::read::{ReadSample, ShardError, ShardSamples};
use crate::run_folder::RunFolder;
use crate::settings::ReadSettings;
use crate::storage::Storage;

/// A block is cut at this many samples or bytes, whichever comes first: what bounds the memory of the queues.
const BLOCK_SAMPLES_MAX: usize = 64;
const BLOCK_BYTES_MAX: usize = 64 << 20;

/// What an embed task still has to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskWork {
    pub task: usize,
    pub needs_samples: bool,
    /// Which of the models that this process runs.
    pub models: Vec<usize>,
}

/// What goes from thread to thread: a task's start, its samples, its end.
pub enum Event<S> {
    Start {
        work_idx: usize,
    },
    Samples(Block<S>),
    End {
        reads: Vec<ShardRead>,
    },
    /// The task's shards cannot be read.
    Failed {
        task: usize,
        error: Error,
    },
    /// The run cannot go on.
    Broken {
        error: Error,
    },
}

/// Adjacent samples of one shard.
pub struct Block<S> {
    /// Position of the shard in the pool.
    pub shard_idx: usize,
    pub samples: Vec<S>,
}

/// A shard that was read to its end: when, in seconds since 1970, and what it was.
#[derive(Clone, Debug)]
pub struct ShardRead {
    pub start_secs: f64,
    pub end_secs: f64,
    /// As [`Pool::fingerprint`] has it.
    pub fingerprint: Digest,
}

impl<S> Event<S> {
    pub fn map_block<T>(self, map: impl FnOnce(Block<S>) -> Result<Block<T>, Error>) -> Event<T> {
        match self {
            Event::Start { work_idx } => Event::Start { work_idx },
            Event::Samples(block) => map(block).map_or_else(|error| Event::Broken { error }, Event::Samples),
            Event::End { reads } => Event::End { reads },
            Event::Failed { task, error } => Event::Failed { task, error },
            Event::Broken { error } => Event::Broken { error },
        }
    }
}

/// The receiver is gone: the run is stopping.
struct Stopped;

/// Reads every task's shards; a task that fails is started again, and given up after its retries.
pub fn read_tasks(run: &RunFolder, work: &[TaskWork], sender: &SyncSender<Event<ReadSample>>) {
    let plan = run.plan();
    for (work_idx, work) in work.iter().enumerate() {
        let attempt = || {
            if sender.send(Event::Start { work_idx }).is_err() {
                return Ok(Err(Stopped));
            }
            read_task(&plan.pool, work.task, &plan.read, sender)
        };
        let event = match with_retries("embed", work.task, attempt) {
            Ok(Ok(reads)) => Event::End { reads },
            Ok(Err(Stopped)) => return,
            Err(error) => Event::Failed { task: work.task, error },
        };
        if sender.send(event).is_err() {
            return;
        }
    }
}

fn read_task(
    pool: &Pool,
    task: usize,
    read: &ReadSettings,
    sender: &SyncSender<Event<ReadSample>>,
) -> Result<Result<Vec<ShardRead>, Stopped>, Error> {
    let mut reads = Vec::new();
    for (position, shard) in pool.shards_of(task).iter().enumerate() {
        let shard_idx = pool.first_shard_idx(task) + position;
        let start_secs = now_secs();
        let mut block = Block { shard_idx, samples: Vec::new() };
        let mut block_bytes = 0;
        for sample in open_shard(pool, shard, read)? {
            let sample = sample.map_err(|source| Error::Shard { shard: shard.id.clone(), source })?;
            block_bytes += match &sample {
                ReadSample::Sample(sample) => sample.image.len(),
                ReadSample::Rejected(_) => 0,
            };
            block.samples.push(sample);
            if block.samples.len() == BLOCK_SAMPLES_MAX || block_bytes >= BLOCK_BYTES_MAX {
                let full = std::mem::replace(&mut block, Block { shard_idx, samples: Vec::new() });
                block_bytes = 0;
                if sender.send(Event::Samples(full)).is_err() {
                    return Ok(Err(Stopped));
                }
            }
        }
        if sender.send(Event::Samples(block)).is_err() {
            return Ok(Err(Stopped));
        }
        reads.push(ShardRead { start_secs, end_secs: now_secs(), fingerprint: pool.fingerprint(shard)? });
    }
    Ok(Ok(reads))
}

/// Opens a shard, if it is still the one that the plan saw.
pub fn open_shard(pool: &Pool, shard: &Shard, read: &ReadSettings) -> Result<ShardSamples, Error> {
    let storage = check_shard(pool, shard)?;
    let sidecar = match &shard.sidecar {
        Some(beside) if storage.guard(&beside.id)? != Some((beside.size_bytes, beside.modified_ns)) => {
            return Err(Error::ShardChanged { path: storage.path(&beside.id) });
        }
        Some(beside) => Some(storage.stream(&beside.id)?),
        None => None,
    };
    let file = storage.stream(&shard.id)?;
    ShardSamples::open(&shard.id, file, sidecar, &read.rules()).map_err(|error| match error {
        ShardError::Read(source) => Error::Shard { shard: shard.id.clone(), source },
        ShardError::NoColumn(source) => Error::ShardColumns { shard: shard.id.clone(), source },
    })
}

/// Where a shard lies, if it is still the one that the plan saw.
pub fn check_shard(pool: &Pool, shard: &Shard) -> Result<Storage, Error> {
    let storage = pool.storage();
    match storage.guard(&shard.id)? {
        Some(guard) if guard == (shard.size_bytes, shard.modified_ns) => Ok(storage),
        Some(_) => Err(Error::ShardChanged { path: storage.path(&shard.id) }),
        None => Err(Error::ShardMissing { path: storage.path(&shard.id) }),
    }
}

pub fn now_secs() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
