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
/// `conditional_score` says that the sample was worth learning together with those before it. Ties go by
/// sample id.
///
/// # Shapes and units
///
/// `ids[i]` belongs to row i of the models. One running logit a sample in f64, in nats; the terms are losses
/// in f32. Work: 4·B·b·d FLOPs a model for B samples and b drawn; memory O(B) beside the embeddings.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3 and Algorithm 1, sigmoid objective. The paper draws with `exp` and `choice`;
/// Gumbel noise gives the same law and cannot overflow.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use crate::select::score::{Learner, PairModel, Reference, batch_learnability};
    use crate::select::{SigmoidLoss, similarity};
    use crate::tile::random_unit_rows;

    const LEARNER: SigmoidLoss = SigmoidLoss { logit_scale: 12.0, logit_bias: -6.0 };
    const REFERENCE: SigmoidLoss = SigmoidLoss { logit_scale: 30.0, logit_bias: -9.0 };

    /// Images and captions of the learner, then of the reference.
    struct Embeddings([Matrix; 4]);

    impl Embeddings {
        fn random(n: usize) -> Embeddings {
            Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, 10, seed)))
        }

        fn learner(&self) -> PairModel<'_> {
            PairModel::new(&self.0[0], &self.0[1], LEARNER)
        }

        fn reference(&self) -> PairModel<'_> {
            PairModel::new(&self.0[2], &self.0[3], REFERENCE)
        }

        fn learnability(&self) -> Scoring<'_> {
            Scoring::Learnability { learner: Learner(self.learner()), reference: Reference(self.reference()) }
        }
    }

    fn ids(n: usize) -> Vec<SampleId<'static>> {
        (0..n as u64).map(|row| SampleId { shard: ["a", "b"][row as usize % 2], sample_idx: row }).collect()
    }

    fn plan(sub_batch_size: usize, n_chunks: usize) -> DrawPlan {
        let key = PassKey { seed: 7, round: 1, pass: 2 };
        DrawPlan { sub_batch_size, n_chunks, gain: 0.5, chance: Chance::Gumbel, key }
    }

    /// `S[i, j]` in f64, all at once.
    fn dense(embeddings: &Embeddings, weights: [f64; 2]) -> Vec<Vec<f64>> {
        let [x, y, x_reference, y_reference] = &embeddings.0;
        let loss = |loss: SigmoidLoss, images: &Matrix, captions: &Matrix, i: usize, j: usize| {
            let similarity = similarity(images.row(i), captions.row(j));
            if i == j { loss.positive(similarity) } else { loss.negative(similarity) }
        };
        let n = x.n_rows();
        let score = |i, j| {
            weights[0] * loss(LEARNER, x, y, i, j)
                + weights[1] * loss(REFERENCE, x_reference, y_reference, i, j)
        };
        (0..n).map(|i| (0..n).map(|j| score(i, j)).collect()).collect()
    }

    /// The definition: every marginal from all drawn so far. Positions in draw order with their logits.
    fn draw_dense(scores: &[Vec<f64>], ids: &[SampleId], plan: &DrawPlan) -> Vec<(usize, f64)> {
        let mut drawn: Vec<(usize, f64)> = Vec::new();
        for (chunk, size) in chunk_sizes(plan.sub_batch_size, plan.n_chunks).into_iter().enumerate() {
            let mut rest: Vec<(f64, usize, f64)> = (0..scores.len())
                .filter(|x| drawn.iter().all(|(row, _)| row != x))
                .map(|x| {
                    let marginal: f64 = drawn.iter().map(|&(k, _)| scores[k][x] + scores[x][k]).sum();
                    let logit = scores[x][x] + marginal;
                    let noise = gumbel(plan.key.chunk(chunk), ids[x].shard, ids[x].sample_idx);
                    (plan.gain * logit + noise, x, logit)
                })
                .collect();
            rest.sort_by(|left, right| right.0.total_cmp(&left.0));
            drawn.extend(rest.iter().take(size).map(|&(_, x, logit)| (x, logit)));
        }
        drawn
    }

    #[test]
    fn the_draw_is_that_of_the_dense_definition() {
        let n = 700; // three strips, the last one short
        let (embeddings, ids) = (Embeddings::random(n), ids(n));
        let scorings = [
            (embeddings.learnability(), [1.0, -1.0]),
            (Scoring::HardLearner { learner: Learner(embeddings.learner()) }, [1.0, 0.0]),
            (Scoring::EasyReference { reference: Reference(embeddings.reference()) }, [0.0, -1.0]),
        ];
        for (scoring, weights) in scorings {
            let scores = dense(&embeddings, weights);
            for plan in [plan(300, 5), plan(17, 1), plan(n, 3), plan(4, 9)] {
                let expected = draw_dense(&scores, &ids, &plan);
                let JointDraw { scores: own_scores, drawn } = draw(&ids, &scoring, &plan);
                assert!(
                    own_scores
                        .iter()
                        .enumerate()
                        .all(|(row, score)| (score - scores[row][row]).abs() < 1e-12)
                );
                assert_eq!(drawn.len(), plan.sub_batch_size);
                for (rank, (drawn_here, (row, logit))) in drawn.iter().zip(&expected).enumerate() {
                    assert_eq!((drawn_here.row, drawn_here.draw_rank), (*row, rank));
                    let terms: f64 = expected[..rank]
                        .iter()
                        .map(|&(k, _)| scores[k][*row].abs() + scores[*row][k].abs())
                        .sum();
                    assert!((drawn_here.conditional_score - logit).abs() <= 2e-6 * (1.0 + terms));
                }
            }
        }
    }

    #[test]
    fn a_logit_is_what_the_sample_adds_to_the_batch() {
        let (embeddings, ids) = (Embeddings::random(120), ids(120));
        let scoring = embeddings.learnability();
        let drawn = draw(&ids, &scoring, &plan(40, 40)).drawn;
        let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        for n in [1, 7, 39] {
            let without = batch_learnability(&scoring, &rows[..n]) * n as f64;
            let with = batch_learnability(&scoring, &rows[..=n]) * (n + 1) as f64;
            assert!((with - without - drawn[n].conditional_score).abs() < 1e-3, "{n}");
        }
    }

    #[test]
    fn equal_models_leave_nothing_to_learn() {
        let (embeddings, ids) = (Embeddings::random(300), ids(300));
        let (learner, reference) = (Learner(embeddings.learner()), Reference(embeddings.learner()));
        let scoring = Scoring::Learnability { learner, reference };
        let JointDraw { scores, drawn } = draw(&ids, &scoring, &plan(100, 4));
        assert!(scores.iter().all(|score| *score == 0.0));
        assert!(drawn.iter().all(|drawn| drawn.conditional_score == 0.0));
        assert_eq!(batch_learnability(&scoring, &[3, 5, 250]), 0.0);
    }

    #[test]
    fn permuted_samples_are_drawn_in_the_same_order() {
        let n = 400;
        let (embeddings, straight_ids) = (Embeddings::random(n), ids(n));
        let order: Vec<usize> = (0..n).map(|row| row * 171 % n).collect();
        let permuted = Embeddings(embeddings.0.each_ref().map(|matrix| matrix.gather(&order)));
        let permuted_ids: Vec<SampleId> = order.iter().map(|row| straight_ids[*row]).collect();
        for chance in [Chance::Gumbel, Chance::TopK] {
            let plan = DrawPlan { chance, ..plan(90, 6) };
            let straight = draw(&straight_ids, &embeddings.learnability(), &plan).drawn;
            let permuted = draw(&permuted_ids, &permuted.learnability(), &plan).drawn;
            for (straight, permuted) in straight.iter().zip(&permuted) {
                assert_eq!(straight.row, order[permuted.row]);
                assert!((straight.conditional_score - permuted.conditional_score).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn any_number_of_threads_draws_the_same_bytes() {
        let (embeddings, ids) = (Embeddings::random(1100), ids(1100));
        let draw_with = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| draw(&ids, &embeddings.learnability(), &plan(500, 8)))
        };
        assert_eq!(draw_with(1), draw_with(2));
    }

    #[test]
    fn ties_go_by_sample_id() {
        let same = Matrix::new([0.6, 0.8].repeat(6), 2);
        let scoring = Scoring::HardLearner { learner: Learner(PairModel::new(&same, &same, LEARNER)) };
        let ids: Vec<SampleId> = [("b", 1), ("a", 9), ("b", 0), ("a", 10), ("a", 2), ("c", 0)]
            .map(|(shard, sample_idx)| SampleId { shard, sample_idx })
            .to_vec();
        let plan = DrawPlan { chance: Chance::TopK, ..plan(5, 2) };
        let rows: Vec<usize> = draw(&ids, &scoring, &plan).drawn.iter().map(|drawn| drawn.row).collect();
        assert_eq!(rows, [4, 1, 3, 2, 0]);
    }

    #[test]
    fn the_uniform_draw_forgets_the_order_of_the_samples() {
        let ids = ids(50);
        let key = PassKey { seed: 3, round: 0, pass: 0 };
        let reversed: Vec<SampleId> = ids.iter().rev().copied().collect();
        let drawn = draw_uniform(&ids, 20, key);
        assert_eq!(drawn.len(), 20);
        for (one, other) in drawn.iter().zip(draw_uniform(&reversed, 20, key)) {
            assert_eq!(one.row, 49 - other.row);
            assert_eq!((one.chunk, one.conditional_score), (0, 0.0));
        }
        assert_ne!(drawn, draw_uniform(&ids, 20, PassKey { pass: 1, ..key }));
    }

    #[test]
    fn gumbel_noise_draws_in_proportion_to_the_exponential() {
        // two samples, S = ln 3 and 0: the first is drawn with probability 3/4
        let ids = ids(2);
        let values = [3f64.ln(), 0.0];
        let n_first = (0..4000u64).filter(|pass| {
            let key = PassKey { seed: 0, round: 0, pass: *pass }.chunk(0);
            largest(&ids, &[false; 2], 1, |row| {
                values[row] + gumbel(key, ids[row].shard, ids[row].sample_idx)
            }) == [0]
        });
        assert!((n_first.count() as f64 / 4000.0 - 0.75).abs() < 4.0 * (0.75f64 * 0.25 / 4000.0).sqrt());
    }
}
