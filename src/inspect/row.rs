//! A row of an Arrow table in; its values as JSON, and as text, out.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::grid::{grid, printable};

/// Values of a list that text shows.
const LIST_VALUES_SHOWN: usize = 3;

/// Named values in the order of their columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Row(Vec<(String, Value)>);

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl Row {
    pub fn of(table: &RecordBatch, row: usize) -> Row {
        let columns = table.schema_ref().fields().iter().zip(table.columns());
        Row(columns.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
    }

    /// Null where there is no such column.
    pub fn get(&self, name: &str) -> &Value {
        self.0.iter().find(|(column, _)| column == name).map_or(&Value::Null, |(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name).as_f64()
    }

    pub fn position(&self, name: &str) -> Option<u64> {
        self.get(name).as_u64()
    }

    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.get(name).as_str()
    }

    /// A line for each value.
    pub fn text(&self) -> String {
        let rows: Vec<Vec<String>> =
            self.0.iter().map(|(name, value)| vec![printable(name), text(value)]).collect();
        let grid = grid(&["", ""], &rows, &[]);
        let lines = grid.lines().skip(1);
        lines.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// One value. Bytes are shown by their number, numbers that JSON has not (NaN) by their text.
fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    let list = |values: ArrayRef| (0..values.len()).map(|row| value(&values, row)).collect();
    let n_bytes = |n: usize| json!({ "n_bytes": n });
    match column.data_type() {
        DataType::Binary => n_bytes(column.as_binary::<i32>().value(row).len()),
        DataType::LargeBinary => n_bytes(column.as_binary::<i64>().value(row).len()),
        DataType::FixedSizeBinary(n) => n_bytes(*n as usize),
        DataType::List(_) => list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(column.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let members = fields.iter().zip(column.as_struct().columns());
            Value::Object(members.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        }
        data_type => {
            let formatted = ArrayFormatter::try_new(column, &FormatOptions::default())
                .and_then(|formatter| formatter.value(row).try_to_string());
            let text = formatted.unwrap_or_else(|error| error.to_string());
            let is_json = data_type.is_numeric() || *data_type == DataType::Boolean;
            let parsed = is_json.then(|| serde_json::from_str(&text).ok()).flatten();
            parsed.unwrap_or(Value::String(text))
        }
    }
}

/// A value on one line.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(values) => {
            let mut shown: Vec<String> = values.iter().take(LIST_VALUES_SHOWN).map(text).collect();
            if values.len() > LIST_VALUES_SHOWN {
                shown.push(format!("… {} values", values.len()));
            }
            format!("[{}]", shown.join(", "))
        }
        Value::Object(members) => match members.get("n_bytes") {
            Some(n) if members.len() == 1 => format!("{n} bytes"),
            _ => {
                let shown =
                    members.iter().map(|(name, value)| format!("{}: {}", printable(name), text(value)));
                format!("{{{}}}", shown.collect::<Vec<_>>().join(", "))
            }
        },
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, BooleanArray};

    use super::*;
    use crate::matrix::Matrix;
    use crate::settings::EmbeddingDtype;
    use crate::table::Columns;

    #[test]
    fn values_keep_their_kind_and_order() {
        let mut columns = Columns::default();
        columns
            .text("zeta", [Some("a\tb")])
            .u64("n", [Some(u64::MAX)])
            .f32("share", [Some(0.1)])
            .f64("loss", [Some(f64::NAN)])
            .u32("label", [None])
            .array("is_kept", Arc::new(BooleanArray::from(vec![true])))
            .array("image", Arc::new(BinaryArray::from_iter_values([b"12345"])))
            .embeddings("embedding", &Matrix::new(vec![0.5; 5], 5), &[true], EmbeddingDtype::F16);
        let row = Row::of(&columns.build(), 0);
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"zeta":"a\tb","n":18446744073709551615,"share":0.1,"loss":"NaN","label":null,"is_kept":true,"image":{"n_bytes":5},"embedding":[0.5,0.5,0.5,0.5,0.5]}"#
        );
        let text = row.text();
        assert!(text.contains("  zeta       a\\tb\n") && text.contains("  image      5 bytes\n"), "{text}");
        assert!(text.ends_with("[0.5, 0.5, 0.5, … 5 values]"), "{text}");
        assert_eq!((row.position("n"), row.number("label"), row.text_of("no")), (Some(u64::MAX), None, None));
    }
}
