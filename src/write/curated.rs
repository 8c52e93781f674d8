//! The gathered rows of one output shard in, `curated/NNNNN.parquet` out.

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::EnabledStatistics;
use parquet::schema::types::ColumnPath;

use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::{Done, RunFolder};
use crate::select::table_metadata;
use crate::storage::PendingFile;
use crate::table::{self, Rows};

use super::distil::TARGETS;
use super::gather::{POSITION, without_position};
use super::output_plan::{OutputPlan, row_bytes};

/// What tells Hugging Face `datasets` that the column is an image and not a struct.
const HUGGING_FACE_FEATURES: &str = r#"{"info": {"features": {"image": {"_type": "Image"}}}}"#;

/// The file of an output shard.
pub fn name(shard_idx: usize) -> String {
    format!("curated/{shard_idx:05}.parquet")
}

/// Writes and commits one output shard.
pub fn commit(
    run: &RunFolder,
    outputs: &OutputPlan,
    sources: &[Source],
    shard_idx: usize,
) -> Result<(), Error> {
    let shard = outputs.shards[shard_idx];
    let batches = exchange::target_batches(run.run(), sources, shard_idx).collect::<Result<Vec<_>, _>>()?;
    let mut order: Vec<(u64, usize, usize)> = Vec::new();
    for (batch_idx, batch) in batches.iter().enumerate() {
        let positions = Rows(batch).u64(POSITION).values().iter().enumerate();
        order.extend(positions.map(|(row, &position)| (position, batch_idx, row)));
    }
    order.sort_unstable();
    let positions = order.iter().map(|(position, ..)| *position);
    assert!(positions.eq(shard.start..shard.end), "an output shard holds every position once");

    let batches: Vec<RecordBatch> = batches.iter().map(without_position).collect();
    let stage = run.write("write");
    let file = run.put(&stage, shard_idx, write(run, &name(shard_idx), &batches, &order)?)?;
    let used = sources.iter().filter(|source| source.index.n_rows(shard_idx) > 0);
    let read = used.map(|source| source.file.clone()).collect();
    run.commit(&stage, shard_idx, Done::new(vec![file], read, order.len() as u64))?;
    Ok(())
}

/// Writes the rows in this order, a row group at a time.
fn write(
    run: &RunFolder,
    name: &str,
    batches: &[RecordBatch],
    order: &[(u64, usize, usize)],
) -> Result<PendingFile, Error> {
    let mut description = table_metadata(run, &run.plan().digests.up_to_write());
    if run.plan().write.images {
        description.push(("huggingface", HUGGING_FACE_FEATURES.to_owned()));
    }
    let image = ColumnPath::new(vec!["image".to_owned(), "bytes".to_owned()]);
    let mut properties = table::properties();
    for target in TARGETS {
        // f16 by streams of bytes is what DuckDB cannot read
        let values = ColumnPath::new([target, "list", "item"].map(str::to_owned).to_vec());
        properties = properties
            .set_column_encoding(values.clone(), Encoding::PLAIN)
            .set_column_dictionary_enabled(values, false);
    }
    let properties = properties
        .set_key_value_metadata(Some(table::key_values(&description)))
        // images are compressed already
        .set_column_encoding(image.clone(), Encoding::PLAIN)
        .set_column_dictionary_enabled(image.clone(), false)
        .set_column_compression(image.clone(), Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(image, EnabledStatistics::None)
        .set_max_row_group_row_count(None)
        .build();
    let batches: Vec<RecordBatch> =
        batches.iter().map(|batch| table::described(batch, &description)).collect();
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    let storage = run.run();
    let parquet_error = |source| Error::WriteParquet { path: storage.path(name), source };
    let mut writer = ArrowWriter::try_new(storage.create(name)?, batches[0].schema(), Some(properties))
        .map_err(parquet_error)?;
    for group in row_groups(&batches, order, row_bytes(run.plan()), run.plan().write.row_group_bytes_max) {
        let rows: Vec<(usize, usize)> = group.iter().map(|&(_, batch_idx, row)| (batch_idx, row)).collect();
        let rows = interleave_record_batch(&batches, &rows).map_err(|error| parquet_error(error.into()))?;
        writer.write(&rows).map_err(parquet_error)?;
        writer.flush().map_err(parquet_error)?;
    }
    writer.into_inner().map_err(parquet_error)
}

/// Adjacent rows whose images are together no larger than the limit, at least one row each.
fn row_groups<'o>(
    batches: &[&RecordBatch],
    order: &'o [(u64, usize, usize)],
    row_bytes: u64,
    bytes_max: u64,
) -> Vec<&'o [(u64, usize, usize)]> {
    let images = batches.iter().map(|batch| {
        batch.column_by_name("image").map(|image| image.as_struct().column(0).as_binary::<i32>())
    });
    let images: Vec<_> = images.collect();
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (position, &(_, batch_idx, row)) in order.iter().enumerate() {
        let row_bytes = row_bytes + images[batch_idx].map_or(0, |images| images.value_length(row) as u64);
        if position > start && bytes + row_bytes > bytes_max {
            groups.push(&order[start..position]);
            (start, bytes) = (position, 0);
        }
        bytes += row_bytes;
    }
    groups.push(&order[start..]);
    groups
}
