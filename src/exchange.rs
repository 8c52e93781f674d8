//! The one shuffle: each input task writes one file whose row groups are the target partitions; a target task
//! reads its row groups from each.
//!
//! The index from targets to row groups stands in the input task's marker, with a digest for each row group, so
//! that a target checks what it reads without reading the rest. Above [`FILES_PER_LEVEL_MAX`] files, levels of
//! merging tasks come in between.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::executor::Executor;
use crate::run_folder::{Done, Marker, RunFolder, Stage, is_exchange_file};
use crate::storage::{FileRecord, PendingFile, Storage};
use crate::table;

/// Files that one target task opens at most.
pub const FILES_PER_LEVEL_MAX: usize = 1000;

/// Bytes of rows that a writer holds before it writes row groups.
pub const BUFFERED_BYTES_MAX: usize = 256 << 20;

/// Where the rows of each target lie in one exchange file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub targets: BTreeMap<usize, Vec<RowGroup>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGroup {
    pub row_group: usize,
    pub n_rows: usize,
    pub offset: u64,
    pub size_bytes: u64,
    pub digest: Digest,
}

impl Index {
    pub fn n_rows(&self, target: usize) -> usize {
        self.targets.get(&target).map_or(0, |groups| groups.iter().map(|group| group.n_rows).sum())
    }
}

/// One committed exchange file.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: FileRecord,
    pub index: Index,
}

/// Writes one exchange file.
pub struct ExchangeWriter<'a> {
    run: &'a RunFolder,
    stage: &'a Stage,
    task: usize,
    writer: ArrowWriter<PendingFile>,
    waiting: BTreeMap<usize, Vec<RecordBatch>>,
    waiting_bytes: usize,
    /// The targets of the row groups so far.
    targets: Vec<usize>,
    schema: SchemaRef,
}

impl<'a> ExchangeWriter<'a> {
    /// Of a task of a step.
    pub fn new(
        run: &'a RunFolder,
        stage: &'a Stage,
        task: usize,
        schema: SchemaRef,
    ) -> Result<ExchangeWriter<'a>, Error> {
        let (storage, name) = (run.storage(stage), file_name(stage, task));
        let properties = table::properties()
            .set_key_value_metadata(Some(table::key_values(&[])))
            // a row group ends where a target ends, and nowhere else
            .set_max_row_group_row_count(None)
            .set_dictionary_enabled(false)
            .build();
        let writer = ArrowWriter::try_new(storage.create(&name)?, schema.clone(), Some(properties))
            .map_err(|source| Error::WriteParquet { path: storage.path(&name), source })?;
        Ok(ExchangeWriter {
            run,
            stage,
            task,
            writer,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            targets: Vec::new(),
            schema,
        })
    }

    /// Adds rows for a target, after those that it was given before.
    pub fn push(&mut self, target: usize, rows: RecordBatch) -> Result<(), Error> {
        self.waiting_bytes += rows.get_array_memory_size();
        self.waiting.entry(target).or_default().push(rows);
        if self.waiting_bytes > BUFFERED_BYTES_MAX { self.write_waiting() } else { Ok(()) }
    }

    fn path(&self) -> PathBuf {
        self.run.storage(self.stage).path(&file_name(self.stage, self.task))
    }

    fn write_waiting(&mut self) -> Result<(), Error> {
        for (target, batches) in std::mem::take(&mut self.waiting) {
            let mut write = || -> Result<(), ParquetError> {
                let rows = arrow::compute::concat_batches(&self.schema, &batches)?;
                if rows.num_rows() > 0 {
                    self.writer.write(&rows)?;
                    self.writer.flush()?;
                    self.targets.push(target);
                }
                Ok(())
            };
            write().map_err(|source| Error::WriteParquet { path: self.path(), source })?;
        }
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Writes what waits and gives the file its name.
    pub fn finish(mut self) -> Result<Source, Error> {
        self.write_waiting()?;
        let path = self.path();
        let row_groups = self.writer.flushed_row_groups().to_vec();
        let file = self.writer.into_inner().map_err(|source| Error::WriteParquet { path, source })?;
        let file = self.run.put(self.stage, self.task, file)?;
        let mut index = Index::default();
        for (row_group, &target) in self.targets.iter().enumerate() {
            let columns = row_groups[row_group].columns();
            let offset = columns.iter().map(|column| column.byte_range().0).min().unwrap_or(0);
            let end =
                columns.iter().map(|column| column.byte_range().0 + column.byte_range().1).max().unwrap_or(0);
            let bytes = self.run.storage(self.stage).read_range(&file.name, offset, end - offset)?;
            index.targets.entry(target).or_default().push(RowGroup {
                row_group,
                n_rows: row_groups[row_group].num_rows() as usize,
                offset,
                size_bytes: end - offset,
                digest: Digest::of_bytes(&bytes),
            });
        }
        Ok(Source { file, index })
    }
}

/// Reads the rows of one target from every source, in the order of the sources; none if there are no rows.
pub fn read_target(
    storage: &Storage,
    sources: &[Source],
    target: usize,
) -> Result<Option<RecordBatch>, Error> {
    let batches = target_batches(storage, sources, target).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = batches.first() else { return Ok(None) };
    let rows = arrow::compute::concat_batches(&first.schema(), &batches);
    Ok(Some(rows.expect("the files of an exchange have one schema")))
}

/// The same, a batch a row group, each read when it is asked for: together they may be larger than memory, and than one
/// Arrow column can be.
pub fn target_batches(
    storage: &Storage,
    sources: &[Source],
    target: usize,
) -> impl Iterator<Item = Result<RecordBatch, Error>> {
    sources.iter().flat_map(move |source| {
        let groups = source.index.targets.get(&target).into_iter().flatten();
        groups.map(move |group| read_row_group(storage, &source.file, group))
    })
}

fn read_row_group(storage: &Storage, file: &FileRecord, group: &RowGroup) -> Result<RecordBatch, Error> {
    let bytes = storage.read_range(&file.name, group.offset, group.size_bytes)?;
    if Digest::of_bytes(&bytes) != group.digest {
        return Err(Error::Damaged { path: storage.path(&file.name) });
    }
    let parquet_error = |source| Error::ReadParquet { path: storage.path(&file.name), source };
    let reader = RowGroupBytes { storage: storage.clone(), file: file.clone(), offset: group.offset, bytes };
    let reader = ParquetRecordBatchReaderBuilder::try_new(reader)
        .map_err(parquet_error)?
        .with_row_groups(vec![group.row_group])
        .with_batch_size(group.n_rows)
        .build()
        .map_err(parquet_error)?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| parquet_error(e.into()))?;
    arrow::compute::concat_batches(&schema, &batches).map_err(|e| parquet_error(e.into()))
}

/// A Parquet file of which one row group was read and checked already; the footer comes from the file.
struct RowGroupBytes {
    storage: Storage,
    file: FileRecord,
    offset: u64,
    bytes: Bytes,
}

impl Length for RowGroupBytes {
    fn len(&self) -> u64 {
        self.file.size_bytes
    }
}

impl ChunkReader for RowGroupBytes {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> Result<Cursor<Bytes>, ParquetError> {
        // a reader of a page header is given all that follows: never more than is held already, or the footer
        let held_end = self.offset + self.bytes.len() as u64;
        let end = if start < held_end { held_end } else { self.len() };
        self.get_bytes(start, (end - start) as usize).map(Cursor::new)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start >= self.offset && start + length as u64 <= self.offset + self.bytes.len() as u64 {
            let from = (start - self.offset) as usize;
            return Ok(self.bytes.slice(from..from + length));
        }
        self.storage
            .read_range(&self.file.name, start, length as u64)
            .map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// The committed files of an exchange, merged in levels until there are at most `files_max` of them.
///
/// `index_of` finds the index in the counts of the input stage's markers.
pub fn sources<C: for<'de> Deserialize<'de>>(
    run: &RunFolder,
    executor: &Executor,
    stage: &Stage,
    tasks: &[usize],
    index_of: impl Fn(C) -> Index,
    files_max: usize,
) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::with_capacity(tasks.len());
    for &task in tasks {
        let marker: Marker<C> = run.committed(stage, task)?;
        let file = marker.data.iter().find(|file| is_exchange_file(&file.name));
        let file = file.expect("an exchange has a file a task").clone();
        sources.push(Source { file, index: index_of(marker.counts) });
    }
    for level in 1.. {
        if sources.len() <= files_max {
            break;
        }
        sources = merge_level(run, executor, &stage.merge(level), &sources, files_max)?;
    }
    Ok(sources)
}

/// One level: each task merges the row groups of up to `files_max` files into one file.
fn merge_level(
    run: &RunFolder,
    executor: &Executor,
    stage: &Stage,
    sources: &[Source],
    files_max: usize,
) -> Result<Vec<Source>, Error> {
    let groups: Vec<&[Source]> = sources.chunks(files_max).collect();
    let tasks: Vec<usize> = (0..groups.len()).collect();
    let n_at_once = executor.n_fitting(BUFFERED_BYTES_MAX as u64);
    executor.run(run, stage, &tasks, n_at_once, |task| {
        let inputs = groups[task];
        let storage = run.storage(stage);
        let targets: std::collections::BTreeSet<usize> =
            inputs.iter().flat_map(|source| source.index.targets.keys().copied()).collect();
        let mut writer = None;
        for target in targets {
            for rows in target_batches(storage, inputs, target) {
                let rows = rows?;
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(ExchangeWriter::new(run, stage, task, rows.schema())?),
                };
                writer.push(target, rows)?;
            }
        }
        let merged = writer.map(ExchangeWriter::finish).transpose()?;
        let read = inputs.iter().map(|source| source.file.clone()).collect();
        let data = merged.iter().map(|source| source.file.clone()).collect();
        run.commit(stage, task, Done::new(data, read, merged.map(|source| source.index)))?;
        Ok(())
    })?;
    let mut merged = Vec::new();
    for task in tasks {
        let marker: Marker<Option<Index>> = run.committed(stage, task)?;
        merged.extend(marker.data.into_iter().zip(marker.counts).map(|(file, index)| Source { file, index }));
    }
    Ok(merged)
}

/// Where an exchange file of a stage lies.
pub fn file_name(stage: &Stage, task: usize) -> String {
    format!("_exchange/{}/{task:05}.parquet", stage.name)
}
