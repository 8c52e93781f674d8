//! An ONNX file in; what it takes and gives, which files hold its weights, and its scalar constants, out.
//!
//! Weights are passed over, so that a graph of any size costs little. The bytes are foreign: a file that is cut, broken
//! or absurd is a [`WireError`].

mod wire;
mod reader;
mod scalars;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reader::Reader;
use wire::Wire;

pub use scalars::Scalar;
pub use wire::WireError;

/// Protobuf itself ends at 2 GiB.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// What is known of a graph file without its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GraphFile {
    /// What has to be fed; weights that are declared as inputs too are not among them.
    pub inputs: Vec<GraphInput>,
    pub outputs: Vec<String>,
    /// Where weights lie outside of the file, as the file says it.
    pub external_files: BTreeSet<String>,
    nodes: Vec<Node>,
    /// Constants of one floating-point number, by name.
    scalars: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphInput {
    pub name: String,
    /// By axis; none where any length will do. Empty where the graph says nothing.
    pub shape: Vec<Option<u64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    operator: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl GraphFile {
    pub fn read(path: &Path) -> Result<GraphFile, WireError> {
        let wire = Wire::open(path)?;
        let all = wire.all();
        if all.len() > FILE_BYTES_MAX {
            return Err(WireError::TooMany { what: "bytes", max: FILE_BYTES_MAX });
        }
        Reader::new(wire).read(all)
    }

    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input.name == name)
    }
}

#[cfg(test)]
mod tests;
