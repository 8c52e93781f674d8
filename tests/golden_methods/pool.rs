//! The golden files, and the samples that they are about.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use superbatch::matrix::Matrix;
use superbatch::noise::SampleId;
use superbatch::sample::SampleRef;
use superbatch::select::{Learner, Objective, PairLoss, PairModel, PassKey, Reference, Scoring};

pub use super::support::assert_close;

pub fn golden<T: DeserializeOwned>(name: &str) -> T {
    super::support::golden(&format!("golden/methods/{name}.json"))
}

/// `bound` is that of a value.
#[track_caller]
pub fn assert_all_close(found: &[f64], expected: &[f64], bound: impl Fn(f64) -> f64) {
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = bound(*expected);
        assert!((found - expected).abs() <= bound, "row {row}: {found} is not {expected} within {bound:e}");
    }
}

/// Of values that are computed in f64; the files have ten digits.
pub fn exact(value: f64) -> f64 {
    1e-9 * (1.0 + value.abs())
}

/// Of losses and scores of few terms in f32.
pub fn few_terms(value: f64) -> f64 {
    1e-5 * (1.0 + value.abs())
}

pub fn key(seed: u64) -> PassKey {
    PassKey { seed, round: 0, pass: 0 }
}

/// What turns a model's similarities into logits, in a case.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Logits {
    pub logit_scale: f64,
    pub logit_bias: f64,
}

impl Logits {
    pub fn loss(self, objective: Objective) -> PairLoss {
        PairLoss { logit_scale: self.logit_scale, logit_bias: self.logit_bias, objective }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringName {
    HardLearner,
    EasyReference,
    Learnability,
}

/// By what a case scores.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Scored {
    pub objective: Objective,
    pub scoring: ScoringName,
    pub learner: Logits,
    pub reference: Logits,
}

#[derive(Clone, Deserialize)]
struct Towers {
    images: Vec<Vec<f32>>,
    captions: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct PoolFile {
    learner: Towers,
    reference: Towers,
    pub ids: Vec<(String, u64)>,
    caption_codes: Vec<u128>,
}

/// One model's embeddings.
#[derive(Clone)]
pub struct Model {
    pub images: Matrix,
    pub captions: Matrix,
}

impl Model {
    fn new(towers: Towers) -> Model {
        Model { images: matrix(&towers.images), captions: matrix(&towers.captions) }
    }

    pub fn at(&self, rows: &[usize]) -> Model {
        Model { images: self.images.gather(rows), captions: self.captions.gather(rows) }
    }

    pub fn with(&self, loss: PairLoss) -> PairModel<'_> {
        PairModel::new(&self.images, &self.captions, loss)
    }
}

pub fn matrix(rows: &[Vec<f32>]) -> Matrix {
    Matrix::new(rows.concat(), rows[0].len())
}

/// Samples under both models.
pub struct Pool {
    pub learner: Model,
    pub reference: Model,
    pub ids: Vec<(String, u64)>,
    /// Equal numbers stand for captions that are equal once normalised.
    pub caption_codes: Vec<u128>,
}

impl Pool {
    pub fn read() -> Pool {
        let PoolFile { learner, reference, ids, caption_codes } = golden("pool");
        Pool { learner: Model::new(learner), reference: Model::new(reference), ids, caption_codes }
    }

    /// The samples at these rows, in this order.
    pub fn at(&self, rows: &[usize]) -> Pool {
        Pool {
            learner: self.learner.at(rows),
            reference: self.reference.at(rows),
            ids: rows.iter().map(|&row| self.ids[row].clone()).collect(),
            caption_codes: rows.iter().map(|&row| self.caption_codes[row]).collect(),
        }
    }

    pub fn ids(&self) -> Vec<SampleId<'_>> {
        sample_ids(&self.ids)
    }

    /// The same as the kernels take them.
    pub fn refs(&self, all: &Pool) -> Vec<SampleRef> {
        super::support::sample_refs(&self.ids, &all.ids)
    }

    pub fn scoring(&self, by: &Scored) -> Scoring<'_> {
        let learner = Learner(self.learner.with(by.learner.loss(by.objective)));
        let reference = Reference(self.reference.with(by.reference.loss(by.objective)));
        match by.scoring {
            ScoringName::HardLearner => Scoring::HardLearner { learner },
            ScoringName::EasyReference => Scoring::EasyReference { reference },
            ScoringName::Learnability => Scoring::Learnability { learner, reference },
        }
    }

    /// ActiveCLIP's, `reference_similarity − learner_similarity`.
    pub fn dot_products(&self) -> Scoring<'_> {
        Scoring::Learnability {
            learner: Learner(self.learner.with(PairLoss::DOT_PRODUCT)),
            reference: Reference(self.reference.with(PairLoss::DOT_PRODUCT)),
        }
    }
}

pub fn sample_ids(ids: &[(String, u64)]) -> Vec<SampleId<'_>> {
    ids.iter().map(|(shard, sample_idx)| SampleId { shard, sample_idx: *sample_idx }).collect()
}
