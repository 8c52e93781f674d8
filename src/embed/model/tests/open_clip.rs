//! Folders with OpenCLIP's configuration in place of Hugging Face's.

use super::*;
use crate::embed::image::CropStart;

/// As OpenCLIP puts a SigLIP on the hub.
const SIGLIP: &str = r#"{
  "model_cfg": {
    "embed_dim": 768, "init_logit_bias": -10, "custom_text": true,
    "vision_cfg": {"image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": false,
      "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {"context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
      "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 768, "heads": 12, "layers": 12, "no_causal_mask": true,
      "proj_bias": true, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}},
  "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}}"#;

/// As a CLIP, whose configuration leaves most to the defaults.
const CLIP: &str = r#"{
  "model_cfg": {"embed_dim": 512, "init_logit_scale": 2.6592,
    "vision_cfg": {"image_size": 256, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 76, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}},
  "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}}"#;

/// CLIP's vocabulary in little, as `save_pretrained` leaves it.
const CLIP_TOKENIZER: &str =
    r#"{"model": {"type": "BPE", "vocab": {"!": 0, "a": 1, "<|endoftext|>": 2}}, "padding": null}"#;

fn files<'a>(config: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut files = super::siglip("", more);
    files.retain(|(name, _)| {
        !["config.json", "preprocessor_config.json"].contains(name)
            || more.iter().any(|(other, _)| other == name)
    });
    files.push(("open_clip_config.json", config));
    files
}

fn images_of(files: &[(&str, &str)]) -> Result<Preprocessing, ModelError> {
    Ok(open(files)?.parts.image().unwrap().preprocessing.clone())
}

#[test]
fn a_siglip_of_open_clip_is_read() {
    let model = open(&files(SIGLIP, &[("tokenizer_config.json", r#"{"pad_token": "</s>"}"#)])).unwrap();
    let images = &model.parts.image().unwrap().preprocessing;
    assert_eq!(
        (images.resize, images.resample),
        (Resize::Squash { width: 224, height: 224 }, Resample::Bicubic)
    );
    assert_eq!((images.mean, images.std), ([0.5; 3], [0.5; 3]));
    let text = preparation(&model);
    assert_eq!(
        (text.context_length, text.pad_token.as_str(), text.form),
        (64, "</s>", CaptionForm::OpenClip)
    );
    // what training began with is no trained number
    assert_eq!(model.logits, StatedLogits::default());
}

#[test]
fn what_the_file_leaves_out_is_open_clips_default() {
    let more =
        [("tokenizer.json", CLIP_TOKENIZER), ("tokenizer_config.json", r#"{"pad_token": "<|endoftext|>"}"#)];
    let model = open(&files(CLIP, &more)).unwrap();
    let images = &model.parts.image().unwrap().preprocessing;
    assert_eq!(images.resize, Resize::ShortestSide { side: 256, crop_width: 256, crop_height: 256 });
    assert_eq!((images.resample, images.crop_start), (Resample::Bicubic, CropStart::RoundedToEven));
    let text = preparation(&model);
    // its own tokenizer pads with zeros, whatever the file of Hugging Face's says
    assert_eq!((text.context_length, text.pad_token.as_str(), text.form), (76, "!", CaptionForm::AsIs));
    assert_eq!(model.logits.scale, None);
    assert!((model.initial_logit_scale.unwrap().get() - 14.285).abs() < 1e-3);
    let empty = open(&files("{}", &more)).unwrap();
    let images = &empty.parts.image().unwrap().preprocessing;
    assert_eq!(images.resize, Resize::ShortestSide { side: 224, crop_width: 224, crop_height: 224 });
    assert_eq!(images.mean, [0.48145466, 0.4578275, 0.40821073]);
    assert_eq!(preparation(&empty).context_length, 77);
}

#[test]
fn white_space_is_cleaned_before_tokenizers_of_hugging_face() {
    let form = |name: &str, kwargs: &str| {
        let text = format!(r#"{{"hf_tokenizer_name": "{name}", "tokenizer_kwargs": {{{kwargs}}}}}"#);
        let config = format!(r#"{{"model_cfg": {{"text_cfg": {text}}}}}"#);
        preparation(&open(&files(&config, &[])).unwrap()).form
    };
    assert_eq!(form("roberta-base", ""), CaptionForm::OpenClipWhitespace);
    assert_eq!(form("roberta-base", r#""clean": "whitespace""#), CaptionForm::OpenClipWhitespace);
    assert_eq!(form("roberta-base", r#""clean": null"#), CaptionForm::OpenClipWhitespace);
    assert_eq!(form("roberta-base", r#""clean": "lower""#), CaptionForm::OpenClipLower);
    assert_eq!(form("roberta-base", r#""clean": "canonicalize""#), CaptionForm::OpenClip);
    assert_eq!(form("", ""), CaptionForm::AsIs);
}

#[test]
fn hugging_faces_files_and_the_manifest_go_before_it() {
    let config = r#"{"model_type": "siglip", "text_config": {}}"#;
    let text = |more: &[(&str, &str)]| preparation(&open(&files(SIGLIP, more)).unwrap()).form;
    assert_eq!(text(&[("config.json", config)]), CaptionForm::LowerCase);
    assert_eq!(text(&[("model.toml", "caption_form = \"as_is\"")]), CaptionForm::AsIs);
    let images = |more: &[(&str, &str)]| images_of(&files(SIGLIP, more)).unwrap();
    let processor = images(&[("preprocessor_config.json", super::SIGLIP)]);
    assert_eq!(processor.resize, Resize::Squash { width: 192, height: 224 });
    let manifest = "image_size = 32\nresize = \"longest_side\"\nimage_mean = [0.1, 0.2, 0.3]";
    let completed = images(&[("model.toml", manifest)]);
    assert_eq!(completed.resize, Resize::LongestSide { width: 32, height: 32, fill: [0; 3] });
    assert_eq!((completed.mean, completed.std), ([0.1, 0.2, 0.3], [0.5; 3]));
}

#[test]
fn each_tower_may_have_a_folder() {
    let files = |visual: &'static str| {
        let whole: Value = serde_json::from_str(CLIP).unwrap();
        [
            ("visual/model.onnx", "pixels".to_owned()),
            ("visual/preprocess_cfg.json", visual.to_owned()),
            ("textual/model.onnx", "tokens".to_owned()),
            ("textual/tokenizer.json", CLIP_TOKENIZER.to_owned()),
            ("textual/tokenizer_config.json", r#"{"pad_token": "<|endoftext|>"}"#.to_owned()),
            ("config.json", whole["model_cfg"].to_string()),
            ("model.toml", "logit_scale = 100.0".to_owned()),
        ]
    };
    let open = |files: &[(&str, String)]| {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        super::open(&files)
    };
    let model =
        open(&files(r#"{"size": 224, "mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}"#)).unwrap();
    let images = &model.parts.image().unwrap().preprocessing;
    // the model's own size goes before that of its transforms
    assert_eq!(images.resize, Resize::ShortestSide { side: 256, crop_width: 256, crop_height: 256 });
    assert_eq!((images.mean, images.resample), ([0.5; 3], Resample::Bilinear));
    assert_eq!((preparation(&model).context_length, preparation(&model).pad_token.as_str()), (76, "!"));
    assert!(model.parts.text().unwrap().graph.ends_with("textual/model.onnx"));
    let without = |name: &str| {
        let files = files("{}").into_iter().filter(|(file, _)| *file != name);
        open(&files.collect::<Vec<_>>()).unwrap_err()
    };
    for (name, missing) in [("config.json", "config.json"), ("textual/tokenizer.json", "tokenizer.json")] {
        assert!(
            matches!(without(name), ModelError::MissingFile { path } if path.ends_with(missing)),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_done_here_is_refused() {
    let error = |config: &str| open(&files(config, &[])).unwrap_err();
    let wide = error(r#"{"model_cfg": {"vision_cfg": {"image_size": [224, 448]}}}"#);
    assert_eq!(wide.to_string(), "setting of OpenCLIP `resize_mode = shortest to 448×224` is not supported");
    assert!(wide.hint().unwrap().contains("`open_clip_config.json`"));
    let stripped = error(r#"{"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"strip_sep_token": true}}}}"#);
    assert!(stripped.to_string().contains("`tokenizer_kwargs.strip_sep_token = true`"), "{stripped}");
    for config in
        [r#"{"preprocess_cfg": {"resize_mode": "crop"}}"#, r#"{"preprocess_cfg": {"mode": "L"}}"#, "[]x"]
    {
        assert!(matches!(error(config), ModelError::Json { .. }), "{config}");
    }
}

/// Against Pillow: see `tests/oracle/open_clip.py`.
#[test]
fn its_transforms_make_the_same_tensors() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../tests/golden/open_clip.json")).unwrap();
    let rows = golden["transforms"].as_array().unwrap();
    assert!(rows.len() > 6);
    for row in rows {
        let config = row["config"].to_string();
        let preprocessing =
            images_of(&files(&config, &[])).unwrap_or_else(|error| panic!("{error}: {config}"));
        assert_tensors(&preprocessing, &golden["sizes"], row);
    }
}
