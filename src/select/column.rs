//! A column's name in, its values for some samples of a task out.

use arrow::array::{Array, AsArray, RecordBatch, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Float64Type};

use crate::divide::read_divided;
use crate::embed::SamplesCounts;
use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::storage::FileRecord;
use crate::table::{self, Rows};

use super::filter::measured_scores;
use super::scored::ScoreCounts;

/// The values of a column that samples have by themselves, or of a filter's score; `samples` are in the order of the
/// shards. Adds the files that were read to `read`.
pub fn read_column(
    run: &RunFolder,
    task: usize,
    column: &str,
    samples: &[SampleRef],
    read: &mut Vec<FileRecord>,
) -> Result<Vec<Option<f64>>, Error> {
    let filters = &run.plan().select.filters;
    if let Some(position) = filters.iter().position(|filter| filter.name == column) {
        let (measured, scores) = measured_scores(run, position, task, read)?;
        let score = |sample: &SampleRef| measured.binary_search(sample).ok().and_then(|row| scores[row]);
        return Ok(samples.iter().map(score).collect());
    }
    let marker = run.committed::<ScoreCounts>(&run.score("select.score"), task)?;
    let scored = table::read(run.run(), marker.file(), &["shard", "sample_idx", column])?;
    if let Some(values) = numbers(&scored, column) {
        read.push(marker.file().clone());
        let all = SampleRef::of_rows(&Rows(&scored), &run.plan().pool)?;
        let row = |sample: &SampleRef| all.binary_search(sample).expect("a scored sample");
        return Ok(samples.iter().map(row).map(|row| values[row]).collect());
    }
    let divided = read_divided(run, task, &[column])?;
    let values = numbers(&divided.table, column).expect("the settings name columns that there are");
    read.push(divided.file.clone());
    Ok(samples.iter().map(|sample| values[divided.row(*sample)]).collect())
}

/// The named columns of `samples/` for some samples of a task, a row each in their order, and the file that they are in.
pub fn read_sample_columns(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
    columns: &[&str],
) -> Result<(RecordBatch, FileRecord), Error> {
    let marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
    let columns = [&["shard", "sample_idx"], columns].concat();
    let table = table::read(run.storage(&run.samples()), marker.file(), &columns)?;
    let all = SampleRef::of_rows(&Rows(&table), &run.plan().pool)?;
    let row = |sample| all.binary_search(sample).expect("a scored sample was read") as u64;
    let rows = UInt64Array::from_iter_values(samples.iter().map(row));
    Ok((take_record_batch(&table, &rows).expect("the rows are there"), marker.file().clone()))
}

fn numbers(table: &RecordBatch, column: &str) -> Option<Vec<Option<f64>>> {
    let values = cast(table.column_by_name(column)?, &DataType::Float64).expect("a number");
    let values = values.as_primitive::<Float64Type>();
    Some((0..values.len()).map(|row| values.is_valid(row).then(|| values.value(row))).collect())
}
