//! One scored super-batch in, its sub-batch out: drawn chunk by chunk, each given all that is drawn already.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::noise::{DrawKey, SampleId, gumbel};

use super::counts::chunk_sizes;
use super::loss::Objective;
use super::reduce::{Mask, reduce};
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
/// nats; the terms are losses and logits in f32. Work: 4·B·b·d FLOPs a model for B samples and b drawn; memory O(B)
/// beside the embeddings.
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
    let n_samples = scoring.n_samples();
    assert!(ids.len() == n_samples && is_taken.len() == n_samples, "one id a sample");
    assert!(plan.gain.is_finite() && plan.gain > 0.0, "gain {}", plan.gain);

    let mut conditional = scoring.map(Conditional::new);
    let scores = scoring.scores();
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
            conditional = conditional.map(|model| model.given(&rows));
            logits = conditional.as_ref().map(Conditional::losses).scores();
        }
    }
    assert_eq!(drawn.len(), plan.sub_batch_size);
    JointDraw { scores, drawn }
}

/// What every sample would add to the loss of what is drawn, under one model.
struct Conditional<'a> {
    model: PairModel<'a>,
    own_losses: Vec<f64>,
    /// Of each sample's image with the captions of the drawn, as [`reduce`] has it; nats.
    images: Vec<f64>,
    /// Of each sample's caption with the images of the drawn.
    captions: Vec<f64>,
}

impl<'a> Conditional<'a> {
    fn new(model: PairModel<'a>) -> Conditional<'a> {
        let nothing = vec![model.loss().objective.nothing(); model.n_samples()];
        let own_losses = model.diagonal().losses;
        Conditional { model, own_losses, images: nothing.clone(), captions: nothing }
    }

    /// After these rows were drawn too. The entries of the drawn themselves mean nothing.
    fn given(mut self, rows: &[usize]) -> Conditional<'a> {
        let drawn = self.model.gather(rows);
        let sets = [self.model.images_with(drawn.view()), self.model.captions_with(drawn.view())];
        let added = reduce(&sets, Mask::Nothing);
        for (totals, added) in [&mut self.images, &mut self.captions].into_iter().zip(added) {
            for (total, added) in totals.iter_mut().zip(added) {
                *total = self.model.loss().objective.merge(*total, added);
            }
        }
        self
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
mod tests {
    use super::*;
    use crate::fold::Precision;
    use crate::matrix::Matrix;
    use crate::select::score::{Learner, Reference, ScoredBy, batch_learnability};
    use crate::select::{PairLoss, log_add_exp, similarity, softplus};
    use crate::tile::random_unit_rows;

    const LEARNER: PairLoss = PairLoss { logit_scale: 12.0, logit_bias: -6.0, objective: Objective::Sigmoid };
    const REFERENCE: PairLoss =
        PairLoss { logit_scale: 30.0, logit_bias: -9.0, objective: Objective::Sigmoid };

    /// Images and captions of the learner, then of the reference.
    struct Embeddings([Matrix; 4]);

    impl Embeddings {
        fn random(n: usize) -> Embeddings {
            Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, 10, seed)))
        }

        fn learner(&self, objective: Objective) -> PairModel<'_> {
            PairModel::new(&self.0[0], &self.0[1], PairLoss { objective, ..LEARNER })
        }

        fn reference(&self, objective: Objective) -> PairModel<'_> {
            PairModel::new(&self.0[2], &self.0[3], PairLoss { objective, ..REFERENCE })
        }

        fn learnability(&self, objective: Objective) -> Scoring<'_> {
            Scoring::Learnability {
                learner: Learner(self.learner(objective)),
                reference: Reference(self.reference(objective)),
            }
        }
    }

    fn ids(n: usize) -> Vec<SampleId<'static>> {
        (0..n as u64).map(|row| SampleId { shard: ["a", "b"][row as usize % 2], sample_idx: row }).collect()
    }

    fn plan(sub_batch_size: usize, n_chunks: usize) -> DrawPlan {
        let key = PassKey { seed: 7, round: 1, pass: 2 };
        DrawPlan { sub_batch_size, n_chunks, gain: 0.5, chance: Chance::Gumbel, key }
    }

    /// `l[i, j]` of one model in f64, all at once.
    struct Dense {
        logits: Vec<Vec<f64>>,
        objective: Objective,
    }

    impl Dense {
        fn new(images: &Matrix, captions: &Matrix, loss: PairLoss) -> Dense {
            let n = images.n_rows();
            let logit = |i, j| loss.logit(similarity(images.row(i), captions.row(j)));
            let logits = (0..n).map(|i| (0..n).map(|j| logit(i, j)).collect()).collect();
            Dense { logits, objective: loss.objective }
        }

        /// The model's part of the logit of x after these were drawn, and the sum of its terms' absolute values.
        fn conditional(&self, x: usize, drawn: &[usize]) -> (f64, f64) {
            let l = &self.logits;
            match self.objective {
                Objective::Sigmoid => {
                    let negatives: f64 = drawn.iter().map(|&k| softplus(l[k][x]) + softplus(l[x][k])).sum();
                    (softplus(-l[x][x]) + negatives, softplus(-l[x][x]) + negatives)
                }
                Objective::Softmax if drawn.is_empty() => (-l[x][x], l[x][x].abs()),
                Objective::Softmax => {
                    let image = drawn.iter().map(|&k| l[x][k]).fold(f64::NEG_INFINITY, log_add_exp);
                    let caption = drawn.iter().map(|&k| l[k][x]).fold(f64::NEG_INFINITY, log_add_exp);
                    (-l[x][x] + 0.5 * (image + caption), l[x][x].abs() + image.abs() + caption.abs())
                }
            }
        }
    }

    /// The definition: every logit from all drawn so far. Positions in draw order, logits and their terms.
    fn draw_dense(
        models: &[(Dense, f64)],
        ids: &[SampleId],
        is_taken: &[bool],
        plan: &DrawPlan,
    ) -> Vec<(usize, f64, f64)> {
        let mut drawn: Vec<(usize, f64, f64)> = Vec::new();
        for (chunk, size) in chunk_sizes(plan.sub_batch_size, plan.n_chunks).into_iter().enumerate() {
            let before: Vec<usize> = drawn.iter().map(|(row, ..)| *row).collect();
            let mut rest: Vec<(f64, usize, f64, f64)> = (0..ids.len())
                .filter(|x| !before.contains(x) && !is_taken[*x])
                .map(|x| {
                    let (mut logit, mut terms) = (0.0, 0.0);
                    for (model, sign) in models {
                        let (part, part_terms) = model.conditional(x, &before);
                        logit += sign * part;
                        terms += part_terms;
                    }
                    let noise = gumbel(plan.key.chunk(chunk), ids[x].shard, ids[x].sample_idx);
                    (plan.gain * logit + noise, x, logit, terms)
                })
                .collect();
            rest.sort_by(|left, right| right.0.total_cmp(&left.0));
            drawn.extend(rest.iter().take(size).map(|&(_, x, logit, terms)| (x, logit, terms)));
        }
        drawn
    }

    #[test]
    fn the_draw_is_that_of_the_dense_definition() {
        let n = 700; // three strips, the last one short
        let (embeddings, ids) = (Embeddings::random(n), ids(n));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let [x, y, x_reference, y_reference] = &embeddings.0;
            let learner = || Dense::new(x, y, PairLoss { objective, ..LEARNER });
            let reference = || Dense::new(x_reference, y_reference, PairLoss { objective, ..REFERENCE });
            let scorings = [
                (embeddings.learnability(objective), vec![(learner(), 1.0), (reference(), -1.0)]),
                (
                    Scoring::HardLearner { learner: Learner(embeddings.learner(objective)) },
                    vec![(learner(), 1.0)],
                ),
                (
                    Scoring::EasyReference { reference: Reference(embeddings.reference(objective)) },
                    vec![(reference(), -1.0)],
                ),
            ];
            let none = vec![false; n];
            let some: Vec<bool> = (0..n).map(|row| row % 3 == 1).collect();
            for (scoring, models) in scorings {
                for (plan, is_taken) in
                    [(plan(300, 5), &none), (plan(17, 1), &none), (plan(n, 3), &none), (plan(90, 4), &some)]
                {
                    let expected = draw_dense(&models, &ids, is_taken, &plan);
                    let JointDraw { scores, drawn } = draw_remaining(&ids, &scoring, is_taken, &plan);
                    for (row, score) in scores.iter().enumerate() {
                        let own = |(model, sign): &(Dense, f64)| sign * model.conditional(row, &[]).0;
                        assert!((score - models.iter().map(own).sum::<f64>()).abs() < 1e-12);
                    }
                    assert_eq!(drawn.len(), plan.sub_batch_size);
                    for (rank, (drawn, (row, logit, terms))) in drawn.iter().zip(&expected).enumerate() {
                        assert_eq!((drawn.row, drawn.draw_rank), (*row, rank));
                        assert!((drawn.conditional_score - logit).abs() <= 2e-6 * (1.0 + terms));
                    }
                }
            }
        }
    }

    #[test]
    fn a_logit_is_what_the_sample_adds_to_the_batch() {
        let (embeddings, ids) = (Embeddings::random(120), ids(120));
        let scoring = embeddings.learnability(Objective::Sigmoid);
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
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let model = embeddings.learner(objective);
            let scoring = Scoring::Learnability { learner: Learner(model), reference: Reference(model) };
            let JointDraw { scores, drawn } = draw(&ids, &scoring, &plan(100, 4));
            assert!(scores.iter().all(|score| *score == 0.0));
            assert!(drawn.iter().all(|drawn| drawn.conditional_score == 0.0));
            assert_eq!(batch_learnability(&scoring, &[3, 5, 250]), 0.0);
        }
    }

    #[test]
    fn permuted_samples_are_drawn_in_the_same_order() {
        let n = 400;
        let (embeddings, straight_ids) = (Embeddings::random(n), ids(n));
        let order: Vec<usize> = (0..n).map(|row| row * 171 % n).collect();
        let permuted = Embeddings(embeddings.0.each_ref().map(|matrix| matrix.gather(&order)));
        let permuted_ids: Vec<SampleId> = order.iter().map(|row| straight_ids[*row]).collect();
        for (chance, objective) in [
            (Chance::Gumbel, Objective::Sigmoid),
            (Chance::TopK, Objective::Sigmoid),
            (Chance::Gumbel, Objective::Softmax),
        ] {
            let plan = DrawPlan { chance, ..plan(90, 6) };
            let straight = draw(&straight_ids, &embeddings.learnability(objective), &plan).drawn;
            let permuted = draw(&permuted_ids, &permuted.learnability(objective), &plan).drawn;
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
            pool.install(|| draw(&ids, &embeddings.learnability(Objective::Softmax), &plan(500, 8)))
        };
        assert_eq!(draw_with(1), draw_with(2));
    }

    #[test]
    fn bf16_draws_almost_the_same() {
        if let Err(error) = Precision::Bf16.check() {
            eprintln!("skipped: {error}");
            return;
        }
        let n = 1000;
        let (embeddings, ids) = (Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, 64, seed))), ids(n));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let exact = embeddings.learnability(objective);
            let rounded = exact.map(|model| model.with_precision(Precision::Bf16));
            // the logits after the same rows were drawn
            let rows: Vec<usize> = (0..300).collect();
            let logits = |scoring: Scoring| {
                let given = scoring.map(|model| Conditional::new(model).given(&rows).losses());
                given.scores()
            };
            let terms = exact.map(|model| Conditional::new(model).given(&rows).losses());
            let pairs = logits(exact).into_iter().zip(logits(rounded)).enumerate().skip(rows.len());
            for (x, (exact, rounded)) in pairs {
                let ScoredBy::Learnability { learner, reference } =
                    terms.as_ref().map(|terms| terms[x].abs())
                else {
                    panic!("scored by learnability")
                };
                let bound = 1e-3 * (1.0 + learner.0 + reference.0);
                assert!((exact - rounded).abs() < bound, "{exact} {rounded} {bound}");
            }
            // and what a whole draw keeps
            for chance in [Chance::TopK, Chance::Gumbel] {
                let plan = DrawPlan { chance, ..plan(300, 8) };
                let rows = |scoring| -> std::collections::BTreeSet<usize> {
                    draw(&ids, &scoring, &plan).drawn.iter().map(|drawn| drawn.row).collect()
                };
                let both = rows(exact).intersection(&rows(rounded)).count();
                assert!(both >= 294, "{both} of 300 with {objective:?} {chance:?}");
            }
        }
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
