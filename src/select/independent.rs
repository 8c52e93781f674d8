//! A score a sample in, a sub-batch out: drawn by those scores alone, each sample once or as often as a penalty
//! allows; and how far such a draw is from uniform, and from the best.

use crate::noise::SampleId;

use super::joint::{Chance, Drawn, PassKey, largest};

/// How a sub-batch is drawn by scores that do not depend on what else is in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndependentPlan {
    /// Samples to draw, at most those that are not taken.
    pub sub_batch_size: usize,
    /// Factor of the scores before the noise, above 0.
    pub gain: f64,
    pub chance: Chance,
    pub key: PassKey,
}

/// Draws a sub-batch by the samples' own scores, in one chunk.
///
/// ```text
/// probability ∝ exp(gain · score), without replacement, of those that are not taken
/// ```
///
/// `conditional_score` is the score. Ties go by sample id. Equal scores draw what [`draw_uniform`] draws.
///
/// [`draw_uniform`]: super::draw_uniform
///
/// # Shapes and units
///
/// `scores[i]` and `is_taken[i]` belong to `ids[i]`; log-weights in nats after the gain.
///
/// # Source
///
/// ActiveCLIP and ClassAct, arXiv:2312.05328; without noise the largest scores, as in RHO-loss.
pub fn draw_independent(
    ids: &[SampleId],
    scores: &[f64],
    is_taken: &[bool],
    plan: &IndependentPlan,
) -> Vec<Drawn> {
    assert!(ids.len() == scores.len() && ids.len() == is_taken.len(), "one id and one score a sample");
    assert!(plan.gain.is_finite() && plan.gain > 0.0, "gain {}", plan.gain);
    let key = plan.key.chunk(0);
    let rows = largest(ids, is_taken, plan.sub_batch_size, |row| {
        plan.chance.value(plan.gain * scores[row], key, ids[row])
    });
    let ranks = rows.into_iter().enumerate();
    ranks.map(|(draw_rank, row)| Drawn { row, chunk: 0, draw_rank, conditional_score: scores[row] }).collect()
}

/// How samples are drawn again and again, each time less readily.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftCapPlan {
    /// Draws in all, a repeated sample counted each time.
    pub n_draws: usize,
    /// Draws of one turn, in which no sample repeats; at most all samples.
    pub n_per_turn: usize,
    /// Factor of the scores before the noise, above 0.
    pub gain: f64,
    /// What a sample's score loses each time that it is drawn, 0 or more, in units of the score.
    pub penalty: f64,
    pub key: PassKey,
}

/// A sample that was drawn at least once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repeated {
    /// When it was drawn first: the turn is the chunk.
    pub first: Drawn,
    pub n_repeats: usize,
}

/// Draws in turns; who was drawn comes again less readily.
///
/// ```text
/// a turn       n_per_turn samples, probability ∝ exp(gain · score) without replacement, with noise of its own
/// after it     the score of each that was drawn −= penalty
/// ```
///
/// until `n_draws` are drawn, the last turn being shorter. In the order of the first draws. With a penalty of 0 the
/// best samples repeat without end; with a large one every sample comes once before any comes twice.
///
/// # Shapes and units
///
/// `scores[i]` belongs to `ids[i]`; log-weights in nats after the gain. Work: O(n) a turn.
///
/// # Source
///
/// Soft-cap sampling, arXiv:2503.08805.
pub fn draw_soft_cap(ids: &[SampleId], scores: &[f64], plan: &SoftCapPlan) -> Vec<Repeated> {
    assert_eq!(ids.len(), scores.len(), "one score a sample");
    assert!(plan.gain.is_finite() && plan.gain > 0.0, "gain {}", plan.gain);
    assert!(plan.penalty.is_finite() && plan.penalty >= 0.0, "penalty {}", plan.penalty);
    assert!(
        plan.n_draws == 0 || (1..=ids.len()).contains(&plan.n_per_turn),
        "{} of {} samples a turn",
        plan.n_per_turn,
        ids.len()
    );
    let mut scores = scores.to_vec();
    let none_taken = vec![false; ids.len()];
    let mut position_of: Vec<Option<usize>> = vec![None; ids.len()];
    let mut repeated: Vec<Repeated> = Vec::new();
    let mut n_left = plan.n_draws;
    for turn in 0.. {
        if n_left == 0 {
            break;
        }
        let size = plan.n_per_turn.min(n_left);
        n_left -= size;
        let key = plan.key.chunk(turn);
        let rows = largest(ids, &none_taken, size, |row| {
            Chance::Gumbel.value(plan.gain * scores[row], key, ids[row])
        });
        for row in rows {
            let position = *position_of[row].get_or_insert_with(|| {
                let draw_rank = repeated.len();
                let first = Drawn { row, chunk: turn, draw_rank, conditional_score: scores[row] };
                repeated.push(Repeated { first, n_repeats: 0 });
                draw_rank
            });
            repeated[position].n_repeats += 1;
            scores[row] -= plan.penalty;
        }
    }
    assert_eq!(repeated.iter().map(|sample| sample.n_repeats).sum::<usize>(), plan.n_draws);
    repeated
}

/// How many samples a draw by these weights is as good as uniform over.
///
/// ```text
/// p = softmax(gain · score)
/// of_entropy      e^(−Σ p ln p)      how many samples come up in the long run
/// of_collisions   (Σp)² / Σp²        1 / the probability that two draws are one sample; never above of_entropy
/// ```
///
/// As many as there are samples where all weigh alike; 1 where one outweighs all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EffectiveSamples {
    pub of_entropy: f64,
    pub of_collisions: f64,
}

impl EffectiveSamples {
    /// Of the weights `exp(gain · score)`; there must be a sample.
    pub fn of(scores: &[f64], gain: f64) -> EffectiveSamples {
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!(largest.is_finite(), "scores are numbers, and there are some");
        // weights relative to the largest: w = e^l, l ≤ 0
        let (mut sum, mut sum_of_squares, mut sum_of_logs) = (0.0, 0.0, 0.0);
        for score in scores {
            let log_weight = gain * (score - largest);
            let weight = log_weight.exp();
            sum += weight;
            sum_of_squares += weight * weight;
            sum_of_logs += weight * log_weight;
        }
        // −Σ p ln p = ln Σw − Σ w ln w / Σw
        let entropy: f64 = sum.ln() - sum_of_logs / sum;
        EffectiveSamples { of_entropy: entropy.exp(), of_collisions: sum * sum / sum_of_squares }
    }
}

/// The mean score of what was drawn beside that of as many of the best and of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistanceToBest {
    pub mean_of_drawn: f64,
    /// Of as many samples with the largest scores.
    pub mean_of_best: f64,
    pub mean_of_all: f64,
}

impl DistanceToBest {
    /// `rows` are those of the drawn, each once; there must be one.
    pub fn of(scores: &[f64], rows: &[usize]) -> DistanceToBest {
        assert!(!rows.is_empty() && rows.len() <= scores.len(), "{} of {} drawn", rows.len(), scores.len());
        let mut best = scores.to_vec();
        best.sort_unstable_by(|left, right| right.total_cmp(left));
        best.truncate(rows.len());
        let mean = |values: &mut dyn Iterator<Item = f64>, n: usize| values.sum::<f64>() / n as f64;
        DistanceToBest {
            mean_of_drawn: mean(&mut rows.iter().map(|&row| scores[row]), rows.len()),
            mean_of_best: mean(&mut best.iter().copied(), rows.len()),
            mean_of_all: mean(&mut scores.iter().copied(), scores.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::draw_uniform;

    const KEY: PassKey = PassKey { seed: 5, round: 0, pass: 1 };

    fn ids(n: u64) -> Vec<SampleId<'static>> {
        (0..n).map(|sample_idx| SampleId { shard: "s", sample_idx }).collect()
    }

    fn plan(sub_batch_size: usize, chance: Chance) -> IndependentPlan {
        IndependentPlan { sub_batch_size, gain: 2.0, chance, key: KEY }
    }

    #[test]
    fn without_noise_the_largest_are_drawn() {
        let scores = [0.5, -1.0, 3.0, 3.0, 2.0];
        let rows = |is_taken: [bool; 5]| -> Vec<usize> {
            let drawn = draw_independent(&ids(5), &scores, &is_taken, &plan(3, Chance::TopK));
            drawn.iter().map(|drawn| drawn.row).collect()
        };
        assert_eq!(rows([false; 5]), [2, 3, 4]);
        assert_eq!(rows([false, false, true, false, false]), [3, 4, 0]);
    }

    #[test]
    fn equal_scores_draw_uniformly() {
        let drawn = draw_independent(&ids(80), &[0.0; 80], &[false; 80], &plan(30, Chance::Gumbel));
        assert_eq!(drawn, draw_uniform(&ids(80), 30, KEY));
    }

    #[test]
    fn pairs_come_with_their_exact_probabilities() {
        // weights 4, 2, 1 after the gain: every ordered pair of a draw without replacement, Plackett–Luce
        let weights = [4.0f64, 2.0, 1.0];
        let scores = weights.map(|weight| weight.ln() / 2.0);
        let n = 20_000;
        let mut counts = [[0.0; 3]; 3];
        for pass in 0..n {
            let plan = IndependentPlan { key: PassKey { pass, ..KEY }, ..plan(2, Chance::Gumbel) };
            let drawn = draw_independent(&ids(3), &scores, &[false; 3], &plan);
            counts[drawn[0].row][drawn[1].row] += 1.0;
        }
        for first in 0..3 {
            for second in (0..3).filter(|second| *second != first) {
                let p = weights[first] / 7.0 * weights[second] / (7.0 - weights[first]);
                let deviation = (p * (1.0 - p) / n as f64).sqrt();
                assert!((counts[first][second] / n as f64 - p).abs() < 4.0 * deviation);
            }
        }
    }

    #[test]
    fn a_soft_cap_lets_the_best_repeat_until_the_penalty_wins() {
        let scores = [9.0, 6.0, 3.0, 0.0];
        let soft_cap = |n_draws, n_per_turn, penalty| {
            let plan = SoftCapPlan { n_draws, n_per_turn, gain: 1000.0, penalty, key: KEY };
            let repeated = draw_soft_cap(&ids(4), &scores, &plan);
            repeated.iter().map(|sample| (sample.first.row, sample.n_repeats)).collect::<Vec<_>>()
        };
        assert_eq!(soft_cap(5, 1, 0.0), [(0, 5)]);
        // 9, 7, 5 for the first; then 6 for the second; the noise of gain 1000 decides nothing
        assert_eq!(soft_cap(3, 1, 2.0), [(0, 2), (1, 1)]);
        assert_eq!(soft_cap(8, 1, 100.0), [(0, 2), (1, 2), (2, 2), (3, 2)]);
        assert_eq!(soft_cap(5, 2, 2.0), [(0, 3), (1, 2)]);
        assert_eq!(soft_cap(0, 2, 2.0), []);
        let plan = SoftCapPlan { n_draws: 3, n_per_turn: 2, gain: 1000.0, penalty: 4.0, key: KEY };
        let first: Vec<Drawn> = draw_soft_cap(&ids(4), &scores, &plan).iter().map(|r| r.first).collect();
        let drawn = |row, draw_rank| Drawn { row, chunk: 0, draw_rank, conditional_score: scores[row] };
        assert_eq!(first, [drawn(0, 0), drawn(1, 1)]);
    }

    #[test]
    fn every_turn_of_a_soft_cap_has_noise_of_its_own() {
        let plan = SoftCapPlan { n_draws: 200, n_per_turn: 1, gain: 1.0, penalty: 0.0, key: KEY };
        let repeated = draw_soft_cap(&ids(4), &[0.0; 4], &plan);
        assert_eq!(repeated.len(), 4);
        // 50 each, give or take four standard deviations
        assert!(repeated.iter().all(|sample| (26..=74).contains(&sample.n_repeats)));
    }

    #[test]
    fn effective_samples_by_hand() {
        let uniform = EffectiveSamples::of(&[3.0; 5], 7.0);
        assert!((uniform.of_entropy - 5.0).abs() < 1e-12 && (uniform.of_collisions - 5.0).abs() < 1e-12);
        // p = ½, ¼, ¼: entropy 1.5·ln 2, Σp² = 3/8
        let scores = [2f64.ln() / 3.0, 0.0, 0.0];
        let effective = EffectiveSamples::of(&scores, 3.0);
        assert!((effective.of_entropy - 2f64.powf(1.5)).abs() < 1e-12);
        assert!((effective.of_collisions - 8.0 / 3.0).abs() < 1e-12);
        let one = EffectiveSamples::of(&[1e6, 0.0], 1.0);
        assert_eq!((one.of_entropy, one.of_collisions), (1.0, 1.0));
    }

    #[test]
    fn distance_to_the_best_by_hand() {
        let distance = DistanceToBest::of(&[1.0, 5.0, 3.0, 7.0], &[2, 3]);
        let expected = DistanceToBest { mean_of_drawn: 5.0, mean_of_best: 6.0, mean_of_all: 4.0 };
        assert_eq!(distance, expected);
    }
}
