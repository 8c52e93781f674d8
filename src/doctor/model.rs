//! A model in; how the model prepares its inputs, what it runs on and how fast it is, out.

use crate::embed::image::{Preprocessing, Resize};
use crate::embed::{
    CaptionForm, DEFAULT_INFERENCE_BATCH_SIZE, InferenceSettings, LoadedModel, Model, ModelChoice, ModelKind,
    SessionSettings, Sessions, StatedLogits,
};
use crate::error::Error;
use crate::plan::PlannedModel;
use crate::settings::{DEFAULT_MEMORY_LIMIT_BYTES, EmbedSettings};

use super::{ExaminedModel, Findings, bench};

/// How much is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// The way that `embed` would take.
    Default,
    /// Sessions, threads and rows at once.
    Full,
}

pub fn examine(findings: &mut Findings, examined: &ExaminedModel) -> Result<(), Error> {
    let ExaminedModel { name, device, bench } = *examined;
    let choice = ModelChoice { variant: name.variant, ..ModelChoice::default() };
    let model = Model::open(&name.folder, choice)?;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let loaded = LoadedModel::load(model, &SessionSettings { place: device.places()?[0], n_threads })?;
    describe(findings, &loaded);
    findings.say("device", format!("{}, nodes: {}", loaded.towers.place(), loaded.towers.nodes()));
    let fallen_back = loaded.towers.nodes();
    for (operator, n) in fallen_back.fallen_back(loaded.towers.place()) {
        findings.say("", format!("{n} nodes of `{operator}` run on the processor"));
    }
    match bench {
        Bench::Full => bench::examine(findings, &loaded.model, device),
        Bench::Default => {
            let inference =
                InferenceSettings { device, sessions: None, memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES };
            let batch_size = DEFAULT_INFERENCE_BATCH_SIZE;
            let mut sessions = Sessions::open(&loaded.model, &inference, n_threads, batch_size)?;
            let rate = sessions.samples_per_sec()?;
            findings.say(
                "speed",
                format!("{rate:.1} samples/s, as `embed` would run it; `--bench` tries other ways"),
            );
            Ok(())
        }
    }
}

fn describe(findings: &mut Findings, loaded: &LoadedModel) {
    let model: &Model = &loaded.model;
    let digest = PlannedModel::digest_of(model, &EmbedSettings::default());
    findings.say("model", format!("{}, digest {digest} in a run", model.folder.display()));
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
            CaptionForm::OpenClip => "lower-cased, without punctuation, underscores as spaces",
            CaptionForm::OpenClipWhitespace => "white space as single spaces",
            CaptionForm::OpenClipLower => "lower-cased, white space as single spaces",
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
        Resize::SquashThenCrop { width, height, crop_width, crop_height } => {
            format!("squashed to {width}×{height}, then the central {crop_width}×{crop_height}")
        }
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
