//! Progress of a long stage: a bar on a terminal, a log line at its start and end otherwise.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a long stage says where it is when there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How far a stage is.
pub struct Progress {
    bar: ProgressBar,
    stage: String,
    unit: &'static str,
    start: Instant,
    last_log: Mutex<Instant>,
}

impl Progress {
    /// Counts the tasks of a stage, `n_done` of which an earlier run has done.
    pub fn tasks(stage: &str, n_tasks: usize, n_done: usize) -> Progress {
        Progress::new(stage, "tasks", n_tasks as u64, n_done as u64)
    }

    /// Counts bytes of the pool.
    pub fn bytes(stage: &str, n_bytes: u64, n_done: u64) -> Progress {
        Progress::new(stage, "bytes", n_bytes, n_done)
    }

    fn new(stage: &str, unit: &'static str, total: u64, n_done: u64) -> Progress {
        let is_shown = std::io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let counts = match unit {
            "bytes" => "{bytes}/{total_bytes} {bytes_per_sec}",
            _ => "{pos}/{len} tasks {per_sec}",
        };
        let template = format!("{{prefix:15}} {{wide_bar}} {counts} {{msg}} {{eta}} left");
        let style = ProgressStyle::with_template(&template).expect("the template is well formed");
        let bar = ProgressBar::with_draw_target(Some(total), target)
            .with_style(style)
            .with_prefix(stage.to_owned())
            .with_position(n_done);
        bar.reset_eta();
        tracing::debug!(stage, unit, total, done = n_done, "stage starts");
        Progress {
            bar,
            stage: stage.to_owned(),
            unit,
            start: Instant::now(),
            last_log: Mutex::new(Instant::now()),
        }
    }

    pub fn add(&self, n: u64) {
        self.bar.inc(n);
    }

    /// Shows a rate beside the bar, such as images a second.
    pub fn message(&self, message: String) {
        let mut last_log = self.last_log.lock().expect("no holder panics");
        if last_log.elapsed() >= LOG_INTERVAL && self.bar.is_hidden() {
            *last_log = Instant::now();
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            tracing::info!(stage = self.stage, unit = self.unit, done, total, message, "stage goes on");
        }
        self.bar.set_message(message);
    }

    pub fn elapsed_secs(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
        let secs = (self.elapsed_secs() * 1e3).round() / 1e3;
        tracing::info!(stage = self.stage, unit = self.unit, n = self.bar.position(), secs, "stage done");
    }
}
