//! Model folders as they occur, with small files for graphs.

mod open_clip;

use std::fs;

use tempfile::TempDir;

use super::small_graph::{FLOAT, INT64, SmallGraph};
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

/// A folder with these files; a graph's text says which inputs it declares: `pixels`, `tokens` or both, after it the
/// places of its weights.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("onnx")).unwrap();
    for (name, text) in files {
        let bytes = if name.ends_with(".onnx") { graph(text) } else { text.as_bytes().to_vec() };
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn graph(text: &str) -> Vec<u8> {
    let parts = text.split_whitespace();
    let graph = parts.fold(SmallGraph::default(), |graph, part| match part {
        "pixels" => graph.input("pixel_values", FLOAT, &[-1, 3, -1, -1]),
        "tokens" => graph.input("input_ids", INT64, &[-1, -1]),
        location => graph.external(&format!("weights in {location}"), &[2], location),
    });
    graph.build()
}

fn open(files: &[(&str, &str)]) -> Result<Model, ModelError> {
    read(folder(files).path(), ModelChoice::default())
}

fn siglip<'a>(manifest: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut files = vec![
        ("onnx/vision_model.onnx", "pixels"),
        ("onnx/text_model.onnx", "tokens"),
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
    let model = open(&siglip(&manifest, &[("preprocessor_config.json", processor)]))?;
    Ok(model.parts.image().unwrap().preprocessing.resize)
}

fn preparation(model: &Model) -> &TextPreparation {
    &model.parts.text().unwrap().preparation
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
    let text = preparation(&model);
    assert_eq!(
        (text.context_length, text.form, text.pad_token.as_str()),
        (64, CaptionForm::LowerCase, "<pad>")
    );
    assert_eq!(model.parts.image().unwrap().preprocessing.resample, Resample::Bilinear);
    let scale = Sourced { value: LogitScale::linear(117.3).unwrap(), source: "model.toml".to_owned() };
    assert_eq!(model.logits.scale, Some(scale));
    assert_eq!(model.logits.bias.unwrap().value, LogitBias::new(-12.9).unwrap());
}

#[test]
fn the_manifest_goes_before_the_other_files() {
    let config = r#"{"model_type": "clip", "text_config": {"max_position_embeddings": 77}}"#;
    let files = [
        ("config.json", config),
        ("tokenizer_config.json", r#"{"pad_token": {"content": "<|endoftext|>"}}"#),
    ];
    let model = open(&siglip("logit_scale = 100.0", &files)).unwrap();
    let text = preparation(&model);
    assert_eq!((text.context_length, text.pad_token.as_str()), (77, "<|endoftext|>"));
    assert_eq!((text.form, &model.logits.bias), (CaptionForm::AsIs, &None));
    let manifest =
        "logit_scale = 100.0\ncontext_length = 32\npad_token = \"!\"\ncaption_form = \"lower_case\"";
    let model = open(&siglip(manifest, &files)).unwrap();
    assert_eq!(
        *preparation(&model),
        TextPreparation {
            context_length: 32,
            pad_token: "!".to_owned(),
            pads_left: false,
            form: CaptionForm::LowerCase
        }
    );
}

#[test]
fn what_is_missing_is_named() {
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
fn a_scale_that_no_file_states_is_none() {
    let config = r#"{"model_type": "clip", "text_config": {}, "logit_scale_init_value": 2.6592}"#;
    let model = open(&siglip("", &[("config.json", config)])).unwrap();
    assert_eq!(model.logits, StatedLogits::default());
    assert!((model.initial_logit_scale.unwrap().get() - 14.285).abs() < 1e-3);
}

#[test]
fn the_kind_is_what_the_folder_has() {
    let classifier = r#"{"architectures": ["ViTForImageClassification"]}"#;
    let kind = |files: &[(&str, &str)]| {
        let mut all = siglip("context_length = 8", files);
        all.retain(|(_, text)| *text != "absent");
        open(&all).map(|model| model.kind().to_string())
    };
    let split = |image, text, single, manifest| {
        kind(&[
            ("onnx/vision_model.onnx", image),
            ("onnx/text_model.onnx", text),
            ("onnx/model.onnx", single),
            ("model.toml", manifest),
        ])
    };
    let none = "context_length = 8";
    assert_eq!(split("pixels", "tokens", "absent", none).unwrap(), "pair");
    assert_eq!(split("pixels", "tokens", "pixels", none).unwrap(), "pair");
    assert_eq!(split("pixels", "absent", "absent", none).unwrap(), "image");
    assert_eq!(split("absent", "tokens", "absent", none).unwrap(), "text");
    assert_eq!(split("absent", "absent", "pixels tokens", none).unwrap(), "pair");
    assert_eq!(split("absent", "absent", "pixels", none).unwrap(), "image");
    assert_eq!(split("absent", "absent", "tokens", none).unwrap(), "text");
    assert!(matches!(split("absent", "absent", "", none), Err(ModelError::UnknownKind { .. })));
    assert_eq!(split("pixels", "tokens", "absent", "kind = \"image\"").unwrap(), "image");
    assert_eq!(split("pixels", "tokens", "absent", "kind = \"text\"").unwrap(), "text");
    assert_eq!(split("absent", "absent", "pixels", "kind = \"classifier\"").unwrap(), "classifier");
    assert!(matches!(
        split("pixels", "absent", "absent", "kind = \"pair\""),
        Err(ModelError::MissingGraph { .. })
    ));
    assert!(matches!(split("pixels", "tokens", "absent", "kind = \"both\""), Err(ModelError::Toml { .. })));
    let config = [("onnx/text_model.onnx", "absent"), ("config.json", classifier)];
    assert_eq!(kind(&config).unwrap(), "classifier");
}

#[test]
fn images_alone_need_no_tokenizer() {
    let files = [("tokenizer.json", "absent"), ("onnx/text_model.onnx", "absent")];
    let mut files = siglip("", &files);
    files.retain(|(_, text)| *text != "absent");
    let model = open(&files).unwrap();
    assert_eq!((model.kind(), model.parts.text()), (ModelKind::Image, None));
}

#[test]
fn another_tensor_size_keeps_the_look_at_the_picture() {
    let size = |processor, size| {
        let folder = folder(&siglip("logit_scale = 1.0", &[("preprocessor_config.json", processor)]));
        let choice = ModelChoice { image_size_px: Some(size), ..ModelChoice::default() };
        read(folder.path(), choice).map(|model| {
            let preprocessing = &model.parts.image().unwrap().preprocessing;
            (preprocessing.resize, model.digest)
        })
    };
    assert_eq!(size(SIGLIP, 64).unwrap().0, Resize::Squash { width: 64, height: 64 });
    let clip = |side, crop| Resize::ShortestSide { side, crop_width: crop, crop_height: crop };
    assert_eq!(size(CLIP_OLD, 112).unwrap().0, clip(112, 112));
    // 256 before a crop of 208 × 224 are 123 before one of 100
    assert_eq!(size(CLIP_NEW, 100).unwrap().0, clip(123, 100));
    assert_ne!(size(SIGLIP, 64).unwrap().1, size(SIGLIP, 65).unwrap().1);
    for bad in [0, 4097] {
        assert!(matches!(size(SIGLIP, bad), Err(ModelError::Unsupported { .. })), "{bad}");
    }
}

#[test]
fn graphs_are_found_in_either_place_and_form() {
    let graphs = |files: &[(&str, &str)]| {
        let folder = folder(files);
        find_graphs(folder.path(), Variant::Quantized, &Manifest::default(), &Value::Null).map(|graphs| {
            match graphs {
                GraphPaths::Pair { image, text } if image == text => "combined",
                GraphPaths::Pair { .. } => "split",
                _ => "one tower",
            }
        })
    };
    assert_eq!(graphs(&[("onnx/model_quantized.onnx", "pixels tokens")]).unwrap(), "combined");
    assert_eq!(
        graphs(&[("vision_model_quantized.onnx", "pixels"), ("text_model_quantized.onnx", "tokens")])
            .unwrap(),
        "split"
    );
    assert!(graphs(&[("onnx/model.onnx", "pixels tokens")]).is_err());
}

#[test]
fn weights_that_the_graph_names_are_in_the_digest() {
    let digest = |weights| {
        let files = [
            ("onnx/text_model.onnx", "tokens text_weights.bin"),
            ("onnx/text_weights.bin", weights),
            ("onnx/text_model.onnx_data", "not named by the graph"),
        ];
        open(&siglip("logit_scale = 1.0", &files)).unwrap().digest
    };
    assert_eq!(digest("one"), digest("one"));
    assert_ne!(digest("one"), digest("two"));
}

#[test]
fn what_lies_outside_of_the_folder_is_refused() {
    let with_graph =
        |text: &str| open(&siglip("logit_scale = 1.0", &[("onnx/text_model.onnx", text)])).map(|_| ());
    for location in ["../config.json", "/etc/hostname", "a/../../config.json"] {
        let error = with_graph(&format!("tokens {location}")).unwrap_err();
        assert!(matches!(error, ModelError::OutsideFolder { .. }), "{location}: {error}");
    }
    assert!(matches!(with_graph("tokens absent.bin"), Err(ModelError::MissingFile { .. })));
    let manifest = "logit_scale = 1.0\nimage_graph = \"../vision.onnx\"";
    assert!(matches!(open(&siglip(manifest, &[])), Err(ModelError::OutsideFolder { .. })));

    let elsewhere = folder(&[("weights.bin", "elsewhere")]);
    let linked = folder(&siglip("logit_scale = 1.0", &[("onnx/text_model.onnx", "tokens weights.bin")]));
    let place = linked.path().join("onnx/weights.bin");
    std::os::unix::fs::symlink(elsewhere.path().join("weights.bin"), &place).unwrap();
    let error = read(linked.path(), ModelChoice::default()).unwrap_err();
    assert!(matches!(error, ModelError::OutsideFolder { .. }), "{error}");
    // as in Hugging Face's cache: the graph is a link too, to a file beside the weights
    let text_graph = linked.path().join("onnx/text_model.onnx");
    fs::rename(&text_graph, elsewhere.path().join("graph")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("graph"), &text_graph).unwrap();
    read(linked.path(), ModelChoice::default()).unwrap();
}

#[test]
fn a_file_that_is_no_file_is_not_read() {
    let folder = folder(&siglip("logit_scale = 1.0", &[]));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    let error = read(folder.path(), ModelChoice::default()).unwrap_err();
    assert!(matches!(error, ModelError::Read { .. }), "{error}");
}

/// Pixel (x, y), channel c: (7x + 13y + 29c + 5·(xy mod 31)) mod 256.
fn picture(width: u32, height: u32) -> ::image::RgbImage {
    ::image::RgbImage::from_fn(width, height, |x, y| {
        let channel = |c: u32| ((7 * x + 13 * y + 29 * c + 5 * (x * y % 31)) % 256) as u8;
        ::image::Rgb([channel(0), channel(1), channel(2)])
    })
}

/// Against transformers: see `tests/oracle/processor_configs.py`.
#[test]
fn processors_of_many_classes_make_the_same_tensors() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/processor_configs.json")).unwrap();
    let processors = golden["processors"].as_array().unwrap();
    assert!(processors.len() > 15);
    for processor in processors {
        let config = &processor["config"];
        let preprocessing = preprocessor::resolve(Some(config), &Manifest::default(), None);
        let preprocessing = preprocessing.unwrap_or_else(|error| panic!("{error}: {config}"));
        assert_tensors(&preprocessing, &golden["sizes"], processor);
    }
}

/// Fails unless pictures of these sizes become the row's `tensors`.
#[track_caller]
fn assert_tensors(preprocessing: &Preprocessing, sizes: &Value, row: &Value) {
    use blake2::digest::Digest;
    let sizes: Vec<[u32; 2]> = serde_json::from_value(sizes.clone()).unwrap();
    let tensors = row["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), sizes.len());
    for (size, tensor) in sizes.iter().zip(tensors) {
        let (width, height) = preprocessing.size();
        assert_eq!(tensor["shape"], serde_json::json!([3, height, width]), "{}", row["config"]);
        let mut out = vec![f32::NAN; preprocessing.n_values()];
        crate::embed::image::preprocess(&picture(size[0], size[1]), preprocessing, &mut out);
        let bytes: Vec<u8> = out.iter().flat_map(|value| value.to_le_bytes()).collect();
        let digest: Vec<String> = blake2::Blake2b::<blake2::digest::consts::U8>::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let what = format!("{size:?} by {}: {:?} for {}", row["config"], &out[..4], tensor["first"]);
        assert_eq!(digest.concat(), tensor["digest"].as_str().unwrap(), "{what}");
    }
}

#[test]
fn processors_that_do_more_are_refused() {
    let refused = |processor: &str| match resize_of(processor, "") {
        Err(error @ ModelError::Unsupported { .. }) => {
            format!("{error}; {}", error.hint().unwrap_or_default())
        }
        other => panic!("{processor}: {other:?}"),
    };
    let with = |more: &str| CLIP_NEW.replacen('{', &format!("{{{more}, "), 1);
    assert!(refused(&with(r#""do_pad": true"#)).contains("do_pad = true"));
    assert!(refused(&with(r#""do_flip_channel_order": true"#)).contains("`model.toml`"));
    assert!(refused(&with(r#""crop_pct": 0.9"#)).contains("crop_pct with CLIP"));
    assert!(refused(&with(r#""do_resize": false"#)).contains("do_resize = false"));
    let naflex = r#"{"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256, "patch_size": 16, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
    assert!(refused(naflex).contains("NaFlex"));
}

#[test]
fn the_processor_may_stand_beside_the_tokenizers() {
    let both = format!(r#"{{"processor_class": "SiglipProcessor", "image_processor": {SIGLIP}}}"#);
    let mut files = siglip("logit_scale = 1.0", &[("processor_config.json", &both)]);
    files.retain(|(name, _)| *name != "preprocessor_config.json");
    let preprocessing = &open(&files).unwrap().parts.image().unwrap().preprocessing.clone();
    assert_eq!(preprocessing.resize, Resize::Squash { width: 192, height: 224 });
}

#[test]
fn pooling_is_what_the_folder_states() {
    let pooling = |graph: SmallGraph, manifest: &str, modules: &str, config: &str| {
        let folder =
            folder(&[("tokenizer.json", TOKENIZER), ("model.toml", manifest), ("modules.json", modules)]);
        fs::write(folder.path().join("model.onnx"), graph.build()).unwrap();
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), config).unwrap();
        read(folder.path(), ModelChoice::default()).map(|model| model.parts.text().unwrap().pooling)
    };
    let bare =
        || SmallGraph::default().input("input_ids", INT64, &[-1, -1]).output("last_hidden_state", FLOAT, &[]);
    let mean =
        r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true, "include_prompt": true}"#;
    let length = "context_length = 8";
    assert_eq!(pooling(bare(), length, "[]", mean).unwrap(), Some(TextPooling::Mean));
    assert_eq!(pooling(bare(), length, "[]", r#"{"pooling_mode": "cls"}"#).unwrap(), Some(TextPooling::Cls));
    assert_eq!(
        pooling(bare(), length, "[]", "{}").map_err(|error| error.to_string()),
        Err("text pooling `[]` is not supported".to_owned())
    );
    let whole = bare().output("sentence_embedding", FLOAT, &[]);
    assert_eq!(pooling(whole, length, "[]", mean).unwrap(), None);
    let stated = format!("{length}\ntext_pooling = \"last\"");
    assert_eq!(pooling(bare(), &stated, "[]", mean).unwrap(), Some(TextPooling::Last));
    let dense = r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
    assert!(pooling(bare(), length, dense, mean).unwrap_err().to_string().contains("`Dense`"));
    let outside = r#"[{"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"}]"#;
    assert!(matches!(pooling(bare(), length, outside, mean), Err(ModelError::OutsideFolder { .. })));
    let max = r#"{"pooling_mode_max_tokens": true}"#;
    assert!(pooling(bare(), length, "[]", max).unwrap_err().hint().unwrap().contains("text_pooling"));
}

#[test]
fn split_towers_have_their_scale_from_the_graph_beside_them() {
    let with_scale = SmallGraph::default()
        .input("pixel_values", FLOAT, &[-1, 3, -1, -1])
        .floats("logit_scale", &[], &[4.0])
        .node("Exp", &["logit_scale"], &["factor"])
        .node("Mul", &["product", "factor"], &["logits_per_text"]);
    let logits = |manifest: &str, variant, name: &str| {
        let folder = folder(&siglip(manifest, &[]));
        for tower in ["vision", "text"] {
            let graph = folder.path().join(format!("onnx/{tower}_model.onnx"));
            fs::copy(graph, folder.path().join(format!("onnx/{tower}_model_fp16.onnx"))).unwrap();
        }
        fs::write(folder.path().join("onnx").join(name), with_scale.clone().build()).unwrap();
        read(folder.path(), ModelChoice { variant, ..ModelChoice::default() }).unwrap().logits.scale
    };
    let found = |name: &str| {
        let source = format!("initialiser `logit_scale` of onnx/{name}, its exponential");
        Some(Sourced { value: LogitScale::from_log(4.0).unwrap(), source })
    };
    assert_eq!(logits("", Variant::Default, "model.onnx"), found("model.onnx"));
    // the checkpoint's number is the same in every precision
    assert_eq!(logits("", Variant::Fp16, "model.onnx"), found("model.onnx"));
    assert_eq!(logits("", Variant::Fp16, "model_fp16.onnx"), found("model_fp16.onnx"));
    assert_eq!(logits("", Variant::Default, "model_fp16.onnx"), None);
    let stated = Sourced { value: LogitScale::linear(20.0).unwrap(), source: "model.toml".to_owned() };
    assert_eq!(logits("logit_scale = 20.0", Variant::Default, "model.onnx"), Some(stated));
}
