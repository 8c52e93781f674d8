//! This machine in; what it offers to a run out.
use std::path::Path;
pub fn examine(_model: Option<&Path>) -> (String, bool) {
    (String::new(), true)
}
