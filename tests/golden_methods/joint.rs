//! Joint draws, logit by logit and pick by pick: METHODS §3.

use serde::Deserialize;
use superbatch::select::{
    Chance, DrawPlan, Objective, PassKey, batch_learnability, chunk_sizes, conditional_scores, draw,
};

use super::pool::{Logits, Pool, Scored, ScoringName, assert_all_close, assert_close, exact, golden};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    objective: Objective,
    scoring: ScoringName,
    rows: Vec<usize>,
    learner: Logits,
    reference: Logits,
    sub_batch_size: usize,
    n_chunks: usize,
    gain: f64,
    draw: Chance,
    seed: u64,
    round: u64,
    pass_: u64,
    scores: Vec<f64>,
    picks: Vec<usize>,
    chunks: Vec<Chunk>,
    batch_learnability: Option<f64>,
}

/// What every sample's logit is before this chunk's picks, and the picks; null where drawn before.
#[derive(Deserialize)]
struct Chunk {
    logits: Vec<Option<f64>>,
    terms: Vec<Option<f64>>,
    picks: Vec<usize>,
    gaps: Vec<Option<f64>>,
    doubts: Vec<f64>,
}

impl Case {
    fn scored(&self) -> Scored {
        let &Case { objective, scoring, learner, reference, .. } = self;
        Scored { objective, scoring, learner, reference }
    }

    fn plan(&self) -> DrawPlan {
        let &Case { sub_batch_size, n_chunks, gain, .. } = self;
        let key = PassKey { seed: self.seed, round: self.round, pass: self.pass_ };
        DrawPlan { sub_batch_size, n_chunks, gain, chance: self.draw, key }
    }
}

fn cases() -> Vec<(Pool, Case)> {
    let (pool, file): (Pool, File) = (Pool::read(), golden("joint_draws"));
    assert!(file.cases.len() >= 17);
    file.cases.into_iter().map(|case| (pool.at(&case.rows), case)).collect()
}

#[test]
fn picks_come_in_order() {
    for (pool, case) in cases() {
        let found = draw(&pool.ids(), &pool.scoring(&case.scored()), &case.plan());
        let rows: Vec<usize> = found.drawn.iter().map(|drawn| drawn.row).collect();
        assert_eq!(rows, case.picks, "{}", case.name);
        assert_all_close(&found.scores, &case.scores, exact);
        assert!(found.drawn.iter().enumerate().all(|(rank, drawn)| drawn.draw_rank == rank));

        let mut drawn = found.drawn.iter();
        let sizes: Vec<usize> = case.chunks.iter().map(|chunk| chunk.picks.len()).collect();
        assert_eq!(sizes, chunk_sizes(case.sub_batch_size, case.n_chunks), "{}", case.name);
        for (chunk_idx, chunk) in case.chunks.iter().enumerate() {
            for (position, &pick) in chunk.picks.iter().enumerate() {
                let drawn = drawn.next().unwrap();
                assert_eq!((drawn.row, drawn.chunk), (pick, chunk_idx));
                let bound = 1e-4 * (1.0 + chunk.terms[pick].unwrap());
                assert_close(drawn.conditional_score, chunk.logits[pick].unwrap(), bound);
                // what makes it right to ask for the same picks of f32 kernels
                assert!(chunk.gaps[position].is_none_or(|gap| gap > chunk.doubts[position]));
            }
        }
    }
}

#[test]
fn every_logit_of_every_chunk() {
    for (pool, case) in cases() {
        let scoring = pool.scoring(&case.scored());
        let mut drawn: Vec<usize> = Vec::new();
        for chunk in &case.chunks {
            let found = conditional_scores(&scoring, &drawn);
            for (row, found) in found.into_iter().enumerate() {
                match (chunk.logits[row], chunk.terms[row]) {
                    (Some(logit), Some(terms)) => assert_close(found, logit, 1e-4 * (1.0 + terms)),
                    _ => assert!(drawn.contains(&row)),
                }
            }
            drawn.extend(&chunk.picks);
        }
    }
}

#[test]
fn what_was_drawn_as_a_batch() {
    let mut n_found = 0;
    for (pool, case) in cases() {
        if let Some(expected) = case.batch_learnability {
            let found = batch_learnability(&pool.scoring(&case.scored()), &case.picks);
            let terms =
                case.picks.len() as f64 * 1e-6 * (case.learner.logit_scale + case.reference.logit_scale);
            assert_close(found, expected, 1e-5 * (1.0 + expected.abs()) + terms);
            n_found += 1;
        }
    }
    assert!(n_found >= 10);
}
