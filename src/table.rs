//! Arrow columns and Parquet files: how every table of a run folder is built, written and read.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array, RecordBatch,
    StringArray, UInt32Array, UInt64Array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Field, Float16Type, Float32Type, Float64Type, Schema, SchemaRef, UInt32Type, UInt64Type,
};
use bytes::Bytes;
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};

use crate::error::Error;
use crate::matrix::Matrix;
use crate::settings::EmbeddingDtype;
use crate::storage::{FileRecord, PendingFile, Storage};

/// The columns of a table as they are put together, in order.
#[derive(Default)]
pub struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    pub fn array(&mut self, name: &str, array: ArrayRef) -> &mut Columns {
        self.fields.push(Field::new(name, array.data_type().clone(), true));
        self.arrays.push(array);
        self
    }

    pub fn text<T: AsRef<str>>(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = Option<T>>,
    ) -> &mut Columns {
        self.array(name, Arc::new(values.into_iter().collect::<StringArray>()))
    }

    pub fn u64(&mut self, name: &str, values: impl IntoIterator<Item = Option<u64>>) -> &mut Columns {
        self.array(name, Arc::new(values.into_iter().collect::<UInt64Array>()))
    }

    pub fn u32(&mut self, name: &str, values: impl IntoIterator<Item = Option<u32>>) -> &mut Columns {
        self.array(name, Arc::new(values.into_iter().collect::<UInt32Array>()))
    }

    pub fn f32(&mut self, name: &str, values: impl IntoIterator<Item = Option<f32>>) -> &mut Columns {
        self.array(name, Arc::new(values.into_iter().collect::<Float32Array>()))
    }

    pub fn f64(&mut self, name: &str, values: impl IntoIterator<Item = Option<f64>>) -> &mut Columns {
        self.array(name, Arc::new(values.into_iter().collect::<Float64Array>()))
    }

    /// Embeddings as fixed-size lists; a row whose `is_present` is false is null.
    pub fn embeddings(
        &mut self,
        name: &str,
        rows: &Matrix,
        is_present: &[bool],
        dtype: EmbeddingDtype,
    ) -> &mut Columns {
        assert_eq!(rows.n_rows(), is_present.len());
        let (values, item): (ArrayRef, DataType) = match dtype {
            EmbeddingDtype::F16 => {
                let values: Vec<f16> = rows.values().iter().map(|&value| f16::from_f32(value)).collect();
                (Arc::new(Float16Array::from(values)), DataType::Float16)
            }
            EmbeddingDtype::F32 => (Arc::new(Float32Array::from(rows.values().to_vec())), DataType::Float32),
        };
        let nulls = is_present.contains(&false).then(|| NullBuffer::from(is_present.to_vec()));
        let field = Arc::new(Field::new("item", item, true));
        let list = FixedSizeListArray::new(field, rows.n_cols() as i32, values, nulls);
        self.array(name, Arc::new(list))
    }

    pub fn build(&mut self) -> RecordBatch {
        let schema = Schema::new(std::mem::take(&mut self.fields));
        RecordBatch::try_new(Arc::new(schema), std::mem::take(&mut self.arrays))
            .expect("all columns of a table have one length")
    }
}

/// Read access to the columns of a table by name.
///
/// A file that a marker names has the columns that the format version promises; a missing one is a bug.
pub struct Rows<'a>(pub &'a RecordBatch);

impl<'a> Rows<'a> {
    fn column(&self, name: &str) -> &'a ArrayRef {
        self.0
            .column_by_name(name)
            .unwrap_or_else(|| panic!("a table of this format has the column `{name}`"))
    }

    pub fn text(&self, name: &str) -> &'a StringArray {
        self.column(name).as_string::<i32>()
    }

    pub fn u64(&self, name: &str) -> &'a UInt64Array {
        self.column(name).as_primitive::<UInt64Type>()
    }

    pub fn u32(&self, name: &str) -> &'a UInt32Array {
        self.column(name).as_primitive::<UInt32Type>()
    }

    pub fn f32(&self, name: &str) -> &'a Float32Array {
        self.column(name).as_primitive::<Float32Type>()
    }

    pub fn f64(&self, name: &str) -> &'a Float64Array {
        self.column(name).as_primitive::<Float64Type>()
    }

    /// The same of a column that the table may lack.
    pub fn embeddings_if_present(&self, name: &str) -> Option<(Matrix, Vec<bool>)> {
        self.0.column_by_name(name).map(|_| self.embeddings(name))
    }

    /// Embeddings as f32, with zeros where a row is null, and which rows are present.
    pub fn embeddings(&self, name: &str) -> (Matrix, Vec<bool>) {
        let list = self.column(name).as_fixed_size_list();
        let values = match list.values().data_type() {
            DataType::Float16 => {
                let values = list.values().as_primitive::<Float16Type>().values();
                values.iter().map(|value| value.to_f32()).collect()
            }
            _ => list.values().as_primitive::<Float32Type>().values().to_vec(),
        };
        let is_present = (0..list.len()).map(|row| list.is_valid(row)).collect();
        (Matrix::new(values, list.value_length() as usize), is_present)
    }
}

/// How run files are compressed: zstd 3; embeddings without dictionary.
pub fn properties() -> WriterPropertiesBuilder {
    let level = ZstdLevel::try_new(3).expect("3 is a zstd level");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(format!("superbatch {}", env!("CARGO_PKG_VERSION")))
}

/// What a file says of itself, by key; the format version is added.
pub type Description<'a> = [(&'a str, String)];

/// The description as a Parquet file holds it.
pub fn key_values(description: &Description) -> Vec<KeyValue> {
    let version = ("superbatch_format_version", crate::plan::FORMAT_VERSION.to_string());
    let all = std::iter::once(&version).chain(description);
    all.map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect()
}

/// The table with its description in the Arrow schema too, which is where pyarrow looks.
pub fn described(batch: &RecordBatch, description: &Description) -> RecordBatch {
    let entries = key_values(description).into_iter().filter_map(|entry| Some((entry.key, entry.value?)));
    let schema = batch.schema().as_ref().clone().with_metadata(entries.collect::<HashMap<_, _>>());
    batch.clone().with_schema(Arc::new(schema)).expect("the same columns")
}

/// Writes a table as one Parquet file under its final name.
pub fn write(
    storage: &Storage,
    name: &str,
    batch: &RecordBatch,
    description: &Description,
) -> Result<FileRecord, Error> {
    unnamed(storage, name, batch, description)?.commit()
}

/// [`write()`] without giving the file its name.
pub fn unnamed(
    storage: &Storage,
    name: &str,
    batch: &RecordBatch,
    description: &Description,
) -> Result<PendingFile, Error> {
    let properties = properties().set_key_value_metadata(Some(key_values(description))).build();
    let batch = &described(batch, description);
    let parquet_error = |source| Error::WriteParquet { path: storage.path(name), source };
    let mut file = storage.create(name)?;
    let mut writer =
        ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).map_err(parquet_error)?;
    writer.write(batch).map_err(parquet_error)?;
    writer.close().map_err(parquet_error)?;
    file.flush().map_err(|source| Error::Write { path: storage.path(name), source })?;
    Ok(file)
}

/// Reads the named columns (all, if none are named) of a file that a marker names, checked against the marker.
pub fn read(storage: &Storage, record: &FileRecord, columns: &[&str]) -> Result<RecordBatch, Error> {
    let bytes = storage.read_recorded(record)?;
    let parquet_error = |source| Error::ReadParquet { path: storage.path(&record.name), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(parquet_error)?;
    read_batches(builder, columns).map_err(parquet_error)
}

/// Reads whole row groups of a Parquet file held in memory.
pub fn read_batches(
    builder: ParquetRecordBatchReaderBuilder<Bytes>,
    columns: &[&str],
) -> Result<RecordBatch, parquet::errors::ParquetError> {
    let mask = match columns {
        [] => ProjectionMask::all(),
        columns => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
    };
    let schema: SchemaRef = builder.schema().clone();
    let n_rows = builder.metadata().file_metadata().num_rows() as usize;
    let reader = builder.with_projection(mask).with_batch_size(n_rows.max(1)).build()?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let schema = batches.first().map_or(schema, |batch| batch.schema());
    Ok(arrow::compute::concat_batches(&schema, &batches)?)
}
