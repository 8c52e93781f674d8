//! Losses, score matrices, batch learnability, marginals and shares: METHODS §1 and §2.

use serde::Deserialize;
use superbatch::embed::LogitScale;
use superbatch::matrix::Matrix;
use superbatch::select::{
    Learner, Objective, PairLoss, Scoring, batch_learnability, conditional_scores, full_loss_scores, softplus,
};

use super::pool::{
    Logits, Model, Pool, Scored, ScoringName, assert_all_close, assert_close, exact, few_terms, golden,
};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
    stored_scales: Vec<StoredScale>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    rows: Vec<usize>,
    learner: Logits,
    reference: Logits,
    learner_similarities: Vec<f64>,
    reference_similarities: Vec<f64>,
    learner_sigmoid_losses: Vec<Vec<f64>>,
    reference_sigmoid_losses: Vec<Vec<f64>>,
    learner_softmax_losses: Vec<f64>,
    reference_softmax_losses: Vec<f64>,
    learner_positive_sigmoid: Vec<f64>,
    reference_positive_sigmoid: Vec<f64>,
    learner_positive_softmax: Vec<f64>,
    reference_positive_softmax: Vec<f64>,
    hard_learner: Vec<Vec<f64>>,
    easy_reference: Vec<Vec<f64>>,
    learnability: Vec<Vec<f64>>,
    sets: Vec<Set>,
}

#[derive(Deserialize)]
struct Set {
    members: Vec<usize>,
    x: usize,
    batch_sum: f64,
    batch_sum_with_x: f64,
    marginal: f64,
    shares: Vec<f64>,
}

#[derive(Deserialize)]
struct StoredScale {
    stored: f64,
    logit_scale: f64,
    logit_bias: f64,
    similarity: f64,
    positive_loss: f64,
}

fn cases() -> Vec<(Pool, Case)> {
    let (pool, file): (Pool, File) = (Pool::read(), golden("scores"));
    let case = |case: Case| {
        let mut pool = pool.at(&case.rows);
        if case.name == "the same model twice" {
            pool.reference = pool.learner.clone();
        }
        (pool, case)
    };
    file.cases.into_iter().map(case).collect()
}

impl Case {
    fn scored(&self, scoring: ScoringName, objective: Objective) -> Scored {
        Scored { objective, scoring, learner: self.learner, reference: self.reference }
    }
}

#[test]
fn losses_of_own_pairs() {
    for (pool, case) in cases() {
        let of_learner = [
            &case.learner_similarities,
            &case.learner_positive_sigmoid,
            &case.learner_positive_softmax,
            &case.learner_softmax_losses,
        ];
        let of_reference = [
            &case.reference_similarities,
            &case.reference_positive_sigmoid,
            &case.reference_positive_softmax,
            &case.reference_softmax_losses,
        ];
        for (model, logits, [similarities, sigmoid, softmax, losses]) in
            [(&pool.learner, case.learner, of_learner), (&pool.reference, case.reference, of_reference)]
        {
            let by_sigmoid = model.with(logits.loss(Objective::Sigmoid));
            assert_all_close(&by_sigmoid.diagonal().similarities, similarities, |_| 1e-9);
            assert_all_close(&by_sigmoid.diagonal().losses, sigmoid, exact);
            let by_softmax = model.with(logits.loss(Objective::Softmax));
            assert_all_close(&by_softmax.diagonal().losses, softmax, exact);
            // L_i among all twelve: the share in a sub-batch of all of them
            let alone = Scoring::HardLearner { learner: Learner(by_softmax) };
            let tolerance = |loss: f64| few_terms(loss) + 1e-6 * logits.logit_scale;
            assert_all_close(&full_loss_scores(&alone, 12), losses, tolerance);
            let mean = losses.iter().sum::<f64>() / 12.0;
            let found = batch_learnability(&alone, &(0..12).collect::<Vec<_>>());
            assert_close(found, mean, tolerance(mean));
        }
    }
}

/// `S[i, j]` of one direction alone, through the sums over both: of a batch of the samples (image i, no caption) and
/// (no image, caption j), where what is missing has similarity 0 to everything.
fn score_of_pair(pool: &Pool, by: &Scored, i: usize, j: usize) -> f64 {
    let half = |model: &Model| {
        let (images, captions) = (&model.images, &model.captions);
        let nothing = vec![0.0; images.n_cols()];
        let stack = |first: &[f32], second: &[f32]| Matrix::new([first, second].concat(), images.n_cols());
        Model { images: stack(images.row(i), &nothing), captions: stack(&nothing, captions.row(j)) }
    };
    let (learner, reference) = (half(&pool.learner), half(&pool.reference));
    let halves = Pool { learner, reference, ..pool.at(&[i, j]) };
    let scoring = halves.scoring(by);
    // both own pairs and the pair (nothing, nothing) have the bias as their logit
    let rest = scoring.map(|model| {
        let bias = model.loss().logit_bias;
        2.0 * softplus(-bias) + softplus(bias)
    });
    2.0 * batch_learnability(&scoring, &[0, 1]) - rest.score()
}

#[test]
fn every_pair_of_the_score_matrices() {
    for (pool, case) in cases() {
        let matrices = [
            (ScoringName::HardLearner, &case.hard_learner),
            (ScoringName::HardLearner, &case.learner_sigmoid_losses),
            (ScoringName::EasyReference, &case.easy_reference),
            (ScoringName::Learnability, &case.learnability),
        ];
        let logits = 2.0 * (case.learner.logit_scale + case.reference.logit_scale)
            - 3.0 * (case.learner.logit_bias + case.reference.logit_bias);
        for (scoring, matrix) in matrices {
            let by = case.scored(scoring, Objective::Sigmoid);
            let own = pool.scoring(&by).scores();
            for (i, row) in matrix.iter().enumerate() {
                for (j, &expected) in row.iter().enumerate() {
                    if i == j {
                        assert_close(own[i], expected, exact(expected));
                    } else {
                        assert_close(score_of_pair(&pool, &by, i, j), expected, 1e-6 * (1.0 + logits));
                    }
                }
            }
        }
        for (losses, scores) in case.reference_sigmoid_losses.iter().zip(&case.easy_reference) {
            assert!(losses.iter().zip(scores).all(|(loss, score)| *loss == -score));
        }
    }
}

#[test]
fn batches_marginals_and_shares() {
    for (pool, case) in cases() {
        let by = case.scored(ScoringName::Learnability, Objective::Sigmoid);
        let scoring = pool.scoring(&by);
        let terms = |rows: &[usize]| -> f64 {
            let pairs = rows.iter().flat_map(|i| rows.iter().map(move |j| (i, j)));
            pairs
                .map(|(&i, &j)| case.learner_sigmoid_losses[i][j] + case.reference_sigmoid_losses[i][j])
                .sum()
        };
        for set in &case.sets {
            let n = set.members.len();
            let with_x: Vec<usize> = set.members.iter().copied().chain([set.x]).collect();
            let bound = 1e-6 * (1.0 + terms(&with_x));
            let sum = batch_learnability(&scoring, &set.members) * n as f64;
            let sum_with_x = batch_learnability(&scoring, &with_x) * (n + 1) as f64;
            assert_close(sum, set.batch_sum, bound);
            assert_close(sum_with_x, set.batch_sum_with_x, bound);
            let marginal = conditional_scores(&scoring, &set.members)[set.x];
            assert_close(marginal, set.marginal, bound);
            assert_close(marginal, sum_with_x - sum, 2.0 * bound);
            let members = pool.at(&set.members);
            let shares = full_loss_scores(&members.scoring(&by), n);
            assert_all_close(&shares, &set.shares, |_| bound);
            assert_close(shares.iter().sum::<f64>(), set.batch_sum, bound);
        }
    }
}

#[test]
fn scales_as_checkpoints_store_them() {
    let file: File = golden("scores");
    for case in file.stored_scales {
        let logit_scale = LogitScale::from_log(case.stored).unwrap().get();
        assert_close(logit_scale, case.logit_scale, 1e-8 * case.logit_scale);
        let loss = PairLoss { logit_scale, logit_bias: case.logit_bias, objective: Objective::Sigmoid };
        assert_close(loss.positive(case.similarity), case.positive_loss, 1e-8 * (1.0 + case.logit_scale));
    }
}
