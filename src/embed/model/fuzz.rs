//! Foreign model files: whatever their bytes, a folder is read or refused, and nothing panics.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

use super::small_graph::{FLOAT, INT64, SmallGraph, int, ints, subgraph};
use super::*;
use crate::embed::session::SessionSettings;
use crate::embed::{LoadedModel, Tokenizer, Tokens};
use crate::runtime::Place;

const FILES: [(&str, &str); 7] = [
    (
        "config.json",
        r#"{"model_type": "siglip", "architectures": ["SiglipModel"], "logit_scale_init_value": 2.6592,
        "text_config": {"max_position_embeddings": 8}, "vision_config": {"image_size": 4}}"#,
    ),
    (
        "preprocessor_config.json",
        r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 4},
        "do_center_crop": true, "crop_size": {"height": 4, "width": 3}, "resample": 3, "rescale_factor": 0.00392156862745098,
        "do_normalize": true, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27]}"#,
    ),
    ("tokenizer.json", include_str!("../../../tests/golden/models/bert/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../../tests/golden/models/bert/tokenizer_config.json")),
    ("modules.json", r#"[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]"#),
    ("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#),
    ("model.toml", "logit_scale = 10.0\nimage_size = [3, 4]\ncontext_length = 8\n"),
];

/// Both towers, a scale and a bias, a branch, weights elsewhere.
fn graph() -> Vec<u8> {
    let branch = SmallGraph::default().external("in the branch", &[2], "weights.bin");
    let words: Vec<f32> = (0..900).map(|i| (i as f32).sin()).collect();
    SmallGraph::default()
        .input("pixel_values", FLOAT, &[-1, 3, -1, -1])
        .input("input_ids", INT64, &[-1, -1])
        .node_with(
            "ReduceMean",
            &["pixel_values"],
            &["image_embeds"],
            &[ints("axes", &[2, 3]), int("keepdims", 0)],
        )
        .floats("words", &[300, 3], &words)
        .node("Gather", &["words", "input_ids"], &["last_hidden_state"])
        .node_with(
            "ReduceMean",
            &["last_hidden_state"],
            &["text_embeds"],
            &[ints("axes", &[1]), int("keepdims", 0)],
        )
        .node("Transpose", &["image_embeds"], &["images"])
        .node("MatMul", &["text_embeds", "images"], &["product"])
        .floats("logit_scale", &[], &[4.5])
        .node("Exp", &["logit_scale"], &["factor"])
        .node("Mul", &["product", "factor"], &["scaled"])
        .floats("logit_bias", &[1], &[-16.5])
        .node("Add", &["scaled", "logit_bias"], &["logits_per_text"])
        .node_with("Unused", &["condition"], &["nothing"], &[subgraph("then_branch", branch)])
        .output("image_embeds", FLOAT, &[-1, 3])
        .output("text_embeds", FLOAT, &[-1, 3])
        .output("logits_per_text", FLOAT, &[-1, -1])
        .build()
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for (name, text) in FILES {
        fs::write(folder.path().join(name), text).unwrap();
    }
    fs::write(folder.path().join("model.onnx"), graph()).unwrap();
    fs::write(folder.path().join("weights.bin"), [0; 8]).unwrap();
    folder
}

#[test]
fn the_folder_is_sound_before_it_is_broken() {
    let model = read(folder().path(), ModelChoice::default()).unwrap();
    assert_eq!(model.kind(), ModelKind::Pair);
    assert!(model.logits.bias.is_some());
    Tokenizer::open(Path::new(""), model.parts.text().unwrap()).unwrap();
}

/// Changes some bytes, and cuts the file.
fn broken(bytes: &[u8], changes: &[(Index, u8)], length: Option<Index>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (place, value) in changes {
        let at = place.index(bytes.len());
        bytes[at] = *value;
    }
    let length = length.map_or(bytes.len(), |length| length.index(bytes.len()));
    bytes.truncate(length);
    bytes
}

fn changes() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    let change = (any::<Index>(), any::<u8>());
    (proptest::collection::vec(change, 1..4), proptest::option::weighted(0.2, any::<Index>()))
}

/// Reads the folder, and tokenizes with what it states.
fn must_end(folder: &Path) {
    if let Ok(model) = read(folder, ModelChoice::default())
        && let Some(text) = model.parts.text()
        && let Ok(tokenizer) = Tokenizer::open(folder, text)
    {
        let mut tokens = Tokens::new(tokenizer.context_length());
        let _ = tokenizer.encode("A photo of two DOGS, running! \u{1f34f}", &mut tokens);
    }
}

/// Breaks one file of a folder in many ways, each time from what it was.
fn break_often(n_cases: u32, name: &str, text: &[u8], must_end: impl Fn(&Path)) {
    let folder = folder();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(n_cases));
    let broken_often = runner.run(&changes(), |(changes, length)| {
        fs::write(folder.path().join(name), broken(text, &changes, length)).unwrap();
        must_end(folder.path());
        Ok(())
    });
    broken_often.unwrap();
}

#[test]
fn broken_texts_are_survived() {
    for (name, text) in FILES {
        break_often(300, name, text.as_bytes(), must_end);
    }
}

#[test]
fn broken_graphs_are_survived() {
    break_often(2000, "model.onnx", &graph(), |folder| drop(read(folder, ModelChoice::default())));
}

#[test]
fn the_runtime_survives_what_was_read() {
    let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
    break_often(200, "model.onnx", &graph(), |folder| {
        drop(LoadedModel::open(folder, ModelChoice::default(), &settings));
    });
}

proptest! {
    #[test]
    fn random_bytes_are_no_graph(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let folder = folder();
        fs::write(folder.path().join("model.onnx"), bytes).unwrap();
        let _ = read(folder.path(), ModelChoice::default());
    }
}
