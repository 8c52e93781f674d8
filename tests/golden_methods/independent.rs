//! Independent selection and its scores: METHODS §4.

use serde::Deserialize;
use superbatch::divide::{Bank, BankIndex, Exclusions, HardnessParams, Samples, exclusions};
use superbatch::rank::Overlap;
use superbatch::select::{
    Chance, DistanceToBest, EffectiveSamples, IndependentPlan, Objective, SeededNegatives,
    contrastive_scores, cross_entropies, draw_independent, hard_learnability,
};

use super::pool::{
    Logits, Pool, Scored, ScoringName, assert_all_close, assert_close, golden, key, matrix, sample_ids,
};

#[derive(Deserialize)]
struct File {
    active_clip: Vec<ActiveClip>,
    contrastive: Vec<Contrastive>,
    class_act: Vec<ClassAct>,
    ties: Ties,
}

#[derive(Deserialize)]
struct ActiveClip {
    gain: f64,
    draw: Chance,
    seed: u64,
    n_kept: usize,
    scores: Vec<f64>,
    picks: Vec<usize>,
    effective_samples: f64,
    mean_score_kept: f64,
    mean_score_top_k: f64,
    overlap_with_top_k: f64,
}

#[derive(Deserialize)]
struct Contrastive {
    name: String,
    objective: Objective,
    scoring: ScoringName,
    learner: Logits,
    reference: Logits,
    negatives: Vec<usize>,
    sub_batch_size: usize,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct ClassAct {
    label_smoothing: f64,
    labels: Vec<usize>,
    ids: Vec<(String, u64)>,
    learner_logits: Vec<Vec<f32>>,
    reference_logits: Vec<Vec<f32>>,
    learner_losses: Vec<f64>,
    reference_losses: Vec<f64>,
    learnability: Vec<f64>,
    top_4_by_learnability: Vec<usize>,
    top_4_by_easy_reference: Vec<usize>,
}

#[derive(Deserialize)]
struct Ties {
    scores: Vec<f64>,
    picks: Vec<usize>,
}

fn best(ids: &[superbatch::noise::SampleId], scores: &[f64], n: usize) -> Vec<usize> {
    let plan = IndependentPlan { sub_batch_size: n, gain: 1.0, chance: Chance::TopK, key: key(0) };
    let drawn = draw_independent(ids, scores, &vec![false; ids.len()], &plan);
    drawn.iter().map(|drawn| drawn.row).collect()
}

#[test]
fn active_clip() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("independent"));
    let (ids, scores) = (pool.ids(), pool.dot_products().scores());
    for case in &file.active_clip {
        assert_all_close(&scores, &case.scores, |_| 1e-9);
        let &ActiveClip { gain, n_kept, draw: chance, .. } = case;
        let plan = IndependentPlan { sub_batch_size: n_kept, gain, chance, key: key(case.seed) };
        let drawn = draw_independent(&ids, &scores, &vec![false; ids.len()], &plan);
        let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        assert_eq!(rows, case.picks, "gain {gain}");
        assert!(drawn.iter().all(|drawn| drawn.conditional_score == scores[drawn.row]));

        let effective = EffectiveSamples::of(&scores, gain).of_collisions;
        assert_close(effective, case.effective_samples, 1e-7 * case.effective_samples);
        let distance = DistanceToBest::of(&scores, &rows);
        assert_close(distance.mean_of_drawn, case.mean_score_kept, 1e-9);
        assert_close(distance.mean_of_best, case.mean_score_top_k, 1e-9);
        let sorted = |mut rows: Vec<usize>| {
            rows.sort_unstable();
            rows
        };
        let overlap = Overlap::of_sorted(&sorted(rows), &sorted(best(&ids, &scores, n_kept)));
        assert_close(overlap.share().unwrap(), case.overlap_with_top_k, 1e-9);
    }
}

/// Excludes nothing of a bank but the query itself.
fn own_rows(pool: &Pool, bank: &Pool) -> Exclusions {
    let (ids, bank_ids) = (pool.refs(pool), bank.refs(pool));
    let params = HardnessParams { near_duplicate_similarity: f32::INFINITY, ..HardnessParams::default() };
    let samples = |ids, images| Samples { ids, images, captions: None, caption_hashes: None };
    let of_bank = samples(&bank_ids, &bank.reference.images);
    let bank = Bank { samples: of_bank, index: &BankIndex::of(&of_bank) };
    exclusions(&samples(&ids, &pool.reference.images), &bank, &params)
}

#[test]
fn contrastive_scores_against_given_negatives() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("independent"));
    assert!(file.contrastive.len() >= 12);
    for case in &file.contrastive {
        let &Contrastive { objective, scoring, learner, reference, sub_batch_size, .. } = case;
        let by = Scored { objective, scoring, learner, reference };
        let bank = pool.at(&case.negatives);
        let exclusions = own_rows(&pool, &bank);
        let (queries, negatives) = (pool.scoring(&by), bank.scoring(&by));
        let found = hard_learnability(&queries, &negatives, &exclusions, sub_batch_size);
        let found: Vec<f64> = found.into_iter().map(Option::unwrap).collect();
        // f32 similarities times the scale, by as many negatives as the sub-batch has
        let per_negative = match objective {
            Objective::Sigmoid => sub_batch_size as f64,
            Objective::Softmax => 1.0,
        };
        let scale = learner.logit_scale + reference.logit_scale;
        let tolerance = |score: f64| 1e-5 * (1.0 + score.abs()) + 5e-7 * scale * per_negative;
        assert_all_close(&found, &case.scores, tolerance);
        if case.name == "all others" {
            let negatives = SeededNegatives { n_negatives: 95, seed: 1, round: 0 };
            let seeded = contrastive_scores(&pool.ids(), &queries, negatives, sub_batch_size);
            assert_all_close(&seeded, &case.scores, tolerance);
        }
    }
}

#[test]
fn class_act() {
    let file: File = golden("independent");
    for case in &file.class_act {
        let losses =
            |logits: &[Vec<f32>]| cross_entropies(&matrix(logits), &case.labels, case.label_smoothing);
        let (learner, reference) = (losses(&case.learner_logits), losses(&case.reference_logits));
        // the files' logits are not those of f32, as the embeddings are
        let tolerance = |loss: f64| 1e-6 * (1.0 + loss.abs());
        assert_all_close(&learner, &case.learner_losses, tolerance);
        assert_all_close(&reference, &case.reference_losses, tolerance);
        let learnability: Vec<f64> = learner.iter().zip(&reference).map(|(l, r)| l - r).collect();
        assert_all_close(&learnability, &case.learnability, tolerance);
        let ids = sample_ids(&case.ids);
        assert_eq!(best(&ids, &learnability, 4), case.top_4_by_learnability);
        let easy: Vec<f64> = reference.iter().map(|loss| -loss).collect();
        assert_eq!(best(&ids, &easy, 4), case.top_4_by_easy_reference);
    }
}

#[test]
fn equal_scores_go_by_sample_id() {
    // in one chunk: scores that do not depend on what is drawn are the same in every chunk
    let (pool, Ties { scores, picks }) = (Pool::read(), golden::<File>("independent").ties);
    assert_eq!(best(&pool.ids()[..scores.len()], &scores, picks.len()), picks);
}
