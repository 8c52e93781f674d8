//! The figures of a report in, one self-contained page out.

use crate::plan::Plan;

use super::summary::Report;

/// The page: no script, no file beside it.
pub fn page(report: &Report, _plan: &Plan) -> String {
    format!(
        "<!doctype html><pre>{}</pre>",
        serde_json::to_string_pretty(report).expect("representable as JSON")
    )
}
