//! Samples and the negatives that stand for those of a batch in, each sample's share in such a batch out: against
//! the bank of its cluster, against a few seeded negatives, or against the whole super-batch.

use crate::divide::Exclusions;
use crate::noise::{Purpose, SampleId, keyed_hash};

use super::loss::{AmongNegatives, Objective};
use super::reduce::{Mask, reduce};
use super::score::{PairModel, ScoredBy, Scoring};

/// Each query among the negatives of its bank, under each model of the score; `None` where the bank has none.
///
/// From it [`Objective::share`] gives the query's share under a model in a sub-batch of any size, and
/// [`ScoredBy::score`] what both models' shares are worth.
///
/// # Shapes
///
/// `queries` and `bank` are views of the same models, `[n_queries, d]` and `[n_bank, d]`; `exclusions` is
/// `[n_queries, n_bank]`. Work: 4·n_queries·n_bank·d FLOPs a model.
pub fn among_bank(
    queries: &Scoring,
    bank: &Scoring,
    exclusions: &Exclusions,
) -> ScoredBy<Vec<Option<AmongNegatives>>> {
    assert_eq!((exclusions.n_queries(), exclusions.n_bank()), (queries.n_samples(), bank.n_samples()));
    queries.zip(*bank).map(|(queries, bank)| among(queries, bank, Mask::Excluded(exclusions)))
}

/// The score of each query in a sub-batch with `sub_batch_size − 1` negatives like those of its bank, in nats.
///
/// ```text
/// sigmoid    S[i, i] + (sub_batch_size − 1) · mean_{j∈A} ½(S[i, j] + S[j, i])
/// softmax    ½ Σ_directions [ln(e^(l_ii) + (sub_batch_size − 1)·mean_{j∈A} e^(l_ij)) − l_ii]
///            learner minus reference, or one of them
/// ```
///
/// A are the rows of the bank that are not excluded for i: the same as of the other hardness columns. `None`
/// where A is empty. High: worth learning against the hard negatives of its cluster.
///
/// # Shapes
///
/// As [`among_bank`].
pub fn hard_learnability(
    queries: &Scoring,
    bank: &Scoring,
    exclusions: &Exclusions,
    sub_batch_size: usize,
) -> Vec<Option<f64>> {
    let among = among_bank(queries, bank, exclusions);
    let scores = shares(queries, among, sub_batch_size).scores();
    let n_negatives = (0..queries.n_samples()).map(|query| exclusions.n_bank() - exclusions.n_of(query));
    scores.into_iter().zip(n_negatives).map(|(score, n)| (n > 0).then_some(score)).collect()
}

/// Which of a super-batch's samples stand for the negatives of a whole sub-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededNegatives {
    /// Negatives of each sample, at most all others.
    pub n_negatives: usize,
    pub seed: u64,
    pub round: u64,
}

/// Each sample's share in a sub-batch with negatives from its own super-batch, in nats.
///
/// ```text
/// A          the `n_negatives` samples that follow i in the circle of keyed hashes, the same for both models
/// sigmoid    S[i, i] + (sub_batch_size − 1) · mean_{j∈A} ½(S[i, j] + S[j, i])
/// softmax    ½ Σ_directions [ln(e^(l_ii) + (sub_batch_size − 1)·mean_{j∈A} e^(l_ij)) − l_ii]
///            learner minus reference, or one of them
/// ```
///
/// High: worth learning, judged by its loss in a batch and not by its own pair alone. Work: 4·n·n_negatives·d
/// FLOPs a model for n samples, in whole tiles.
///
/// # Source
///
/// The contrastive score of ActiveCLIP, arXiv:2312.05328. The order of the hashes is random, so each sample's
/// negatives are a uniform draw; every sample is a negative equally often.
pub fn contrastive_scores(
    ids: &[SampleId],
    scoring: &Scoring,
    negatives: SeededNegatives,
    sub_batch_size: usize,
) -> Vec<f64> {
    let n = scoring.n_samples();
    assert_eq!(ids.len(), n, "one id a sample");
    assert!(negatives.n_negatives > 0, "a contrastive score without negatives");
    let SeededNegatives { n_negatives, seed, round } = negatives;
    let hash = |id: &SampleId| keyed_hash(Purpose::Negatives, seed, round, id.shard, id.sample_idx);
    let mut circle: Vec<(u64, SampleId, usize)> =
        ids.iter().enumerate().map(|(row, id)| (hash(id), *id, row)).collect();
    circle.sort_unstable();
    let n_negatives = n_negatives.min(n.saturating_sub(1));
    let order: Vec<usize> = circle.iter().map(|(.., row)| *row).collect();
    let once_round: Vec<usize> = order.iter().cycle().take(n + n_negatives).copied().collect();
    let in_order = scoring.map(|model| {
        let (columns, rows) = (model.gather(&order), model.gather(&once_round));
        let among = among(columns.view(), rows.view(), Mask::AllButNext(n_negatives));
        model_shares(columns.view(), among, sub_batch_size)
    });
    let mut scores = vec![0.0; n];
    for (row, score) in order.into_iter().zip(in_order.scores()) {
        scores[row] = score;
    }
    scores
}

/// Each sample's share in a sub-batch that is like the whole super-batch, in nats.
///
/// ```text
/// sigmoid    S[i, i] + (sub_batch_size − 1)/(n − 1) · Σ_{j≠i} ½(S[i, j] + S[j, i])
/// softmax    ½ Σ_directions [ln(e^(l_ii) + (sub_batch_size − 1)/(n − 1) · Σ_{j≠i} e^(l_ij)) − l_ii]
///            learner minus reference, or one of them
/// ```
///
/// High: worth learning in a batch of everything. The largest of these are the strongest cheap baseline of joint
/// selection, and prone to be all alike. Work: 4·n²·d FLOPs a model; memory O(n) beside the embeddings.
///
/// # Source
///
/// The share of x in F(A), JEST, arXiv:2406.17711, §3, with A the super-batch.
pub fn full_loss_scores(scoring: &Scoring, sub_batch_size: usize) -> Vec<f64> {
    shares(scoring, scoring.map(|model| among(model, model, Mask::Own)), sub_batch_size).scores()
}

/// Each sample among those of `others` that the mask leaves it; `None` where it leaves none.
fn among(model: PairModel, others: PairModel, mask: Mask) -> Vec<Option<AmongNegatives>> {
    let both = reduce(&[model.images_with(others), model.captions_with(others)], mask);
    let own_losses = model.diagonal().losses;
    let rows = both[0].iter().zip(&both[1]).zip(own_losses).enumerate();
    rows.map(|(row, ((image, caption), own_loss))| {
        let n = mask.n_rows_of(row, others.n_samples()) as f64;
        let mean = |total: &f64| match model.loss().objective {
            Objective::Sigmoid => total / n,
            Objective::Softmax => total - n.ln() + own_loss,
        };
        (n > 0.0).then(|| AmongNegatives { image: mean(image), caption: mean(caption) })
    })
    .collect()
}

/// The shares under each model.
fn shares(
    scoring: &Scoring,
    among: ScoredBy<Vec<Option<AmongNegatives>>>,
    sub_batch_size: usize,
) -> ScoredBy<Vec<f64>> {
    scoring.zip(among).map(|(model, among)| model_shares(model, among, sub_batch_size))
}

fn model_shares(model: PairModel, among: Vec<Option<AmongNegatives>>, sub_batch_size: usize) -> Vec<f64> {
    let objective = model.loss().objective;
    let samples = model.diagonal().losses.into_iter().zip(among);
    let share = |(own_loss, among): (f64, Option<AmongNegatives>)| match among {
        Some(among) => objective.share(own_loss, among, sub_batch_size),
        None => objective.share_alone(own_loss),
    };
    samples.map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divide::{Bank, BankIndex, HardnessParams, Samples, exclusions};
    use crate::matrix::Matrix;
    use crate::sample::SampleRef;
    use crate::select::score::{Learner, Reference};
    use crate::select::{PairLoss, log_add_exp, similarity, softplus};
    use crate::tile::random_unit_rows;

    const LEARNER: PairLoss = PairLoss { logit_scale: 8.0, logit_bias: -3.0, objective: Objective::Sigmoid };
    const REFERENCE: PairLoss =
        PairLoss { logit_scale: 20.0, logit_bias: -9.0, objective: Objective::Sigmoid };

    /// Images and captions of the learner, then of the reference.
    fn embeddings(n: usize, first_seed: u64) -> [Matrix; 4] {
        [0, 1, 2, 3].map(|more| random_unit_rows(n, 6, first_seed + more))
    }

    fn learnability(embeddings: &[Matrix; 4], objective: Objective) -> Scoring<'_> {
        let [x, y, x_reference, y_reference] = embeddings;
        let (learner, reference) = (PairLoss { objective, ..LEARNER }, PairLoss { objective, ..REFERENCE });
        Scoring::Learnability {
            learner: Learner(PairModel::new(x, y, learner)),
            reference: Reference(PairModel::new(x_reference, y_reference, reference)),
        }
    }

    fn hard_learner(embeddings: &[Matrix; 4], objective: Objective) -> Scoring<'_> {
        let loss = PairLoss { objective, ..LEARNER };
        Scoring::HardLearner { learner: Learner(PairModel::new(&embeddings[0], &embeddings[1], loss)) }
    }

    fn refs(n: usize) -> Vec<SampleRef> {
        (0..n as u64).map(|row| SampleRef { shard_idx: row as u32 % 2, sample_idx: row }).collect()
    }

    fn ids(n: usize) -> Vec<SampleId<'static>> {
        (0..n as u64).map(|row| SampleId { shard: ["a", "b"][row as usize % 2], sample_idx: row }).collect()
    }

    /// The share of query i among rows A of the bank under one model, by its definition and in f64.
    fn share(
        loss: PairLoss,
        queries: [&Matrix; 2],
        bank: [&Matrix; 2],
        i: usize,
        a: &[usize],
        sub_batch_size: usize,
    ) -> f64 {
        let logit = |image: &[f32], caption: &[f32]| loss.logit(similarity(image, caption));
        let (x, y) = (queries[0].row(i), queries[1].row(i));
        let own = logit(x, y);
        let weight = (sub_batch_size - 1) as f64 / a.len() as f64;
        let images = a.iter().map(|&j| logit(x, bank[1].row(j)));
        let captions = a.iter().map(|&j| logit(bank[0].row(j), y));
        match loss.objective {
            Objective::Sigmoid => {
                softplus(-own) + weight * 0.5 * images.chain(captions).map(softplus).sum::<f64>()
            }
            Objective::Softmax => {
                let direction = |sum| log_add_exp(own, weight.ln() + sum) - own;
                let images = images.reduce(log_add_exp).unwrap();
                0.5 * (direction(images) + direction(captions.reduce(log_add_exp).unwrap()))
            }
        }
    }

    fn learnability_share(
        objective: Objective,
        queries: &[Matrix; 4],
        bank: &[Matrix; 4],
        (i, a): (usize, &[usize]),
        sub_batch_size: usize,
    ) -> f64 {
        let side = |loss, first| {
            let loss = PairLoss { objective, ..loss };
            let (queries, bank) = ([&queries[first], &queries[first + 1]], [&bank[first], &bank[first + 1]]);
            share(loss, queries, bank, i, a, sub_batch_size)
        };
        side(LEARNER, 0) - side(REFERENCE, 2)
    }

    #[test]
    fn hard_learnability_is_the_share_among_the_negatives_that_are_left() {
        let (n_queries, n_bank, sub_batch_size) = (300, 270, 64);
        let (queries, bank) = (embeddings(n_queries, 1), embeddings(n_bank, 5));
        let ids = refs(600);
        // the queries' ids overlap the bank's, and a low threshold excludes many
        let samples = |ids, images| Samples { ids, images, captions: None, caption_hashes: None };
        let query_samples = samples(&ids[..n_queries], &queries[0]);
        let bank_samples = samples(&ids[200..200 + n_bank], &bank[0]);
        let params = HardnessParams { near_duplicate_similarity: 0.6, ..HardnessParams::default() };
        let bank_of_samples = Bank { samples: bank_samples, index: &BankIndex::of(&bank_samples) };
        let mask = exclusions(&query_samples, &bank_of_samples, &params);
        assert!((0..n_queries).any(|query| mask.n_of(query) > 5));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let of_both = hard_learnability(
                &learnability(&queries, objective),
                &learnability(&bank, objective),
                &mask,
                sub_batch_size,
            );
            let of_learner = hard_learnability(
                &hard_learner(&queries, objective),
                &hard_learner(&bank, objective),
                &mask,
                sub_batch_size,
            );
            for i in 0..n_queries {
                let excluded: Vec<usize> = mask.of(i, 0..n_bank).collect();
                let a: Vec<usize> = (0..n_bank).filter(|j| !excluded.contains(j)).collect();
                let expected = learnability_share(objective, &queries, &bank, (i, &a), sub_batch_size);
                assert!((of_both[i].unwrap() - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{i}");
                let loss = PairLoss { objective, ..LEARNER };
                let sides = ([&queries[0], &queries[1]], [&bank[0], &bank[1]]);
                let expected = share(loss, sides.0, sides.1, i, &a, sub_batch_size);
                assert!((of_learner[i].unwrap() - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{i}");
            }
        }
    }

    #[test]
    fn a_query_whose_bank_is_all_excluded_has_no_hard_learnability() {
        let rows = embeddings(3, 1);
        let ids = refs(3);
        let samples = Samples { ids: &ids, images: &rows[0], captions: None, caption_hashes: None };
        let params = HardnessParams { near_duplicate_similarity: -1.0, ..HardnessParams::default() };
        let bank = Bank { samples, index: &BankIndex::of(&samples) };
        let mask = exclusions(&samples, &bank, &params);
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let scoring = learnability(&rows, objective);
            assert_eq!(hard_learnability(&scoring, &scoring, &mask, 8), [None; 3]);
        }
    }

    #[test]
    fn full_loss_is_the_share_among_all_others() {
        let n = 530; // three strips, the last one short
        let rows = embeddings(n, 1);
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let scores = full_loss_scores(&learnability(&rows, objective), 100);
            for i in (0..n).step_by(37) {
                let others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
                let expected = learnability_share(objective, &rows, &rows, (i, &others), 100);
                assert!((scores[i] - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{i}");
            }
        }
    }

    #[test]
    fn contrastive_scores_take_what_follows_in_the_circle() {
        let n = 300;
        let (rows, ids) = (embeddings(n, 1), ids(n));
        let negatives = SeededNegatives { n_negatives: 70, seed: 9, round: 2 };
        let mut circle: Vec<usize> = (0..n).collect();
        circle.sort_by_key(|row| keyed_hash(Purpose::Negatives, 9, 2, ids[*row].shard, ids[*row].sample_idx));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let scores = contrastive_scores(&ids, &learnability(&rows, objective), negatives, 256);
            for (at, &i) in circle.iter().enumerate() {
                let a: Vec<usize> = (1..=70).map(|step| circle[(at + step) % n]).collect();
                let expected = learnability_share(objective, &rows, &rows, (i, &a), 256);
                assert!((scores[i] - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{i}");
            }
        }
    }

    #[test]
    fn with_all_others_as_negatives_both_scores_are_one() {
        let (rows, ids) = (embeddings(40, 1), ids(40));
        let scoring = learnability(&rows, Objective::Softmax);
        let negatives = SeededNegatives { n_negatives: 1000, seed: 0, round: 0 };
        let full = full_loss_scores(&scoring, 16);
        for (one, other) in contrastive_scores(&ids, &scoring, negatives, 16).iter().zip(full) {
            assert!((one - other).abs() < 1e-5);
        }
        let alone = learnability(&rows, Objective::Sigmoid).map(|model| model.gather(&[7]));
        let alone = alone.as_ref().map(|model| model.view());
        assert_eq!(full_loss_scores(&alone, 16), alone.scores());
        assert_eq!(contrastive_scores(&ids[..1], &alone, negatives, 16), alone.scores());
    }
}
