//! Model folders of the real architectures, as Hugging Face's tools export them, against what transformers computes from
//! the same folder: see `tests/oracle/tiny_models.py`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use base64::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use superbatch::embed::image::{decode, preprocess};
use superbatch::embed::{
    BatchInputs, BatchOutputs, CaptionForm, Encoders, LoadedModel, ModelChoice, ModelParts, Padding,
    PairEmbeddings, SessionSettings, StatedLogits, Tokenizer, Tokens, Variant,
};
use superbatch::read::Limits;
use superbatch::runtime::Place;

mod support;

use support::{copy_folder, root};

#[derive(Deserialize)]
struct Expected {
    images: Vec<String>,
    captions: Vec<String>,
    logit_scale: f64,
    logit_bias: f64,
    image_embeddings: Vec<Vec<f64>>,
    text_embeddings: Vec<Vec<f64>>,
    logits: Vec<Vec<f64>>,
}

/// Encoded images by their name in `tests/golden/preprocess.json`.
fn images() -> HashMap<String, Vec<u8>> {
    let golden: Value = serde_json::from_str(include_str!("golden/preprocess.json")).unwrap();
    let rows = golden["decoded"].as_array().unwrap().iter();
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows.map(|row| (text(row, "name"), BASE64_STANDARD.decode(text(row, "bytes")).unwrap())).collect()
}

fn cosine(left: &[f32], right: &[f64]) -> f64 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(&left, right)| f64::from(left) * right).sum()
}

/// Embeds the images and captions that the folder's `expected.json` names.
fn embed(
    folder: &Path,
    variant: Variant,
    expected: &Expected,
) -> (PairEmbeddings, StatedLogits, CaptionForm) {
    let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
    let choice = ModelChoice { variant, ..ModelChoice::default() };
    let mut loaded =
        LoadedModel::open(folder, choice, &settings).unwrap_or_else(|error| panic!("{}", error.message()));
    let ModelParts::Pair { image, text } = loaded.model.parts.clone() else { panic!("a pair of towers") };
    let tokenizer = Tokenizer::open(folder, &text).unwrap();
    let images = images();
    let mut tokens = Tokens::new(tokenizer.context_length());
    let mut pixels = Vec::new();
    for (name, caption) in expected.images.iter().zip(&expected.captions) {
        let decoded = decode(&images[name], &Limits::default()).unwrap();
        let mut of_image = vec![f32::NAN; image.preprocessing.n_values()];
        preprocess(&decoded, &image.preprocessing, &mut of_image);
        pixels.extend(of_image);
        tokenizer.encode(caption, &mut tokens).unwrap();
    }
    let encoders = Encoders::new([&loaded.model], Limits::default()).unwrap();
    loaded.find_padding(0, &encoders.probe().unwrap()).unwrap();
    // SigLIP's towers attend to padding; CLIP's do not, and are held to their goldens without it
    let needs_padding = text.preparation.form != CaptionForm::AsIs;
    assert_eq!(loaded.padding == Padding::ContextLength, needs_padding, "{}", folder.display());
    let tokens = if needs_padding { tokens } else { tokens.without_shared_padding() };
    let outputs = loaded.towers.embed(&BatchInputs::Pairs { pixels, tokens }).unwrap();
    let BatchOutputs::Pairs(pairs) = outputs else { panic!("pairs in, pairs out") };
    (pairs, loaded.model.logits.clone(), text.preparation.form)
}

/// Opens a copy of a folder without these files, and compares embeddings, and logits where the folder states them.
fn check(name: &str, variant: Variant, without: &[&str], form: CaptionForm, cosine_min: f64) -> StatedLogits {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    copy_folder(&root().join("tests/golden/models").join(name), folder);
    without.iter().for_each(|file| fs::remove_file(folder.join("onnx").join(file)).unwrap());
    check_folder(folder, variant, form, cosine_min)
}

/// Compares with the folder's `expected.json`.
fn check_folder(folder: &Path, variant: Variant, form: CaptionForm, cosine_min: f64) -> StatedLogits {
    let name = folder.display();
    let expected: Expected =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let (pairs, logits, form_found) = embed(folder, variant, &expected);
    assert_eq!(form_found, form, "{name}");
    let n = expected.images.len();
    for i in 0..n {
        for (what, ours, theirs) in [
            ("image", pairs.image.rows.row(i), &expected.image_embeddings[i]),
            ("caption", pairs.text.rows.row(i), &expected.text_embeddings[i]),
        ] {
            let cosine = cosine(ours, theirs);
            assert!(cosine >= cosine_min, "{name}, {variant:?}, {what} {i}: cosine {cosine}");
        }
    }
    if let Some(scale) = &logits.scale {
        let bias = logits.bias.as_ref().map_or(0.0, |bias| bias.value.get());
        // half precision keeps eleven bits of the logarithm
        let (tolerance, logit_tolerance) =
            if variant == Variant::Default { (1e-6, 1e-3) } else { (1e-3, 0.05) };
        assert!((scale.value.get() / expected.logit_scale - 1.0).abs() < tolerance, "{name}: {scale:?}");
        assert!((bias - expected.logit_bias).abs() < 1e-6, "{name}: {bias}");
        for (i, of_image) in expected.logits.iter().enumerate() {
            for (j, theirs) in of_image.iter().enumerate() {
                let captions: Vec<f64> = pairs.text.rows.row(j).iter().map(|&x| f64::from(x)).collect();
                let ours = scale.value.get() * cosine(pairs.image.rows.row(i), &captions) + bias;
                assert!(
                    (ours - theirs).abs() < logit_tolerance,
                    "{name}, pair {i}, {j}: {ours} for {theirs}"
                );
            }
        }
    }
    logits
}

const SPLIT: [&str; 2] = ["vision_model.onnx", "text_model.onnx"];

#[test]
fn clip_combined_split_and_half() {
    let combined = check("clip", Variant::Default, &SPLIT, CaptionForm::AsIs, 0.999_999);
    assert!(combined.scale.is_some() && combined.bias.is_none(), "{combined:?}");
    let split = check("clip", Variant::Default, &["model.onnx"], CaptionForm::AsIs, 0.999_999);
    assert!(split.scale.is_none(), "a graph of one tower holds no scale: {split:?}");
    assert!(check("clip", Variant::Fp16, &[], CaptionForm::AsIs, 0.999).scale.is_some());
}

/// OpenCLIP's crops, which begin elsewhere than those of the golden embeddings, are compared in
/// `tests/golden/open_clip.json`; its padding with zeros makes no difference to a CLIP.
#[test]
fn clip_by_open_clips_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    copy_folder(&root().join("tests/golden/models/clip"), folder);
    for file in ["config.json", "preprocessor_config.json"] {
        fs::remove_file(folder.join(file)).unwrap();
    }
    let config = r#"{"model_cfg": {"embed_dim": 16, "vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 77}},
        "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}}"#;
    fs::write(folder.join("open_clip_config.json"), config).unwrap();
    fs::write(folder.join("model.toml"), "crop_start = \"rounded_down\"").unwrap();
    let logits = check_folder(folder, Variant::Default, CaptionForm::AsIs, 0.999_999);
    assert!(logits.scale.unwrap().source.contains("initialiser"), "the trained scale is the graph's");
}

#[test]
fn siglip_combined_split_and_half() {
    let combined = check("siglip", Variant::Default, &SPLIT, CaptionForm::Siglip, 0.999_999);
    assert!(combined.scale.is_some() && combined.bias.is_some(), "{combined:?}");
    check("siglip", Variant::Default, &["model.onnx"], CaptionForm::Siglip, 0.999_999);
    assert!(check("siglip", Variant::Fp16, &[], CaptionForm::Siglip, 0.999).bias.is_some());
}

#[test]
fn siglip_2_of_fixed_resolution() {
    let combined = check("siglip2", Variant::Default, &[], CaptionForm::LowerCase, 0.999_999);
    assert!(combined.scale.is_some() && combined.bias.is_some(), "{combined:?}");
    check("siglip2", Variant::Fp16, &[], CaptionForm::LowerCase, 0.999);
}

#[test]
fn mobile_clip_split_and_half() {
    let split = check("mobile_clip", Variant::Default, &[], CaptionForm::AsIs, 0.999_999);
    assert!(split.scale.is_none(), "{split:?}");
    check("mobile_clip", Variant::Fp16, &[], CaptionForm::AsIs, 0.999);
}

#[test]
fn a_text_model_is_pooled_as_sentence_transformers_pools() {
    let golden = root().join("tests/golden/models/sentence");
    let expected: Value = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    let captions: Vec<String> = serde_json::from_value(expected["captions"].clone()).unwrap();
    // the mean is what the folder states by itself
    for (manifest, pooling) in
        [("", "mean"), ("text_pooling = \"cls\"", "cls"), ("text_pooling = \"last\"", "lasttoken")]
    {
        let scratch = tempfile::tempdir().unwrap();
        copy_folder(&golden, scratch.path());
        fs::write(scratch.path().join("model.toml"), manifest).unwrap();
        let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
        let mut loaded = LoadedModel::open(scratch.path(), ModelChoice::default(), &settings)
            .unwrap_or_else(|error| panic!("{}", error.message()));
        let ModelParts::Text(text) = loaded.model.parts.clone() else { panic!("a text model") };
        assert_eq!(text.preparation.context_length, 12);
        let tokenizer = Tokenizer::open(scratch.path(), &text).unwrap();
        let mut tokens = Tokens::new(tokenizer.context_length());
        captions.iter().for_each(|caption| tokenizer.encode(caption, &mut tokens).unwrap());
        let outputs = loaded.towers.embed(&BatchInputs::Captions(tokens)).unwrap();
        let BatchOutputs::Captions(embeddings) = outputs else { panic!("captions in, captions out") };
        let wanted: Vec<Vec<f64>> = serde_json::from_value(expected["embeddings"][pooling].clone()).unwrap();
        for (row, wanted) in wanted.iter().enumerate() {
            let cosine = cosine(embeddings.rows.row(row), wanted);
            assert!(cosine > 0.999_999, "{pooling}, `{}`: cosine {cosine}", captions[row]);
        }
    }
}
