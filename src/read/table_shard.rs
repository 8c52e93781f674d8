//! A Parquet shard in, its samples out: a row is a sample, in the order of the file.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use arrow::array::{ArrayRef, RecordBatch};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::ParquetMetaDataReader;

use super::columns::{
    ColumnNames, Columns, NoColumn, caption_of, image_of, json_of, plain, text_of, value_of,
};
use super::group::{Group, GroupImage, IMAGE_EXTENSIONS, ReadSample, key_digest, sample_name};
use super::label::SampleKind;
use super::limits::Limits;
use super::stored_file::StoredFile;
use crate::foreign::survived;
use crate::rejection::Rejection;

/// Rows whose images are held at once.
const ROWS_HELD: usize = 8;

/// The samples of one Parquet shard, in its order.
///
/// The image is bytes, or a struct of `bytes` and `path` as Hugging Face's `Image` stores it. The key is the column `key`
/// if there is one, else the image's path, or the column `image_path`, up to the first dot of its file name, else, or
/// where an earlier row has that path too, the row's number. What else has one value a row is the sample's JSON; a label is
/// the column `cls` or `label`, or the one that the settings name.
///
/// # Errors
///
/// An item is an error if the reader failed; the iterator then ends. Bytes that are no Parquet are one
/// [`Rejection::ShardBroken`] instead, and the end too.
///
/// # Memory
///
/// Eight rows, a page of each column and 16 bytes for each key seen. A page is as large as its writer made it.
pub struct TableSamples {
    file: StoredFile,
    /// None where the file could not be opened as Parquet.
    reader: Option<ParquetRecordBatchReader>,
    columns: Columns,
    kind: SampleKind,
    limits: Limits,
    batch: Batch,
    keys_seen: HashSet<[u8; 16]>,
    n_samples: u64,
    is_done: bool,
}

/// Rows that were read and not handed on yet.
#[derive(Default)]
struct Batch {
    n_rows: usize,
    next: usize,
    image: Option<ArrayRef>,
    caption: Option<ArrayRef>,
    scalars: Vec<(String, ArrayRef)>,
}

impl TableSamples {
    /// Opens a Parquet file.
    ///
    /// # Errors
    ///
    /// A column that the settings name and that is not there, or no column with images where the kind of samples has any.
    pub(super) fn open(
        file: StoredFile,
        names: &ColumnNames,
        kind: SampleKind,
        limits: Limits,
    ) -> Result<io::Result<TableSamples>, NoColumn> {
        let mut samples = TableSamples {
            file: file.clone(),
            reader: None,
            columns: Columns::default(),
            kind,
            limits,
            batch: Batch::default(),
            keys_seen: HashSet::new(),
            n_samples: 0,
            is_done: false,
        };
        let builder = match guarded(&file, || ParquetRecordBatchReaderBuilder::try_new(file.clone())) {
            Ok(builder) => builder,
            Err(Fault::Broken) => return Ok(Ok(samples)),
            Err(Fault::Read(error)) => return Ok(Err(error)),
        };
        let columns = Columns::of(builder.schema(), names)?;
        if samples.kind != SampleKind::Text && columns.image.is_none() {
            return Err(Columns::no_image(builder.schema()));
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns.all());
        samples.columns = columns;
        match guarded(&file, || builder.with_projection(mask).with_batch_size(ROWS_HELD).build()) {
            Ok(reader) => samples.reader = Some(reader),
            Err(Fault::Broken) => {}
            Err(Fault::Read(error)) => return Ok(Err(error)),
        }
        Ok(Ok(samples))
    }

    fn next_batch(&mut self) -> Result<Option<Batch>, Fault> {
        let reader = self.reader.as_mut().ok_or(Fault::Broken)?;
        let batch = guarded(&self.file, || reader.next().transpose())?;
        Ok(batch.map(|batch| Batch::new(&batch, &self.columns)))
    }

    fn group(&mut self, row: usize) -> Group {
        let image = self.batch.image.clone();
        let (bytes, path) = image.as_ref().map_or((None, None), |column| image_of(column, row));
        let of_column = self.batch.scalar_text("image_path", row);
        let path = path.or(of_column.as_deref());
        let named = path.map(|path| sample_name(path).unwrap_or((path, "")));
        let mut group = Group::new(String::new());
        if let Some(bytes) = bytes {
            let named = named.map(|(_, extension)| extension.to_lowercase());
            let extension = named.filter(|name| IMAGE_EXTENSIONS.contains(&name.as_str()));
            let is_fit = bytes.len() as u64 <= self.limits.member_bytes_max;
            if !is_fit {
                group.reject(Rejection::MemberTooLarge);
            }
            group.image = Some(GroupImage {
                bytes: if is_fit { bytes.to_vec() } else { Vec::new() },
                extension: extension.unwrap_or_else(|| extension_of(bytes).to_owned()),
                offset: None,
                size: bytes.len() as u64,
            });
        }
        group.txt = self.batch.caption.as_ref().and_then(|column| caption_of(column, row)).map(|caption| {
            let is_fit = caption.len() as u64 <= self.limits.caption_bytes_max;
            if is_fit { Ok(caption.into_bytes()) } else { Err(Rejection::CaptionTooLong) }
        });
        let json = json_of(&self.batch.scalars, row);
        if json.len() as u64 > self.limits.json_bytes_max {
            group.reject(Rejection::MemberTooLarge);
        } else if json != "{}" {
            group.json = Some(json.into_bytes());
        }
        group.cls = ["cls", "label"]
            .iter()
            .find_map(|name| self.batch.scalar_text(name, row))
            .map(String::into_bytes);
        let stem = named.map(|(stem, _)| stem.to_owned()).filter(|stem| !stem.is_empty());
        self.name(&mut group, stem, row);
        group
    }

    /// Gives the group a key that no earlier row has, or rejects it.
    fn name(&mut self, group: &mut Group, stem: Option<String>, row: usize) {
        let of_column = self.batch.scalar_text("key", row);
        let number = format!("{:08}", self.n_samples);
        let candidates = match of_column {
            Some(key) => vec![key],
            None => stem.into_iter().chain([number]).collect(),
        };
        for key in candidates {
            let is_new = self.keys_seen.insert(key_digest(&key));
            group.key = key;
            if is_new {
                return;
            }
        }
        group.reject(Rejection::DuplicateKey);
    }
}

impl Iterator for TableSamples {
    type Item = io::Result<ReadSample>;

    fn next(&mut self) -> Option<io::Result<ReadSample>> {
        if self.is_done {
            return None;
        }
        while self.batch.next == self.batch.n_rows {
            match self.next_batch() {
                Ok(Some(batch)) => self.batch = batch,
                Ok(None) => {
                    self.is_done = true;
                    return None;
                }
                Err(Fault::Read(error)) => {
                    self.is_done = true;
                    return Some(Err(error));
                }
                Err(Fault::Broken) => {
                    self.is_done = true;
                    let mut group = Group::new(String::new());
                    group.reject(Rejection::ShardBroken);
                    return Some(Ok(group.finish(self.n_samples, &self.kind, &self.limits)));
                }
            }
        }
        let row = self.batch.next;
        let group = self.group(row);
        self.batch.next += 1;
        self.n_samples += 1;
        Some(Ok(group.finish(self.n_samples - 1, &self.kind, &self.limits)))
    }
}

impl Batch {
    fn new(batch: &RecordBatch, columns: &Columns) -> Batch {
        // a projection keeps the order of the file
        let mut positions = columns.all();
        positions.sort_unstable();
        let of = |column: usize| positions.binary_search(&column).expect("the column was asked for");
        let named = |column: usize| {
            let schema = batch.schema_ref();
            (schema.field(of(column)).name().clone(), plain(batch.column(of(column))))
        };
        Batch {
            n_rows: batch.num_rows(),
            next: 0,
            image: columns.image.map(|column| batch.column(of(column)).clone()),
            caption: columns.caption.map(|column| batch.column(of(column)).clone()),
            scalars: columns.scalars.iter().map(|&column| named(column)).collect(),
        }
    }

    /// The value of a column with one value a row, as text.
    fn scalar_text(&self, name: &str, row: usize) -> Option<String> {
        let (_, column) = self.scalars.iter().find(|(of_column, _)| of_column == name)?;
        match text_of(column, row) {
            Some(text) => Some(text.to_owned()),
            None => value_of(column, row).map(|value| value.to_string()),
        }
    }
}

/// How many rows a Parquet file says that it has; none where it cannot be read.
pub fn n_rows(file: File) -> Option<u64> {
    let file = StoredFile::new(file).ok()?;
    let metadata = guarded(&file, || ParquetMetaDataReader::new().parse_and_finish(&file)).ok()?;
    metadata.file_metadata().num_rows().try_into().ok()
}

/// The extension of what the bytes are, lower case without the dot, for a path in the output.
pub fn extension_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xd8, ..] => "jpg",
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', ..] => "gif",
        [b'B', b'M', ..] => "bmp",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "tiff",
        _ => "bin",
    }
}

/// Why no further row can be read.
pub(crate) enum Fault {
    /// The bytes are not, or no longer, Parquet: a property of the shard.
    Broken,
    /// The bytes could not be fetched: a property of this attempt.
    Read(io::Error),
}

/// Runs a step of the Parquet reader over foreign bytes.
pub(crate) fn guarded<T, E>(file: &StoredFile, step: impl FnOnce() -> Result<T, E>) -> Result<T, Fault> {
    match survived(step) {
        Ok(Ok(value)) => Ok(value),
        _ => Err(file.take_fault().map_or(Fault::Broken, Fault::Read)),
    }
}
