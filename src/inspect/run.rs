//! A run folder in; what it is to do, what it has done and what came of it, out.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;
use crate::report::{self, Counts};
use crate::run_folder::RunFolder;
use crate::status::Status;

#[derive(Debug, Serialize)]
pub struct Run {
    path: PathBuf,
    method: &'static str,
    filter_ratio: String,
    /// The same for people.
    #[serde(skip)]
    draw: String,
    seed: u64,
    pool_root: PathBuf,
    n_shards: usize,
    /// Of a run whose report is written.
    counts: Option<Counts>,
    status: Status,
}

impl Run {
    pub fn read(run: &RunFolder) -> Result<Run, Error> {
        let plan = run.plan();
        Ok(Run {
            path: run.run().root().to_owned(),
            method: plan.select.draw.name(),
            filter_ratio: plan.select.draw.filter_ratio().to_string(),
            draw: plan.select.draw.title(),
            seed: plan.seed,
            pool_root: plan.pool.root.clone(),
            n_shards: plan.pool.shards.len(),
            counts: report::committed(run)?.map(|report| report.counts),
            status: Status::of(run)?,
        })
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: run of {}, seed {}\npool of {} shards below {}",
            self.path.display(),
            self.draw,
            self.seed,
            self.n_shards,
            self.pool_root.display()
        );
        if let Some(counts) = &self.counts {
            let _ = write!(text, "\n{}", counts.sentence());
            for (rejection, n) in &counts.rejected {
                let _ = write!(text, "\n  {n} {rejection}");
            }
        }
        let _ = write!(text, "\n\n{}", self.status.text());
        text
    }
}
