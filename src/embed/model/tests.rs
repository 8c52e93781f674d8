//! Model folders as they occur, with empty files for graphs.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::embed::image::{Resample, Resize};

const CLIP_OLD: &str = r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "do_center_crop": true, "crop_size": 224,
  "resample": 3, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27]}"#;
const CLIP_NEW: &str = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": true,
  "crop_size": {"height": 224, "width": 208}, "resample": 3, "rescale_factor": 0.00392156862745098,
  "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27]}"#;
const SIGLIP: &str = r#"{"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 192}, "resample": 2,
  "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
const TOKENIZER: &str = r#"{"padding": {"pad_token": "<pad>"}}"#;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("onnx")).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn open(files: &[(&str, &str)]) -> Result<Model, ModelError> {
    read(folder(files).path(), Variant::Default)
}

fn siglip<'a>(manifest: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut files = vec![
        ("onnx/vision_model.onnx", "v"),
        ("onnx/text_model.onnx", "t"),
        ("config.json", r#"{"model_type": "siglip", "text_config": {}}"#),
        ("preprocessor_config.json", SIGLIP),
        ("tokenizer.json", TOKENIZER),
        ("model.toml", manifest),
    ];
    files.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    files.extend(more);
    files
}

fn resize_of(processor: &str, manifest: &str) -> Result<Resize, ModelError> {
    let manifest = format!("logit_scale = 1.0\n{manifest}");
    Ok(open(&siglip(&manifest, &[("preprocessor_config.json", processor)]))?.preprocessing.resize)
}

#[test]
fn both_forms_of_the_processor_are_read() {
    let clip = |side, crop_width, crop_height| Resize::ShortestSide { side, crop_width, crop_height };
    assert_eq!(resize_of(CLIP_OLD, "").unwrap(), clip(224, 224, 224));
    assert_eq!(resize_of(CLIP_NEW, "").unwrap(), clip(256, 208, 224));
    assert_eq!(resize_of(SIGLIP, "").unwrap(), Resize::Squash { width: 192, height: 224 });
    assert_eq!(resize_of(SIGLIP, "image_size = 64").unwrap(), Resize::Squash { width: 64, height: 64 });
    assert_eq!(
        resize_of(SIGLIP, "resize = \"shortest_side\"\nimage_size = [30, 20]").unwrap(),
        clip(20, 30, 20)
    );
    assert_eq!(
        resize_of(CLIP_NEW, "resize = \"squash\"\nimage_size = 64").unwrap(),
        Resize::Squash { width: 64, height: 64 }
    );
    assert!(matches!(resize_of("{}", ""), Err(ModelError::MissingSetting { .. })));
    assert!(matches!(resize_of(SIGLIP, "image_size = 100000"), Err(ModelError::Unsupported { .. })));
}

#[test]
fn the_class_defaults_of_siglip_hold() {
    let model = open(&siglip("logit_scale = 117.3\nlogit_bias = -12.9", &[])).unwrap();
    assert_eq!((model.text.context_length, model.text.lower_case), (64, true));
    assert_eq!(model.text.pad_token, "<pad>");
    assert_eq!(model.preprocessing.resample, Resample::Bilinear);
    assert_eq!(
        model.logit_scale,
        Sourced { value: LogitScale::linear(117.3).unwrap(), source: "model.toml".to_owned() }
    );
    assert_eq!(model.logit_bias.unwrap().value, LogitBias::new(-12.9).unwrap());
}

#[test]
fn the_manifest_goes_before_the_other_files() {
    let config = r#"{"model_type": "clip", "text_config": {"max_position_embeddings": 77}}"#;
    let files = [
        ("config.json", config),
        ("tokenizer_config.json", r#"{"pad_token": {"content": "<|endoftext|>"}}"#),
    ];
    let model = open(&siglip("logit_scale = 100.0", &files)).unwrap();
    assert_eq!((model.text.context_length, model.text.pad_token.as_str()), (77, "<|endoftext|>"));
    assert_eq!((model.text.lower_case, model.logit_bias), (false, None));
    let manifest = "logit_scale = 100.0\ncontext_length = 32\npad_token = \"!\"\nlower_case = true";
    let model = open(&siglip(manifest, &files)).unwrap();
    assert_eq!(
        model.text,
        TextPreparation { context_length: 32, pad_token: "!".to_owned(), lower_case: true }
    );
}

#[test]
fn what_is_missing_is_named() {
    assert!(matches!(open(&siglip("", &[])), Err(ModelError::MissingLogitScale { initial_log: None })));
    assert!(matches!(open(&siglip("logit_scale = -1.0", &[])), Err(ModelError::InvalidLogitScale { .. })));
    assert!(matches!(open(&siglip("logit_scael = 1.0", &[])), Err(ModelError::Toml { .. })));
    assert!(matches!(open(&[]), Err(ModelError::MissingGraph { .. })));
    let no_context = open(&siglip("logit_scale = 1.0", &[("config.json", "{}")])).unwrap_err();
    assert_eq!(no_context.hint().unwrap(), "put `context_length` into `model.toml`");
    let endless = [
        ("config.json", "{}"),
        ("tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#),
    ];
    assert!(open(&siglip("logit_scale = 1.0", &endless)).is_err());
}

#[test]
fn graphs_are_found_in_either_place_and_form() {
    let graphs = |files: &[(&str, &str)]| {
        let folder = folder(files);
        find_graphs(folder.path(), Variant::Quantized, &Manifest::default()).map(|graphs| match graphs {
            Graphs::Split { .. } => "split",
            Graphs::Combined(_) => "combined",
        })
    };
    assert_eq!(graphs(&[("onnx/model_quantized.onnx", "")]).unwrap(), "combined");
    assert_eq!(
        graphs(&[("vision_model_quantized.onnx", ""), ("text_model_quantized.onnx", "")]).unwrap(),
        "split"
    );
    assert!(graphs(&[("onnx/model.onnx", "")]).is_err());
}

#[test]
fn weights_beside_the_graph_are_in_the_digest() {
    let digest = |weights| {
        let files = [("onnx/text_model.onnx_data", weights), ("onnx/unrelated.onnx_data", weights)];
        open(&siglip("logit_scale = 1.0", &files)).unwrap().digest
    };
    assert_eq!(digest("one"), digest("one"));
    assert_ne!(digest("one"), digest("two"));
}
