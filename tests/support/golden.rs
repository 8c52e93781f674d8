//! What the tests against golden files share: the files, how near is near enough, and the samples of
//! `oracle/golden_kernels.py`.

#![allow(dead_code, reason = "each test crate takes what it needs")]

use std::collections::BTreeSet;

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use superbatch::matrix::Matrix;
use superbatch::noise::SampleId;
use superbatch::sample::SampleRef;
use superbatch::select::{Learner, Objective, PairLoss, PairModel, Reference, Scoring};

/// Reads a JSON file below `tests/`.
pub fn golden<T: DeserializeOwned>(path: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Samples as the kernels take them: shards by the order of their names in the whole pool.
pub fn sample_refs(ids: &[(String, u64)], all: &[(String, u64)]) -> Vec<SampleRef> {
    let shards: BTreeSet<&String> = all.iter().map(|(shard, _)| shard).collect();
    let shards: Vec<&String> = shards.into_iter().collect();
    let of = |(shard, sample_idx): &(String, u64)| {
        let shard_idx = shards.binary_search(&shard).expect("a shard of the pool") as u32;
        SampleRef { shard_idx, sample_idx: *sample_idx }
    };
    ids.iter().map(of).collect()
}

#[track_caller]
pub fn assert_close(found: f64, expected: f64, bound: f64) {
    assert!((found - expected).abs() <= bound, "{found} is not {expected} within {bound:e}");
}

#[derive(Deserialize)]
struct Kernels {
    inputs: Inputs,
}

#[derive(Deserialize)]
struct Inputs {
    learner: Towers,
    reference: Towers,
    ids: Vec<(String, u64)>,
    caption_hashes: Vec<u128>,
}

#[derive(Deserialize)]
struct Towers {
    images: Vec<Vec<f32>>,
    captions: Vec<Vec<f32>>,
    logit_scale: f64,
    logit_bias: f64,
}

impl Towers {
    fn matrices(&self) -> (Matrix, Matrix) {
        let matrix = |values: &[Vec<f32>]| Matrix::new(values.concat(), values[0].len());
        (matrix(&self.images), matrix(&self.captions))
    }

    fn loss(&self, objective: Objective) -> PairLoss {
        PairLoss { logit_scale: self.logit_scale, logit_bias: self.logit_bias, objective }
    }
}

/// Samples with their images and captions under both models.
pub struct Pool {
    pub learner: (Matrix, Matrix),
    pub reference: (Matrix, Matrix),
    /// Of the learner and of the reference.
    pub losses: [PairLoss; 2],
    pub ids: Vec<(String, u64)>,
    pub caption_hashes: Vec<u128>,
}

impl Pool {
    pub fn read(objective: Objective) -> Pool {
        let Kernels { inputs } = golden("oracle/golden/kernels.json");
        Pool {
            learner: inputs.learner.matrices(),
            reference: inputs.reference.matrices(),
            losses: [inputs.learner.loss(objective), inputs.reference.loss(objective)],
            ids: inputs.ids,
            caption_hashes: inputs.caption_hashes,
        }
    }

    /// The samples at these rows, in this order.
    pub fn at(&self, rows: &[usize]) -> Pool {
        let towers = |(images, captions): &(Matrix, Matrix)| (images.gather(rows), captions.gather(rows));
        Pool {
            learner: towers(&self.learner),
            reference: towers(&self.reference),
            losses: self.losses,
            ids: rows.iter().map(|&row| self.ids[row].clone()).collect(),
            caption_hashes: rows.iter().map(|&row| self.caption_hashes[row]).collect(),
        }
    }

    pub fn ids(&self) -> Vec<SampleId<'_>> {
        self.ids.iter().map(|(shard, sample_idx)| SampleId { shard, sample_idx: *sample_idx }).collect()
    }

    /// The same as the kernels take them.
    pub fn refs(&self, all: &Pool) -> Vec<SampleRef> {
        sample_refs(&self.ids, &all.ids)
    }

    pub fn scoring(&self, name: &str) -> Scoring<'_> {
        self.scoring_by(name, self.losses)
    }

    pub fn scoring_by(&self, name: &str, losses: [PairLoss; 2]) -> Scoring<'_> {
        let learner = Learner(PairModel::new(&self.learner.0, &self.learner.1, losses[0]));
        let reference = Reference(PairModel::new(&self.reference.0, &self.reference.1, losses[1]));
        match name {
            "hard_learner" => Scoring::HardLearner { learner },
            "easy_reference" => Scoring::EasyReference { reference },
            "learnability" => Scoring::Learnability { learner, reference },
            other => panic!("no score `{other}`"),
        }
    }
}
