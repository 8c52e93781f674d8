//! The Parquet file beside a tar in, what it says of each of the tar's samples out, by key.
//!
//! img2dataset writes one for every shard: url, caption, sizes and digest, and the uid that DataComp's pools are known by.
//! The tar's own members go before it.

use std::collections::HashMap;
use std::io;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::columns::{ColumnNames, Columns, caption_of, json_of, plain, text_of};
use super::stored_file::StoredFile;
use super::table_shard::{Fault, guarded};

/// Rows that are decoded at once.
const ROWS_HELD: usize = 64;

/// Bytes of text that a sidecar may hold; those of ten thousand rows take a few megabytes.
const TEXT_BYTES_MAX: usize = 512 << 20;

/// What a sidecar says of the samples of its tar; nothing where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sidecar(HashMap<String, SidecarRow>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SidecarRow {
    pub caption: Option<String>,
    pub uid: Option<String>,
    /// Every column with one value a row.
    pub json: String,
}

impl SidecarRow {
    fn n_bytes(&self) -> usize {
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.json.len() + of(&self.caption) + of(&self.uid)
    }
}

impl Sidecar {
    /// Reads a sidecar whole. A Parquet file without a column `key` belongs to no tar, and says nothing.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, one that is no Parquet, and one without the caption column that the settings name:
    /// what it should say is not known then.
    ///
    /// # Memory
    ///
    /// Its text, at most 512 MiB.
    pub(super) fn read(file: StoredFile, names: &ColumnNames) -> io::Result<Sidecar> {
        let invalid = |what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the file beside the shard: {what}"))
        };
        let fault = |fault| match fault {
            Fault::Read(error) => error,
            Fault::Broken => invalid("it is no Parquet"),
        };
        let builder =
            guarded(&file, || ParquetRecordBatchReaderBuilder::try_new(file.clone())).map_err(fault)?;
        let names = ColumnNames { image: None, caption: names.caption.clone() };
        if builder.schema().index_of("key").is_err() {
            return Ok(Sidecar::default());
        }
        let columns = Columns::of(builder.schema(), &names).map_err(|source| invalid(&source.to_string()))?;
        let wanted = columns.caption.into_iter().chain(columns.scalars);
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let mut reader = guarded(&file, || builder.with_projection(mask).with_batch_size(ROWS_HELD).build())
            .map_err(fault)?;
        let mut sidecar = Sidecar::default();
        let mut n_bytes = 0;
        while let Some(batch) = guarded(&file, || reader.next().transpose()).map_err(fault)? {
            let schema = batch.schema();
            let columns: Vec<_> = schema.fields().iter().zip(batch.columns()).collect();
            let scalars: Vec<_> =
                columns.iter().map(|(field, column)| (field.name().clone(), plain(column))).collect();
            let of = |name: &str| {
                scalars.iter().find(|(of_column, _)| of_column == name).map(|(_, column)| column)
            };
            let Some(keys) = of("key") else { return Ok(Sidecar::default()) };
            let caption = Columns::of(&schema, &names).ok().and_then(|columns| columns.caption);
            for row in 0..batch.num_rows() {
                let Some(key) = text_of(keys, row) else { continue };
                let row = SidecarRow {
                    caption: caption.and_then(|column| caption_of(batch.column(column), row)),
                    uid: of("uid").and_then(|column| text_of(column, row)).map(str::to_owned),
                    json: json_of(&scalars, row),
                };
                n_bytes += key.len() + row.n_bytes();
                if n_bytes > TEXT_BYTES_MAX {
                    return Err(invalid("it has more than 512 MiB of text"));
                }
                sidecar.0.insert(key.to_owned(), row);
            }
        }
        Ok(sidecar)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<SidecarRow> {
        self.0.remove(key)
    }
}
