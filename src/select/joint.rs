//! One scored super-batch in, its sub-batch out: drawn chunk by chunk, each given all that is drawn already.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::noise::{DrawKey, SampleId, gumbel};

use super::counts::chunk_sizes;
use super::score::{Scoring, marginals};

/// How a sub-batch is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawPlan {
    /// Samples to draw, at most the super-batch.
    pub sub_batch_size: usize,
    /// Steps in which they are drawn, the paper's N: 1 is independent selection.
    pub n_chunks: usize,
    /// Factor of the logits before the noise, above 0; 1 is the paper's.
    pub gain: f64,
    pub chance: Chance,
    pub key: PassKey,
}

/// Whether the largest logits win, or the largest after noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Chance {
    #[default]
    #[serde(rename = "noise")]
    /// Gumbel noise on `gain · logit`: drawing without replacement with probability ∝ `exp(gain · logit)`.
    Gumbel,
    #[serde(rename = "top_k")]
    /// No noise.
    TopK,
}

/// A pass's place in a run: what its noise depends on beside chunk and sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassKey {
    pub seed: u64,
    pub round: u64,
    pub pass: u64,
}

impl PassKey {
    fn chunk(self, chunk: usize) -> DrawKey {
        DrawKey { seed: self.seed, round: self.round, pass: self.pass, chunk: chunk as u64 }
    }
}

/// A sample that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Position in the super-batch.
    pub row: usize,
    pub chunk: usize,
    /// Position in the sub-batch: by chunk, within a chunk by decreasing logit after gain and noise.
    pub draw_rank: usize,
    /// The logit at the moment of the draw, before gain and noise, nats.
    pub conditional_score: f64,
}

/// A sub-batch, and the scores from which it was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct JointDraw {
    /// `S[i, i]` of every sample of the super-batch, nats.
    pub scores: Vec<f64>,
    /// In the order of `draw_rank`.
    pub drawn: Vec<Drawn>,
}

/// Draws a jointly learnable sub-batch from a super-batch.
///
/// ```text
/// first chunk     probability ∝ exp(gain · S[x, x])
/// later chunks    probability ∝ exp(gain · (S[x, x] + Σ_{k drawn} (S[k, x] + S[x, k])))
/// ```
///
/// The second exponent is `F(A ∪ {x}) − F(A)`: what x adds to the learnability of the drawn A. A high
/// `conditional_score` says that the sample was worth learning together with those before it. Ties go by sample id.
///
/// # Shapes and units
///
/// `ids[i]` belongs to row i of the models. One running logit a sample in f64, in nats; the terms are losses in f32.
/// Work: 4·B·b·d FLOPs a model for B samples and b drawn; memory O(B) beside the embeddings.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3 and Algorithm 1, sigmoid objective. The paper draws with `exp` and `choice`; Gumbel noise
/// gives the same law and cannot overflow.
pub fn draw(ids: &[SampleId], scoring: &Scoring, plan: &DrawPlan) -> JointDraw {
    let n_samples = scoring.n_samples();
    assert_eq!(ids.len(), n_samples, "one id a sample");
    assert!(plan.sub_batch_size <= n_samples, "{} of {n_samples} samples to draw", plan.sub_batch_size);
    assert!(plan.gain.is_finite() && plan.gain > 0.0, "gain {}", plan.gain);

    let scores = scoring.scores();
    let mut logits = scores.clone();
    let mut is_drawn = vec![false; n_samples];
    let mut drawn = Vec::with_capacity(plan.sub_batch_size);
    let sizes = chunk_sizes(plan.sub_batch_size, plan.n_chunks);
    for (chunk, &size) in sizes.iter().enumerate() {
        let key = plan.key.chunk(chunk);
        let rows = largest(ids, &is_drawn, size, |row| match plan.chance {
            Chance::Gumbel => plan.gain * logits[row] + gumbel(key, ids[row].shard, ids[row].sample_idx),
            Chance::TopK => plan.gain * logits[row],
        });
        for &row in &rows {
            is_drawn[row] = true;
            drawn.push(Drawn { row, chunk, draw_rank: drawn.len(), conditional_score: logits[row] });
        }
        if chunk + 1 < sizes.len() {
            let added = marginals(scoring, &rows);
            for (logit, added) in logits.iter_mut().zip(added) {
                *logit += added;
            }
        }
    }
    assert_eq!(drawn.len(), plan.sub_batch_size);
    JointDraw { scores, drawn }
}

/// Draws uniformly without replacement: the control, in one chunk, with `conditional_score` 0.
pub fn draw_uniform(ids: &[SampleId], sub_batch_size: usize, key: PassKey) -> Vec<Drawn> {
    let key = key.chunk(0);
    let none_drawn = vec![false; ids.len()];
    let rows =
        largest(ids, &none_drawn, sub_batch_size, |row| gumbel(key, ids[row].shard, ids[row].sample_idx));
    let ranks = rows.into_iter().enumerate();
    ranks.map(|(draw_rank, row)| Drawn { row, chunk: 0, draw_rank, conditional_score: 0.0 }).collect()
}

/// The `size` rows of largest value among those not drawn, in decreasing order, ties by sample id.
fn largest(
    ids: &[SampleId],
    is_drawn: &[bool],
    size: usize,
    value: impl Fn(usize) -> f64 + Sync,
) -> Vec<usize> {
    let mut candidates: Vec<(f64, usize)> =
        (0..ids.len()).into_par_iter().filter(|&row| !is_drawn[row]).map(|row| (value(row), row)).collect();
    assert!(size <= candidates.len(), "{size} of {} samples to draw", candidates.len());
    let order = |left: &(f64, usize), right: &(f64, usize)| {
        let by_value = right.0.partial_cmp(&left.0).expect("logits of unit embeddings are numbers");
        by_value.then_with(|| ids[left.1].cmp(&ids[right.1]))
    };
    if size < candidates.len() {
        candidates.select_nth_unstable_by(size, order);
        candidates.truncate(size);
    }
    candidates.sort_unstable_by(order);
    candidates.into_iter().map(|(_, row)| row).collect()
}
