//! What joint selection is set beside: uniform and independent draws, the largest, exhaustive Gibbs; and how scores
//! tell kinds apart.

use superbatch::rank::average_ranks;
use superbatch::select::{
    Chance, DrawPlan, EffectiveSamples, IndependentPlan, PassKey, ScoredBy, Scoring, draw, draw_independent,
    draw_uniform, full_loss_scores, similarity, softplus,
};

use super::pools::{Kind, Model, Pool, uniforms};

pub fn key(seed: u64) -> PassKey {
    PassKey { seed, round: 0, pass: 0 }
}

/// A joint draw.
pub fn joint(pool: &Pool, scoring: &Scoring, plan: &DrawPlan) -> Vec<usize> {
    draw(&pool.ids(), scoring, plan).drawn.iter().map(|drawn| drawn.row).collect()
}

/// A draw by the samples' own scores; the largest with [`Chance::TopK`].
pub fn independent(
    pool: &Pool,
    scores: &[f64],
    n: usize,
    gain: f64,
    chance: Chance,
    seed: u64,
) -> Vec<usize> {
    let plan = IndependentPlan { sub_batch_size: n, gain, chance, key: key(seed) };
    let drawn = draw_independent(&pool.ids(), scores, &vec![false; scores.len()], &plan);
    drawn.iter().map(|drawn| drawn.row).collect()
}

/// The rows of the largest scores.
pub fn top(pool: &Pool, scores: &[f64], n: usize) -> Vec<usize> {
    independent(pool, scores, n, 1.0, Chance::TopK, 0)
}

/// A draw in which all are alike.
pub fn uniform(pool: &Pool, n: usize, seed: u64) -> Vec<usize> {
    draw_uniform(&pool.ids(), n, key(seed)).iter().map(|drawn| drawn.row).collect()
}

/// The largest shares in the whole super-batch.
pub fn full_loss(pool: &Pool, scoring: &Scoring, n: usize) -> Vec<usize> {
    top(pool, &full_loss_scores(scoring, n), n)
}

/// `S[i, j] + S[j, i]` of all pairs, dense and in f64: `[n, n]`, row after row.
fn both_directions(pool: &Pool) -> Vec<f64> {
    let n = pool.n_samples();
    let losses = |model: &Model| {
        let mut losses = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                let logit = model.loss.logit(similarity(model.images.row(i), model.captions.row(j)));
                let loss = if i == j { softplus(-logit) } else { softplus(logit) };
                losses[i * n + j] += loss;
                losses[j * n + i] += loss;
            }
        }
        losses
    };
    let of_reference = losses(&pool.reference);
    losses(&pool.learner).iter().zip(of_reference).map(|(learner, reference)| learner - reference).collect()
}

/// Exhaustive Gibbs: a sub-batch that is drawn with probability ∝ exp(gain · F(A)), as far as 20 sweeps go.
///
/// From a uniform draw, a random member leaves, and one of those outside, or itself, comes for it with probability
/// ∝ exp(gain · marginal given the rest). Uniforms of stream 20 of the seed: which place, then who comes.
pub struct Gibbs {
    n: usize,
    both: Vec<f64>,
}

impl Gibbs {
    pub fn new(pool: &Pool) -> Gibbs {
        Gibbs { n: pool.n_samples(), both: both_directions(pool) }
    }

    fn add(&self, logits: &mut [f64], row: usize, sign: f64) {
        let added = &self.both[row * self.n..(row + 1) * self.n];
        logits.iter_mut().zip(added).for_each(|(logit, added)| *logit += sign * added);
    }

    pub fn draw(&self, mut rows: Vec<usize>, gain: f64, seed: u64) -> Vec<usize> {
        const N_SWEEPS: usize = 20;
        let mut logits: Vec<f64> = (0..self.n).map(|row| self.both[row * self.n + row] / 2.0).collect();
        let mut is_out = vec![true; self.n];
        for &row in &rows {
            self.add(&mut logits, row, 1.0);
            is_out[row] = false;
        }
        let mut uniforms = uniforms(seed, 20);
        let mut uniform = || uniforms.next().expect("a stream does not end");
        let mut running = vec![0.0; self.n];
        for _ in 0..N_SWEEPS * rows.len() {
            let (place, who) = ((uniform() * rows.len() as f64) as usize, uniform());
            let leaves = rows[place];
            is_out[leaves] = true;
            self.add(&mut logits, leaves, -1.0);
            let outside = logits.iter().zip(&is_out).filter(|(_, is_out)| **is_out);
            let largest = outside.map(|(logit, _)| *logit).fold(f64::NEG_INFINITY, f64::max);
            let mut sum = 0.0;
            for (running, (logit, is_out)) in running.iter_mut().zip(logits.iter().zip(&is_out)) {
                sum += if *is_out { (gain * (logit - largest)).exp() } else { 0.0 };
                *running = sum;
            }
            let comes = running.partition_point(|running| *running <= who * sum);
            rows[place] = comes;
            is_out[comes] = false;
            self.add(&mut logits, comes, 1.0);
        }
        rows
    }
}

/// The probability that a number of `high` is above one of `low`, a tie counting half.
pub fn auc(high: &[f64], low: &[f64]) -> f64 {
    let all = [high, low].concat();
    let ranks: f64 = average_ranks(&all)[..high.len()].iter().sum();
    let n = high.len() as f64;
    (ranks - n * (n + 1.0) / 2.0) / (n * low.len() as f64)
}

/// The share of a kind among some rows.
pub fn share(pool: &Pool, rows: &[usize], kind: Kind) -> f64 {
    rows.iter().filter(|&&row| pool.kinds[row] == kind).count() as f64 / rows.len() as f64
}

/// `exp(entropy)` of the concepts of some rows.
pub fn effective_concepts(pool: &Pool, rows: &[usize]) -> f64 {
    let mut counts = vec![0.0f64; pool.concepts.iter().max().expect("a pool has samples") + 1];
    rows.iter().for_each(|&row| counts[pool.concepts[row]] += 1.0);
    let logarithms: Vec<f64> = counts.into_iter().filter(|count| *count > 0.0).map(f64::ln).collect();
    EffectiveSamples::of(&logarithms, 1.0).of_entropy
}

/// ActiveCLIP's score, `reference_similarity − learner_similarity`.
pub fn similarity_gains(pool: &Pool) -> Vec<f64> {
    let ScoredBy::Learnability { learner, reference } = pool.learnability() else { unreachable!("by both") };
    let both = reference.0.diagonal().similarities.into_iter().zip(learner.0.diagonal().similarities);
    both.map(|(reference, learner)| reference - learner).collect()
}
