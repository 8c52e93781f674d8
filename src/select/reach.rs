//! Every filter's verdict on a task's samples in; which of them come to the draw, and what took the others out, out.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};

use crate::divide::read_divided;
use crate::error::Error;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::filter::{Measurement, measurement};
use super::scored::scored_samples;
use super::verdict::VerdictCounts;

/// Counts of one task of `select.filter`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachCounts {
    /// Samples that come to the draw.
    pub reaching: u64,
    /// The same by cluster; empty without clusters.
    pub clusters: BTreeMap<u32, u64>,
    /// Samples that were taken out, by what took them out.
    pub filtered: BTreeMap<String, u64>,
}

/// The counts of a task.
pub fn reach_counts(run: &RunFolder, task: usize) -> Result<ReachCounts, Error> {
    run.committed_counts(&run.filtered(), task)
}

/// The samples of a task that come to the draw, in the order of the shards, and the file that says so.
pub fn read_reaching(run: &RunFolder, task: usize) -> Result<(Vec<SampleRef>, FileRecord), Error> {
    let marker = run.committed::<ReachCounts>(&run.filtered(), task)?;
    Ok((not_removed(run, marker.file())?, marker.file().clone()))
}

/// The same by the task's verdicts, which stay when files between steps are cleaned away.
pub fn decided_reaching(run: &RunFolder, task: usize) -> Result<Vec<SampleRef>, Error> {
    not_removed(run, run.committed::<VerdictCounts>(&run.select("select"), task)?.file())
}

/// The samples of a table that no filter took out.
fn not_removed(run: &RunFolder, file: &FileRecord) -> Result<Vec<SampleRef>, Error> {
    let table = table::read(run.run(), file, &["shard", "sample_idx", "removed_by"])?;
    let rows = Rows(&table);
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?.into_iter();
    let reaching = samples.zip(rows.text("removed_by")).filter(|(_, removed_by)| removed_by.is_none());
    Ok(reaching.map(|(sample, _)| sample).collect())
}

/// A task's samples after the filters.
pub struct Reached {
    /// All scored samples, in the order of the shards.
    pub samples: Vec<SampleRef>,
    /// What took each out; nothing if it comes to the draw.
    removed_by: StringArray,
    /// `removed_by`, `duplicate_of` and the score of each filter.
    pub table: RecordBatch,
    pub file: FileRecord,
}

impl Reached {
    /// The samples that come to the draw.
    pub fn reaching(&self) -> Vec<SampleRef> {
        let of_row = |row: usize| self.removed_by.is_null(row).then(|| self.samples[row]);
        (0..self.samples.len()).filter_map(of_row).collect()
    }
}

/// What `select.filter` committed of a task.
pub fn read_reached(run: &RunFolder, task: usize) -> Result<Reached, Error> {
    let marker = run.committed::<ReachCounts>(&run.filtered(), task)?;
    let table = table::read(run.run(), marker.file(), &[])?;
    let rows = Rows(&table);
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let removed_by = rows.text("removed_by").clone();
    Ok(Reached { samples, removed_by, table, file: marker.file().clone() })
}

/// Joins and commits one task.
pub fn commit(run: &RunFolder, task: usize) -> Result<(), Error> {
    let plan = run.plan();
    let (samples, file) = scored_samples(run, task)?;
    let mut read = vec![file];
    let mut removed_by: Vec<Option<String>> = vec![None; samples.len()];
    let mut duplicate_of: Vec<Option<String>> = vec![None; samples.len()];
    let mut scores = Vec::with_capacity(plan.select.filters.len());
    for (position, filter) in plan.select.filters.iter().enumerate() {
        let measured = measurement(run, position, task)?;
        read.push(measured.file.clone());
        let rows: Vec<Option<usize>> = samples.iter().map(|sample| measured.row(*sample)).collect();
        for (sample_row, row) in rows.iter().enumerate() {
            let Some(row) = row.filter(|&row| !measured.passes[row]) else { continue };
            removed_by[sample_row] = Some(removal(&filter.name, &measured, row));
            duplicate_of[sample_row].clone_from(&measured.duplicate_of[row]);
        }
        let column: Vec<Option<f64>> = rows.iter().map(|row| measured.scores[(*row)?]).collect();
        scores.push((&filter.name, column));
    }
    let mut counts = ReachCounts { reaching: 0, clusters: BTreeMap::new(), filtered: BTreeMap::new() };
    let divided = plan.divide.as_ref().map(|_| read_divided(run, task, &[])).transpose()?;
    for (sample, removed_by) in samples.iter().zip(&removed_by) {
        match removed_by {
            Some(removed_by) => *counts.filtered.entry(removed_by.clone()).or_default() += 1,
            None => {
                counts.reaching += 1;
                if let Some(divided) = &divided {
                    *counts.clusters.entry(divided.cluster(*sample)).or_default() += 1;
                }
            }
        }
    }
    read.extend(divided.map(|divided| divided.file));
    let ids = || samples.iter().map(|sample| sample.id(&plan.pool));
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .array("removed_by", Arc::new(removed_by.into_iter().collect::<StringArray>()))
        .array("duplicate_of", Arc::new(duplicate_of.into_iter().collect::<StringArray>()));
    for (name, column) in scores {
        columns.f64(name, column);
    }
    let stage = run.filtered();
    let name = crate::exchange::file_name(&stage, task);
    let file = run.put_table(&stage, task, &name, &columns.build(), &[])?;
    run.commit(&stage, task, Done::new(vec![file], read, counts))?;
    Ok(())
}

/// What a verdict says of a sample that a filter took out: the filter's name, and which part of it, if it has parts.
fn removal(filter: &str, measured: &Measurement, row: usize) -> String {
    match &measured.parts[row] {
        Some(part) => format!("{filter}.{part}"),
        None => filter.to_owned(),
    }
}
