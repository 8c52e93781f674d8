//! How two rankings agree, how spread out weights are, and fitted scales: METHODS §1 and §3.

use serde::Deserialize;
use superbatch::rank::{Overlap, spearman};
use superbatch::select::{
    Chance, EffectiveSamples, IndependentPlan, Objective, PairLoss, calibrate, draw_independent, similarity,
    softplus,
};

use super::planted::auc;
use super::pool::{Model, Pool, assert_close, golden, key};

#[derive(Deserialize)]
struct Agreement {
    a: Vec<f64>,
    b: Vec<f64>,
    spearman: f64,
    top_10_of_a: Vec<usize>,
    top_10_of_b: Vec<usize>,
    overlap: f64,
    clusters: Vec<usize>,
    effective_clusters: f64,
    log_weights: Vec<f64>,
    effective_number: f64,
    auc_of_a_above_b: f64,
}

#[test]
fn two_rankings() {
    let (pool, golden): (Pool, Agreement) = (Pool::read(), golden("agreement"));
    assert_close(spearman(&golden.a, &golden.b).unwrap(), golden.spearman, 1e-9);
    assert_close(auc(&golden.a, &golden.b), golden.auc_of_a_above_b, 1e-9);
    let top_10 = |scores: &[f64]| {
        let plan = IndependentPlan { sub_batch_size: 10, gain: 1.0, chance: Chance::TopK, key: key(0) };
        let drawn = draw_independent(&pool.ids()[..30], scores, &[false; 30], &plan);
        let mut rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        rows.sort_unstable();
        rows
    };
    let (of_a, of_b) = (top_10(&golden.a), top_10(&golden.b));
    assert_eq!((&of_a, &of_b), (&golden.top_10_of_a, &golden.top_10_of_b));
    assert_close(Overlap::of_sorted(&of_a, &of_b).share().unwrap(), golden.overlap, 1e-9);
}

#[test]
fn effective_numbers() {
    let golden: Agreement = golden("agreement");
    let effective = EffectiveSamples::of(&golden.log_weights, 1.0).of_collisions;
    assert_close(effective, golden.effective_number, 1e-8);
    // of clusters: the weights are their sizes
    let mut sizes = vec![0.0f64; golden.clusters.iter().max().unwrap() + 1];
    golden.clusters.iter().for_each(|cluster| sizes[*cluster] += 1.0);
    let logarithms: Vec<f64> = sizes.into_iter().filter(|size| *size > 0.0).map(f64::ln).collect();
    assert_close(EffectiveSamples::of(&logarithms, 1.0).of_entropy, golden.effective_clusters, 1e-8);
}

#[derive(Deserialize)]
struct Calibrations {
    cases: Vec<GoldenCalibration>,
}

#[derive(Deserialize)]
struct GoldenCalibration {
    model: String,
    rows: Vec<usize>,
    sub_batch_size: usize,
    logit_scale: f64,
    logit_bias: f64,
    loss: f64,
    loss_at_10_minus_10: f64,
}

/// The loss that is fitted, by its definition and in f64.
fn loss_at(model: &Model, sub_batch_size: usize, logit_scale: f64, logit_bias: f64) -> f64 {
    let n = model.images.n_rows();
    let loss = PairLoss { logit_scale, logit_bias, objective: Objective::Sigmoid };
    let weight = (sub_batch_size - 1) as f64 / (n - 1) as f64;
    let mut total = 0.0;
    for i in 0..n {
        for j in 0..n {
            let logit = loss.logit(similarity(model.images.row(i), model.captions.row(j)));
            total += if i == j { softplus(-logit) } else { weight * softplus(logit) };
        }
    }
    total / n as f64
}

#[test]
fn calibration() {
    let (pool, file): (Pool, Calibrations) = (Pool::read(), golden("calibrate"));
    assert!(file.cases.len() >= 12);
    for case in &file.cases {
        let model = if case.model == "learner" { &pool.learner } else { &pool.reference }.at(&case.rows);
        let b = case.sub_batch_size;
        let found = calibrate(&model.images, &model.captions, b).unwrap();
        assert_close(found.logit_scale, case.logit_scale, 1e-3 * case.logit_scale);
        assert_close(found.logit_bias, case.logit_bias, 1e-3 * case.logit_bias.abs());
        // at what was found the loss is the least; what is reported of it is in f32
        let least = loss_at(&model, b, found.logit_scale, found.logit_bias);
        assert_close(least, case.loss, 1e-6 * case.loss);
        assert_close(found.loss, case.loss, 3e-6 * case.loss);
        assert_close(
            loss_at(&model, b, 10.0, -10.0),
            case.loss_at_10_minus_10,
            1e-8 * case.loss_at_10_minus_10,
        );
    }
}
