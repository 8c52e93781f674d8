//! A model folder in; how the model prepares its inputs, what it runs on and how fast it is, out.

use std::path::Path;

use ort::ep::{self, ExecutionProvider};

use crate::embed::image::{Preprocessing, Resize};
use crate::embed::{
    CaptionForm, Device, LoadedModel, Model, ModelChoice, ModelKind, SessionSettings, StatedLogits,
};
use crate::error::Error;

use super::Findings;

/// Sizes of inference batches that are timed.
const BATCH_SIZES: [usize; 3] = [1, 8, 64];

pub fn examine(findings: &mut Findings, folder: &Path) -> Result<(), Error> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = SessionSettings { device: Device::Auto, n_threads };
    let mut loaded = LoadedModel::open(folder, ModelChoice::default(), &settings)?;
    describe(findings, &loaded);

    let device = loaded.towers.device_taken();
    findings.say("device", device.to_string());
    if device == Device::Cpu
        && ep::CUDA::is_available().unwrap_or(false)
        && let Err(error) = LoadedModel::open(
            folder,
            ModelChoice::default(),
            &SessionSettings { device: Device::Cuda(0), ..settings },
        )
    {
        findings.say("", format!("the runtime has CUDA, but it cannot be used\n{}", error.message()));
    }
    for batch_size in BATCH_SIZES {
        let rate = loaded.samples_per_sec(batch_size)?;
        findings.say("", format!("{rate:.1} samples/s, in an inference batch of {batch_size}"));
    }
    Ok(())
}

fn describe(findings: &mut Findings, loaded: &LoadedModel) {
    let model: &Model = &loaded.model;
    findings.say("model", format!("{}, digest {}", model.folder.display(), model.digest));
    if model.kind() == ModelKind::Pair {
        describe_logits(findings, &model.logits);
    }
    let what = if model.kind() == ModelKind::Classifier { "classes" } else { "dimensions" };
    findings.say("", format!("kind `{}`, {} {what}", model.kind(), loaded.embedding_dim));
    if let Some(image) = model.parts.image() {
        findings.say("images", preprocessing(&image.preprocessing));
    }
    if let Some(text) = model.parts.text() {
        let text = &text.preparation;
        let form = match text.form {
            CaptionForm::AsIs => "as they are",
            CaptionForm::LowerCase => "lower-cased",
            CaptionForm::Siglip => "lower-cased, without punctuation",
        };
        let finding = format!("{form}, {} tokens, padded with `{}`", text.context_length, text.pad_token);
        findings.say("captions", finding);
    }
}

fn describe_logits(findings: &mut Findings, logits: &StatedLogits) {
    let scale = logits.scale.as_ref();
    let scale = scale.map(|scale| format!("logit scale {} from {}", scale.value.get(), scale.source));
    findings.say("", scale.unwrap_or_else(|| "no logit scale: it has to be calibrated".to_owned()));
    let bias = logits.bias.as_ref();
    let bias = bias.map(|bias| format!("logit bias {} from {}", bias.value.get(), bias.source));
    findings.say("", bias.unwrap_or_else(|| "no logit bias, which the sigmoid objective needs".to_owned()));
}

fn preprocessing(rule: &Preprocessing) -> String {
    let size = match rule.resize {
        Resize::Squash { width, height } => format!("squashed to {width}×{height}"),
        Resize::ShortestSide { side, crop_width, crop_height } => {
            format!("shorter side to {side}, then the central {crop_width}×{crop_height}")
        }
        Resize::LongestSide { width, height, fill } => format!("fitted into {width}×{height} of {fill:?}"),
    };
    // as settings name it
    let resample = serde_json::json!(rule.resample);
    let resample = resample.as_str().expect("a filter is written as its name");
    format!("{size}, {resample}, mean {:?}, standard deviation {:?}", rule.mean, rule.std)
}
