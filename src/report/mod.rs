//! Everything committed in, `report.json` and `report.html` out: what was kept, what it is like, and what it cost.

mod summary;
mod planted;
mod inference;
mod facts;
mod chart;
mod html;

use crate::error::Error;
use crate::executor::Executor;
use crate::run_folder::{Done, RunFolder};

pub use summary::{Counts, Report, taken_out};

const JSON: &str = "report.json";
const HTML: &str = "report.html";

/// Writes the report unless it is there, and returns it.
pub fn run(run: &RunFolder, executor: &Executor) -> Result<Report, Error> {
    let stage = run.report();
    executor.run(run, &stage, &[0], 1, |_| {
        let report = Report::of(run)?;
        let text = serde_json::to_vec_pretty(&report).expect("a report is representable as JSON");
        let page = html::page(&report, run.plan());
        let files =
            vec![run.put_bytes(&stage, 0, JSON, &text)?, run.put_bytes(&stage, 0, HTML, page.as_bytes())?];
        run.commit(&stage, 0, Done::new(files, Vec::new(), report.counts.read))?;
        Ok(())
    })?;
    committed(run)?.ok_or_else(|| Error::NotCommitted { stage: stage.name.clone(), task: 0 })
}

/// The report, if it is written.
pub fn committed(run: &RunFolder) -> Result<Option<Report>, Error> {
    let Some(marker) = run.marker::<u64>(&run.report(), 0)? else { return Ok(None) };
    let bytes = run.run().read_recorded(&marker.data[0])?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Json { path: run.run().path(JSON), source })
}

/// Where the product is: the curated shards, then the report.
pub fn output_paths(run: &RunFolder) -> Result<Vec<String>, Error> {
    let mut paths = Vec::new();
    for (_, marker) in run.markers_in(&run.write("write"))? {
        paths.extend(marker.data.iter().map(|file| run.run().path(&file.name).display().to_string()));
    }
    paths.push(run.run().path(HTML).display().to_string());
    Ok(paths)
}
