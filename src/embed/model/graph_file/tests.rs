//! Graph files in the forms in which exporters write them, and broken ones.

use std::fs;

use super::scalars::LogitScalars;
use super::*;
use crate::embed::model::small_graph::{
    FLOAT, FLOAT16, INT64, SmallGraph, put_bytes, put_number, put_varint, subgraph,
};

fn read(bytes: &[u8]) -> Result<GraphFile, WireError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    GraphFile::read(file.path())
}

/// `logits_per_text = texts · imagesᵀ · scale`, as CLIP is exported, and its transpose.
fn clip() -> SmallGraph {
    SmallGraph::default()
        .input("input_ids", INT64, &[-1, -1])
        .input("pixel_values", FLOAT, &[-1, 3, 224, 224])
        .node("MatMul", &["texts", "images"], &["product"])
        .node("Mul", &["product", "factor"], &["logits_per_text"])
        .node("Transpose", &["logits_per_text"], &["logits_per_image"])
        .output("logits_per_image", FLOAT, &[-1, -1])
        .output("logits_per_text", FLOAT, &[-1, -1])
}

fn scalars(graph: SmallGraph) -> (Option<Scalar>, Option<Scalar>) {
    let LogitScalars { scale, bias } = read(&graph.build()).unwrap().logit_scalars();
    (scale, bias)
}

fn log(name: &str, value: f64) -> Option<Scalar> {
    Some(Scalar::Log { name: name.to_owned(), value })
}

fn plain(name: &str, value: f64) -> Option<Scalar> {
    Some(Scalar::Plain { name: name.to_owned(), value })
}

#[test]
fn what_a_graph_takes_and_gives_is_read() {
    let graph = clip().floats("weights", &[2, 2], &[1.0; 4]).input("weights", FLOAT, &[2, 2]);
    let file = read(&graph.build()).unwrap();
    let input =
        |name: &str, shape: &[Option<u64>]| GraphInput { name: name.to_owned(), shape: shape.to_vec() };
    let pixels = input("pixel_values", &[None, Some(3), Some(224), Some(224)]);
    assert_eq!(file.inputs, [input("input_ids", &[None, None]), pixels]);
    assert_eq!(file.outputs, ["logits_per_image", "logits_per_text"]);
    assert!(file.external_files.is_empty());
}

#[test]
fn the_exponential_that_the_graph_takes_makes_a_logarithm() {
    let graph = clip().floats("logit_scale", &[], &[4.5]).node("Exp", &["logit_scale"], &["factor"]);
    assert_eq!(scalars(graph), (log("logit_scale", 4.5), None));
    let graph = clip()
        .raw("logit_scale", FLOAT16, &[1], &half::f16::from_f32(4.5).to_le_bytes())
        .node("Cast", &["logit_scale"], &["cast"])
        .node("Exp", &["cast"], &["exponential"])
        .node("Unsqueeze", &["exponential"], &["factor"]);
    assert_eq!(scalars(graph), (log("logit_scale", 4.5), None));
}

#[test]
fn a_folded_exponential_is_linear() {
    assert_eq!(scalars(clip().floats("factor", &[], &[90.0])), (plain("factor", 90.0), None));
    // a constant node: a tensor in its attribute `value`, or a bare float
    let mut tensor = Vec::new();
    put_number(&mut tensor, 2, 1);
    put_bytes(&mut tensor, 4, &90.0f32.to_le_bytes());
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 5, &tensor);
    let graph = clip().node_with("Constant", &[], &["factor"], &[attribute]);
    assert_eq!(scalars(graph), (plain("factor", 90.0), None));
    let mut attribute = Vec::new();
    put_varint(&mut attribute, 2 << 3 | 5);
    attribute.extend(90.0f32.to_le_bytes());
    let graph = clip().node_with("Constant", &[], &["factor"], &[attribute]);
    assert_eq!(scalars(graph), (plain("factor", 90.0), None));
}

#[test]
fn siglip_adds_its_bias_after_the_scale() {
    let graph = SmallGraph::default()
        .node("MatMul", &["texts", "images"], &["product"])
        .floats("logit_scale", &[1], &[4.75])
        .node("Exp", &["logit_scale"], &["factor"])
        .node("Mul", &["factor", "product"], &["scaled"])
        .floats("logit_bias", &[1], &[-16.5])
        .node("Add", &["scaled", "logit_bias"], &["logits_per_text"])
        .output("logits_per_text", FLOAT, &[-1, -1]);
    assert_eq!(scalars(graph), (log("logit_scale", 4.75), plain("logit_bias", -16.5)));
}

#[test]
fn without_logits_names_tell() {
    let graph = || SmallGraph::default().floats("model.logit_scale", &[], &[4.5]);
    assert_eq!(scalars(graph().node("Exp", &["model.logit_scale"], &["s"])).0, log("model.logit_scale", 4.5));
    assert_eq!(
        scalars(graph().node("Mul", &["x", "model.logit_scale"], &["y"])).0,
        plain("model.logit_scale", 4.5)
    );
    // which of the two it is cannot be told
    assert_eq!(scalars(graph().node("Clip", &["model.logit_scale"], &["y"])), (None, None));
    let other =
        SmallGraph::default().floats("no_logit_scale", &[], &[4.5]).node("Exp", &["no_logit_scale"], &["s"]);
    assert_eq!(scalars(other), (None, None));
}

#[test]
fn constants_that_are_no_scalars_are_not_taken() {
    assert_eq!(scalars(clip().floats("factor", &[2], &[1.0, 2.0])), (None, None));
    assert_eq!(scalars(clip().integers("factor", &[], &[3])), (None, None));
    assert_eq!(scalars(clip().node("Softmax", &["x"], &["factor"])), (None, None));
    // a circle has no constant, and an end
    let circle = clip().node("Exp", &["b"], &["factor"]).node("Cast", &["factor"], &["b"]);
    assert_eq!(scalars(circle), (None, None));
}

#[test]
fn weights_elsewhere_are_found_wherever_they_are_named() {
    let branch = SmallGraph::default().external("in a branch", &[4], "branch.bin");
    let mut constant = Vec::new();
    let mut tensor = Vec::new();
    let mut pair = Vec::new();
    put_bytes(&mut pair, 2, b"constant.bin");
    put_bytes(&mut pair, 1, b"location");
    put_bytes(&mut tensor, 13, &pair);
    put_bytes(&mut constant, 5, &tensor);
    let graph = SmallGraph::default()
        .external("a", &[4], "a.bin")
        .external("again", &[4], "a.bin")
        .node_with("Constant", &[], &["c"], &[constant])
        .node_with("If", &["condition"], &["d"], &[subgraph("then_branch", branch)]);
    let file = read(&graph.build()).unwrap();
    assert_eq!(file.external_files.into_iter().collect::<Vec<_>>(), ["a.bin", "branch.bin", "constant.bin"]);
}

#[test]
fn what_is_no_graph_says_so() {
    let malformed = |bytes: &[u8]| match read(bytes) {
        Err(WireError::Malformed(what)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(malformed(b""), "it holds no graph");
    assert_eq!(malformed(b"\x08\x08"), "it holds no graph");
    let whole = clip().floats("factor", &[], &[90.0]).build();
    assert_eq!(malformed(&whole[..whole.len() / 2]), "a field is longer than what it stands in");
    assert_eq!(malformed(b"<html>not found</html>"), "a field has a type that there is not");
    assert_eq!(malformed(&[0xff; 32]), "a number is longer than 64 bits");
    assert!(matches!(GraphFile::read(Path::new("no/such/file")), Err(WireError::Read(_))));
}

#[test]
fn absurd_files_have_an_end() {
    let deep = (0..100).fold(SmallGraph::default(), |inner, _| {
        SmallGraph::default().node_with("If", &[], &[], &[subgraph("then_branch", inner)])
    });
    assert!(matches!(read(&deep.build()), Err(WireError::TooMany { what: "levels of graphs", .. })));
    let name = "n".repeat(1 << 17);
    let long = SmallGraph::default().input(&name, FLOAT, &[]);
    assert!(matches!(read(&long.build()), Err(WireError::TooMany { what: "bytes of a name", .. })));
    let many = (0..1025).fold(SmallGraph::default(), |graph, i| graph.external("w", &[1], &i.to_string()));
    assert!(matches!(read(&many.build()), Err(WireError::TooMany { what: "files of weights", .. })));
    let empty_nodes = SmallGraph::default();
    let empty_nodes = (0..(1 << 20) + 1).fold(empty_nodes, |graph, _| graph.part(1, &[]));
    assert!(matches!(
        read(&empty_nodes.build()),
        Err(WireError::TooMany { what: "nodes, weights and names", .. })
    ));
}
