//! A plan and the size of its pool in, what each stage reads, writes and computes out.
//!
//! What cannot be done without is counted: each pass over files, products of embeddings, the models' operations. The fit
//! of clusters is counted with all its iterations, which it seldom needs, and on the cores, wherever it runs. Files are those
//! of data, on their way through the exchange too; a marker stands beside each. What filters read beside embeddings is left
//! out.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::embed::ModelKind;
use crate::plan::{Plan, PlannedModel, scored, scored_bytes};
use crate::select::needs_bank;
use crate::settings::{DivideSettings, ModelRole, SampleContents};

use super::exchanged::StepWork;
use super::pool_size::PoolSize;
use super::rates::Rates;

/// Bytes of a sample's rows, measured on short captions: in `samples/`, in `divide/`, in `select/`.
const SAMPLES_ROW_BYTES: u64 = 150;
pub const DIVIDE_ROW_BYTES: u64 = 150;
const SELECT_ROW_BYTES: u64 = 300;

/// All of them.
pub const ROW_BYTES: u64 = SAMPLES_ROW_BYTES + DIVIDE_ROW_BYTES + SELECT_ROW_BYTES;

/// What a stage reads, writes and computes, and how long that takes at some rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageWork {
    pub stage: &'static str,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub n_files: u64,
    /// A multiplication and an addition are two. Unknown where those of a model are not stated.
    pub flops: Option<f64>,
    /// Where rates are known.
    pub time: Option<StageTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTime {
    /// Of all GPUs together, as of one.
    pub gpu_secs: f64,
    /// Of all cores together, as of one.
    pub core_secs: f64,
    /// Of one node: GPUs, cores and disk work side by side, and the busiest tells.
    pub node_secs: f64,
}

/// What the stages share.
pub struct Workload<'a> {
    pub plan: &'a Plan,
    pub size: PoolSize,
    /// Of what is kept, in `curated/`.
    pub kept_bytes: u64,
    /// Samples that filters leave for the draw.
    pub n_reaching: u64,
    /// Of a super-batch, over all passes.
    pub n_drawn: u64,
    pub rates: Option<&'a Rates>,
}

impl Workload<'_> {
    /// Every stage, in the order of the flow.
    pub fn stages(&self) -> Vec<StageWork> {
        let divide = self.plan.divide.as_ref().map(|divide| self.divide(divide));
        let stages =
            [Some(self.embed()), divide, Some(self.select()), Some(self.write()), Some(self.report())];
        stages.into_iter().flatten().collect()
    }

    fn embed(&self) -> StageWork {
        let n_samples = self.size.n_samples as f64;
        let models: Vec<Embedded> = embedded(self.plan).collect();
        let written: u64 = models.iter().map(|model| model.size_bytes(self.plan, self.size.n_samples)).sum();
        let n_files = models.iter().map(|model| (model.fraction * self.size.n_tasks as f64).ceil() as u64);
        let run: Vec<&Embedded> = models.iter().filter(|model| model.planned.vectors.is_none()).collect();
        let flops = run.iter().map(|model| {
            let of_sample = self.rates?.model_flops.as_ref()?.get(model.role)?;
            Some(model.fraction * n_samples * of_sample)
        });
        let inference_secs: f64 = self.rates.map_or(0.0, |rates| {
            let of_model =
                |model: &&Embedded| Some(model.fraction * n_samples / rates.samples_per_sec.get(model.role)?);
            run.iter().filter_map(of_model).sum()
        });
        // nothing is decoded where no model runs; unknown where nothing could be decoded to tell how fast
        let decode_secs = match self.rates {
            Some(rates) if !run.is_empty() => rates.node.decode_samples_per_sec.map(|rate| n_samples / rate),
            _ => Some(0.0),
        };
        let work = StageWork {
            stage: "embed",
            read_bytes: self.size.bytes(),
            written_bytes: written + self.size.n_samples * SAMPLES_ROW_BYTES,
            n_files: self.size.n_tasks + n_files.sum::<u64>(),
            flops: flops.sum(),
            time: None,
        };
        match decode_secs {
            Some(decode_secs) => work.timed(self.rates, inference_secs, decode_secs),
            None => work,
        }
    }

    /// Fit, assignment, banks and hardness: a pass over the embeddings each.
    fn divide(&self, divide: &DivideSettings) -> StageWork {
        let n_samples = self.size.n_samples as f64;
        let model = self.plan.models.get(divide.model).expect("checked with the settings");
        let (k, dim) = (divide.n_clusters as f64, model.embedding_dim as f64);
        let n_points = n_samples.min((divide.n_clusters * divide.fit_samples_per_cluster) as f64);
        let n_passes = (divide.n_restarts * divide.n_iterations_max) as f64;
        let fit = if self.plan.centroids.is_some() { 0.0 } else { 2.0 * n_points * k * dim * n_passes };
        // as `hardness` says: twice more a cluster's row with captions
        let of_cluster = if model.kind == ModelKind::Pair { 3.0 } else { 1.0 };
        let hardness =
            2.0 * n_samples * dim * (self.bank_size(divide, 1.0) + of_cluster * self.bank_size(divide, k));
        let rows = self.size.n_samples * DIVIDE_ROW_BYTES;
        StageWork {
            stage: "divide",
            read_bytes: 4 * model.row_bytes(self.plan.embed.embedding_dtype) * self.size.n_samples + rows,
            // clusters on their way to the banks are a part of each row
            written_bytes: rows,
            n_files: 2 + 2 * self.size.n_tasks,
            flops: Some(fit + 2.0 * n_samples * k * dim + hardness),
            time: None,
        }
        .computed(self.rates)
    }

    /// Members of the bank of one of so many parts of the pool.
    fn bank_size(&self, divide: &DivideSettings, n_parts: f64) -> f64 {
        (self.size.n_samples as f64 / n_parts).min(divide.bank_size as f64)
    }

    /// Scores of each sample, filters and the draw: a pass over the embeddings each, where they look at them.
    fn select(&self) -> StageWork {
        let plan = self.plan;
        let (n_samples, n_tasks) = (self.size.n_samples, self.size.n_tasks);
        let dims: usize = scored(&plan.models).map(|model| model.embedding_dim).sum();
        // both directions of each pair: 4·d operations a model
        let of_pairs = |n_negatives: f64| 4.0 * n_samples as f64 * n_negatives * dims as f64;
        let has_bank = needs_bank(plan);
        let bank = plan.divide.as_ref().filter(|_| has_bank);
        let bank = bank.map_or(0.0, |divide| self.bank_size(divide, divide.n_clusters as f64));
        let n_drawn = if plan.select.draw.pair_score().is_some() { self.n_drawn as f64 } else { 0.0 };
        let rows = n_samples * SELECT_ROW_BYTES;
        let steps = self.select_steps();
        StageWork {
            stage: "select",
            read_bytes: scored_bytes(&plan.models, plan.embed.embedding_dtype) * n_samples
                + 2 * rows
                + steps.read_bytes,
            // scores, who passed the filters, what was drawn; then the verdicts
            written_bytes: 2 * rows + steps.written_bytes,
            // scores, filters together and verdicts
            n_files: 3 * n_tasks + u64::from(has_bank) + steps.n_files,
            flops: Some(of_pairs(bank) + of_pairs(n_drawn)),
            time: None,
        }
        .computed(self.rates)
    }

    fn select_steps(&self) -> StepWork {
        StepWork::of_filters(self.plan, &self.size)
            + StepWork::of_draw(self.plan, &self.size, self.n_reaching)
    }

    /// What is kept goes through the exchange, with its images from the pool's shards, which are read once more.
    fn write(&self) -> StageWork {
        let plan = self.plan;
        let has_images = plan.write.images && plan.read.samples != SampleContents::Text;
        let images_bytes = if has_images { self.size.bytes() } else { 0 };
        let gathered = self.gathered();
        // of each shard
        let n_stats = self.size.n_shards;
        StageWork {
            stage: "write",
            read_bytes: images_bytes + gathered.read_bytes + self.size.n_samples * SELECT_ROW_BYTES,
            written_bytes: gathered.written_bytes + self.kept_bytes,
            n_files: n_stats + gathered.n_files + self.kept_bytes.div_ceil(plan.write.shard_bytes),
            flops: Some(0.0),
            time: None,
        }
        .computed(self.rates)
    }

    fn gathered(&self) -> StepWork {
        StepWork::exchange(self.size.n_tasks, self.kept_bytes)
    }

    /// Bytes that lie in the exchange until the run is complete.
    pub fn exchanged_bytes(&self) -> u64 {
        self.select_steps().exchanged_bytes + self.gathered().exchanged_bytes
    }

    fn report(&self) -> StageWork {
        StageWork {
            stage: "report",
            read_bytes: self.size.n_samples * SELECT_ROW_BYTES,
            written_bytes: 0,
            n_files: 2,
            flops: Some(0.0),
            time: None,
        }
        .computed(self.rates)
    }
}

impl StageWork {
    /// Its operations are products of embeddings, on the cores.
    fn computed(self, rates: Option<&Rates>) -> StageWork {
        let core_secs = rates.map_or(0.0, |rates| self.flops.unwrap_or(0.0) / rates.node.flops_per_sec);
        self.timed(rates, 0.0, core_secs)
    }

    /// Models take `inference_secs` of one GPU, or of one core of a node without.
    fn timed(self, rates: Option<&Rates>, inference_secs: f64, core_secs: f64) -> StageWork {
        let Some(Rates { node, .. }) = rates else { return self };
        let (gpu_secs, core_secs) = match node.n_gpus {
            0 => (0.0, core_secs + inference_secs),
            _ => (inference_secs, core_secs),
        };
        let disk_secs = (self.read_bytes + self.written_bytes) as f64 / node.bytes_per_sec;
        let busiest =
            (gpu_secs / node.n_gpus.max(1) as f64).max(core_secs / node.n_cores as f64).max(disk_secs);
        StageWork { time: Some(StageTime { gpu_secs, core_secs, node_secs: busiest }), ..self }
    }
}

/// A model with embeddings of its own, whatever its roles.
pub struct Embedded<'a> {
    pub role: ModelRole,
    pub planned: &'a PlannedModel,
    pub n_tasks: usize,
    /// Of the pool that it embeds.
    pub fraction: f64,
}

impl Embedded<'_> {
    /// Of its embeddings of a pool of so many samples.
    pub fn size_bytes(&self, plan: &Plan, n_samples: u64) -> u64 {
        let n_rows = (self.fraction * n_samples as f64).ceil() as u64;
        n_rows * self.planned.row_bytes(plan.embed.embedding_dtype)
    }
}

pub fn embedded(plan: &Plan) -> impl Iterator<Item = Embedded<'_>> {
    let mut met = BTreeSet::new();
    let distinct = plan.models.iter().filter(move |(_, model)| met.insert(&model.digest));
    distinct.map(|(role, planned)| {
        let n_tasks = plan.tasks_of(role).len();
        Embedded { role, planned, n_tasks, fraction: n_tasks as f64 / plan.pool.n_tasks() as f64 }
    })
}
