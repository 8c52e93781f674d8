//! The softmax objective, the scores and draws that are not joint, and calibration against those of independent Python:
//! `oracle/golden_objectives.py` writes what is read here, from the formulas and in f64.

#[path = "support/golden.rs"]
mod support;

use serde::Deserialize;
use superbatch::matrix::Matrix;
use superbatch::select::{
    Chance, DrawPlan, EffectiveSamples, IndependentPlan, Objective, PairLoss, PassKey, Precision,
    SeededNegatives, SoftCapPlan, batch_learnability, calibrate, contrastive_scores, cross_entropies,
    draw_independent, draw_remaining, draw_soft_cap, full_loss_scores, neg_clip_scores,
};
use support::{Pool, assert_close, golden};

#[derive(Deserialize)]
struct Scores {
    draws: Vec<GoldenDraw>,
    shares: Vec<GoldenShares>,
    neg_clip: [GoldenNegClip; 2],
    cross_entropy: GoldenCrossEntropy,
    dot_products: Vec<f64>,
    independent: Vec<GoldenIndependent>,
    soft_cap: Vec<GoldenSoftCap>,
    effective: Vec<GoldenEffective>,
    calibrations: [GoldenCalibration; 2],
}

#[derive(Deserialize)]
struct GoldenDraw {
    scoring: String,
    sub_batch_size: usize,
    n_chunks: usize,
    gain: f64,
    chance: String,
    seed: u64,
    taken: Vec<usize>,
    drawn: Vec<GoldenDrawn>,
    batch_learnability: f64,
}

#[derive(Deserialize)]
struct GoldenDrawn {
    row: usize,
    chunk: usize,
    conditional_score: f64,
}

#[derive(Deserialize)]
struct GoldenShares {
    objective: Objective,
    scoring: String,
    sub_batch_size: usize,
    n_negatives: usize,
    seed: u64,
    round: u64,
    contrastive: Vec<f64>,
    full_loss: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenNegClip {
    temperature: f64,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenCrossEntropy {
    logits: Vec<Vec<f32>>,
    labels: Vec<usize>,
    label_smoothing: f64,
    losses: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenIndependent {
    sub_batch_size: usize,
    gain: f64,
    seed: u64,
    taken: Vec<usize>,
    rows: Vec<usize>,
}

#[derive(Deserialize)]
struct GoldenSoftCap {
    n_draws: usize,
    n_per_turn: usize,
    gain: f64,
    penalty: f64,
    seed: u64,
    samples: Vec<GoldenRepeated>,
}

#[derive(Deserialize)]
struct GoldenRepeated {
    row: usize,
    chunk: usize,
    score: f64,
    n_repeats: usize,
}

#[derive(Deserialize)]
struct GoldenEffective {
    gain: f64,
    of_entropy: f64,
    of_collisions: f64,
}

#[derive(Deserialize)]
struct GoldenCalibration {
    sub_batch_size: usize,
    logit_scale: f64,
    logit_bias: f64,
    loss: f64,
}

fn is_taken(pool: &Pool, taken: &[usize]) -> Vec<bool> {
    (0..pool.ids.len()).map(|row| taken.contains(&row)).collect()
}

fn key(seed: u64) -> PassKey {
    PassKey { seed, round: 0, pass: 0 }
}

#[test]
fn joint_draws_by_the_softmax_objective() {
    let pool = Pool::read(Objective::Softmax);
    let Scores { draws, .. } = golden("oracle/golden/scores.json");
    for golden in &draws {
        let scoring = pool.scoring(&golden.scoring);
        let chance = if golden.chance == "top_k" { Chance::TopK } else { Chance::Gumbel };
        let &GoldenDraw { sub_batch_size, n_chunks, gain, .. } = golden;
        let plan = DrawPlan { sub_batch_size, n_chunks, gain, chance, key: key(golden.seed) };
        let drawn = draw_remaining(&pool.ids(), &scoring, &is_taken(&pool, &golden.taken), &plan).drawn;
        assert_eq!(drawn.len(), golden.drawn.len());
        for (drawn, expected) in drawn.iter().zip(&golden.drawn) {
            assert_eq!((drawn.row, drawn.chunk), (expected.row, expected.chunk));
            assert_close(drawn.conditional_score, expected.conditional_score, 2e-5);
        }
        let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        assert_close(batch_learnability(&scoring, &rows), golden.batch_learnability, 1e-5);
    }
}

#[test]
fn shares_in_a_sub_batch() {
    let Scores { shares, .. } = golden("oracle/golden/scores.json");
    for golden in &shares {
        let pool = Pool::read(golden.objective);
        let scoring = pool.scoring(&golden.scoring);
        let &GoldenShares { n_negatives, seed, round, sub_batch_size, .. } = golden;
        let negatives = SeededNegatives { n_negatives, seed, round };
        let contrastive = contrastive_scores(&pool.ids(), &scoring, negatives, sub_batch_size);
        let full_loss = full_loss_scores(&scoring, sub_batch_size);
        for (found, expected) in [(contrastive, &golden.contrastive), (full_loss, &golden.full_loss)] {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_close(*found, *expected, 1e-5 * (1.0 + expected.abs()));
            }
        }
    }
}

#[test]
fn neg_clip_scores_of_one_batch() {
    let pool = Pool::read(Objective::Softmax);
    let Scores { neg_clip, .. } = golden("oracle/golden/scores.json");
    for (golden, (images, captions)) in neg_clip.iter().zip([&pool.learner, &pool.reference]) {
        let scores = neg_clip_scores(images, captions, golden.temperature, Precision::F32);
        assert_eq!(scores.len(), golden.scores.len());
        for (score, expected) in scores.iter().zip(&golden.scores) {
            assert_close(*score, *expected, 5e-7);
        }
    }
}

#[test]
fn cross_entropies_of_a_classifier() {
    let Scores { cross_entropy: golden, .. } = golden("oracle/golden/scores.json");
    let logits = Matrix::new(golden.logits.concat(), golden.logits[0].len());
    let losses = cross_entropies(&logits, &golden.labels, golden.label_smoothing);
    assert_eq!(losses.len(), golden.losses.len());
    for (loss, expected) in losses.iter().zip(&golden.losses) {
        assert_close(*loss, *expected, 1e-12 * (1.0 + expected));
    }
}

#[test]
fn independent_draws_by_dot_products() {
    let pool = Pool::read(Objective::Sigmoid);
    let golden: Scores = golden("oracle/golden/scores.json");
    let scores = pool.scoring_by("learnability", [PairLoss::DOT_PRODUCT; 2]).scores();
    for (score, expected) in scores.iter().zip(&golden.dot_products) {
        assert_close(*score, *expected, 1e-12);
    }
    for golden in &golden.independent {
        let &GoldenIndependent { sub_batch_size, gain, seed, .. } = golden;
        let plan = IndependentPlan { sub_batch_size, gain, chance: Chance::Gumbel, key: key(seed) };
        let drawn = draw_independent(&pool.ids(), &scores, &is_taken(&pool, &golden.taken), &plan);
        assert_eq!(drawn.iter().map(|drawn| drawn.row).collect::<Vec<_>>(), golden.rows);
    }
    for golden in &golden.effective {
        let effective = EffectiveSamples::of(&scores, golden.gain);
        assert_close(effective.of_entropy, golden.of_entropy, 1e-9);
        assert_close(effective.of_collisions, golden.of_collisions, 1e-9);
    }
}

#[test]
fn soft_cap_draws() {
    let pool = Pool::read(Objective::Sigmoid);
    let Scores { soft_cap, dot_products, .. } = golden("oracle/golden/scores.json");
    for golden in &soft_cap {
        let &GoldenSoftCap { n_draws, n_per_turn, gain, penalty, seed, .. } = golden;
        let plan = SoftCapPlan { n_draws, n_per_turn, gain, penalty, key: key(seed) };
        let found = draw_soft_cap(&pool.ids(), &dot_products, &plan);
        assert_eq!(found.len(), golden.samples.len());
        for (rank, (found, expected)) in found.iter().zip(&golden.samples).enumerate() {
            assert_eq!((found.first.row, found.first.chunk), (expected.row, expected.chunk));
            assert_eq!((found.first.draw_rank, found.n_repeats), (rank, expected.n_repeats));
            assert_close(found.first.conditional_score, expected.score, 1e-12);
        }
    }
}

#[test]
fn calibration_is_that_of_scipy() {
    let pool = Pool::read(Objective::Sigmoid);
    let Scores { calibrations, .. } = golden("oracle/golden/scores.json");
    for (golden, (images, captions)) in calibrations.iter().zip([&pool.learner, &pool.reference]) {
        let fit = calibrate(images, captions, golden.sub_batch_size).unwrap();
        assert_close(fit.logit_scale, golden.logit_scale, 1e-4 * golden.logit_scale);
        assert_close(fit.logit_bias, golden.logit_bias, 1e-4 * golden.logit_bias.abs());
        // scale and bias are rounded to f32 before they meet the similarities
        assert_close(fit.loss, golden.loss, 3e-6 * golden.loss);
    }
}
