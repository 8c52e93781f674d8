//! The law of the draws: frequencies over seeds against exact probabilities, METHODS §3.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Deserialize;
use superbatch::noise::SampleId;
use superbatch::select::{
    Chance, DrawPlan, IndependentPlan, Objective, draw, draw_independent, draw_uniform,
};

use super::pool::{Logits, Pool, Scored, ScoringName, golden, key};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    rows: Vec<usize>,
    sub_batch_size: usize,
    n_chunks: usize,
    gain: f64,
    n_draws: u64,
    sequences: Vec<(Vec<usize>, f64, i64)>,
    subsets: Vec<(Vec<usize>, f64)>,
    inclusion: Vec<f64>,
    /// Log-weights that do not change; else the draw is joint.
    scores: Option<Vec<f64>>,
    #[serde(flatten)]
    joint: Option<Joint>,
}

#[derive(Deserialize)]
struct Joint {
    objective: Objective,
    scoring: ScoringName,
    learner: Logits,
    reference: Logits,
}

impl Case {
    fn picks(&self, pool: &Pool, ids: &[SampleId], seed: u64) -> Vec<usize> {
        let (key, chance) = (key(seed), Chance::Gumbel);
        let &Case { sub_batch_size, n_chunks, gain, .. } = self;
        let drawn = match (&self.scores, &self.joint) {
            // a plan has a gain above 0; that of 0 is the uniform draw
            (Some(_), _) if gain == 0.0 => draw_uniform(ids, sub_batch_size, key),
            (Some(scores), _) => {
                assert_eq!(n_chunks, 1);
                let plan = IndependentPlan { sub_batch_size, gain, chance, key };
                draw_independent(ids, scores, &[false; 5], &plan)
            }
            (None, Some(Joint { objective, scoring, learner, reference })) => {
                let (objective, scoring, learner, reference) = (*objective, *scoring, *learner, *reference);
                let scoring = pool.scoring(&Scored { objective, scoring, learner, reference });
                draw(ids, &scoring, &DrawPlan { sub_batch_size, n_chunks, gain, chance, key }).drawn
            }
            (None, None) => panic!("{}: neither scores nor models", self.name),
        };
        drawn.iter().map(|drawn| drawn.row).collect()
    }
}

/// Four standard deviations and one.
fn assert_frequency(n_found: u64, n_draws: u64, p: f64, what: &str) {
    let (n_found, n) = (n_found as f64, n_draws as f64);
    let bound = 4.0 * (n * p * (1.0 - p)).sqrt() + 1.0;
    assert!((n_found - n * p).abs() <= bound, "{what}: {n_found} of {n} draws where {p} of them is right");
}

#[test]
fn frequencies_are_those_of_the_exact_law() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("plackett_luce"));
    assert!(file.cases.len() >= 7);
    for case in &file.cases {
        let five = pool.at(&case.rows);
        let ids = five.ids();
        let draws: Vec<Vec<usize>> =
            (0..case.n_draws).into_par_iter().map(|seed| case.picks(&five, &ids, seed)).collect();
        let mut n_of: HashMap<&[usize], u64> = HashMap::new();
        draws.iter().for_each(|picks| *n_of.entry(picks).or_default() += 1);
        let count = |picks: &[usize]| n_of.get(picks).copied().unwrap_or(0);

        let mut n_elsewhere = 0;
        for (picks, p, expected) in &case.sequences {
            assert_frequency(count(picks), case.n_draws, *p, &case.name);
            n_elsewhere += (count(picks) as i64 - expected).abs();
        }
        // f32 kernels may turn a seed or two
        assert!(n_elsewhere <= 4, "{}: {n_elsewhere} draws differ", case.name);
        assert_eq!(case.sequences.iter().map(|(picks, ..)| count(picks)).sum::<u64>(), case.n_draws);
        for (subset, p) in &case.subsets {
            let is_subset = |picks: &&Vec<usize>| picks.iter().all(|pick| subset.contains(pick));
            assert_frequency(draws.iter().filter(is_subset).count() as u64, case.n_draws, *p, &case.name);
        }
        for (place, p) in case.inclusion.iter().enumerate() {
            let n = draws.iter().filter(|picks| picks.contains(&place)).count() as u64;
            assert_frequency(n, case.n_draws, *p, &case.name);
        }
    }
}
