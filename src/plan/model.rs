//! A loaded model in, what the plan says of it out; and whether the models are what the settings want of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Digest;
use crate::embed::{LoadedModel, ModelChoice, ModelKind, Variant};
use crate::error::Error;
use crate::select::Objective;
use crate::settings::{
    Draw, EmbedSettings, ModelRole, ModelSettings, Models, SampleContents, Settings, SuperBatchMethod,
};

/// A model as the plan fixes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedModel {
    pub folder: PathBuf,
    pub variant: Variant,
    /// Width and height of the image tensor, where the settings say so.
    pub image_size_px: Option<u32>,
    pub kind: ModelKind,
    /// Graphs, preprocessing, tokenizer, precision and inference batch size; names the folder of its embeddings.
    pub digest: Digest,
    /// Width of an embedding; of a classifier, the number of its classes.
    pub embedding_dim: usize,
    /// Whether scale and bias are fitted to the pool; they are null here then.
    pub calibrate: bool,
    /// Linear, not its logarithm; null where the model states none.
    pub logit_scale: Option<f64>,
    pub logit_scale_source: String,
    /// SigLIP's sign; null where the model states none.
    pub logit_bias: Option<f64>,
    pub logit_bias_source: String,
    /// What training of the scale began with, if the model says so: for a hint, never taken.
    pub initial_logit_scale: Option<f64>,
}

const CALIBRATED: &str = "calibrated on the pool";

impl PlannedModel {
    pub(super) fn new(loaded: &LoadedModel, model: &ModelSettings, embed: &EmbedSettings) -> PlannedModel {
        let stated = &loaded.model.logits;
        let source = |stated: Option<&String>| match stated {
            _ if model.calibrate => CALIBRATED.to_owned(),
            Some(source) => source.clone(),
            None => "none: the model states none".to_owned(),
        };
        let unless_calibrated = |value: Option<f64>| value.filter(|_| !model.calibrate);
        PlannedModel {
            folder: model.folder.clone(),
            variant: model.variant,
            image_size_px: model.image_size_px,
            kind: loaded.model.kind(),
            digest: Digest::of_json(&json!({
                "model": loaded.model.digest,
                "inference_batch_size": embed.inference_batch_size,
                "embedding_dtype": embed.embedding_dtype,
            })),
            embedding_dim: loaded.embedding_dim,
            calibrate: model.calibrate,
            logit_scale: unless_calibrated(stated.scale.as_ref().map(|scale| scale.value.get())),
            logit_scale_source: source(stated.scale.as_ref().map(|scale| &scale.source)),
            logit_bias: unless_calibrated(stated.bias.as_ref().map(|bias| bias.value.get())),
            logit_bias_source: source(stated.bias.as_ref().map(|bias| &bias.source)),
            initial_logit_scale: loaded.model.initial_logit_scale.map(|scale| scale.get()),
        }
    }

    /// What of the folder is taken.
    pub fn choice(&self) -> ModelChoice {
        ModelChoice { variant: self.variant, image_size_px: self.image_size_px }
    }
}

/// Whether each model is of a kind that the pool and its role want.
pub(super) fn check(settings: &Settings, models: &Models<PlannedModel>) -> Result<(), Error> {
    for (role, model) in models.iter() {
        let refused = |wanted| {
            Err(Error::ModelKind { model: role, folder: model.folder.clone(), kind: model.kind, wanted })
        };
        let samples = settings.read.samples;
        if model.kind.takes_captions() && samples != SampleContents::ImageText {
            return refused("one that takes images alone: the pool has no captions to rely on");
        }
        if model.kind == ModelKind::Classifier && samples != SampleContents::ImageClass {
            return refused("one that gives embeddings: the pool has no labels");
        }
        let divides = settings.divide.as_ref().is_some_and(|divide| divide.model == role);
        if divides && !model.kind.embeds_images() {
            return refused("one that embeds images, which are to be clustered");
        }
        check_draw(settings, role, model)?;
    }
    Ok(())
}

/// Whether a model that the draw scores with is of its kind, and states what its loss takes.
fn check_draw(settings: &Settings, role: ModelRole, model: &PlannedModel) -> Result<(), Error> {
    let Draw::InSuperBatches(draw) = &settings.select.draw else { return Ok(()) };
    let is_scored = !matches!(role, ModelRole::Base);
    let wanted = match draw.method {
        SuperBatchMethod::Jest(_) | SuperBatchMethod::FullLoss(_) | SuperBatchMethod::ActiveClip(_) => {
            ModelKind::Pair
        }
        SuperBatchMethod::ClassAct(_) => ModelKind::Classifier,
        SuperBatchMethod::SoftCap(_) | SuperBatchMethod::Random(_) => return Ok(()),
    };
    if is_scored && model.kind != wanted {
        let wanted = match wanted {
            ModelKind::Classifier => "a classifier, which the draw scores with",
            _ => "one with an image and a text tower, which the draw scores with",
        };
        let (folder, kind) = (model.folder.clone(), model.kind);
        return Err(Error::ModelKind { model: role, folder, kind, wanted });
    }
    let needs_logits = is_scored && settings.select.draw.pair_score().is_some() && !model.calibrate;
    let needs_bias = needs_logits && settings.select.objective == Objective::Sigmoid;
    if needs_logits && model.logit_scale.is_none() {
        let initial = model.initial_logit_scale;
        return Err(Error::ScaleMissing { model: role, folder: model.folder.clone(), initial });
    }
    if needs_bias && model.logit_bias.is_none() {
        return Err(Error::BiasMissing { model: role, folder: model.folder.clone() });
    }
    Ok(())
}
