//! One scored super-batch in, its sub-batch out: drawn chunk by chunk, each given all that is drawn already.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Error;
use crate::noise::{DrawKey, SampleId, gumbel};

use super::added::{Adder, Kernels, OnDevice};
use super::counts::chunk_sizes;
use super::loss::Objective;
use super::score::{PairModel, Scoring};

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

impl Chance {
    /// What the largest are taken of.
    pub(super) fn value(self, logit: f64, key: DrawKey, id: SampleId) -> f64 {
        match self {
            Chance::Gumbel => logit + gumbel(key, id.shard, id.sample_idx),
            Chance::TopK => logit,
        }
    }
}

/// A pass's place in a run: what its noise depends on beside chunk and sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassKey {
    pub seed: u64,
    pub round: u64,
    pub pass: u64,
}

impl PassKey {
    pub(super) fn chunk(self, chunk: usize) -> DrawKey {
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
/// later chunks    probability ∝ exp(gain · logit[x])
/// sigmoid         logit[x] = S[x, x] + Σ_{k drawn} (S[k, x] + S[x, k])
/// softmax         logit[x] = −l_xx + ½ (ln Σ_{k drawn} e^(l_xk) + ln Σ_{k drawn} e^(l_kx))
///                            learner minus reference, or one of them
/// ```
///
/// The sigmoid logit is `F(A ∪ {x}) − F(A)`: what x adds to the learnability of the drawn A. The softmax logit is
/// what the batch loss of x would be without its own pair in it, an approximation without such an identity. A high
/// `conditional_score` says that the sample was worth learning together with those before it. Ties go by
/// sample id.
///
/// # Shapes and units
///
/// `ids[i]` belongs to row i of the models. Running sums (or log-sum-exps) a sample, model and direction in f64, in
/// nats; the terms are losses and logits in f32. Work: 4·B·b·d FLOPs a model for B samples and b drawn, less what the
/// drawn would have met; memory O(B) beside the embeddings.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3 and Algorithm 1; softmax as its public re-implementation. The paper draws with `exp`
/// and `choice`; Gumbel noise gives the same law and cannot overflow.
pub fn draw(ids: &[SampleId], scoring: &Scoring, plan: &DrawPlan) -> JointDraw {
    draw_remaining(ids, scoring, &vec![false; ids.len()], plan)
}

/// [`draw`] from those samples that are not taken already, say by an earlier pass.
pub fn draw_remaining(ids: &[SampleId], scoring: &Scoring, is_taken: &[bool], plan: &DrawPlan) -> JointDraw {
    let Ok(drawn) = draw_by(ids, scoring, is_taken, plan, |_| Ok(Kernels));
    drawn
}

/// [`draw_remaining`] with the pairs of different samples on an engine. The same draw but for rounding: see
/// [`algebra`](crate::algebra).
///
/// # Memory
///
/// On a device the embeddings of the super-batch under each model, and 256 MiB.
///
/// # Errors
///
/// [`Error::Device`] where the device fails, say for want of memory.
pub fn draw_remaining_on(
    engine: &Engine,
    ids: &[SampleId],
    scoring: &Scoring,
    is_taken: &[bool],
    plan: &DrawPlan,
) -> Result<JointDraw, Error> {
    match engine {
        Engine::Kernels => Ok(draw_remaining(ids, scoring, is_taken, plan)),
        Engine::Device(algebra) => {
            draw_by(ids, scoring, is_taken, plan, |model| OnDevice::new(algebra, model))
        }
    }
}

fn draw_by<'a, A: Adder>(
    ids: &[SampleId],
    scoring: &Scoring<'a>,
    is_taken: &[bool],
    plan: &DrawPlan,
    adder: impl Fn(&PairModel<'a>) -> Result<A, A::Error>,
) -> Result<JointDraw, A::Error> {
    let n_samples = scoring.n_samples();
    assert!(ids.len() == n_samples && is_taken.len() == n_samples, "one id a sample");
    assert!(plan.gain.is_finite() && plan.gain > 0.0, "gain {}", plan.gain);

    let mut conditional = scoring.try_map(|model| Ok(Conditional::new(model, adder(&model)?)))?;
    let scores = conditional.as_ref().map(|model| model.own_losses.clone()).scores();
    let mut logits = scores.clone();
    let mut is_taken = is_taken.to_vec();
    let mut drawn = Vec::with_capacity(plan.sub_batch_size);
    let sizes = chunk_sizes(plan.sub_batch_size, plan.n_chunks);
    for (chunk, &size) in sizes.iter().enumerate() {
        let key = plan.key.chunk(chunk);
        let rows =
            largest(ids, &is_taken, size, |row| plan.chance.value(plan.gain * logits[row], key, ids[row]));
        for &row in &rows {
            is_taken[row] = true;
            drawn.push(Drawn { row, chunk, draw_rank: drawn.len(), conditional_score: logits[row] });
        }
        if chunk + 1 < sizes.len() {
            let rest: Vec<usize> = (0..n_samples).filter(|row| !is_taken[*row]).collect();
            conditional = conditional.try_map(|model| model.given(&rows, &rest))?;
            logits = conditional.as_ref().map(Conditional::losses).scores();
        }
    }
    assert_eq!(drawn.len(), plan.sub_batch_size);
    Ok(JointDraw { scores, drawn })
}

/// What each sample would add to a batch of these rows, in nats: the logits of [`draw`] after they were drawn, before
/// gain and noise.
///
/// ```text
/// nothing drawn   S[x, x]
/// sigmoid         S[x, x] + Σ_{k drawn} (S[k, x] + S[x, k])  =  F(drawn ∪ {x}) − F(drawn)
/// softmax         −l_xx + ½ (ln Σ_{k drawn} e^(l_xk) + ln Σ_{k drawn} e^(l_kx)),  learner minus reference, or one of them
/// ```
///
/// High: worth learning together with the drawn. The values of the drawn themselves mean nothing.
///
/// # Shapes and units
///
/// `[n_samples]`, one a row of the models. Work: 4·n_samples·n_drawn·d FLOPs a model.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3 and Algorithm 1; see [`draw`].
pub fn conditional_scores(scoring: &Scoring, drawn: &[usize]) -> Vec<f64> {
    if drawn.is_empty() {
        return scoring.scores();
    }
    let all: Vec<usize> = (0..scoring.n_samples()).collect();
    let losses = scoring.map(|model| {
        let Ok(conditional) = Conditional::new(model, Kernels).given(drawn, &all);
        conditional.losses()
    });
    losses.scores()
}

/// What every sample would add to the loss of what is drawn, under one model.
struct Conditional<'a, A> {
    model: PairModel<'a>,
    adder: A,
    own_losses: Vec<f64>,
    /// Of each sample's image with the captions of the drawn, as [`Adder`] has it; nats.
    images: Vec<f64>,
    /// Of each sample's caption with the images of the drawn.
    captions: Vec<f64>,
}

impl<'a, A: Adder> Conditional<'a, A> {
    fn new(model: PairModel<'a>, adder: A) -> Conditional<'a, A> {
        let nothing = vec![model.loss().objective.nothing(); model.n_samples()];
        let own_losses = model.diagonal().losses;
        Conditional { model, adder, own_losses, images: nothing.clone(), captions: nothing }
    }

    /// After these rows were drawn too, for the samples at `which`. The entries of others mean nothing from here on.
    fn given(mut self, rows: &[usize], which: &[usize]) -> Result<Conditional<'a, A>, A::Error> {
        let drawn = self.model.gather(rows);
        let added = self.adder.add(self.model, drawn.view(), which)?;
        for (totals, added) in [&mut self.images, &mut self.captions].into_iter().zip(added) {
            for (&sample, added) in which.iter().zip(added) {
                totals[sample] = self.model.loss().objective.merge(totals[sample], added);
            }
        }
        Ok(self)
    }

    /// The part of the logits that is this model's, nats; some samples must be drawn.
    fn losses(&self) -> Vec<f64> {
        let both = self.images.iter().zip(&self.captions);
        let samples = self.own_losses.iter().zip(both);
        match self.model.loss().objective {
            Objective::Sigmoid => samples.map(|(own, (image, caption))| own + (image + caption)).collect(),
            Objective::Softmax => {
                samples.map(|(own, (image, caption))| own + 0.5 * (image + caption)).collect()
            }
        }
    }
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

/// The `size` rows of largest value among those not taken, in decreasing order, ties by sample id.
pub(super) fn largest(
    ids: &[SampleId],
    is_taken: &[bool],
    size: usize,
    value: impl Fn(usize) -> f64 + Sync,
) -> Vec<usize> {
    let mut candidates: Vec<(f64, usize)> =
        (0..ids.len()).into_par_iter().filter(|&row| !is_taken[row]).map(|row| (value(row), row)).collect();
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

#[cfg(test)]
mod tests;
