//! Settings in, `plan.json` out: every input found and every setting resolved before any work.
//!
//! The plan names each stage's digest: its settings, the version of its algorithm and the digests of the stages
//! that it reads. Threads, device, memory and output paths are in none of them.

mod pool;
mod planted;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::embed::{LoadedModel, SessionSettings, Variant};
use crate::error::Error;
use crate::runtime::Device;
use crate::settings::{
    DivideSettings, EmbedSettings, ModelRole, Models, ReadSettings, ReportSettings, SelectSettings, Settings,
    WriteSettings,
};

pub use planted::PlantedSamples;
pub use pool::{Pool, Shard};

/// Version of the run folder: files, columns, markers.
pub const FORMAT_VERSION: u32 = 1;

/// Versions of the stages' algorithms; a change of one redoes the stage and those after it.
const ALGORITHM_VERSION: u32 = 1;

/// What a run will do, fixed before it does anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub format_version: u32,
    pub software_version: String,
    pub seed: u64,
    /// 0 for the first selection; one more for each new learner checkpoint.
    pub round: u64,
    pub store: Option<PathBuf>,
    pub pool: Pool,
    pub models: Models<PlannedModel>,
    pub read: ReadSettings,
    pub embed: EmbedSettings,
    pub divide: Option<DivideSettings>,
    pub select: SelectSettings,
    pub write: WriteSettings,
    pub report: ReportSettings,
    pub digests: Digests,
}

/// A model as the plan fixes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedModel {
    pub folder: PathBuf,
    pub variant: Variant,
    /// Graphs, preprocessing, tokenizer, precision and inference batch size; names the folder of its embeddings.
    pub digest: Digest,
    /// Width of an embedding.
    pub embedding_dim: usize,
    /// Linear, not its logarithm.
    pub logit_scale: f64,
    pub logit_scale_source: String,
    /// SigLIP's sign; 0 where the model has none.
    pub logit_bias: f64,
    pub logit_bias_source: String,
}

/// The digest of every stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub samples: Digest,
    /// By the role of the model.
    pub embeddings: BTreeMap<String, Digest>,
    pub divide: Option<Digest>,
    pub select: Digest,
    pub write: Digest,
    pub report: Digest,
}

impl Plan {
    /// Finds the shards, opens the models and resolves what depends on them.
    ///
    /// # Errors
    ///
    /// Whatever of the settings cannot be used, before any work.
    pub fn new(settings: &Settings, device: Device) -> Result<Plan, Error> {
        let pool = Pool::find(&settings.read)?;
        let mut planned = Vec::new();
        let session = SessionSettings { device, n_threads: settings.n_threads() };
        for (role, model) in settings.models.iter() {
            let loaded = LoadedModel::open(&model.folder, model.variant, &session)?;
            planned.push((role, PlannedModel::new(&loaded, role, settings)?));
        }
        let models: Models<PlannedModel> = planned.into_iter().collect();
        let planted = settings.report.planted.as_deref().map(PlantedSamples::read).transpose()?;
        let mut divide = settings.divide.clone();
        let mut select = settings.select.clone();
        fit_to_memory(settings, &models, &mut divide, &mut select)?;
        let digests = Digests::new(settings, &pool, &models, &divide, &select, &planted);
        let store = settings.store.as_ref().map(|store| {
            std::path::absolute(store).map_err(|source| Error::Write { path: store.clone(), source })
        });
        Ok(Plan {
            format_version: FORMAT_VERSION,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: settings.seed,
            round: 0,
            store: store.transpose()?,
            pool,
            models,
            read: settings.read.clone(),
            embed: settings.embed.clone(),
            divide,
            select,
            write: settings.write.clone(),
            report: settings.report.clone(),
            digests,
        })
    }

    /// What another plan says differently, a line each: `path: here → there`.
    pub fn differences(&self, other: &Plan) -> Vec<String> {
        let mut lines = Vec::new();
        let (here, there) = (json!(self), json!(other));
        collect_differences("", &here, &there, &mut lines);
        lines
    }
}

impl PlannedModel {
    fn new(loaded: &LoadedModel, role: ModelRole, settings: &Settings) -> Result<PlannedModel, Error> {
        let model = &loaded.model;
        let (logit_bias, logit_bias_source) = match &model.logit_bias {
            Some(bias) => (bias.value.get(), bias.source.clone()),
            None if settings.select.draw.pair_score().is_some() => {
                return Err(Error::BiasMissing { model: role, folder: model.folder.clone() });
            }
            None => (0.0, "none: the model has no bias".to_owned()),
        };
        Ok(PlannedModel {
            folder: model.folder.clone(),
            variant: model.variant,
            digest: Digest::of_json(&json!({
                "model": model.digest,
                "inference_batch_size": settings.embed.inference_batch_size,
                "embedding_dtype": settings.embed.embedding_dtype,
            })),
            embedding_dim: loaded.embedding_dim,
            logit_scale: model.logit_scale.value.get(),
            logit_scale_source: model.logit_scale.source.clone(),
            logit_bias,
            logit_bias_source,
        })
    }
}

impl Digests {
    fn new(
        settings: &Settings,
        pool: &Pool,
        models: &Models<PlannedModel>,
        divide: &Option<DivideSettings>,
        select: &SelectSettings,
        planted: &Option<PlantedSamples>,
    ) -> Digests {
        let stage = |name: &str, content: Value| {
            Digest::of_json(&json!({"stage": name, "version": ALGORITHM_VERSION, "content": content}))
        };
        let shards: Vec<_> = pool.shards.iter().map(|shard| (&shard.id, shard.size_bytes)).collect();
        let samples = stage(
            "samples",
            json!({
                "shards": shards,
                "shards_per_task": pool.shards_per_task,
                "limits": settings.read.limits,
            }),
        );
        let embeddings: BTreeMap<String, Digest> = models
            .iter()
            .map(|(role, model)| {
                let digest = stage("embeddings", json!({"samples": samples, "model": model.digest}));
                (role.to_string(), digest)
            })
            .collect();
        let failed = settings.read.failed_shards_max;
        let divide = divide.as_ref().map(|divide| {
            let embeddings = &embeddings[&divide.model.to_string()];
            stage("divide", json!({"settings": divide, "seed": settings.seed, "embeddings": embeddings, "failed_shards_max": failed}))
        });
        let scales: Vec<_> = models.iter().map(|(_, model)| (model.logit_scale, model.logit_bias)).collect();
        let select = stage(
            "select",
            json!({
                "settings": select,
                "seed": settings.seed,
                "embeddings": embeddings,
                "logit_scales_and_biases": scales,
                "divide": divide,
                "failed_shards_max": failed,
            }),
        );
        let write = stage("write", json!({"settings": settings.write, "select": select}));
        let planted = planted.as_ref().map(PlantedSamples::digest);
        let report = stage("report", json!({"planted": planted, "select": select, "write": write}));
        Digests { samples, embeddings, divide, select, write, report }
    }

    /// By stage, from the first to `select`.
    pub fn up_to_select(&self) -> Value {
        let Digests { samples, embeddings, divide, select, .. } = self;
        json!({"samples": samples, "embeddings": embeddings, "divide": divide, "select": select})
    }

    /// By stage, from the first to `write`.
    pub fn up_to_write(&self) -> Value {
        let mut digests = self.up_to_select();
        digests["write"] = json!(self.write);
        digests
    }
}

/// Lowers the sizes of fit, banks and dealing groups to what the memory limit allows: a quarter of it for the banks,
/// half for a group.
fn fit_to_memory(
    settings: &Settings,
    models: &Models<PlannedModel>,
    divide: &mut Option<DivideSettings>,
    select: &mut SelectSettings,
) -> Result<(), Error> {
    // the two towers of each model in f32
    let sample_bytes: u64 = models.iter().map(|(_, model)| 2 * 4 * model.embedding_dim as u64).sum();
    let sample_bytes = sample_bytes.max(1);
    if let Some(divide) = divide {
        let banks_bytes_max = settings.memory_limit_bytes / 4;
        let size_max = banks_bytes_max / (sample_bytes * (divide.n_clusters as u64 + 1));
        if size_max == 0 {
            return Err(Error::MemoryLimit {
                what: "one member for each bank",
                needed_bytes: 4 * sample_bytes * (divide.n_clusters as u64 + 1),
                limit_bytes: settings.memory_limit_bytes,
            });
        }
        divide.bank_size = divide.bank_size.min(size_max as usize);
        // the points of the fit come and go before the banks
        let dim = models.get(divide.model).map_or(1, |model| model.embedding_dim as u64);
        let n_points_max = banks_bytes_max / (4 * dim * divide.n_clusters as u64);
        divide.fit_samples_per_cluster = divide.fit_samples_per_cluster.min(n_points_max.max(1) as usize);
    }
    // a group of n super-batches may hold half a super-batch more
    let Some(deal) = settings.select.draw.deal() else { return Ok(()) };
    let super_batch_bytes = deal.super_batch_size as u64 * sample_bytes;
    let n_max = (settings.memory_limit_bytes / 2).saturating_sub(super_batch_bytes / 2) / super_batch_bytes;
    if n_max == 0 {
        return Err(Error::MemoryLimit {
            what: "one super-batch",
            needed_bytes: 3 * super_batch_bytes,
            limit_bytes: settings.memory_limit_bytes,
        });
    }
    select.super_batches_per_group = select.super_batches_per_group.min(n_max as usize);
    Ok(())
}

fn collect_differences(path: &str, here: &Value, there: &Value, lines: &mut Vec<String>) {
    let at = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (here, there) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            // digests follow from the rest
            for key in keys.into_iter().filter(|key| key.as_str() != "digests") {
                let absent = Value::Null;
                let left = left.get(key).unwrap_or(&absent);
                collect_differences(&at(key), left, right.get(key).unwrap_or(&absent), lines);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (position, (left, right)) in left.iter().zip(right).enumerate() {
                collect_differences(&at(&position.to_string()), left, right, lines);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            lines.push(format!("{path}: {} → {} elements", left.len(), right.len()));
        }
        (left, right) if left != right => lines.push(format!("{path}: {left} → {right}")),
        _ => {}
    }
}
