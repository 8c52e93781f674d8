//! A task's verdicts and its tars in; the rows of its kept samples, on their way to output shards, out.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BooleanArray, RecordBatch, StringArray, StructArray, UInt64Array};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::embed::{SamplesCounts, open_shard};
use crate::error::Error;
use crate::exchange::{BUFFERED_BYTES_MAX, ExchangeWriter, Index};
use crate::read::ReadSample;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::select::VerdictCounts;
use crate::settings::SampleContents;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::distil;
use super::output_plan::OutputPlan;

/// The column by which rows are sorted in the output; it is in no curated shard.
pub const POSITION: &str = "position";

/// Columns of `samples/` that curated shards add to those of `select/`.
const SAMPLE_COLUMNS: [&str; 8] =
    ["uid", "caption", "label", "width", "height", "image_offset", "image_size", "json"];

/// Bytes of images that wait for their rows to be handed on.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// What a task holds at most beside its rows without images.
pub const HELD_BYTES_MAX: u64 = (WAITING_BYTES_MAX + BUFFERED_BYTES_MAX) as u64;

/// Counts of one task of `write.gather`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherCounts {
    pub kept: u64,
    pub index: Index,
}

/// Gathers and commits one task.
pub fn commit(run: &RunFolder, outputs: &OutputPlan, task: usize) -> Result<(), Error> {
    let select_marker = run.committed::<VerdictCounts>(&run.select("select"), task)?;
    let verdicts = table::read(run.run(), select_marker.file(), &[])?;
    let samples_marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
    let samples = table::read(run.storage(&run.samples()), samples_marker.file(), &[])?;

    let mut read = vec![select_marker.file().clone(), samples_marker.file().clone()];
    let kept = kept_rows(run, outputs, task, &verdicts, &samples, &mut read)?;
    let stage = run.write("write.gather");
    let schema = with_images(&kept.slice(0, 0), &[]).schema();
    let schema = if run.plan().write.images { schema } else { kept.schema() };
    let mut writer = ExchangeWriter::new(run, &stage, task, schema)?;
    if run.plan().write.images && run.plan().read.samples == SampleContents::Text {
        push(outputs, &with_images(&kept, &[]), &mut writer)?;
    } else if run.plan().write.images {
        push_with_images(run, outputs, task, &kept, &mut writer)?;
    } else {
        push(outputs, &kept, &mut writer)?;
    }
    let written = writer.finish()?;
    let counts = GatherCounts { kept: kept.num_rows() as u64, index: written.index };
    assert_eq!(counts.kept, select_marker.counts.kept, "every kept sample of task {task} is gathered");
    run.commit(&stage, task, Done::new(vec![written.file], read, counts))?;
    Ok(())
}

/// The kept rows with all their columns but the image, in the order of the shards, and their positions.
fn kept_rows(
    run: &RunFolder,
    outputs: &OutputPlan,
    task: usize,
    verdicts: &RecordBatch,
    samples: &RecordBatch,
    read: &mut Vec<FileRecord>,
) -> Result<RecordBatch, Error> {
    let positions = outputs.positions(run, task, verdicts)?;
    let is_kept: BooleanArray = positions.iter().map(|position| Some(position.is_some())).collect();
    let kept = filter_record_batch(verdicts, &is_kept).expect("a mask of the table's length");
    let pool = &run.plan().pool;
    let of_samples = SampleRef::of_rows(&Rows(samples), pool)?;
    let row_of =
        |sample: SampleRef| of_samples.binary_search(&sample).expect("a kept sample was read") as u64;
    let kept_samples = SampleRef::of_rows(&Rows(&kept), pool)?;
    let order = UInt64Array::from_iter_values(kept_samples.into_iter().map(row_of));

    let mut columns = Columns::default();
    for (field, column) in kept.schema().fields().iter().zip(kept.columns()) {
        columns.array(field.name(), column.clone());
    }
    for name in SAMPLE_COLUMNS {
        let column = samples.column_by_name(name).expect("`samples/` has these columns");
        columns.array(name, take(column, &order, None).expect("the rows are there"));
    }
    if run.plan().write.distil {
        distil::add_targets(run, task, &kept, &mut columns, read)?;
    }
    columns.u64(POSITION, positions.into_iter().flatten().map(Some));
    Ok(columns.build())
}

/// Streams the task's tars and joins the original bytes of each kept image to its row.
fn push_with_images(
    run: &RunFolder,
    outputs: &OutputPlan,
    task: usize,
    kept: &RecordBatch,
    writer: &mut ExchangeWriter,
) -> Result<(), Error> {
    let pool = &run.plan().pool;
    let wanted = SampleRef::of_rows(&Rows(kept), pool)?;
    let mut n_found = 0;
    let mut images: Vec<(Vec<u8>, String)> = Vec::new();
    let mut waiting_bytes = 0;
    for (position, shard) in pool.shards_of(task).iter().enumerate() {
        let shard_idx = (pool.first_shard_idx(task) + position) as u32;
        if wanted.get(n_found).is_none_or(|sample| sample.shard_idx != shard_idx) {
            continue; // nothing of this shard is kept
        }
        for sample in open_shard(pool, shard, &run.plan().read)? {
            let sample = sample.map_err(|source| Error::Shard { shard: shard.id.clone(), source })?;
            let ReadSample::Sample(sample) = sample else { continue };
            let found = SampleRef { shard_idx, sample_idx: sample.sample_idx };
            if wanted.get(n_found) != Some(&found) {
                continue;
            }
            let path = format!("{}.{}", sample.key, sample.image_extension);
            waiting_bytes += sample.image.len();
            images.push((sample.image, path));
            n_found += 1;
            if waiting_bytes >= WAITING_BYTES_MAX {
                let rows = kept.slice(n_found - images.len(), images.len());
                push(outputs, &with_images(&rows, &images), writer)?;
                images.clear();
                waiting_bytes = 0;
            }
            if wanted.get(n_found).is_none_or(|sample| sample.shard_idx != shard_idx) {
                break; // the rest of the shard is not kept
            }
        }
    }
    if n_found != wanted.len() {
        let shard = &pool.shards[wanted[n_found].shard_idx as usize];
        return Err(Error::NotReproduced { shard: shard.id.clone() });
    }
    let rows = kept.slice(n_found - images.len(), images.len());
    push(outputs, &with_images(&rows, &images), writer)
}

/// Adds the `image` column as Hugging Face's `Image` feature reads it: a struct of bytes and path; null in every row
/// where there are no images.
fn with_images(rows: &RecordBatch, images: &[(Vec<u8>, String)]) -> RecordBatch {
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let image: ArrayRef = if images.is_empty() {
        Arc::new(StructArray::new_null(fields, rows.num_rows()))
    } else {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|(bytes, _)| bytes)));
        let paths: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|(_, path)| path)));
        Arc::new(StructArray::new(fields, vec![bytes, paths], None))
    };
    let mut columns = Columns::default();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        columns.array(field.name(), column.clone());
    }
    columns.array("image", image);
    columns.build()
}

/// Hands each row to its output shard.
fn push(outputs: &OutputPlan, rows: &RecordBatch, writer: &mut ExchangeWriter) -> Result<(), Error> {
    let targets: Vec<usize> =
        Rows(rows).u64(POSITION).values().iter().map(|&position| outputs.shard_of(position)).collect();
    let mut distinct = targets.clone();
    distinct.sort_unstable();
    distinct.dedup();
    for target in distinct {
        let is_in: BooleanArray = targets.iter().map(|&of_row| Some(of_row == target)).collect();
        writer.push(target, filter_record_batch(rows, &is_in).expect("a mask of the table's length"))?;
    }
    Ok(())
}

/// The schema of a curated shard: all columns but the position.
pub fn without_position(rows: &RecordBatch) -> RecordBatch {
    let schema: SchemaRef = rows.schema();
    let columns: Vec<usize> =
        (0..schema.fields().len()).filter(|&column| schema.field(column).name() != POSITION).collect();
    rows.project(&columns).expect("the columns are there")
}
