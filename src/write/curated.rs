//! The gathered rows of one output shard in, `curated/NNNNN.parquet` out.

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{sort_to_indices, take_record_batch};
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;
use parquet::schema::types::ColumnPath;

use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::{Done, RunFolder};
use crate::select::table_metadata;
use crate::table::{self, Rows};

use super::gather::{POSITION, without_position};
use super::output_plan::OutputPlan;

/// What tells Hugging Face `datasets` that the column is an image and not a struct.
const HUGGING_FACE_FEATURES: &str = r#"{"info": {"features": {"image": {"_type": "Image"}}}}"#;

/// Writes and commits one output shard.
pub fn commit(
    run: &RunFolder,
    outputs: &OutputPlan,
    sources: &[Source],
    shard_idx: usize,
) -> Result<(), Error> {
    let shard = outputs.shards[shard_idx];
    let rows = exchange::read_target(run.run(), sources, shard_idx)?.expect("an output shard has rows");
    let positions = Rows(&rows).u64(POSITION);
    let order = sort_to_indices(positions, None, None).expect("positions can be sorted");
    let rows = take_record_batch(&rows, &order).expect("the rows are there");
    let in_order = Rows(&rows).u64(POSITION).values().iter().copied();
    assert!(in_order.eq(shard.start..shard.end), "an output shard holds every position once");

    let stage = run.write("write");
    let file = write(run, &format!("curated/{shard_idx:05}.parquet"), &without_position(&rows))?;
    let used = sources.iter().filter(|source| source.index.n_rows(shard_idx) > 0);
    let read = used.map(|source| source.file.clone()).collect();
    run.commit(&stage, shard_idx, Done::new(vec![file], read, rows.num_rows() as u64))?;
    Ok(())
}

fn write(run: &RunFolder, name: &str, rows: &RecordBatch) -> Result<crate::storage::FileRecord, Error> {
    let mut entries = table_metadata(run);
    if run.plan().write.images {
        entries.push(("huggingface", HUGGING_FACE_FEATURES.to_owned()));
    }
    let rows = &table::described(rows, &entries);
    let image = ColumnPath::new(vec!["image".to_owned(), "bytes".to_owned()]);
    let properties = table::properties()
        .set_key_value_metadata(Some(table::key_values(&entries)))
        // images are compressed already
        .set_column_encoding(image.clone(), Encoding::PLAIN)
        .set_column_dictionary_enabled(image.clone(), false)
        .set_column_compression(image.clone(), parquet::basic::Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(image, parquet::file::properties::EnabledStatistics::None)
        .set_max_row_group_row_count(None)
        .build();
    let storage = run.run();
    let parquet_error = |source| Error::WriteParquet { path: storage.path(name), source };
    let mut writer = ArrowWriter::try_new(storage.create(name)?, rows.schema(), Some(properties))
        .map_err(parquet_error)?;
    let bytes_max = run.plan().write.row_group_bytes_max;
    for range in row_groups(rows, bytes_max) {
        writer.write(&rows.slice(range.start, range.len())).map_err(parquet_error)?;
        writer.flush().map_err(parquet_error)?;
    }
    writer.into_inner().map_err(parquet_error)?.commit()
}

/// Adjacent rows whose images are together no larger than the limit, at least one row each.
fn row_groups(rows: &RecordBatch, bytes_max: u64) -> Vec<std::ops::Range<usize>> {
    let images = rows.column_by_name("image").map(|image| image.as_struct().column(0).as_binary::<i32>());
    let row_bytes = |row: usize| 1024 + images.map_or(0, |images| images.value_length(row) as u64);
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for row in 0..rows.num_rows() {
        if row > start && bytes + row_bytes(row) > bytes_max {
            groups.push(start..row);
            (start, bytes) = (row, 0);
        }
        bytes += row_bytes(row);
    }
    if start < rows.num_rows() {
        groups.push(start..rows.num_rows());
    }
    groups
}
