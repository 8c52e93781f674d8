//! Settings in, `plan.json` out: every input found and every setting resolved before any work.
//!
//! The plan names each stage's digest: its settings, the version of its algorithm and the digests of the stages
//! that it reads. Threads, memory, output paths and the device of models are in none of them.

mod digests;
mod pool;
mod vectors;
mod model;
mod planted;
mod fields;
mod memory;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::divide::PlannedCentroids;
use crate::embed::{ModelKind, SessionSettings, open_shard};
use crate::engine::Engine;
use crate::error::Error;
use crate::noise::{Purpose, keyed_hash};
use crate::npy::{self, NpyError};
use crate::read::ShardFormat;
use crate::runtime::Device;
use crate::select::{Objective, pair_score};
use crate::settings::{
    DivideSettings, Draw, EmbedSettings, ModelRole, ModelSettings, Models, ReadSettings, ReportSettings,
    ScoreKind, SelectSettings, Settings, SuperBatchDraw, SuperBatchMethod, WriteSettings,
};

pub use digests::Digests;
use memory::{fit_select, fit_to_memory};
pub use memory::{row_bytes, scored, scored_bytes};
pub use model::PlannedModel;
use model::Wants;
pub use planted::PlantedSamples;
pub use pool::{Pool, Shard, shards_per_task};
pub use vectors::{PlannedVectors, VectorFile, VectorFiles};

/// Version of the run folder: files, columns, markers.
pub const FORMAT_VERSION: u32 = 2;

/// Versions of the stages' algorithms; a change of one redoes the stage and those after it.
const ALGORITHM_VERSION: u32 = 2;

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
        let plan = Plan::find(settings, device, None)?;
        check_engines(&plan.divide, &plan.select)?;
        Ok(plan)
    }

    /// The same for machines that are only thought of: the devices of stages need not be on this one.
    pub fn for_elsewhere(settings: &Settings) -> Result<Plan, Error> {
        Plan::find(settings, Device::Cpu, None)
    }

    /// The same, but a model that an earlier plan has by the same settings is taken from there, and not opened. What
    /// the devices of stages are for may be done already: a stage looks for its own where it has work.
    pub fn with_models_of(settings: &Settings, earlier: &Plan) -> Result<Plan, Error> {
        Plan::find(settings, Device::Cpu, Some(earlier))
    }

    fn find(settings: &Settings, device: Device, earlier: Option<&Plan>) -> Result<Plan, Error> {
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
        let models = model::planned_models(settings, device, earlier, &pool, &wants)?;
        if earlier.is_none() {
            check_targets(&settings.select, &models)?;
            warn_of_equal_models(&models);
            warn_of_logits(&models, settings.select.objective);
            fields::warn_of_missing(&pool, &settings.read, &settings.select);
        }
        let mut divide = settings.divide.clone();
        let centroids = resolve_centroids(&mut divide, &models, settings.memory_limit_bytes)?;
        let mut select = settings.select.clone();
        fit_to_memory(settings, &models, &mut divide, &mut select)?;
        check_experts(&models, &divide)?;
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
    /// A learner that cannot be used, a run without one, or a super-batch that takes more than the memory limit.
    pub fn next_round(
        &self,
        round: u64,
        learner: &ModelSettings,
        session: &SessionSettings,
        memory_limit_bytes: u64,
    ) -> Result<Plan, Error> {
        if !self.models.has(ModelRole::Learner) {
            return Err(Error::NoLearner);
        }
        // clusters and banks are of the former learner's embeddings
        if self.divide.as_ref().is_some_and(|divide| divide.model == ModelRole::Learner) {
            return Err(Error::DividedByLearner);
        }
        let loaded = model::open(learner, session)?;
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
        check_targets(&plan.select, &plan.models)?;
        warn_of_equal_models(&plan.models);
        warn_of_logits(&plan.models, plan.select.objective);
        fit_select(memory_limit_bytes, &plan.models, &mut plan.select)?;
        plan.round = round;
        // both below the folder of the run, wherever that is moved
        plan.base = Some(PathBuf::from(BASE));
        plan.store.get_or_insert_with(|| PathBuf::from(BASE));
        plan.digests = Digests::of(&plan, self.digests.divide.clone())?;
        Ok(plan)
    }

    /// The plan if its models' embeddings had these widths; a classifier has its classes.
    ///
    /// # Errors
    ///
    /// A memory limit that does not do for them.
    pub fn with_widths(
        mut self,
        settings: &Settings,
        width_of: impl Fn(ModelRole) -> usize,
    ) -> Result<Plan, Error> {
        let widened = self.models.iter().map(|(role, model)| match model.kind {
            ModelKind::Classifier => (role, model.clone()),
            _ => (role, PlannedModel { embedding_dim: width_of(role), ..model.clone() }),
        });
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

/// Whether the embeddings that filters compare with are as wide as their models', before any work.
fn check_targets(select: &SelectSettings, models: &Models<PlannedModel>) -> Result<(), Error> {
    for filter in &select.filters {
        let Some(model) = filter.filter.model().and_then(|role| models.get(role)) else { continue };
        for path in filter.filter.files() {
            let file =
                File::open(path).map_err(|source| Error::ReadSetting { path: path.clone(), source })?;
            let fault = |source| Error::Targets { path: path.clone(), source };
            let (found, expected) =
                (npy::Rows::open(BufReader::new(file)).map_err(fault)?.n_cols(), model.embedding_dim);
            if found != expected {
                return Err(fault(NpyError::Width { found, expected }));
            }
        }
    }
    Ok(())
}

/// The logarithms of the scales that models are trained to are below, the scales themselves above.
const LOGIT_SCALE_USUAL: f64 = 5.0;

/// A scale that was stated as its logarithm, and a bias with the other sign, are mistakes that no later step notices.
fn warn_of_logits(models: &Models<PlannedModel>, objective: Objective) {
    // the base scores nothing, and softmax takes no bias
    for (model, planned) in models.iter().filter(|(role, _)| *role != ModelRole::Base) {
        if let Some(logit_scale) = planned.logit_scale.filter(|scale| *scale < LOGIT_SCALE_USUAL) {
            tracing::warn!(%model, logit_scale, "a logit scale as low as the logarithm of one: `logit_scale` is linear");
        }
        if let Some(logit_bias) =
            planned.logit_bias.filter(|bias| *bias > 0.0 && objective == Objective::Sigmoid)
        {
            tracing::warn!(%model, logit_bias, "a logit bias above 0: trained ones are below");
        }
    }
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

/// Whether every cluster has its expert, and all of them are of one kind and width.
fn check_experts(models: &Models<PlannedModel>, divide: &Option<DivideSettings>) -> Result<(), Error> {
    let Some(first) = models.experts().next() else { return Ok(()) };
    let n_clusters = divide.as_ref().map_or(0, |divide| divide.n_clusters as u32);
    if let Some(cluster) = (0..n_clusters).find(|cluster| !models.has(ModelRole::Expert(*cluster))) {
        return Err(Error::ExpertMissing { cluster });
    }
    if let Some(cluster) = models.experts().find(|cluster| *cluster >= n_clusters) {
        return Err(Error::ExpertWithoutCluster { cluster });
    }
    let form =
        |cluster| models.get(ModelRole::Expert(cluster)).map(|expert| (expert.kind, expert.embedding_dim));
    match models.experts().find(|cluster| form(*cluster) != form(first)) {
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
