//! Models of every kind, as small graphs through the runtime.

use std::fs;

use tempfile::TempDir;

use super::model::small_graph::{BFLOAT16, FLOAT, FLOAT16, INT64, SmallGraph, UINT8, int, ints};
use super::*;
use crate::error::Error;
use crate::read::Limits;
use crate::runtime::Place;

const PROCESSOR: &str = r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 2, "width": 3},
  "resample": 2, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}"#;
const TOKENIZER: &str = include_str!("../../tests/golden/models/bert/tokenizer.json");

/// A folder with one graph and the files beside it.
fn folder(name: &str, graph: SmallGraph, manifest: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write(name, &graph.build());
    write("model.toml", manifest.as_bytes());
    write("preprocessor_config.json", PROCESSOR.as_bytes());
    write("tokenizer.json", TOKENIZER.as_bytes());
    folder
}

fn open(folder: &TempDir) -> Result<LoadedModel, ModelError> {
    open_at(folder, None)
}

fn open_at(folder: &TempDir, image_size_px: Option<u32>) -> Result<LoadedModel, ModelError> {
    let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
    let choice = ModelChoice { image_size_px, ..ModelChoice::default() };
    LoadedModel::open(folder.path(), choice, &settings).map_err(|error| match error {
        Error::Model { source, .. } => source,
        error => panic!("{}", error.message()),
    })
}

fn message(opened: Result<LoadedModel, ModelError>) -> String {
    match opened {
        Err(error) => format!("{error}; {}", error.hint().unwrap_or_default()),
        Ok(_) => panic!("it is refused"),
    }
}

/// The mean of each channel: `[n, 3, h, w]` → `[n, 3]`.
fn channel_means(kind: u64, shape: &[i64], output: &str) -> SmallGraph {
    let axes = [ints("axes", &[2, 3]), int("keepdims", 0)];
    SmallGraph::default()
        .input("pixel_values", kind, shape)
        .node_with("ReduceMean", &["pixel_values"], &[output], &axes)
        .output(output, kind, &[-1, 3])
}

#[test]
fn what_is_outside_by_its_header_is_not_decoded() {
    use crate::read::{ReadSample, Sample};
    use crate::rejection::Rejection;
    let mut png = std::io::Cursor::new(Vec::new());
    ::image::RgbImage::new(40, 30).write_to(&mut png, ::image::ImageFormat::Png).unwrap();
    let mut cut = png.into_inner();
    cut.truncate(cut.len() / 2);
    let decoded = |bounds: &str| {
        let sample = Sample {
            key: "cut".to_owned(),
            sample_idx: 0,
            image: cut.clone(),
            image_extension: "png".to_owned(),
            image_offset: None,
            image_size: cut.len() as u64,
            caption: Some("a".to_owned()),
            label: None,
            json: None,
            uid: None,
        };
        let encoders = Encoders::new([], Limits::default()).unwrap().within(&toml::from_str(bounds).unwrap());
        let row = encoders.decode(ReadSample::Sample(sample)).unwrap().row;
        (row.rejection.unwrap(), row.width, row.height)
    };
    assert_eq!(decoded("side_min_px = 31"), (Rejection::OutOfBounds, Some(40), Some(30)));
    assert_eq!(decoded("side_min_px = 30"), (Rejection::UndecodableImage, None, None));
}

/// Two images of 3 × 2 pixels with channels of one value.
fn two_images() -> BatchInputs {
    let channels = [3.0, 0.0, 4.0, f32::NAN, 1.0, 1.0];
    BatchInputs::Images { pixels: channels.iter().flat_map(|&value| [value; 6]).collect(), n_images: 2 }
}

#[test]
fn images_alone_are_embedded() {
    for kind in [FLOAT, FLOAT16, BFLOAT16] {
        let folder = folder("model.onnx", channel_means(kind, &[-1, 3, -1, -1], "anything"), "");
        let mut loaded = match open(&folder) {
            // the runtime on the processor has no bfloat16 mean
            Err(ModelError::Graph { .. }) if kind == BFLOAT16 => continue,
            opened => opened.unwrap(),
        };
        assert_eq!((loaded.model.kind(), loaded.embedding_dim), (ModelKind::Image, 3));
        let BatchOutputs::Images(embeddings) = loaded.towers.embed(&two_images()).unwrap() else {
            panic!("images in, images out")
        };
        assert_eq!(embeddings.degenerate, [1]);
        for (ours, wanted) in embeddings.rows.row(0).iter().zip([0.6, 0.0, 0.8]) {
            assert!((ours - wanted).abs() < 1e-6, "{:?}", embeddings.rows);
        }
    }
}

#[test]
fn a_classifier_gives_logits_as_they_are() {
    let graph = channel_means(FLOAT, &[-1, 3, 2, 3], "logits");
    let folder = folder("model.onnx", graph, "kind = \"classifier\"");
    let mut loaded = open(&folder).unwrap();
    assert_eq!((loaded.model.kind(), loaded.embedding_dim), (ModelKind::Classifier, 3));
    let BatchOutputs::Logits(logits) = loaded.towers.embed(&two_images()).unwrap() else {
        panic!("a classifier gives logits")
    };
    assert_eq!((logits.rows.row(0), &logits.degenerate[..]), (&[3.0, 0.0, 4.0][..], &[1][..]));
}

#[test]
fn a_fixed_size_is_kept_and_a_dynamic_one_is_free() {
    let dynamic = folder("model.onnx", channel_means(FLOAT, &[-1, 3, -1, -1], "out"), "");
    assert_eq!(open_at(&dynamic, Some(5)).unwrap().model.parts.image().unwrap().preprocessing.size(), (5, 5));
    let fixed = folder("model.onnx", channel_means(FLOAT, &[-1, 3, 2, 3], "out"), "");
    open(&fixed).unwrap();
    let refused = message(open_at(&fixed, Some(5)));
    assert!(
        refused.contains("`pixel_values`") && refused.contains("[any, 3, 2, 3], not [n, 3, 5, 5]"),
        "{refused}"
    );
    assert!(refused.contains("image_size_px"), "{refused}");
    let transposed = folder("model.onnx", channel_means(FLOAT, &[-1, 3, 3, 2], "out"), "");
    assert!(message(open(&transposed)).contains("takes [any, 3, 3, 2], not [n, 3, 2, 3]"));
}

#[test]
fn channels_may_come_last_and_pixels_be_bytes() {
    // the mean of each channel: `[n, h, w, 3]` → `[n, 3]`
    let graph = |kind: u64| {
        let cast = int("to", FLOAT as i64);
        SmallGraph::default()
            .input("image", kind, &[-1, -1, -1, 3])
            .node_with("Cast", &["image"], &["numbers"], &[cast])
            .node_with("ReduceMean", &["numbers"], &["means"], &[ints("axes", &[1, 2]), int("keepdims", 0)])
            .output("means", FLOAT, &[-1, 3])
    };
    let bytes = "rescale_factor = 1\nimage_mean = [0, 0, 0]\nimage_std = [1, 1, 1]";
    for kind in [FLOAT, UINT8] {
        let mut loaded = open(&folder("model.onnx", graph(kind), bytes)).unwrap();
        let channels = [[3.0; 6], [0.0; 6], [4.0; 6], [250.0; 6], [0.0; 6], [0.0; 6]].concat();
        let outputs = loaded.towers.embed(&BatchInputs::Images { pixels: channels, n_images: 2 }).unwrap();
        let BatchOutputs::Images(embeddings) = outputs else { panic!("images in, images out") };
        for (ours, wanted) in embeddings.rows.values().iter().zip([0.6, 0.0, 0.8, 1.0, 0.0, 0.0]) {
            assert!((ours - wanted).abs() < 1e-6, "{:?}", embeddings.rows);
        }
    }
    let refused = message(open(&folder("model.onnx", graph(UINT8), "")));
    assert!(refused.contains("takes bytes") && refused.contains("rescale_factor = 1"), "{refused}");
}

#[test]
fn wrong_inputs_and_outputs_are_named() {
    let rank_4 = SmallGraph::default()
        .input("pixel_values", FLOAT, &[-1, 3, -1, -1])
        .node("Identity", &["pixel_values"], &["maps"])
        .output("maps", FLOAT, &[-1, 3, -1, -1]);
    let refused = message(open(&folder("model.onnx", rank_4, "")));
    assert!(
        refused.contains("`maps`") && refused.contains("[2, 3, 2, 3], not [samples, width]"),
        "{refused}"
    );

    let two = channel_means(FLOAT, &[-1, 3, -1, -1], "one").node("Identity", &["one"], &["two"]).output(
        "two",
        FLOAT,
        &[-1, 3],
    );
    let refused = message(open(&folder("model.onnx", two, "")));
    assert!(refused.contains("`image_embeds`, `pooler_output`; its outputs are `one`, `two`"), "{refused}");

    let mask = channel_means(FLOAT, &[-1, 3, -1, -1], "one").input("pixel_mask", INT64, &[-1, -1]);
    assert!(message(open(&folder("model.onnx", mask, ""))).contains("`pixel_mask`"));
    let whole_numbers = channel_means(INT64, &[-1, 3, -1, -1], "one");
    assert!(message(open(&folder("model.onnx", whole_numbers, ""))).contains("pixel type"));
    let of_one = channel_means(FLOAT, &[1, 3, -1, -1], "one");
    assert!(message(open(&folder("model.onnx", of_one, ""))).contains("batch axis"));
}

/// A vector for each token id: `[n, length]` → `[n, length, 2]`.
fn word_vectors(length: i64) -> SmallGraph {
    let vectors: Vec<f32> = (0..300).flat_map(|id| [id as f32, 1.0]).collect();
    SmallGraph::default()
        .input("input_ids", INT64, &[-1, length])
        .floats("words", &[300, 2], &vectors)
        .node("Gather", &["words", "input_ids"], &["last_hidden_state"])
        .output("last_hidden_state", FLOAT, &[-1, length, 2])
}

#[test]
fn token_vectors_need_a_pooling() {
    let refused =
        message(open(&folder("model.onnx", word_vectors(-1), "context_length = 6\npad_token = \"[PAD]\"")));
    assert!(refused.contains("[2, 6, 2]") && refused.contains("text_pooling"), "{refused}");

    for (pooling, wanted) in [("mean", [5.0, 1.0]), ("cls", [2.0, 1.0]), ("last", [9.0, 1.0])] {
        let manifest = format!("context_length = 4\npad_token = \"[PAD]\"\ntext_pooling = \"{pooling}\"");
        let mut loaded = open(&folder("model.onnx", word_vectors(-1), &manifest)).unwrap();
        assert_eq!((loaded.model.kind(), loaded.embedding_dim), (ModelKind::Text, 2));
        let tokens = Tokens::of(4, vec![2, 4, 9, 0], vec![1, 1, 1, 0]);
        let BatchOutputs::Captions(embeddings) = loaded.towers.embed(&BatchInputs::Captions(tokens)).unwrap()
        else {
            panic!("captions in, captions out")
        };
        let length = f32::hypot(wanted[0], wanted[1]);
        for (ours, wanted) in embeddings.rows.row(0).iter().zip(wanted) {
            assert!((ours - wanted / length).abs() < 1e-6, "{pooling}: {:?}", embeddings.rows);
        }
    }
}

#[test]
fn captions_are_padded_as_far_as_their_model_needs() {
    let found_at = |context_length: u32, graph: SmallGraph, manifest: &str| {
        let manifest = format!("context_length = {context_length}\npad_token = \"[PAD]\"\n{manifest}");
        let mut loaded = open(&folder("model.onnx", graph, &manifest)).unwrap();
        let encoders = Encoders::new([&loaded.model], Limits::default()).unwrap();
        loaded.find_padding(0, &encoders.probe().unwrap()).unwrap();
        loaded.padding
    };
    let found = |graph: SmallGraph, manifest: &str| found_at(40, graph, manifest);
    // the mask leaves padding out
    let pooling = "text_pooling = \"mean\"";
    assert_eq!(found(word_vectors(-1), pooling), Padding::Longest);
    assert_eq!(found(word_vectors(40), pooling), Padding::ContextLength);
    // padding counts in the mean
    let vectors: Vec<f32> = (0..300).flat_map(|id| [(id as f32).sin(), 1.0]).collect();
    let mean = || {
        let mean = [ints("axes", &[1]), int("keepdims", 0)];
        SmallGraph::default()
            .input("input_ids", INT64, &[-1, -1])
            .floats("words", &[300, 2], &vectors)
            .node("Gather", &["words", "input_ids"], &["vectors"])
            .node_with("ReduceMean", &["vectors"], &["text_embeds"], &mean)
            .output("text_embeds", FLOAT, &[-1, 2])
    };
    assert_eq!(found(mean(), ""), Padding::ContextLength);
    assert_eq!(found_at(16, mean(), ""), Padding::ContextLength);
    // a length that the graph does not declare, but needs
    let product = SmallGraph::default()
        .input("input_ids", INT64, &[-1, -1])
        .node_with("Cast", &["input_ids"], &["ids"], &[int("to", FLOAT as i64)])
        .floats("weights", &[40, 2], &(0..80).map(|i| (i as f32).sin()).collect::<Vec<_>>())
        .node("MatMul", &["ids", "weights"], &["text_embeds"])
        .output("text_embeds", FLOAT, &[-1, 2]);
    assert_eq!(found(product, ""), Padding::ContextLength);
    let images = open(&folder("model.onnx", channel_means(FLOAT, &[-1, 3, -1, -1], "any"), "")).unwrap();
    assert_eq!(images.towers.has_fixed_caption_length(), None);
}

#[test]
fn a_fixed_context_length_is_kept() {
    let manifest =
        |length: u32| format!("context_length = {length}\npad_token = \"[PAD]\"\ntext_pooling = \"mean\"");
    open(&folder("model.onnx", word_vectors(5), &manifest(5))).unwrap();
    let refused = message(open(&folder("model.onnx", word_vectors(5), &manifest(6))));
    assert!(refused.contains("[any, 5], not [n, 6]") && refused.contains("context_length"), "{refused}");
}
