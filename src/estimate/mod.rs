//! A plan in; about how many samples, bytes, files, operations and seconds it means out, before any work: of the pool that
//! is there, on this machine, or of one that somebody assumes, on nodes that they assume.

mod pool_size;
mod rates;
mod exchanged;
mod work;
mod disk;
mod table;

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use crate::cost::SelectionCost;
use crate::embed::ModelKind;
use crate::error::Error;
use crate::numbers::{bytes, counted, whole};
use crate::plan::{Plan, PlannedModel};
use crate::settings::{
    ActiveClip, ActiveClipScore, Assumptions, DivideSettings, Draw, FractionOf, ModelRole, PassPool,
    SelectSettings, Settings, SuperBatchDraw, SuperBatchMethod, SuperBatches,
};
use crate::write::target_bytes;

pub use disk::free_bytes;
use pool_size::PoolSize;
pub use rates::{Rates, RatesSource};
use work::{ROW_BYTES, Workload, embedded};
pub use work::{StageTime, StageWork};

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub n_shards: u64,
    pub pool_bytes: u64,
    pub n_samples: u64,
    /// At most, where several passes may draw a sample twice, or filters take out what only the data tell.
    pub n_kept: u64,
    /// None of a draw over the whole pool.
    pub n_super_batches: u64,
    pub embedding_bytes: u64,
    /// Kept rows, and embeddings that are dealt to clusters, on their way through the exchange.
    pub exchange_bytes: u64,
    pub curated_bytes: u64,
    pub n_threads: usize,
    pub device: String,
    pub memory_limit_bytes: u64,
    pub stages: Vec<StageWork>,
    /// What the stages' seconds follow from, where they were measured or assumed.
    pub rates: Option<Rates>,
    /// What a kept sample costs beside training; none where nothing is drawn with a learner. The learner counts as
    /// the model that is trained, unless a full learner was measured beside it.
    pub cost: Option<SelectionCost>,
}

impl Estimate {
    /// Of the pool that is there, without seconds. Opens three of its shards and counts; none where nothing in them can be
    /// counted.
    pub fn of(plan: &Plan, settings: &Settings) -> Option<Estimate> {
        Some(Estimate::new(plan, settings, PoolSize::count(plan)?, None))
    }

    /// Of the pool that is there, on this machine, whose speed is measured.
    pub fn measured(plan: &Plan, settings: &Settings) -> Result<Option<Estimate>, Error> {
        let Some(size) = PoolSize::count(plan) else { return Ok(None) };
        let rates = Rates::measure(plan, settings)?;
        Ok(Some(Estimate::new(plan, settings, size, Some(rates))))
    }

    /// Of a pool and nodes that are assumed; `plan` has the models' widths as assumed.
    pub fn assumed(plan: &Plan, settings: &Settings, assumed: &Assumptions) -> Estimate {
        let size = PoolSize::assume(plan, &assumed.pool);
        Estimate::new(plan, settings, size, Some(Rates::assume(assumed)))
    }

    fn new(plan: &Plan, settings: &Settings, size: PoolSize, rates: Option<Rates>) -> Estimate {
        let n_samples = size.n_samples;
        let draw = &plan.select.draw;
        let n_reaching = reaching(&plan.select, n_samples);
        let n_of_pass = draw.filter_ratio().kept(n_reaching);
        let n_passes = draw.deal().map_or(1, |deal| deal.n_passes as u64);
        let n_kept = (n_of_pass * n_passes).min(n_reaching);
        let n_super_batches =
            draw.deal().map_or(0, |deal| (n_reaching / deal.super_batch_size as u64).max(1));
        let kept_bytes = if plan.write.images { n_kept * size.sample_bytes } else { n_kept * ROW_BYTES };
        let kept_bytes = kept_bytes + n_kept * target_bytes(plan);
        let workload = Workload {
            plan,
            size,
            kept_bytes,
            n_reaching,
            n_drawn: n_passes * (n_of_pass / n_super_batches.max(1)),
            rates: rates.as_ref(),
        };
        warn_of_sizes(plan, n_samples, n_reaching);
        // a cheaper learner costs what was measured of it, and nothing is said where nothing was
        let scorer = match (&rates, plan.models.has(ModelRole::FullLearner)) {
            (Some(rates), true) => rates.relative_cost(ModelRole::Learner, ModelRole::FullLearner),
            (None, true) => None,
            (_, false) => Some(1.0),
        };
        Estimate {
            n_shards: size.n_shards,
            pool_bytes: size.bytes(),
            n_samples,
            n_kept,
            n_super_batches,
            embedding_bytes: embedded(plan).map(|model| model.size_bytes(plan, n_samples)).sum(),
            exchange_bytes: workload.exchanged_bytes(),
            curated_bytes: kept_bytes,
            n_threads: settings.n_threads(),
            device: settings.device.to_string(),
            memory_limit_bytes: settings.memory_limit_bytes,
            stages: workload.stages(),
            rates,
            cost: scorer.and_then(|scorer| selection_cost(plan, n_samples, n_kept, scorer)),
        }
    }

    /// Bytes that the run folder and the store will hold at most.
    pub fn disk_bytes(&self) -> u64 {
        self.embedding_bytes + self.exchange_bytes + self.curated_bytes + self.n_samples * ROW_BYTES
    }

    fn text(&self, plan: &Plan) -> String {
        let shards = counted(self.n_shards, "shard", "shards");
        let pool = format!("{shards}, {}, about {} samples", bytes(self.pool_bytes), whole(self.n_samples));
        let mut text = format!("pool      {pool}\n{}", settled(plan));
        let within = match plan.select.draw.deal() {
            Some(_) => format!(", in {}", counted(self.n_super_batches, "super-batch", "super-batches")),
            None => String::new(),
        };
        let filters = plan.select.filters.iter().map(|filter| filter.name.clone());
        let draw = (plan.select.draw != Draw::Keep).then(|| plan.select.draw.title());
        let steps = filters.chain(draw).collect::<Vec<_>>().join(", then ");
        let about = if keeps_fewer(plan) { "at most about" } else { "about" };
        let (kept, all) = (whole(self.n_kept), whole(self.n_samples));
        let _ = writeln!(text, "select    {steps}: {about} {kept} of {all} samples{within}");
        let _ = writeln!(
            text,
            "disk      about {}: embeddings {}, exchange {}, curated shards {}",
            bytes(self.disk_bytes()),
            bytes(self.embedding_bytes),
            bytes(self.exchange_bytes),
            bytes(self.curated_bytes)
        );
        if let Some(cost) = &self.cost {
            let _ = writeln!(
                text,
                "cost      {:.2} times that of training on a kept sample: {:.2} samples scored for each, by a scorer of \
                 {:.2} of the learner's cost; and {:.2} once for the reference",
                cost.cost, cost.n_scored_per_kept, cost.scorer, cost.reference_cost
            );
        }
        // on other nodes this machine tells nothing
        if self.rates.as_ref().is_none_or(|rates| rates.source == RatesSource::Measured) {
            let _ = writeln!(
                text,
                "machine   {} threads, device `{}`, memory limit {}",
                self.n_threads,
                self.device,
                bytes(self.memory_limit_bytes)
            );
        }
        if let Some(rates) = &self.rates {
            let _ = writeln!(text, "rates     {}", rates.text());
        }
        let _ = write!(text, "\n{}", table::text(&self.stages));
        text
    }
}

/// The plan and its estimate for programs; null where nothing could be counted.
pub fn json(estimate: Option<&Estimate>, plan: &Plan) -> String {
    let text = serde_json::to_string_pretty(&json!({ "estimate": estimate, "plan": plan }));
    text.expect("a plan is representable as JSON")
}

/// The same for people.
pub fn text(estimate: Option<&Estimate>, plan: &Plan) -> String {
    if let Some(estimate) = estimate {
        return estimate.text(plan);
    }
    let shards = counted(plan.pool.shards.len() as u64, "shard", "shards");
    let size = bytes(plan.pool.size_bytes());
    let unknown = "samples unknown: none could be counted in the first shard, the last and the one between";
    format!("pool      {shards}, {size}, {unknown}\n{}", settled(plan))
}

/// What does not depend on the pool's size.
fn settled(plan: &Plan) -> String {
    let mut text = String::new();
    for (role, model) in plan.models.iter() {
        let _ = writeln!(text, "{:9} {}: {}", role.to_string(), model.folder.display(), describe(model));
    }
    if let Some(divide) = &plan.divide {
        let DivideSettings { n_clusters, bank_size, device, .. } = divide;
        let _ = writeln!(text, "divide    {n_clusters} clusters on `{device}`, banks of {bank_size}");
    }
    text
}

/// Samples that filters leave for the draw, so far as their filter ratios tell.
fn reaching(select: &SelectSettings, n_samples: u64) -> u64 {
    let best = select.filters.iter().filter_map(|filter| filter.filter.best());
    best.fold(n_samples, |n_reaching, best| match best.of {
        FractionOf::Reaching => best.filter_ratio.kept(n_reaching),
        FractionOf::Pool => best.filter_ratio.kept(n_samples).min(n_reaching),
    })
}

/// Whether fewer may be kept than filter ratios tell: by other bounds, and where a sample may be drawn again.
fn keeps_fewer(plan: &Plan) -> bool {
    let select = &plan.select;
    let is_repeating = match &select.draw {
        Draw::InSuperBatches(draw) => {
            let is_anew = draw.deal.n_passes > 1 && draw.deal.pass_pool == PassPool::All;
            is_anew || matches!(draw.method, SuperBatchMethod::SoftCap(_))
        }
        Draw::OverPool(_) | Draw::Keep => false,
    };
    is_repeating
        || !plan.read.bounds.is_empty()
        || select.filters.iter().any(|filter| filter.filter.best().is_none())
}

/// Says which sizes of the settings the pool has too few samples for; by an estimate nothing is refused.
fn warn_of_sizes(plan: &Plan, n_samples: u64, n_reaching: u64) {
    let n_clusters = plan.divide.as_ref().map_or(0, |divide| divide.n_clusters as u64);
    if plan.centroids.is_none() && n_clusters > n_samples {
        tracing::warn!(n_clusters, n_samples, "more clusters than the pool has samples, by this estimate");
    }
    let Draw::InSuperBatches(SuperBatchDraw { deal, method }) = &plan.select.draw else { return };
    let super_batch_size = deal.super_batch_size as u64;
    let is_within = deal.super_batches == SuperBatches::WithinClusters;
    if super_batch_size > n_reaching {
        tracing::warn!(
            super_batch_size,
            n_reaching,
            "a super-batch of more samples than come to the draw, by this estimate: all of them are one"
        );
    } else if is_within
        && super_batch_size * n_clusters > n_reaching
        && plan.models.experts().next().is_none()
    {
        tracing::warn!(
            super_batch_size,
            n_clusters,
            n_reaching,
            "clusters of fewer samples than a super-batch are drawn with their nearest: there will be some, by this estimate"
        );
    }
    let size = super_batch_size.min(n_reaching);
    match method {
        SuperBatchMethod::Jest(jest) if jest.n_chunks as u64 > deal.filter_ratio.kept(size) => {
            let sub_batch_size = deal.filter_ratio.kept(size);
            tracing::warn!(
                n_chunks = jest.n_chunks,
                sub_batch_size,
                "more chunks than a sub-batch has samples: one each"
            );
        }
        SuperBatchMethod::ActiveClip(ActiveClip {
            n_negatives, score: ActiveClipScore::Contrastive, ..
        }) if *n_negatives as u64 >= size => {
            tracing::warn!(
                n_negatives,
                super_batch_size = size,
                "no fewer negatives than a super-batch has samples: each takes all others"
            );
        }
        _ => {}
    }
}

/// The cost of a draw that a learner takes part in.
fn selection_cost(plan: &Plan, n_samples: u64, n_kept: u64, scorer: f64) -> Option<SelectionCost> {
    let is_scored = plan.models.has(ModelRole::Learner) && plan.select.draw.deal().is_some() && n_kept > 0;
    is_scored.then(|| SelectionCost::new(n_samples, n_kept, scorer))
}

/// What a model is, in a few words.
fn describe(model: &PlannedModel) -> String {
    let number = |value: Option<f64>| value.map_or("null".to_owned(), |value| format!("{value:.3}"));
    match model.kind {
        ModelKind::Pair => format!(
            "{} dimensions, logit scale {} ({}), bias {} ({})",
            model.embedding_dim,
            number(model.logit_scale),
            model.logit_scale_source,
            number(model.logit_bias),
            model.logit_bias_source
        ),
        ModelKind::Image => format!("images alone, {} dimensions", model.embedding_dim),
        ModelKind::Text => format!("captions alone, {} dimensions", model.embedding_dim),
        ModelKind::Classifier => format!("a classifier, {} classes", model.embedding_dim),
    }
}

#[cfg(test)]
mod tests;
