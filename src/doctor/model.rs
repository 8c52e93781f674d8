//! A model folder in; how the model prepares its inputs, what it runs on and how fast it is, out.

use std::path::Path;

use ort::ep::{self, ExecutionProvider};

use crate::embed::image::{Preprocessing, Resize};
use crate::embed::{Device, LoadedModel, Model, SessionSettings, Variant};
use crate::error::Error;

use super::Findings;

/// Sizes of inference batches that are timed.
const BATCH_SIZES: [usize; 3] = [1, 8, 64];

pub fn examine(findings: &mut Findings, folder: &Path) -> Result<(), Error> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = SessionSettings { device: Device::Auto, n_threads };
    let mut loaded = LoadedModel::open(folder, Variant::default(), &settings)?;
    describe(findings, &loaded);

    let device = loaded.towers.device_taken();
    findings.say("device", device.to_string());
    if device == Device::Cpu
        && ep::CUDA::is_available().unwrap_or(false)
        && let Err(error) = LoadedModel::open(
            folder,
            Variant::default(),
            &SessionSettings { device: Device::Cuda(0), ..settings },
        )
    {
        findings.say("", format!("the runtime has CUDA, but it cannot be used\n{}", error.message()));
    }
    for batch_size in BATCH_SIZES {
        let rate = loaded.images_per_sec(batch_size)?;
        findings.say(
            "",
            format!("{rate:.1} images/s with their captions, in an inference batch of {batch_size}"),
        );
    }
    Ok(())
}

fn describe(findings: &mut Findings, loaded: &LoadedModel) {
    let model: &Model = &loaded.model;
    findings.say("model", format!("{}, digest {}", model.folder.display(), model.digest));
    let (scale, bias) = (&model.logit_scale, &model.logit_bias);
    findings.say("", format!("logit scale {} from {}", scale.value.get(), scale.source));
    let bias = bias.as_ref().map(|bias| format!("logit bias {} from {}", bias.value.get(), bias.source));
    findings.say("", bias.unwrap_or_else(|| "no logit bias, which the sigmoid objective needs".to_owned()));
    findings.say("", format!("embeddings of {} dimensions", loaded.embedding_dim));
    findings.say("images", preprocessing(&model.preprocessing));
    let text = &model.text;
    let case = if text.lower_case { "lower-cased" } else { "as they are" };
    findings
        .say("captions", format!("{case}, {} tokens, padded with `{}`", text.context_length, text.pad_token));
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
