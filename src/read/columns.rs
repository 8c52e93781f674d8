//! The schema of a Parquet file in, which of its columns are a sample's image, caption and the rest out; and rows of them
//! as text and JSON.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value};

/// Names under which pools keep images, in the order in which they are looked for.
const IMAGE_COLUMNS: [&str; 8] = ["image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"];

/// Names under which pools keep captions, likewise.
const CAPTION_COLUMNS: [&str; 6] = ["caption", "text", "txt", "TEXT", "captions", "alt_text"];

/// Columns that the settings name, or nothing where the usual names will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    pub image: Option<String>,
    pub caption: Option<String>,
}

/// What a Parquet shard lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no column {wanted}; its columns are {}", offered.join(", "))]
pub struct NoColumn {
    pub wanted: String,
    pub offered: Vec<String>,
}

/// Which columns of a file are read, by their position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    pub image: Option<usize>,
    pub caption: Option<usize>,
    /// One value a row, for the JSON.
    pub scalars: Vec<usize>,
}

impl Columns {
    /// Finds what a pool's samples are made of. A column that the settings name must be there.
    pub fn of(schema: &Schema, names: &ColumnNames) -> Result<Columns, NoColumn> {
        let image = find(schema, names.image.as_deref(), &IMAGE_COLUMNS, is_image, "with images")?;
        let caption = find(schema, names.caption.as_deref(), &CAPTION_COLUMNS, is_caption, "with captions")?;
        let scalars = (0..schema.fields().len())
            .filter(|&column| is_scalar(schema.field(column).data_type()))
            .filter(|&column| Some(column) != caption);
        Ok(Columns { image, caption, scalars: scalars.collect() })
    }

    pub fn all(&self) -> Vec<usize> {
        self.image.into_iter().chain(self.caption).chain(self.scalars.iter().copied()).collect()
    }

    /// What is missing, if images are wanted and there are none.
    pub fn no_image(schema: &Schema) -> NoColumn {
        no_column(schema, "with images, as bytes or as a struct of `bytes` and `path`".to_owned())
    }
}

fn find(
    schema: &Schema,
    named: Option<&str>,
    usual: &[&str],
    is_fit: fn(&DataType) -> bool,
    what: &str,
) -> Result<Option<usize>, NoColumn> {
    let of_name = |name: &str| {
        let column = schema.index_of(name).ok()?;
        is_fit(schema.field(column).data_type()).then_some(column)
    };
    match named {
        Some(name) => match of_name(name) {
            Some(column) => Ok(Some(column)),
            None => Err(no_column(schema, format!("`{name}` {what}"))),
        },
        None => Ok(usual.iter().find_map(|name| of_name(name))),
    }
}

fn no_column(schema: &Schema, wanted: String) -> NoColumn {
    let offered = schema.fields().iter().map(|field| format!("`{}` ({})", field.name(), field.data_type()));
    NoColumn { wanted, offered: offered.collect() }
}

/// Bytes, or a struct of bytes and path as Hugging Face's `Image` stores it.
fn is_image(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => {
            fields.iter().any(|field| field.name() == "bytes" && is_bytes(field.data_type()))
        }
        data_type => is_bytes(data_type),
    }
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Text, or a list of texts, the first of which is taken.
fn is_caption(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(of) | DataType::LargeList(of) => is_text(of.data_type()),
        data_type => is_text(data_type),
    }
}

fn is_scalar(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, of) => is_text(of),
        data_type => is_text(data_type) || data_type.is_numeric() || *data_type == DataType::Boolean,
    }
}

/// A row's image: its bytes, null or there, and its path.
pub(super) fn image_of(column: &ArrayRef, row: usize) -> (Option<&[u8]>, Option<&str>) {
    if column.is_null(row) {
        return (None, None);
    }
    let Some(members) = column.as_struct_opt() else { return (bytes_of(column, row), None) };
    let bytes = members.column_by_name("bytes").and_then(|bytes| bytes_of(bytes, row));
    (bytes, members.column_by_name("path").and_then(|path| text_of(path, row)))
}

fn bytes_of(column: &ArrayRef, row: usize) -> Option<&[u8]> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Binary => Some(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(column.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(column.as_binary_view().value(row)),
        _ => None,
    }
}

pub(super) fn text_of(column: &ArrayRef, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

/// A row's caption; the first of several.
pub(super) fn caption_of(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    let of_list =
        |texts: ArrayRef| (!texts.is_empty()).then(|| text_of(&texts, 0).map(str::to_owned)).flatten();
    match column.data_type() {
        DataType::List(_) => of_list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => of_list(column.as_list::<i64>().value(row)),
        _ => text_of(column, row).map(str::to_owned),
    }
}

/// A column whose texts are stored once for many rows, as texts; other columns as they are.
pub(super) fn plain(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Dictionary(..) => cast(column, &DataType::Utf8).expect("a dictionary of texts"),
        _ => column.clone(),
    }
}

/// A row's values as a JSON object; nulls, and numbers that JSON has not, are left out.
pub(super) fn json_of(columns: &[(String, ArrayRef)], row: usize) -> String {
    let values = columns.iter().filter_map(|(name, column)| Some((name.clone(), value_of(column, row)?)));
    Value::Object(values.collect::<Map<_, _>>()).to_string()
}

pub(super) fn value_of(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    match text_of(column, row) {
        Some(text) => Some(Value::String(text.to_owned())),
        None => {
            let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).ok()?;
            serde_json::from_str(&formatter.value(row).to_string()).ok()
        }
    }
}
