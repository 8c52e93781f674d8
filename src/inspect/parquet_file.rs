//! A Parquet file in; its shape, its metadata and some of its rows out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::errors::ParquetError;
use serde::Serialize;

use crate::error::Error;
use crate::read::{Fault, StoredFile, guarded};

use super::grid::{cut, grid, printable};
use super::row::{Row, text};

/// Rows that JSON shows, and of them those that text shows beside the columns.
const ROWS_READ: usize = 20;
const ROWS_SHOWN: usize = 3;
const CELL_SHOWN: usize = 24;
const METADATA_SHOWN: usize = 120;

/// Rows whose keys are held at once.
const KEYS_HELD: usize = 8192;

/// What the Arrow library writes for itself.
const ARROW_SCHEMA: &str = "ARROW:schema";

#[derive(Debug, Serialize)]
pub struct ParquetFile {
    path: PathBuf,
    n_rows: i64,
    row_groups: Vec<RowGroup>,
    columns: Vec<Column>,
    metadata: BTreeMap<String, Option<String>>,
    /// The first rows.
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct RowGroup {
    n_rows: i64,
    size_bytes: i64,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    data_type: String,
}

/// The rows of one key.
#[derive(Debug, Serialize)]
pub struct ParquetRows {
    path: PathBuf,
    key: String,
    rows: Vec<FoundRow>,
}

#[derive(Debug, Serialize)]
struct FoundRow {
    row_idx: usize,
    values: Row,
}

impl ParquetFile {
    pub fn read(path: &Path, file: File) -> Result<ParquetFile, Error> {
        of_foreign(path, file, |file| read_file(path, file))
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} rows in {} row groups, {} columns",
            self.path.display(),
            self.n_rows,
            self.row_groups.len(),
            self.columns.len()
        );
        for (name, value) in &self.metadata {
            let value = value.as_deref().map_or_else(|| "–".to_owned(), |value| cut(value, METADATA_SHOWN));
            let _ = write!(text, "\n  {} = {value}", printable(name));
        }
        let shown = &self.rows[..self.rows.len().min(ROWS_SHOWN)];
        let names: Vec<String> = (0..shown.len()).map(|row| format!("row {row}")).collect();
        let header: Vec<&str> =
            ["column", "type"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let lines = self.columns.iter().map(|column| {
            let values = shown.iter().map(|row| cut(&self::text(row.get(&column.name)), CELL_SHOWN));
            [printable(&column.name), cut(&column.data_type, CELL_SHOWN)].into_iter().chain(values).collect()
        });
        let _ = write!(text, "\n\n{}", grid(&header, &lines.collect::<Vec<_>>(), &[]));
        text
    }
}

/// Reads a file that anybody may have written.
fn of_foreign<T>(
    path: &Path,
    file: File,
    read: impl FnOnce(StoredFile) -> Result<T, ParquetError>,
) -> Result<T, Error> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let file = StoredFile::new(file).map_err(read_error)?;
    guarded(&file, || read(file.clone())).map_err(|fault| match fault {
        Fault::Read(source) => read_error(source),
        Fault::Broken => {
            let source = ParquetError::General("its bytes break the format".to_owned());
            Error::ReadParquet { path: path.to_owned(), source }
        }
    })
}

fn read_file(path: &Path, file: StoredFile) -> Result<ParquetFile, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let metadata = builder.metadata().clone();
    let of_file = metadata.file_metadata();
    let entries = of_file.key_value_metadata().into_iter().flatten();
    let entries = entries.filter(|entry| entry.key != ARROW_SCHEMA);
    let columns = builder.schema().fields().iter();
    let columns =
        columns.map(|field| Column { name: field.name().clone(), data_type: field.data_type().to_string() });
    let columns = columns.collect();
    let mut rows = Vec::new();
    for batch in builder.with_limit(ROWS_READ).with_batch_size(ROWS_READ).build()? {
        rows.extend(rows_of(&batch?));
    }
    let row_group = |group: &parquet::file::metadata::RowGroupMetaData| RowGroup {
        n_rows: group.num_rows(),
        size_bytes: group.compressed_size(),
    };
    Ok(ParquetFile {
        path: path.to_owned(),
        n_rows: of_file.num_rows(),
        row_groups: metadata.row_groups().iter().map(row_group).collect(),
        columns,
        metadata: entries.map(|entry| (entry.key.clone(), entry.value.clone())).collect(),
        rows,
    })
}

impl ParquetRows {
    /// The rows whose column `key` has this value.
    pub fn read(path: &Path, file: File, key: &str) -> Result<ParquetRows, Error> {
        let rows = of_foreign(path, file, |file| read_rows(&file, key))?;
        if rows.is_empty() {
            return Err(Error::KeyMissing { path: path.to_owned(), key: key.to_owned() });
        }
        Ok(ParquetRows { path: path.to_owned(), key: key.to_owned(), rows })
    }

    pub fn text(&self) -> String {
        let rows = self.rows.iter();
        let rows =
            rows.map(|row| format!("{}, row {}\n{}", self.path.display(), row.row_idx, row.values.text()));
        rows.collect::<Vec<_>>().join("\n\n")
    }
}

fn read_rows(file: &StoredFile, key: &str) -> Result<Vec<FoundRow>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())?;
    if builder.schema().column_with_name("key").is_none() {
        return Ok(Vec::new());
    }
    let n_rows = builder.metadata().file_metadata().num_rows().max(0) as usize;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["key"]);
    let mut found: Vec<usize> = Vec::new();
    let mut n_before = 0;
    for batch in builder.with_projection(mask).with_batch_size(KEYS_HELD).build()? {
        let batch = batch?;
        // keys of other kinds than text are compared by their text
        let keys = cast(batch.column(0), &DataType::Utf8)?;
        let keys = keys.as_string::<i32>();
        found.extend(
            (0..keys.len())
                .filter(|&row| keys.is_valid(row) && keys.value(row) == key)
                .map(|row| n_before + row),
        );
        n_before += keys.len();
    }
    let selection = RowSelection::from_consecutive_ranges(found.iter().map(|&row| row..row + 1), n_rows);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())?.with_row_selection(selection);
    let mut rows = Vec::with_capacity(found.len());
    for batch in builder.with_batch_size(ROWS_READ).build()? {
        rows.extend(rows_of(&batch?));
    }
    Ok(found.into_iter().zip(rows).map(|(row_idx, values)| FoundRow { row_idx, values }).collect())
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    (0..batch.num_rows()).map(|row| Row::of(batch, row)).collect()
}
