//! A plan in; about how many samples, bytes, operations and seconds it means out, before any work.
//!
//! Samples are counted in three shards and scaled by the shards' sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::cost::SelectionCost;
use crate::embed::{Model, ModelKind, Sessions, open_shard};
use crate::error::Error;
use crate::plan::{Plan, PlannedModel};
use crate::settings::{DivideSettings, ModelRole, Settings};
use crate::storage::Storage;
use crate::write::target_bytes;

/// Samples of a shard that are counted at most.
const SAMPLES_COUNTED_MAX: usize = 1_000;

/// Bytes of a sample in `samples/`, `divide/` and `select/` together, beside its embeddings: measured on short captions.
const ROW_BYTES: u64 = 600;

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub n_shards: usize,
    pub pool_bytes: u64,
    pub n_samples: u64,
    /// At most, where several passes may draw a sample twice.
    pub n_kept: u64,
    pub n_super_batches: u64,
    pub embedding_bytes: u64,
    /// Kept rows on their way through the exchange.
    pub exchange_bytes: u64,
    pub curated_bytes: u64,
    /// `8·B·b·d` for each super-batch and model pair, METHODS' count.
    pub select_flops: f64,
    pub n_threads: usize,
    pub device: String,
    pub memory_limit_bytes: u64,
    /// Seconds that the models' own inference takes, where it was measured.
    pub inference_secs: Option<f64>,
    /// What a kept sample costs beside training; none where nothing is drawn with a learner. The learner counts as
    /// the model that is trained, unless a full learner was measured beside it.
    pub cost: Option<SelectionCost>,
}

impl Estimate {
    /// Opens a few shards and counts.
    pub fn of(plan: &Plan, settings: &Settings) -> Estimate {
        let pool = &plan.pool;
        let sample_bytes = mean_sample_bytes(plan);
        let n_samples = pool.size_bytes() / sample_bytes;
        let draw = &plan.select.draw;
        let n_of_pass = draw.filter_ratio().kept(n_samples);
        let n_passes = draw.deal().map_or(1, |deal| deal.n_passes as u64);
        let n_kept = (n_of_pass * n_passes).min(n_samples);
        let embedding_bytes = embedded(plan).map(|model| model.size_bytes(plan, n_samples));
        let scored = [ModelRole::Learner, ModelRole::Reference].into_iter();
        let dims: usize =
            scored.filter_map(|role| plan.models.get(role)).map(|model| model.embedding_dim).sum();
        let n_super_batches = draw.deal().map_or(1, |deal| (n_samples / deal.super_batch_size as u64).max(1));
        let kept_bytes = if plan.write.images { n_kept * sample_bytes } else { n_kept * ROW_BYTES };
        let kept_bytes = kept_bytes + n_kept * target_bytes(plan);
        let draws = match draw.pair_score() {
            Some(_) => {
                let n_drawn = n_passes as f64 * (n_of_pass / n_super_batches) as f64;
                4.0 * n_samples as f64 * n_drawn * dims as f64
            }
            None => 0.0,
        };
        Estimate {
            n_shards: pool.shards.len(),
            pool_bytes: pool.size_bytes(),
            n_samples,
            n_kept,
            n_super_batches,
            embedding_bytes: embedding_bytes.sum(),
            exchange_bytes: kept_bytes,
            curated_bytes: kept_bytes,
            select_flops: draws,
            n_threads: settings.n_threads(),
            device: settings.device.to_string(),
            memory_limit_bytes: settings.memory_limit_bytes,
            inference_secs: None,
            cost: selection_cost(plan, n_samples, n_kept, 1.0),
        }
    }

    /// Runs each model for a moment to tell how long it will take for the pool.
    pub fn measure_inference(&mut self, plan: &Plan, settings: &Settings) -> Result<(), Error> {
        let mut secs = 0.0;
        let mut secs_per_sample = BTreeMap::new();
        for Embedded { planned, fraction, .. } in
            embedded(plan).filter(|model| model.planned.vectors.is_none())
        {
            let model = Model::open(&planned.folder, planned.choice())?;
            let batch_size = plan.embed.inference_batch_size;
            let mut sessions = Sessions::open(&model, &settings.inference(), self.n_threads, batch_size)?;
            let samples_per_sec = sessions.samples_per_sec()?;
            secs_per_sample.insert(&planned.digest, samples_per_sec.recip());
            secs += fraction * self.n_samples as f64 / samples_per_sec;
        }
        let of = |role| secs_per_sample.get(&plan.models.get(role)?.digest);
        if let (Some(cheap), Some(full)) = (of(ModelRole::Learner), of(ModelRole::FullLearner)) {
            self.cost = selection_cost(plan, self.n_samples, self.n_kept, cheap / full);
        }
        self.inference_secs = Some(secs);
        Ok(())
    }

    /// Bytes that the run folder and the store will hold at most.
    pub fn disk_bytes(&self) -> u64 {
        self.embedding_bytes + self.exchange_bytes + self.curated_bytes + self.n_samples * ROW_BYTES
    }

    /// Fails where the disk has less room than a new run needs.
    pub fn check_disk(&self, plan: &Plan, run: &Storage) -> Result<(), Error> {
        let Some(store) = &plan.store else { return check_free(run, self.disk_bytes()) };
        let store = Storage::new(store);
        // what the store has already needs no room
        let mut store_bytes = 0;
        for model in embedded(plan) {
            let n_done = store.list(&format!("_done/embeddings/{}", model.planned.digest))?.len();
            let undone = (model.n_tasks.saturating_sub(n_done)) as f64 / model.n_tasks as f64;
            store_bytes += (undone * model.size_bytes(plan, self.n_samples) as f64) as u64;
        }
        let run_bytes = self.disk_bytes() - self.embedding_bytes;
        if is_same_disk(&store, run) {
            return check_free(run, store_bytes + run_bytes);
        }
        check_free(&store, store_bytes)?;
        check_free(run, run_bytes)
    }

    pub fn json(&self, plan: &Plan) -> String {
        let text = serde_json::to_string_pretty(&json!({ "estimate": self, "plan": plan }));
        text.expect("a plan is representable as JSON")
    }

    pub fn text(&self, plan: &Plan) -> String {
        let mut text = String::new();
        let shards =
            format!("{} shards, {}, about {} samples", self.n_shards, bytes(self.pool_bytes), self.n_samples);
        let _ = writeln!(text, "pool      {shards}");
        for (role, model) in plan.models.iter() {
            let _ = writeln!(text, "{:9} {}: {}", role.to_string(), model.folder.display(), describe(model));
        }
        if let Some(divide) = &plan.divide {
            let DivideSettings { n_clusters, bank_size, device, .. } = divide;
            let _ = writeln!(text, "divide    {n_clusters} clusters on `{device}`, banks of {bank_size}");
        }
        let _ = writeln!(
            text,
            "select    {}: about {} of {} samples, in {} super-batches, {:.3e} operations",
            plan.select.draw.name(),
            self.n_kept,
            self.n_samples,
            self.n_super_batches,
            self.select_flops
        );
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
        if let Some(secs) = self.inference_secs {
            let _ = writeln!(
                text,
                "time      about {secs:.0} s of inference on this machine, measured on blank images"
            );
        }
        let _ = write!(
            text,
            "machine   {} threads, device `{}`, memory limit {}",
            self.n_threads,
            self.device,
            bytes(self.memory_limit_bytes)
        );
        text
    }
}

/// A model with embeddings of its own, whatever its roles.
struct Embedded<'a> {
    planned: &'a PlannedModel,
    n_tasks: usize,
    /// Of the pool that it embeds.
    fraction: f64,
}

impl Embedded<'_> {
    /// Of its embeddings of a pool of so many samples.
    fn size_bytes(&self, plan: &Plan, n_samples: u64) -> u64 {
        let n_rows = (self.fraction * n_samples as f64).ceil() as u64;
        n_rows * self.planned.row_bytes(plan.embed.embedding_dtype)
    }
}

fn embedded(plan: &Plan) -> impl Iterator<Item = Embedded<'_>> {
    let mut met = BTreeSet::new();
    let distinct = plan.models.iter().filter(move |(_, model)| met.insert(&model.digest));
    distinct.map(|(role, planned)| {
        let n_tasks = plan.tasks_of(role).len();
        Embedded { planned, n_tasks, fraction: n_tasks as f64 / plan.pool.n_tasks() as f64 }
    })
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

/// Mean bytes of tar for each sample, over three shards spread over the pool.
fn mean_sample_bytes(plan: &Plan) -> u64 {
    let pool = &plan.pool;
    let last = pool.shards.len() - 1;
    let mut counted = [0, last / 2, last].to_vec();
    counted.dedup();
    let (mut n_samples, mut n_bytes) = (0, 0);
    for shard in counted.into_iter().map(|shard_idx| &pool.shards[shard_idx]) {
        let (mut n_of_shard, mut image_bytes) = (0, 0);
        // what cannot be read now may be readable when its turn comes
        let Ok(samples) = open_shard(pool, shard, &plan.read) else { continue };
        for sample in samples.take(SAMPLES_COUNTED_MAX).flatten() {
            n_of_shard += 1;
            image_bytes += sample.image_size();
        }
        n_samples += n_of_shard;
        // of a shard that is not read to its end: a caption, a JSON member and three tar headers beside each image
        let is_whole = n_of_shard < SAMPLES_COUNTED_MAX as u64;
        n_bytes += if is_whole { shard.size_bytes } else { image_bytes + n_of_shard * 3 * 1024 };
    }
    // shards without a sample are found out when they are read
    (n_bytes / n_samples.max(1)).max(1)
}

/// The folder, or its nearest ancestor that is there.
fn present(storage: &Storage) -> Option<PathBuf> {
    let absolute = std::path::absolute(storage.root()).ok()?;
    absolute.ancestors().find(|folder| folder.exists()).map(Path::to_owned)
}

fn is_same_disk(left: &Storage, right: &Storage) -> bool {
    let disk = |storage| Some(present(storage)?.metadata().ok()?.dev());
    disk(left).is_some_and(|left| Some(left) == disk(right))
}

fn check_free(storage: &Storage, needed_bytes: u64) -> Result<(), Error> {
    let path = storage.root();
    let Some(present) = present(storage) else { return Ok(()) };
    match free_bytes(&present) {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(Error::DiskSpace { path: path.to_owned(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Bytes that an ordinary user may still write; none where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stats = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL and the struct is written before it is read, if the call succeeds
    let stats = unsafe {
        if libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) != 0 {
            return None;
        }
        stats.assume_init()
    };
    Some(stats.f_bavail as u64 * stats.f_frsize as u64)
}

/// Bytes for people: three digits and a unit.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
