//! Runs the tasks of a stage on this machine: those without a marker, some at a time, with retries.
//!
//! An executor knows tasks by their numbers and nothing of what they do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::progress::Progress;
use crate::run_folder::{RunFolder, Stage};

/// Attempts at a task whose input or output failed.
const N_ATTEMPTS: usize = 3;

/// How often a process looks whether others have committed what it waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A part of a stage's tasks, for job arrays: those whose number leaves the remainder `part` by `n_parts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub part: usize,
    pub n_parts: usize,
}

impl Part {
    pub const WHOLE: Part = Part { part: 0, n_parts: 1 };

    pub fn holds(self, task: usize) -> bool {
        task % self.n_parts == self.part
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    /// `I/N`, from `0/N` to `N-1/N`.
    fn from_str(text: &str) -> Result<Part, String> {
        let parse = || {
            let (part, n_parts) = text.split_once('/')?;
            Some(Part { part: part.parse().ok()?, n_parts: n_parts.parse().ok()? })
        };
        match parse() {
            Some(part) if part.part < part.n_parts => Ok(part),
            _ => Err("expected `I/N` with I from 0 to N-1".to_owned()),
        }
    }
}

/// How tasks are run.
#[derive(Clone, Copy, Debug)]
pub struct Executor {
    pub part: Part,
    /// Tasks at once, where a stage's tasks do not share out the processors themselves.
    pub n_threads: usize,
    /// What a task may hold whose bytes do not depend on it; other sizes were fitted to it with the plan.
    pub memory_limit_bytes: u64,
    /// How long to wait for the tasks of other parts without any being committed.
    pub wait: Duration,
}

impl Executor {
    /// How many tasks that hold so many bytes each are done at once: as many as there are threads and as the memory limit has
    /// room for, at least one.
    pub fn n_fitting(&self, task_bytes: u64) -> usize {
        (self.memory_limit_bytes / task_bytes.max(1)).clamp(1, self.n_threads as u64) as usize
    }

    /// Which of a stage's tasks are this process's to do.
    pub fn todo(&self, run: &RunFolder, stage: &Stage, tasks: &[usize]) -> Result<Vec<usize>, Error> {
        let own: Vec<usize> = tasks.iter().copied().filter(|&task| self.part.holds(task)).collect();
        run.undone(stage, &own)
    }

    /// Does every undone task of a stage, `n_at_once` at a time, and waits for those of other parts.
    pub fn run(
        &self,
        run: &RunFolder,
        stage: &Stage,
        tasks: &[usize],
        n_at_once: usize,
        work: impl Fn(usize) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let todo = self.todo(run, stage, tasks)?;
        if !todo.is_empty() {
            let progress = Progress::tasks(&stage.name, tasks.len(), tasks.len() - todo.len());
            let next = AtomicUsize::new(0);
            let failed = AtomicBool::new(false);
            let first_error = Mutex::new(None);
            std::thread::scope(|scope| {
                for _ in 0..n_at_once.clamp(1, todo.len()) {
                    scope.spawn(|| {
                        while !failed.load(Ordering::Relaxed) {
                            let Some(&task) = todo.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                            match with_retries(&stage.name, task, || work(task)) {
                                Ok(()) => progress.add(1),
                                Err(error) => {
                                    failed.store(true, Ordering::Relaxed);
                                    first_error.lock().expect("no holder panics").get_or_insert(error);
                                }
                            }
                        }
                    });
                }
            });
            if let Some(error) = first_error.into_inner().expect("no holder panics") {
                return Err(error);
            }
            progress.finish();
        }
        self.wait_for_others(run, stage, tasks)
    }

    /// Waits as long as markers of other parts keep coming.
    pub fn wait_for_others(&self, run: &RunFolder, stage: &Stage, tasks: &[usize]) -> Result<(), Error> {
        let mut missing = run.undone(stage, tasks)?;
        let mut last_change = Instant::now();
        while !missing.is_empty() {
            if last_change.elapsed() > self.wait {
                return Err(Error::OtherParts { stage: stage.name.clone(), n_missing: missing.len() });
            }
            std::thread::sleep(POLL_INTERVAL);
            let still = run.undone(stage, &missing)?;
            if still.len() < missing.len() {
                last_change = Instant::now();
                missing = still;
            }
        }
        Ok(())
    }
}

/// Repeats what failed for reasons that may pass: input and output, never settings or damaged files.
pub fn with_retries<T>(stage: &str, task: usize, work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    let mut attempt = 1;
    loop {
        match work() {
            Err(error) if error.may_pass() && attempt < N_ATTEMPTS => {
                tracing::warn!(stage, task, attempt, %error, "task failed; trying again");
                attempt += 1;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_at_once_fit_into_the_memory() {
        let executor =
            Executor { part: Part::WHOLE, n_threads: 8, memory_limit_bytes: 1000, wait: Duration::ZERO };
        assert_eq!(
            [0, 100, 125, 126, 500, 501, 5000].map(|bytes| executor.n_fitting(bytes)),
            [8, 8, 8, 7, 2, 1, 1]
        );
    }
}
