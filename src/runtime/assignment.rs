//! A loaded session in, which provider runs how many of its nodes out.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr;

use ort::session::Session;
use ort::{AsPointer, ortsys};
use serde::{Deserialize, Serialize};

use super::device::{Place, Provider};

/// Operators that compute shapes. The runtime keeps their nodes on the processor on purpose, where the shapes are
/// needed.
const SHAPE_OPERATORS: [&str; 14] = [
    "Shape",
    "Size",
    "Constant",
    "ConstantOfShape",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Slice",
    "Cast",
    "Range",
    "Reshape",
    "Equal",
    "Where",
];

/// Nodes of a graph, after the runtime's fusions, by the provider that runs them and by operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeCounts(BTreeMap<String, BTreeMap<String, usize>>);

impl NodeCounts {
    /// Asks a session that was opened with `session.record_ep_graph_assignment_info`.
    pub(super) fn of(session: &Session) -> ort::Result<NodeCounts> {
        let mut counts = NodeCounts::default();
        let (mut subgraphs, mut n_subgraphs) = (ptr::null(), 0);
        // SAFETY: the session is live, and so are the arrays and texts that it hands out; they belong to it and are
        // only read, within the lengths that it states
        unsafe {
            ortsys![unsafe Session_GetEpGraphAssignmentInfo(session.ptr(), &mut subgraphs, &mut n_subgraphs)?];
            for &subgraph in slice(subgraphs, n_subgraphs) {
                let mut provider: *const c_char = ptr::null();
                ortsys![unsafe EpAssignedSubgraph_GetEpName(subgraph, &mut provider)?];
                let (mut nodes, mut n_nodes) = (ptr::null(), 0);
                ortsys![unsafe EpAssignedSubgraph_GetNodes(subgraph, &mut nodes, &mut n_nodes)?];
                for &node in slice(nodes, n_nodes) {
                    let mut operator: *const c_char = ptr::null();
                    ortsys![unsafe EpAssignedNode_GetOperatorType(node, &mut operator)?];
                    counts.add(text(provider), text(operator), 1);
                }
            }
        }
        Ok(counts)
    }

    fn add(&mut self, provider: String, operator: String, n: usize) {
        *self.0.entry(provider).or_default().entry(operator).or_default() += n;
    }

    /// Adds the nodes of another graph.
    pub fn extend(&mut self, other: &NodeCounts) {
        for (provider, operators) in &other.0 {
            for (operator, n) in operators {
                self.add(provider.clone(), operator.clone(), *n);
            }
        }
    }

    /// By provider.
    pub fn totals(&self) -> BTreeMap<&str, usize> {
        self.0.iter().map(|(provider, operators)| (provider.as_str(), operators.values().sum())).collect()
    }

    /// The nodes of a graph on a GPU that run on the processor though they are more than shapes, by operator.
    pub fn fallen_back(&self, place: Place) -> BTreeMap<&str, usize> {
        let on_cpu = self.0.get(Provider::Cpu.name()).filter(|_| place.is_gpu());
        let operators = on_cpu.into_iter().flatten();
        operators
            .filter(|(operator, _)| !SHAPE_OPERATORS.contains(&operator.as_str()))
            .map(|(operator, &n)| (operator.as_str(), n))
            .collect()
    }
}

/// `CPUExecutionProvider 3, CUDAExecutionProvider 97`.
impl fmt::Display for NodeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (provider, n)) in self.totals().into_iter().enumerate() {
            write!(f, "{}{provider} {n}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// # Safety
///
/// `first` is null or the first of `n` values that live as long as the result is used.
unsafe fn slice<'a, T>(first: *const T, n: usize) -> &'a [T] {
    // SAFETY: by the caller's promise
    if first.is_null() { &[] } else { unsafe { std::slice::from_raw_parts(first, n) } }
}

/// # Safety
///
/// `text` is null or ends in NUL.
unsafe fn text(text: *const c_char) -> String {
    // SAFETY: by the caller's promise
    if text.is_null() {
        String::new()
    } else {
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_nodes_on_the_processor_are_no_fall_back() {
        let mut counts = NodeCounts::default();
        counts.add("CUDAExecutionProvider".to_owned(), "Conv".to_owned(), 12);
        counts.add("CPUExecutionProvider".to_owned(), "Shape".to_owned(), 3);
        counts.add("CPUExecutionProvider".to_owned(), "NonZero".to_owned(), 2);
        let gpu = Place { provider: Provider::Cuda, number: 0 };
        assert_eq!(counts.fallen_back(gpu), BTreeMap::from([("NonZero", 2)]));
        assert!(counts.fallen_back(Place::CPU).is_empty());
        assert_eq!(counts.to_string(), "CPUExecutionProvider 5, CUDAExecutionProvider 12");
        counts.extend(&counts.clone());
        assert_eq!(counts.totals()["CUDAExecutionProvider"], 24);
    }
}
