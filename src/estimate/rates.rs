//! A plan in, how fast this machine does its parts out; or what somebody states of another machine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::divide::assign;
use crate::embed::{Encoders, Model, Sessions, open_shard};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::plan::{Plan, PlannedModel};
use crate::read::ReadSample;
use crate::settings::{AssumedModel, Assumptions, ModelRole, Models, Node, Settings};

use super::work::embedded;

/// What an ordinary SSD reads; a disk is not measured, since what is in memory would be taken for it.
const BYTES_PER_SEC: f64 = 5e8;

/// Long enough for a rate that is right within a few per cent.
const TIMED_MIN: Duration = Duration::from_millis(100);

/// Samples that are decoded to tell how long it takes, and those that are read for them at most.
const N_DECODED: usize = 64;
const N_READ_MAX: usize = 1_000;

/// Where rates are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RatesSource {
    /// On this machine, but for the disk's.
    Measured,
    Assumed,
}

/// How fast a node does the parts of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    pub source: RatesSource,
    pub node: Node,
    /// Samples a second of one GPU; of a node without, of one core.
    pub samples_per_sec: Models<f64>,
    /// Operations of a forward pass over one sample, where they are stated.
    pub model_flops: Option<Models<f64>>,
}

impl Rates {
    pub fn assume(assumed: &Assumptions) -> Rates {
        let of = |value: fn(&AssumedModel) -> f64| {
            assumed.models.iter().map(|(role, model)| (role, value(model))).collect()
        };
        Rates {
            source: RatesSource::Assumed,
            node: assumed.node.clone(),
            samples_per_sec: of(|model| model.samples_per_sec),
            model_flops: Some(of(|model| model.flops)),
        }
    }

    /// Runs each model on blank images, decodes some samples and multiplies some matrices, for a moment each.
    pub fn measure(plan: &Plan, settings: &Settings) -> Result<Rates, Error> {
        let n_cores = settings.n_threads();
        let (mut n_gpus, mut models, mut by_model) = (0, Vec::new(), BTreeMap::new());
        for model in embedded(plan).filter(|model| model.planned.vectors.is_none()) {
            let places = settings.device.places()?;
            n_gpus = places.iter().filter(|place| place.is_gpu()).count();
            let opened = Model::open(&model.planned.folder, model.planned.choice())?;
            let batch_size = plan.embed.inference_batch_size;
            let mut sessions = Sessions::open(&opened, &settings.inference(), n_cores, batch_size)?;
            let n_devices = if n_gpus > 0 { n_gpus } else { n_cores };
            by_model.insert(&model.planned.digest, sessions.samples_per_sec()? / n_devices as f64);
            models.push(opened);
        }
        let node = Node {
            n_gpus,
            n_cores,
            decode_samples_per_sec: decode_samples_per_sec(plan, &models)?,
            flops_per_sec: flops_per_sec(),
            bytes_per_sec: BYTES_PER_SEC,
        };
        // one model may have several roles
        let of = |model: &PlannedModel| by_model.get(&model.digest).copied();
        let by_role = plan.models.iter().filter_map(|(role, model)| Some((role, of(model)?)));
        let samples_per_sec = by_role.collect();
        Ok(Rates { source: RatesSource::Measured, node, samples_per_sec, model_flops: None })
    }

    /// What one role's model costs of another's.
    pub fn relative_cost(&self, of: ModelRole, to: ModelRole) -> Option<f64> {
        Some(self.samples_per_sec.get(to)? / self.samples_per_sec.get(of)?)
    }

    pub fn text(&self) -> String {
        let Node { n_gpus, n_cores, decode_samples_per_sec, flops_per_sec, bytes_per_sec } = &self.node;
        let device = if *n_gpus > 0 { "GPU" } else { "core" };
        let models = self.samples_per_sec.iter();
        let models: String = models.map(|(role, rate)| format!("{role} {rate:.0}, ")).collect();
        let decoding = decode_samples_per_sec.map_or("unknown".to_owned(), |rate| format!("{rate:.0}"));
        let samples = match models.as_str() {
            // nothing is decoded where no model runs
            "" => String::new(),
            models => format!("samples a second: {models}of a {device}, decoding {decoding} of a core; "),
        };
        let (source, source_of_disk) = match self.source {
            RatesSource::Measured => ("measured", "assumed"),
            RatesSource::Assumed => ("assumed", "assumed"),
        };
        format!(
            "a node of {n_gpus} GPUs and {n_cores} cores; {samples}{flops_per_sec:.1e} operations a second of a core \
             ({source}); {bytes_per_sec:.1e} bytes a second of a node ({source_of_disk})"
        )
    }
}

/// Samples that one thread decodes, resizes and tokenizes in a second, of the first shards that have any; none where the
/// first samples are rejected.
fn decode_samples_per_sec(plan: &Plan, models: &[Model]) -> Result<Option<f64>, Error> {
    let encoders = Encoders::new(models, plan.read.limits.clone())?;
    let shards = plan.pool.shards.iter().filter_map(|shard| open_shard(&plan.pool, shard, &plan.read).ok());
    let read = shards.flatten().flatten().take(N_READ_MAX);
    // the others would go through in no time
    let samples = read.filter(|sample| matches!(sample, ReadSample::Sample(_)));
    let samples: Vec<_> = samples.take(N_DECODED).collect();
    if samples.is_empty() {
        return Ok(None);
    }
    let (n_samples, start) = (samples.len(), Instant::now());
    for sample in samples {
        encoders.decode(sample)?;
    }
    Ok(Some(n_samples as f64 / start.elapsed().as_secs_f64()))
}

/// Operations of one thread in products of embeddings.
fn flops_per_sec() -> f64 {
    let (n_points, n_centroids, dim) = (1024, 256, 512);
    let points = Matrix::new(vec![1.0 / (dim as f32).sqrt(); n_points * dim], dim);
    let centroids = Matrix::new(points.values()[..n_centroids * dim].to_vec(), dim);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    one_thread.expect("a thread can be started").install(|| {
        assign(&points, &centroids);
        let (start, mut n) = (Instant::now(), 0);
        while start.elapsed() < TIMED_MIN {
            assign(&points, &centroids);
            n += 1;
        }
        2.0 * (n * n_points * n_centroids * dim) as f64 / start.elapsed().as_secs_f64()
    })
}
