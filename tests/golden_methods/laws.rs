//! What holds of every score and draw, whatever the numbers are.

use superbatch::select::{
    Chance, DrawPlan, IndependentPlan, Objective, Precision, SeededNegatives, batch_learnability,
    conditional_scores, contrastive_scores, draw, draw_independent, full_loss_scores, neg_clip_scores,
    semdedup,
};

use super::planted::coarse_pool;
use super::pool::{Logits, Pool, Scored, ScoringName, assert_close, key};

const OBJECTIVES: [Objective; 2] = [Objective::Sigmoid, Objective::Softmax];
const SCORINGS: [ScoringName; 3] =
    [ScoringName::HardLearner, ScoringName::EasyReference, ScoringName::Learnability];

fn scored(objective: Objective, scoring: ScoringName) -> Scored {
    let learner = Logits { logit_scale: 4.422, logit_bias: -6.925 };
    let reference = Logits { logit_scale: 11.045, logit_bias: -10.4 };
    Scored { objective, scoring, learner, reference }
}

fn plan(sub_batch_size: usize, n_chunks: usize, gain: f64) -> DrawPlan {
    DrawPlan { sub_batch_size, n_chunks, gain, chance: Chance::Gumbel, key: key(12) }
}

/// 37 is coprime to 96.
fn permuted() -> Vec<usize> {
    (0..96).map(|row| (11 + 37 * row) % 96).collect()
}

#[test]
fn permuted_samples_have_permuted_scores_and_the_same_draw() {
    let (pool, order) = (Pool::read(), permuted());
    let other = pool.at(&order);
    let negatives = SeededNegatives { n_negatives: 20, seed: 3, round: 0 };
    for by in OBJECTIVES.into_iter().flat_map(|o| SCORINGS.map(|s| scored(o, s))) {
        let (scoring, permuted) = (pool.scoring(&by), other.scoring(&by));
        let (ids, permuted_ids) = (pool.ids(), other.ids());
        let (own, permuted_own) = (scoring.scores(), permuted.scores());
        assert!(order.iter().enumerate().all(|(place, &row)| permuted_own[place] == own[row]));
        let pairs = [
            (full_loss_scores(&scoring, 32), full_loss_scores(&permuted, 32)),
            (
                contrastive_scores(&ids, &scoring, negatives, 32),
                contrastive_scores(&permuted_ids, &permuted, negatives, 32),
            ),
            (
                conditional_scores(&scoring, &order[..9]),
                conditional_scores(&permuted, &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
            ),
        ];
        for (scores, permuted) in pairs {
            // sums meet in another order
            for (place, &row) in order.iter().enumerate() {
                assert_close(permuted[place], scores[row], 2e-5 * (1.0 + scores[row].abs()));
            }
        }
        let picks = |pool: &Pool| {
            let drawn = draw(&pool.ids(), &pool.scoring(&by), &plan(24, 6, 1.0)).drawn;
            drawn.iter().map(|drawn| drawn.row).collect::<Vec<_>>()
        };
        assert_eq!(picks(&other).iter().map(|&place| order[place]).collect::<Vec<_>>(), picks(&pool));
    }
    let (images, captions) = (&pool.reference.images, &pool.reference.captions);
    let scores = neg_clip_scores(images, captions, 0.01, Precision::F32);
    let permuted = neg_clip_scores(&other.reference.images, &other.reference.captions, 0.01, Precision::F32);
    let similarities = [0.5; 96];
    let duplicates = semdedup(&pool.ids(), images, &similarities, 0.2);
    let permuted_duplicates = semdedup(&other.ids(), &other.reference.images, &similarities, 0.2);
    assert!(duplicates.iter().flatten().count() > 5);
    for (place, &row) in order.iter().enumerate() {
        assert_close(permuted[place], scores[row], 1e-6);
        assert_eq!(permuted_duplicates[place].map(|place| order[place]), duplicates[row]);
    }
}

#[test]
fn equal_models_teach_nothing() {
    let mut pool = Pool::read();
    pool.reference = pool.learner.clone();
    for objective in OBJECTIVES {
        let by = scored(objective, ScoringName::Learnability);
        let scoring = pool.scoring(&Scored { reference: by.learner, ..by });
        let rows: Vec<usize> = (0..30).collect();
        let negatives = SeededNegatives { n_negatives: 20, seed: 3, round: 0 };
        assert!(scoring.scores().iter().all(|score| *score == 0.0));
        assert!(full_loss_scores(&scoring, 32).iter().all(|score| *score == 0.0));
        assert!(contrastive_scores(&pool.ids(), &scoring, negatives, 32).iter().all(|score| *score == 0.0));
        assert!(conditional_scores(&scoring, &rows).iter().all(|score| *score == 0.0));
        assert_eq!(batch_learnability(&scoring, &rows), 0.0);
        // nothing to choose by: a draw in chunks is one by the noise of each chunk alone
        let drawn = draw(&pool.ids(), &scoring, &plan(24, 6, 5.0)).drawn;
        assert!(drawn.iter().all(|drawn| drawn.conditional_score == 0.0));
    }
}

#[test]
fn conditional_scores_are_marginals() {
    let pool = coarse_pool(2, 700);
    for exchanged in [false, true] {
        let scoring = if exchanged { pool.exchanged() } else { pool.learnability() };
        let drawn = draw(&pool.ids(), &scoring, &plan(150, 150, 1.0)).drawn;
        let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        let sum = |n: usize| if n == 0 { 0.0 } else { batch_learnability(&scoring, &rows[..n]) * n as f64 };
        let mut total = 0.0;
        for (n, drawn) in drawn.iter().enumerate() {
            let marginal = sum(n + 1) - sum(n);
            // two sums over n² pairs each, the terms of both models of order 1
            let bound = 1e-5 * (1.0 + sum(n).abs() + n as f64);
            assert_close(drawn.conditional_score, marginal, bound);
            total += drawn.conditional_score;
        }
        assert_close(total, sum(rows.len()), 1e-4 * (1.0 + total.abs()));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let pool = coarse_pool(3, 900);
    let ids = pool.ids();
    let all_with = |n_threads| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        threads.install(|| {
            let scoring = pool.learnability();
            let joint = draw(&ids, &scoring, &plan(200, 16, 1.0));
            let independent = draw_independent(
                &ids,
                &joint.scores,
                &vec![false; ids.len()],
                &IndependentPlan { sub_batch_size: 200, gain: 1.0, chance: Chance::Gumbel, key: key(4) },
            );
            let negatives = SeededNegatives { n_negatives: 40, seed: 3, round: 0 };
            let contrastive = contrastive_scores(&ids, &scoring, negatives, 200);
            let rows: Vec<usize> = joint.drawn.iter().map(|drawn| drawn.row).collect();
            let numbers = [full_loss_scores(&scoring, 200), contrastive, conditional_scores(&scoring, &rows)];
            (joint, independent, numbers, batch_learnability(&scoring, &rows))
        })
    };
    let one = all_with(1);
    assert_eq!(all_with(2), one);
    assert_eq!(all_with(7), one);
}
