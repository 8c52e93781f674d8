//! Settings in, `plan.json` out: every input found and every setting resolved before any work.
//!
//! The plan names each stage's digest: its settings, the version of its algorithm and the digests of the stages
//! that it reads. Threads, device, memory and output paths are in none of them.

mod pool;
mod model;
mod planted;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::embed::{Device, LoadedModel, SessionSettings};
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::settings::{
    DivideSettings, EmbedSettings, ModelRole, Models, ReadSettings, ReportSettings, SelectSettings, Settings,
    WriteSettings,
};

pub use model::PlannedModel;
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
            let loaded = LoadedModel::open(&model.folder, model.choice(), &session)?;
            planned.push((role, PlannedModel::new(&loaded, model, &settings.embed)));
        }
        let models: Models<PlannedModel> = planned.into_iter().collect();
        model::check(settings, &models)?;
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

    /// The tasks that a model embeds: all, or the audited ones if it only audits.
    pub fn tasks_of(&self, role: ModelRole) -> Vec<usize> {
        let of_model = |other: ModelRole| {
            self.models.get(other).map(|model| &model.digest)
                == self.models.get(role).map(|model| &model.digest)
        };
        // one model may have several roles
        let audits_only = self.models.iter().all(|(other, _)| other.is_audit() || !of_model(other));
        if audits_only { self.audited_tasks() } else { (0..self.pool.n_tasks()).collect() }
    }

    /// The tasks that full models audit, in order: the fraction `report.audit_fraction` of all, rounded up, with the
    /// smallest keyed hashes of their first shards.
    pub fn audited_tasks(&self) -> Vec<usize> {
        let n_tasks = self.pool.n_tasks();
        let n_audited = ((self.report.audit_fraction * n_tasks as f64).ceil() as usize).clamp(1, n_tasks);
        let hash =
            |task: usize| keyed_hash(Purpose::Audit, self.seed, 0, &self.pool.shards_of(task)[0].id, 0);
        let mut tasks: Vec<usize> = (0..n_tasks).collect();
        tasks.sort_by_key(|&task| (hash(task), task));
        tasks.truncate(n_audited);
        tasks.sort_unstable();
        tasks
    }

    /// What another plan says differently, a line each: `path: here → there`.
    pub fn differences(&self, other: &Plan) -> Vec<String> {
        let mut lines = Vec::new();
        let (here, there) = (json!(self), json!(other));
        collect_differences("", &here, &there, &mut lines);
        lines
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
        let shards: Vec<_> = pool
            .shards
            .iter()
            .map(|shard| {
                (&shard.id, shard.size_bytes, shard.sidecar.as_ref().map(|beside| beside.size_bytes))
            })
            .collect();
        let samples = stage(
            "samples",
            json!({
                "shards": shards,
                "shards_per_task": pool.shards_per_task,
                "limits": settings.read.limits,
                "samples": settings.read.samples,
                "label_field": settings.read.label_field,
                "image_column": settings.read.image_column,
                "caption_column": settings.read.caption_column,
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
        // what audits comes in when samples are chosen already
        let chosen_by = || models.iter().filter(|(role, _)| !role.is_audit());
        let embeddings_read: BTreeMap<String, &Digest> =
            chosen_by().map(|(role, _)| (role.to_string(), &embeddings[&role.to_string()])).collect();
        let scales: Vec<_> =
            chosen_by().map(|(_, model)| (model.logit_scale, model.logit_bias, model.calibrate)).collect();
        let select = stage(
            "select",
            json!({
                "settings": select,
                "seed": settings.seed,
                "embeddings": embeddings_read,
                "logit_scales_and_biases": scales,
                "divide": divide,
                "failed_shards_max": failed,
            }),
        );
        let write = stage("write", json!({"settings": settings.write, "select": select}));
        let planted = planted.as_ref().map(PlantedSamples::digest);
        let audits: BTreeMap<String, &Digest> = models
            .iter()
            .filter(|(role, _)| role.is_audit())
            .map(|(role, _)| (role.to_string(), &embeddings[&role.to_string()]))
            .collect();
        // without audits their fraction changes nothing
        let audit_fraction = (!audits.is_empty()).then_some(settings.report.audit_fraction);
        let report = stage(
            "report",
            json!({
                "planted": planted,
                "select": select,
                "write": write,
                "audits": audits,
                "audit_fraction": audit_fraction,
            }),
        );
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
