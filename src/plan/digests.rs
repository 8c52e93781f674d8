//! A plan in, the digest of every stage out: its settings, the version of its algorithm and the digests of the stages
//! that it reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::error::Error;
use crate::select::{OwnLoss, pair_score};
use crate::settings::{DivideSettings, ModelRole};

use super::planted::PlantedSamples;
use super::pool::Shard;
use super::{ALGORITHM_VERSION, Plan};

/// The digest of every stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    pub samples: Digest,
    /// By the role of the model.
    pub embeddings: BTreeMap<String, Digest>,
    pub divide: Option<Digest>,
    /// What samples are worth by themselves.
    pub score: Digest,
    /// Of each filter, with those before it.
    pub filters: Vec<Digest>,
    pub select: Digest,
    pub write: Digest,
    pub report: Digest,
}

impl Digests {
    /// Computes every digest from the rest of a plan. A later round keeps the clusters of the run that it belongs to,
    /// whose digest `divide` is then.
    ///
    /// # Errors
    ///
    /// A file that the settings name and that cannot be read.
    pub(super) fn of(plan: &Plan, divide: Option<Digest>) -> Result<Digests, Error> {
        let samples = samples_digest(plan);
        let embeddings: BTreeMap<String, Digest> = plan
            .models
            .iter()
            .map(|(role, model)| {
                let digest = stage("embeddings", json!({"samples": samples, "model": model.digest}));
                (role.to_string(), digest)
            })
            .collect();
        let divide = divide.or_else(|| divide_digest(plan, &embeddings));
        let score = score_digest(plan, &embeddings, &divide);
        let filters = filter_digests(plan, &score)?;
        let select = stage(
            "select",
            json!({
                "settings": plan.select,
                "seed": plan.seed,
                "round": plan.round,
                "score": score,
                "filters": filters,
            }),
        );
        let write = stage("write", json!({"settings": plan.write, "select": select}));
        let report = report_digest(plan, &embeddings, &select, &write)?;
        Ok(Digests { samples, embeddings, divide, score, filters, select, write, report })
    }

    /// By stage, from the first to `select`.
    pub fn up_to_select(&self) -> Value {
        let Digests { samples, divide, select, .. } = self;
        // what audits changes no byte of what it audits
        let is_audit = |role: &str| role.parse().is_ok_and(ModelRole::is_audit);
        let embeddings: BTreeMap<_, _> = self.embeddings.iter().filter(|(role, _)| !is_audit(role)).collect();
        json!({"samples": samples, "embeddings": embeddings, "divide": divide, "select": select})
    }

    /// By stage, from the first to `write`.
    pub fn up_to_write(&self) -> Value {
        let mut digests = self.up_to_select();
        digests["write"] = json!(self.write);
        digests
    }
}

fn stage(name: &str, content: Value) -> Digest {
    Digest::of_json(&json!({"stage": name, "version": ALGORITHM_VERSION, "content": content}))
}

fn samples_digest(plan: &Plan) -> Digest {
    let sidecar_bytes = |shard: &Shard| shard.sidecar.as_ref().map(|beside| beside.size_bytes);
    let shards = plan.pool.shards.iter();
    let shards: Vec<_> = shards.map(|shard| (&shard.id, shard.size_bytes, sidecar_bytes(shard))).collect();
    stage(
        "samples",
        json!({
            "shards": shards,
            "shards_per_task": plan.pool.shards_per_task,
            "limits": plan.read.limits,
            "bounds": plan.read.bounds,
            "samples": plan.read.samples,
            "label_field": plan.read.label_field,
            "image_column": plan.read.image_column,
            "caption_column": plan.read.caption_column,
        }),
    )
}

fn divide_digest(plan: &Plan, embeddings: &BTreeMap<String, Digest>) -> Option<Digest> {
    let divide = plan.divide.as_ref()?;
    // what centroids are, not where they lie
    let centroids = plan.centroids.as_ref().map(|centroids| &centroids.digest);
    let content = json!({
        "settings": DivideSettings { centroids: None, ..divide.clone() },
        "centroids": centroids,
        "seed": plan.seed,
        "embeddings": embeddings[&divide.model.to_string()],
        "failed_shards_max": plan.read.failed_shards_max,
    });
    Some(stage("divide", content))
}

fn score_digest(plan: &Plan, embeddings: &BTreeMap<String, Digest>, divide: &Option<Digest>) -> Digest {
    let Plan { models, select, .. } = plan;
    // what audits comes in when samples are chosen already
    let chosen_by = || models.iter().filter(|(role, _)| !role.is_audit());
    let embeddings_read: BTreeMap<String, &Digest> =
        chosen_by().map(|(role, _)| (role.to_string(), &embeddings[&role.to_string()])).collect();
    let logits: Vec<_> =
        chosen_by().map(|(_, model)| (model.logit_scale, model.logit_bias, model.calibrate)).collect();
    let is_calibrated = models.iter().any(|(_, model)| model.calibrate);
    stage(
        "score",
        json!({
            "embeddings": embeddings_read,
            "logit_scales_and_biases": logits,
            // the fit stands for a sub-batch
            "calibrated_for": is_calibrated.then(|| select.draw.deal()),
            "objective": select.objective,
            "precision": select.precision,
            "own_loss": OwnLoss::of(select),
            "pair_score": pair_score(select, models),
            "seed": plan.seed,
            "divide": divide,
            "failed_shards_max": plan.read.failed_shards_max,
        }),
    )
}

fn filter_digests(plan: &Plan, score: &Digest) -> Result<Vec<Digest>, Error> {
    let mut filters: Vec<Digest> = Vec::with_capacity(plan.select.filters.len());
    for filter in &plan.select.filters {
        let mut files = Vec::new();
        for path in filter.filter.files() {
            let bytes = std::fs::read(path);
            let bytes = bytes.map_err(|source| Error::ReadSetting { path: path.clone(), source })?;
            files.push(Digest::of_bytes(&bytes));
        }
        let before = filters.last().unwrap_or(score);
        filters.push(stage("filter", json!({"settings": filter, "files": files, "before": before})));
    }
    Ok(filters)
}

fn report_digest(
    plan: &Plan,
    embeddings: &BTreeMap<String, Digest>,
    select: &Digest,
    write: &Digest,
) -> Result<Digest, Error> {
    let planted = plan.report.planted.as_deref().map(PlantedSamples::read).transpose()?;
    let planted = planted.as_ref().map(PlantedSamples::digest);
    let audits: Vec<Value> = plan
        .models
        .iter()
        .filter(|(role, _)| role.is_audit())
        .map(|(role, model)| json!([embeddings[&role.to_string()], model.logit_scale, model.logit_bias]))
        .collect();
    // without audits their fraction changes nothing
    let audit_fraction = (!audits.is_empty()).then_some(plan.report.audit_fraction);
    Ok(stage(
        "report",
        json!({
            "planted": planted,
            "select": select,
            "write": write,
            "audits": audits,
            "audit_fraction": audit_fraction,
        }),
    ))
}
