//! Settings in, `plan.json` out: every input found and every setting resolved before any work.
//!
//! The plan names each stage's digest: its settings, the version of its algorithm and the digests of the stages
//! that it reads. Threads, memory, output paths and the device of models are in none of them.

mod digests;
mod pool;
mod vectors;
mod model;
mod planted;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::divide::PlannedCentroids;
use crate::embed::{Encoders, LoadedModel, SessionSettings, open_shard};
use crate::engine::Engine;
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::read::{Limits, ShardFormat};
use crate::runtime::Device;
use crate::select::{BATCHES_HELD, pair_score};
use crate::settings::{
    DivideSettings, Draw, EmbedSettings, EmbeddingDtype, Filter, ModelRole, ModelSettings, Models,
    ReadSettings, ReportSettings, ScoreKind, SelectSettings, Settings, SuperBatchDraw, SuperBatchMethod,
    WriteSettings,
};

pub use digests::Digests;
pub use model::PlannedModel;
use model::Wants;
pub use planted::PlantedSamples;
pub use pool::{Pool, Shard, shards_per_task};
pub use vectors::{PlannedVectors, VectorFile, VectorFiles};

/// Version of the run folder: files, columns, markers.
pub const FORMAT_VERSION: u32 = 1;

/// Versions of the stages' algorithms; a change of one redoes the stage and those after it.
const ALGORITHM_VERSION: u32 = 1;

/// The run folder from the folder of one of its rounds, `RUN/rounds/NNN`.
const BASE: &str = "../..";

/// What a run will do, fixed before it does anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub format_version: u32,
    pub software_version: String,
    pub seed: u64,
    /// 0 for the first selection; one more for each new learner checkpoint.
    pub round: u64,
    pub store: Option<PathBuf>,
    /// The run folder whose clusters a later round keeps.
    pub base: Option<PathBuf>,
    pub pool: Pool,
    pub models: Models<PlannedModel>,
    pub read: ReadSettings,
    pub embed: EmbedSettings,
    pub divide: Option<DivideSettings>,
    /// Centroids of another run, taken instead of fitting.
    pub centroids: Option<PlannedCentroids>,
    pub select: SelectSettings,
    pub write: WriteSettings,
    pub report: ReportSettings,
    pub digests: Digests,
}

impl Plan {
    /// Finds the shards, opens the models and resolves what depends on them.
    ///
    /// # Errors
    ///
    /// Whatever of the settings cannot be used, before any work.
    pub fn new(settings: &Settings, device: Device) -> Result<Plan, Error> {
        let pool = Pool::find(&settings.read)?;
        // a pool's tables are alike: what the first one lacks is found before any work
        if let Some(table) =
            pool.shards.iter().find(|shard| ShardFormat::of(&shard.id) == ShardFormat::Parquet)
        {
            drop(open_shard(&pool, table, &settings.read)?);
        }
        let wants = Wants {
            read: &settings.read,
            divide: settings.divide.as_ref(),
            select: &settings.select,
            write: &settings.write,
        };
        let models = planned_models(settings, device, &pool, &wants)?;
        warn_of_equal_models(&models);
        let mut divide = settings.divide.clone();
        let centroids = resolve_centroids(&mut divide, &models, settings.memory_limit_bytes)?;
        let mut select = settings.select.clone();
        fit_to_memory(settings, &models, &mut divide, &mut select)?;
        check_filters_memory(settings, &models)?;
        check_experts(&models, &divide)?;
        check_engines(&divide, &select)?;
        let store = settings.store.as_ref().map(|store| {
            std::path::absolute(store).map_err(|source| Error::Write { path: store.clone(), source })
        });
        let mut plan = Plan {
            format_version: FORMAT_VERSION,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: settings.seed,
            round: 0,
            store: store.transpose()?,
            base: None,
            pool,
            models,
            read: settings.read.clone(),
            embed: settings.embed.clone(),
            divide,
            centroids,
            select,
            write: settings.write.clone(),
            report: settings.report.clone(),
            digests: Digests::default(),
        };
        plan.digests = Digests::of(&plan, None)?;
        Ok(plan)
    }

    /// The plan of a later round: a new learner checkpoint scores and selects anew, with the same clusters and the same
    /// embeddings of every other model.
    ///
    /// # Errors
    ///
    /// A learner that cannot be used, or a run without one.
    pub fn next_round(
        &self,
        round: u64,
        learner: &ModelSettings,
        session: &SessionSettings,
    ) -> Result<Plan, Error> {
        if !self.models.has(ModelRole::Learner) {
            return Err(Error::NoLearner);
        }
        // clusters and banks are of the former learner's embeddings
        if self.divide.as_ref().is_some_and(|divide| divide.model == ModelRole::Learner) {
            return Err(Error::DividedByLearner);
        }
        let loaded = open(learner, session)?;
        let model = PlannedModel::new(&loaded, learner, &self.embed);
        let wants = Wants {
            read: &self.read,
            divide: self.divide.as_ref(),
            select: &self.select,
            write: &self.write,
        };
        model::check(&wants, ModelRole::Learner, &model, loaded.model.initial_logit_scale)?;
        let mut plan = self.clone();
        plan.models.insert(ModelRole::Learner, model);
        warn_of_equal_models(&plan.models);
        plan.round = round;
        // both below the folder of the run, wherever that is moved
        plan.base = Some(PathBuf::from(BASE));
        plan.store.get_or_insert_with(|| PathBuf::from(BASE));
        plan.digests = Digests::of(&plan, self.digests.divide.clone())?;
        Ok(plan)
    }

    /// The plan if its models' embeddings had these widths.
    ///
    /// # Errors
    ///
    /// A memory limit that does not do for them.
    pub fn with_widths(
        mut self,
        settings: &Settings,
        width_of: impl Fn(ModelRole) -> usize,
    ) -> Result<Plan, Error> {
        let widened = self
            .models
            .iter()
            .map(|(role, model)| (role, PlannedModel { embedding_dim: width_of(role), ..model.clone() }));
        self.models = widened.collect();
        if let (Some(divide), Some(asked)) = (&mut self.divide, &settings.divide) {
            divide.bank_size = asked.bank_size;
            divide.fit_samples_per_cluster = asked.fit_samples_per_cluster;
        }
        self.select.super_batches_per_group = settings.select.super_batches_per_group;
        fit_to_memory(settings, &self.models, &mut self.divide, &mut self.select)?;
        Ok(self)
    }

    /// What pairs are scored by in `hard_learnability` and in batch learnability.
    pub fn pair_score(&self) -> Option<ScoreKind> {
        pair_score(&self.select, &self.models)
    }

    /// The model that stands as reference of a cluster's samples: its expert, where the run has experts.
    pub fn reference_of(&self, cluster: u32) -> ModelRole {
        match self.models.experts().next() {
            Some(_) => ModelRole::Expert(cluster),
            None => ModelRole::Reference,
        }
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
        if lines.is_empty() && self.digests != other.digests {
            lines.push(
                "the contents of a file that the settings name, such as evaluation embeddings".to_owned(),
            );
        }
        lines
    }
}

/// Opens every model, or finds its embeddings, and checks that it can do what the settings want of it.
fn planned_models(
    settings: &Settings,
    device: Device,
    pool: &Pool,
    wants: &Wants,
) -> Result<Models<PlannedModel>, Error> {
    let mut place = None;
    let mut planned = Vec::new();
    for (role, model) in settings.models.iter() {
        let (model, initial_logit_scale) = match &model.precomputed {
            Some(precomputed) => {
                (PlannedModel::of_vectors(precomputed, model.calibrate, pool, &settings.embed)?, None)
            }
            None => {
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
        model::check(wants, role, &model, initial_logit_scale)?;
        planned.push((role, model));
    }
    Ok(planned.into_iter().collect())
}

/// Two equal models are a control, and hardly ever meant.
fn warn_of_equal_models(models: &Models<PlannedModel>) {
    let digest = |role| models.get(role).map(|model| &model.digest);
    if let Some(learner) = digest(ModelRole::Learner)
        && digest(ModelRole::Reference) == Some(learner)
    {
        tracing::warn!("learner and reference are one model: learnability is 0 everywhere");
    }
}

/// Opens a model with everything that it needs, so that what cannot work fails before any work.
fn open(model: &ModelSettings, session: &SessionSettings) -> Result<LoadedModel, Error> {
    let loaded = LoadedModel::open(&model.folder, model.choice(), session)?;
    Encoders::new([&loaded.model], Limits::default())?.probe()?;
    Ok(loaded)
}

/// Whether every cluster has its expert, and all of them embed in spaces of one width.
fn check_experts(models: &Models<PlannedModel>, divide: &Option<DivideSettings>) -> Result<(), Error> {
    let Some(first) = models.experts().next() else { return Ok(()) };
    let n_clusters = divide.as_ref().map_or(0, |divide| divide.n_clusters as u32);
    if let Some(cluster) = (0..n_clusters).find(|cluster| !models.has(ModelRole::Expert(*cluster))) {
        return Err(Error::ExpertMissing { cluster });
    }
    if let Some(cluster) = models.experts().find(|cluster| *cluster >= n_clusters) {
        return Err(Error::ExpertWithoutCluster { cluster });
    }
    let width = |cluster| models.get(ModelRole::Expert(cluster)).map(|expert| expert.embedding_dim);
    match models.experts().find(|cluster| width(*cluster) != width(first)) {
        Some(_) => Err(Error::ExpertsDiffer),
        None => Ok(()),
    }
}

/// Finds the centroids of another run, if the settings name any.
fn resolve_centroids(
    divide: &mut Option<DivideSettings>,
    models: &Models<PlannedModel>,
    memory_limit_bytes: u64,
) -> Result<Option<PlannedCentroids>, Error> {
    let Some(divide) = divide else { return Ok(None) };
    let Some(path) = divide.centroids.clone() else { return Ok(None) };
    let model = models.get(divide.model).expect("checked with the settings");
    PlannedCentroids::resolve(&path, divide, model, memory_limit_bytes).map(Some)
}

/// Lowers the sizes of fit, banks and dealing groups to what the memory limit allows: a quarter of it for the banks,
/// half for a group. The other half is for copies of what a draw looks at: a super-batch, which may be half as large
/// again as it is meant to be, and its sub-batch.
fn fit_to_memory(
    settings: &Settings,
    models: &Models<PlannedModel>,
    divide: &mut Option<DivideSettings>,
    select: &mut SelectSettings,
) -> Result<(), Error> {
    let row_bytes = |role| models.get(role).map_or(0, |model| model.row_bytes(EmbeddingDtype::F32));
    // a group holds the learner's embeddings and one reference's; an audit takes part in no draw, and must change none
    let references = std::iter::once(ModelRole::Reference).chain(models.experts().map(ModelRole::Expert));
    let sample_bytes = row_bytes(ModelRole::Learner) + references.map(row_bytes).max().unwrap_or(0);
    if let Some(divide) = divide {
        let sample_bytes = (sample_bytes + row_bytes(divide.model)).max(1);
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
    let Some(deal) = settings.select.draw.deal() else { return Ok(()) };
    let super_batch_bytes = deal.super_batch_size as u64 * sample_bytes.max(1);
    let needed_bytes = 6 * super_batch_bytes;
    if settings.memory_limit_bytes < needed_bytes {
        return Err(Error::MemoryLimit {
            what: "one super-batch",
            needed_bytes,
            limit_bytes: settings.memory_limit_bytes,
        });
    }
    // a group of n super-batches may hold half a super-batch more, and what would be less than one besides
    let n_max = (settings.memory_limit_bytes - 3 * super_batch_bytes) / (2 * super_batch_bytes);
    select.super_batches_per_group = select.super_batches_per_group.min(n_max as usize);
    Ok(())
}

/// Whether the memory limit allows the groups of a filter `neg_clip_loss`, whose batches are no one's but the user's.
fn check_filters_memory(settings: &Settings, models: &Models<PlannedModel>) -> Result<(), Error> {
    let limit_bytes = settings.memory_limit_bytes;
    for filter in &settings.select.filters {
        let Filter::NegClipLoss(filter) = &filter.filter else { continue };
        let row_bytes = models.get(filter.model).map_or(0, |model| model.row_bytes(EmbeddingDtype::F32));
        let needed_bytes = (BATCHES_HELD * filter.batch_size) as u64 * row_bytes;
        if needed_bytes > limit_bytes {
            let what = "a group of batches of `neg_clip_loss`";
            return Err(Error::MemoryLimit { what, needed_bytes, limit_bytes });
        }
    }
    Ok(())
}

/// Whether the devices that clusters and a joint draw ask for are there, before any work.
fn check_engines(divide: &Option<DivideSettings>, select: &SelectSettings) -> Result<(), Error> {
    if let Some(divide) = divide {
        Engine::of(divide.device, divide.products)?;
    }
    if let Draw::InSuperBatches(SuperBatchDraw { method: SuperBatchMethod::Jest(jest), .. }) = &select.draw {
        Engine::of(jest.device, jest.products)?;
    }
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

#[cfg(test)]
mod tests;
