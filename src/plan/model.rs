//! The settings of models in, what the plan says of each out; and whether the models are what the settings want of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Digest;
use crate::embed::image::JpegDecoding;
use crate::embed::{
    Encoders, LoadedModel, LogitScale, Model, ModelChoice, ModelKind, SessionSettings, Variant,
};
use crate::error::Error;
use crate::read::Limits;
use crate::runtime::Device;
use crate::select::Objective;
use crate::settings::{
    ActiveClipScore, DivideSettings, Draw, EmbedSettings, EmbeddingDtype, Filter, ModelRole, ModelSettings,
    Models, PoolDraw, PrecomputedSettings, ReadSettings, SampleContents, SelectSettings, Settings,
    SuperBatchMethod, WriteSettings,
};

use super::Plan;
use super::pool::Pool;
use super::vectors::PlannedVectors;

/// A model as the plan fixes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedModel {
    pub folder: PathBuf,
    pub variant: Variant,
    /// Width and height of the image tensor, where the settings say so.
    pub image_size_px: Option<u32>,
    #[serde(default)]
    pub jpeg_decoding: JpegDecoding,
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
    /// Embeddings that were made before, where no model runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<PlannedVectors>,
}

const CALIBRATED: &str = "calibrated on the pool";

impl PlannedModel {
    /// What a pipeline file says of the model.
    pub fn settings(&self) -> ModelSettings {
        let (folder, precomputed) = match &self.vectors {
            Some(vectors) => (PathBuf::new(), Some(vectors.settings.clone())),
            None => (self.folder.clone(), None),
        };
        ModelSettings {
            folder,
            precomputed,
            variant: self.variant,
            image_size_px: self.image_size_px,
            jpeg_decoding: self.jpeg_decoding,
            calibrate: self.calibrate,
        }
    }

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
            jpeg_decoding: model.jpeg_decoding,
            kind: loaded.model.kind(),
            digest: PlannedModel::digest_of(&loaded.model, embed),
            embedding_dim: loaded.embedding_dim,
            calibrate: model.calibrate,
            logit_scale: unless_calibrated(stated.scale.as_ref().map(|scale| scale.value.get())),
            logit_scale_source: source(stated.scale.as_ref().map(|scale| &scale.source)),
            logit_bias: unless_calibrated(stated.bias.as_ref().map(|bias| bias.value.get())),
            logit_bias_source: source(stated.bias.as_ref().map(|bias| &bias.source)),
            vectors: None,
        }
    }

    /// What decides the embeddings that are stored of a model.
    pub fn digest_of(model: &Model, embed: &EmbedSettings) -> Digest {
        Digest::of_json(&json!({
            "model": model.digest,
            "inference_batch_size": embed.inference_batch_size,
            "embedding_dtype": embed.embedding_dtype,
        }))
    }

    /// Whether pairs have a loss under this objective: the sigmoid wants a scale and a bias, the softmax a scale.
    pub fn has_logits(&self, objective: Objective) -> bool {
        let has_bias = objective == Objective::Softmax || self.logit_bias.is_some();
        self.kind == ModelKind::Pair && (self.calibrate || self.logit_scale.is_some() && has_bias)
    }

    /// Embeddings that were made before.
    pub(super) fn of_vectors(
        settings: &PrecomputedSettings,
        calibrate: bool,
        pool: &Pool,
        embed: &EmbedSettings,
    ) -> Result<PlannedModel, Error> {
        let vectors = PlannedVectors::find(settings, pool)?;
        let source = |stated: Option<f64>| match stated {
            _ if calibrate => CALIBRATED.to_owned(),
            Some(_) => "the settings".to_owned(),
            None => "none: the settings state none".to_owned(),
        };
        let unless_calibrated = |value: Option<f64>| value.filter(|_| !calibrate);
        Ok(PlannedModel {
            variant: Variant::default(),
            image_size_px: None,
            jpeg_decoding: JpegDecoding::default(),
            calibrate,
            digest: Digest::of_json(&json!({
                "precomputed": vectors.description(),
                "embedding_dtype": embed.embedding_dtype,
            })),
            embedding_dim: vectors.width()?,
            kind: vectors.kind(),
            folder: vectors.folder(),
            logit_scale: unless_calibrated(settings.logit_scale),
            logit_scale_source: source(settings.logit_scale),
            logit_bias: unless_calibrated(settings.logit_bias),
            logit_bias_source: source(settings.logit_bias),
            vectors: Some(vectors),
        })
    }

    /// Bytes of what is stored of one sample: a vector of each tower, or the logits, which are always f32.
    pub fn row_bytes(&self, dtype: EmbeddingDtype) -> u64 {
        let width = self.embedding_dim as u64;
        match self.kind {
            ModelKind::Pair => 2 * width * dtype.size_bytes(),
            ModelKind::Image | ModelKind::Text => width * dtype.size_bytes(),
            ModelKind::Classifier => width * EmbeddingDtype::F32.size_bytes(),
        }
    }

    /// What of the folder is taken.
    pub fn choice(&self) -> ModelChoice {
        ModelChoice {
            variant: self.variant,
            image_size_px: self.image_size_px,
            jpeg_decoding: self.jpeg_decoding,
        }
    }
}

/// What of the settings says which models can be used.
pub(super) struct Wants<'a> {
    pub read: &'a ReadSettings,
    pub divide: Option<&'a DivideSettings>,
    pub select: &'a SelectSettings,
    pub write: &'a WriteSettings,
}

/// Opens every model, or finds its embeddings, and checks that it can do what the settings want of it.
pub(super) fn planned_models(
    settings: &Settings,
    device: Device,
    earlier: Option<&Plan>,
    pool: &Pool,
    wants: &Wants,
) -> Result<Models<PlannedModel>, Error> {
    let mut place = None;
    let mut planned = Vec::new();
    let earlier = earlier.filter(|plan| plan.embed == settings.embed);
    for (role, model) in settings.models.iter() {
        let known = earlier.and_then(|plan| plan.models.get(role)).filter(|known| known.settings() == *model);
        let (model, initial_logit_scale) = match (&model.precomputed, known) {
            (Some(precomputed), _) => {
                (PlannedModel::of_vectors(precomputed, model.calibrate, pool, &settings.embed)?, None)
            }
            (None, Some(known)) => (known.clone(), None),
            (None, None) => {
                // only where a model runs is there a need for the runtime
                let place = match place {
                    Some(place) => place,
                    None => *place.insert(device.places()?[0]),
                };
                let loaded = open(model, &SessionSettings { place, n_threads: settings.n_threads() })?;
                let initial = loaded.model.initial_logit_scale;
                (PlannedModel::new(&loaded, model, &settings.embed), initial)
            }
        };
        check(wants, role, &model, initial_logit_scale)?;
        planned.push((role, model));
    }
    Ok(planned.into_iter().collect())
}

/// Opens a model with everything that it needs, so that what cannot work fails before any work.
pub(super) fn open(model: &ModelSettings, session: &SessionSettings) -> Result<LoadedModel, Error> {
    let loaded = LoadedModel::open(&model.folder, model.choice(), session)?;
    Encoders::new([&loaded.model], Limits::default())?.probe()?;
    Ok(loaded)
}

/// Whether a model is of a kind that the pool and its role want, and states what its loss takes.
pub(super) fn check(
    wants: &Wants,
    role: ModelRole,
    planned: &PlannedModel,
    initial_logit_scale: Option<LogitScale>,
) -> Result<(), Error> {
    let kind = planned.kind;
    let folder = || planned.folder.clone();
    let samples = wants.read.samples;
    let divides = wants.divide.is_some_and(|divide| divide.model == role);
    let is_expert = matches!(role, ModelRole::Reference | ModelRole::Expert(_));
    let scored_as = scored_as(&wants.select.draw, role);
    let has_captions = matches!(samples, SampleContents::ImageText | SampleContents::Text);
    let is_run = planned.vectors.is_none();
    let wanted = if kind.takes_captions() && !has_captions && is_run {
        Some("one that takes images alone: the pool promises no captions")
    } else if kind.takes_images() && samples == SampleContents::Text && is_run {
        Some("one of captions alone, or precomputed embeddings: the pool has no images")
    } else if kind == ModelKind::Classifier && samples != SampleContents::ImageClass {
        Some("one that gives embeddings: the pool has no labels")
    } else if divides && !kind.embeds_images() {
        Some("one that embeds images, which are to be clustered")
    } else if wants.write.distil && is_expert && !kind.embeds_images() {
        Some("one that embeds images, which `write.distil` writes")
    } else if pairs_wanted(wants.select, role) && kind != ModelKind::Pair {
        Some("one with an image and a text tower, which a step of `select` compares")
    } else if images_wanted(wants.select, role) && !kind.embeds_images() {
        Some("one that embeds images, which a filter compares with targets")
    } else if planned.calibrate && (kind != ModelKind::Pair || role == ModelRole::Base || role.is_audit()) {
        Some("a learner, a reference or an expert of pairs, which alone can be calibrated")
    } else if scored_as == Some(ModelKind::Pair) && kind != ModelKind::Pair {
        Some("one with an image and a text tower, which the draw scores with")
    } else if scored_as == Some(ModelKind::Classifier) && kind != ModelKind::Classifier {
        Some("a classifier, which the draw scores with")
    } else {
        None
    };
    if let Some(wanted) = wanted {
        return Err(Error::ModelKind { model: role, folder: folder(), kind, wanted });
    }
    let is_base = role == ModelRole::Base;
    let takes_logits = !is_base && (takes_logits(&wants.select.draw) || losses_wanted(wants.select, role));
    let needs_bias = takes_logits && wants.select.objective == Objective::Sigmoid;
    let lacks_scale = takes_logits && !planned.calibrate && planned.logit_scale.is_none();
    let lacks_bias = needs_bias && !planned.calibrate && planned.logit_bias.is_none();
    if !is_run && (lacks_scale || lacks_bias) {
        let key = if lacks_scale { "logit_scale" } else { "logit_bias" };
        return Err(Error::PrecomputedLogit { model: role, key });
    }
    if lacks_scale {
        let initial = initial_logit_scale.map(LogitScale::get);
        return Err(Error::ScaleMissing { model: role, folder: folder(), initial });
    }
    if lacks_bias {
        return Err(Error::BiasMissing { model: role, folder: folder() });
    }
    Ok(())
}

/// The columns by which steps of `select` rank samples.
fn ranking_columns(select: &SelectSettings) -> impl Iterator<Item = &str> {
    let filters = select.filters.iter().filter_map(|filter| match &filter.filter {
        Filter::Threshold(threshold) => Some(threshold.by.as_str()),
        _ => None,
    });
    let draw = match &select.draw {
        Draw::OverPool(PoolDraw::Top(top)) => Some(top.by.as_str()),
        Draw::InSuperBatches(draw) => match &draw.method {
            SuperBatchMethod::SoftCap(soft_cap) => Some(soft_cap.by.as_str()),
            _ => None,
        },
        _ => None,
    };
    filters.chain(draw)
}

/// Whether samples are ranked by losses of this model.
fn losses_wanted(select: &SelectSettings, role: ModelRole) -> bool {
    ranking_columns(select).any(|column| match role {
        ModelRole::Learner => matches!(column, "learner_loss" | "learnability"),
        ModelRole::Reference | ModelRole::Expert(_) => matches!(column, "reference_loss" | "learnability"),
        _ => false,
    })
}

/// Whether a step compares images with captions under this model.
fn pairs_wanted(select: &SelectSettings, role: ModelRole) -> bool {
    let by_filter = select.filters.iter().any(|filter| match &filter.filter {
        Filter::ClipScore(filter) => filter.model == role,
        Filter::NegClipLoss(filter) => filter.model == role,
        _ => false,
    });
    let by_column = ranking_columns(select).any(|column| match role {
        ModelRole::Learner => column == "learner_similarity",
        ModelRole::Reference | ModelRole::Expert(_) => column == "reference_similarity",
        _ => false,
    });
    by_filter || by_column || losses_wanted(select, role)
}

/// Whether a filter compares images with targets under this model.
fn images_wanted(select: &SelectSettings, role: ModelRole) -> bool {
    select.filters.iter().any(|filter| match &filter.filter {
        Filter::NormSim(filter) => filter.model == role,
        Filter::Decontaminate(filter) => filter.model == role,
        _ => false,
    })
}

/// Whether the draw scores pairs by their losses.
fn takes_logits(draw: &Draw) -> bool {
    let Draw::InSuperBatches(draw) = draw else { return false };
    match &draw.method {
        SuperBatchMethod::Jest(_) | SuperBatchMethod::FullLoss(_) => true,
        SuperBatchMethod::ActiveClip(active_clip) => active_clip.score == ActiveClipScore::Contrastive,
        SuperBatchMethod::ClassAct(_) | SuperBatchMethod::SoftCap(_) | SuperBatchMethod::Random(_) => false,
    }
}

/// The kind of model that the draw scores with, if it scores with this one.
fn scored_as(draw: &Draw, role: ModelRole) -> Option<ModelKind> {
    let Draw::InSuperBatches(draw) = draw else { return None };
    match draw.method {
        _ if role == ModelRole::Base => None,
        SuperBatchMethod::Jest(_) | SuperBatchMethod::FullLoss(_) | SuperBatchMethod::ActiveClip(_) => {
            Some(ModelKind::Pair)
        }
        SuperBatchMethod::ClassAct(_) => Some(ModelKind::Classifier),
        SuperBatchMethod::SoftCap(_) | SuperBatchMethod::Random(_) => None,
    }
}
