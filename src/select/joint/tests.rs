use super::*;
use crate::algebra::Algebra;
use crate::fold::Precision;
use crate::matrix::Matrix;
use crate::rank::Overlap;
use crate::runtime::{Place, Products};
use crate::select::score::{Learner, Reference, ScoredBy, batch_learnability};
use crate::select::{PairLoss, log_add_exp, similarity, softplus};
use crate::tile::random_unit_rows;

const LEARNER: PairLoss = PairLoss { logit_scale: 12.0, logit_bias: -6.0, objective: Objective::Sigmoid };
const REFERENCE: PairLoss = PairLoss { logit_scale: 30.0, logit_bias: -9.0, objective: Objective::Sigmoid };

/// Images and captions of the learner, then of the reference.
struct Embeddings([Matrix; 4]);

impl Embeddings {
    fn random(n: usize) -> Embeddings {
        Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, 10, seed)))
    }

    fn learner(&self, objective: Objective) -> PairModel<'_> {
        PairModel::new(&self.0[0], &self.0[1], PairLoss { objective, ..LEARNER })
    }

    fn reference(&self, objective: Objective) -> PairModel<'_> {
        PairModel::new(&self.0[2], &self.0[3], PairLoss { objective, ..REFERENCE })
    }

    fn learnability(&self, objective: Objective) -> Scoring<'_> {
        Scoring::Learnability {
            learner: Learner(self.learner(objective)),
            reference: Reference(self.reference(objective)),
        }
    }
}

fn ids(n: usize) -> Vec<SampleId<'static>> {
    (0..n as u64).map(|row| SampleId { shard: ["a", "b"][row as usize % 2], sample_idx: row }).collect()
}

fn plan(sub_batch_size: usize, n_chunks: usize) -> DrawPlan {
    let key = PassKey { seed: 7, round: 1, pass: 2 };
    DrawPlan { sub_batch_size, n_chunks, gain: 0.5, chance: Chance::Gumbel, key }
}

/// `l[i, j]` of one model in f64, all at once.
struct Dense {
    logits: Vec<Vec<f64>>,
    objective: Objective,
}

impl Dense {
    fn new(images: &Matrix, captions: &Matrix, loss: PairLoss) -> Dense {
        let n = images.n_rows();
        let logit = |i, j| loss.logit(similarity(images.row(i), captions.row(j)));
        let logits = (0..n).map(|i| (0..n).map(|j| logit(i, j)).collect()).collect();
        Dense { logits, objective: loss.objective }
    }

    /// The model's part of the logit of x after these were drawn, and the sum of its terms' absolute values.
    fn conditional(&self, x: usize, drawn: &[usize]) -> (f64, f64) {
        let l = &self.logits;
        match self.objective {
            Objective::Sigmoid => {
                let negatives: f64 = drawn.iter().map(|&k| softplus(l[k][x]) + softplus(l[x][k])).sum();
                (softplus(-l[x][x]) + negatives, softplus(-l[x][x]) + negatives)
            }
            Objective::Softmax if drawn.is_empty() => (-l[x][x], l[x][x].abs()),
            Objective::Softmax => {
                let image = drawn.iter().map(|&k| l[x][k]).fold(f64::NEG_INFINITY, log_add_exp);
                let caption = drawn.iter().map(|&k| l[k][x]).fold(f64::NEG_INFINITY, log_add_exp);
                (-l[x][x] + 0.5 * (image + caption), l[x][x].abs() + image.abs() + caption.abs())
            }
        }
    }
}

/// The definition: every logit from all drawn so far. Positions in draw order, logits and their terms.
fn draw_dense(
    models: &[(Dense, f64)],
    ids: &[SampleId],
    is_taken: &[bool],
    plan: &DrawPlan,
) -> Vec<(usize, f64, f64)> {
    let mut drawn: Vec<(usize, f64, f64)> = Vec::new();
    for (chunk, size) in chunk_sizes(plan.sub_batch_size, plan.n_chunks).into_iter().enumerate() {
        let before: Vec<usize> = drawn.iter().map(|(row, ..)| *row).collect();
        let mut rest: Vec<(f64, usize, f64, f64)> = (0..ids.len())
            .filter(|x| !before.contains(x) && !is_taken[*x])
            .map(|x| {
                let (mut logit, mut terms) = (0.0, 0.0);
                for (model, sign) in models {
                    let (part, part_terms) = model.conditional(x, &before);
                    logit += sign * part;
                    terms += part_terms;
                }
                let noise = gumbel(plan.key.chunk(chunk), ids[x].shard, ids[x].sample_idx);
                (plan.gain * logit + noise, x, logit, terms)
            })
            .collect();
        rest.sort_by(|left, right| right.0.total_cmp(&left.0));
        drawn.extend(rest.iter().take(size).map(|&(_, x, logit, terms)| (x, logit, terms)));
    }
    drawn
}

#[test]
fn the_draw_is_that_of_the_dense_definition() {
    let n = 700; // three strips, the last one short
    let (embeddings, ids) = (Embeddings::random(n), ids(n));
    for objective in [Objective::Sigmoid, Objective::Softmax] {
        let [x, y, x_reference, y_reference] = &embeddings.0;
        let learner = || Dense::new(x, y, PairLoss { objective, ..LEARNER });
        let reference = || Dense::new(x_reference, y_reference, PairLoss { objective, ..REFERENCE });
        let scorings = [
            (embeddings.learnability(objective), vec![(learner(), 1.0), (reference(), -1.0)]),
            (
                Scoring::HardLearner { learner: Learner(embeddings.learner(objective)) },
                vec![(learner(), 1.0)],
            ),
            (
                Scoring::EasyReference { reference: Reference(embeddings.reference(objective)) },
                vec![(reference(), -1.0)],
            ),
        ];
        let none = vec![false; n];
        let some: Vec<bool> = (0..n).map(|row| row % 3 == 1).collect();
        for (scoring, models) in scorings {
            for (plan, is_taken) in
                [(plan(300, 5), &none), (plan(17, 1), &none), (plan(n, 3), &none), (plan(90, 4), &some)]
            {
                let expected = draw_dense(&models, &ids, is_taken, &plan);
                let JointDraw { scores, drawn } = draw_remaining(&ids, &scoring, is_taken, &plan);
                for (row, score) in scores.iter().enumerate() {
                    let own = |(model, sign): &(Dense, f64)| sign * model.conditional(row, &[]).0;
                    assert!((score - models.iter().map(own).sum::<f64>()).abs() < 1e-12);
                }
                assert_eq!(drawn.len(), plan.sub_batch_size);
                for (rank, (drawn, (row, logit, terms))) in drawn.iter().zip(&expected).enumerate() {
                    assert_eq!((drawn.row, drawn.draw_rank), (*row, rank));
                    assert!((drawn.conditional_score - logit).abs() <= 2e-6 * (1.0 + terms));
                }
            }
        }
    }
}

#[test]
fn a_logit_is_what_the_sample_adds_to_the_batch() {
    let (embeddings, ids) = (Embeddings::random(120), ids(120));
    let scoring = embeddings.learnability(Objective::Sigmoid);
    let drawn = draw(&ids, &scoring, &plan(40, 40)).drawn;
    let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
    for n in [1, 7, 39] {
        let without = batch_learnability(&scoring, &rows[..n]) * n as f64;
        let with = batch_learnability(&scoring, &rows[..=n]) * (n + 1) as f64;
        assert!((with - without - drawn[n].conditional_score).abs() < 1e-3, "{n}");
    }
}

#[test]
fn equal_models_leave_nothing_to_learn() {
    let (embeddings, ids) = (Embeddings::random(300), ids(300));
    for objective in [Objective::Sigmoid, Objective::Softmax] {
        let model = embeddings.learner(objective);
        let scoring = Scoring::Learnability { learner: Learner(model), reference: Reference(model) };
        let JointDraw { scores, drawn } = draw(&ids, &scoring, &plan(100, 4));
        assert!(scores.iter().all(|score| *score == 0.0));
        assert!(drawn.iter().all(|drawn| drawn.conditional_score == 0.0));
        assert_eq!(batch_learnability(&scoring, &[3, 5, 250]), 0.0);
    }
}

#[test]
fn permuted_samples_are_drawn_in_the_same_order() {
    let n = 400;
    let (embeddings, straight_ids) = (Embeddings::random(n), ids(n));
    let order: Vec<usize> = (0..n).map(|row| row * 171 % n).collect();
    let permuted = Embeddings(embeddings.0.each_ref().map(|matrix| matrix.gather(&order)));
    let permuted_ids: Vec<SampleId> = order.iter().map(|row| straight_ids[*row]).collect();
    for (chance, objective) in [
        (Chance::Gumbel, Objective::Sigmoid),
        (Chance::TopK, Objective::Sigmoid),
        (Chance::Gumbel, Objective::Softmax),
    ] {
        let plan = DrawPlan { chance, ..plan(90, 6) };
        let straight = draw(&straight_ids, &embeddings.learnability(objective), &plan).drawn;
        let permuted = draw(&permuted_ids, &permuted.learnability(objective), &plan).drawn;
        for (straight, permuted) in straight.iter().zip(&permuted) {
            assert_eq!(straight.row, order[permuted.row]);
            assert!((straight.conditional_score - permuted.conditional_score).abs() < 1e-3);
        }
    }
}

#[test]
fn any_number_of_threads_draws_the_same_bytes() {
    let (embeddings, ids) = (Embeddings::random(1100), ids(1100));
    let draw_with = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| draw(&ids, &embeddings.learnability(Objective::Softmax), &plan(500, 8)))
    };
    assert_eq!(draw_with(1), draw_with(2));
}

#[test]
fn bf16_draws_almost_the_same() {
    if let Err(error) = Precision::Bf16.check() {
        eprintln!("skipped: {error}");
        return;
    }
    let n = 1000;
    let (embeddings, ids) = (Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, 64, seed))), ids(n));
    for objective in [Objective::Sigmoid, Objective::Softmax] {
        let exact = embeddings.learnability(objective);
        let rounded = exact.map(|model| model.with_precision(Precision::Bf16));
        // the logits after the same rows were drawn
        let rows: Vec<usize> = (0..300).collect();
        let terms = exact
            .map(|learner| conditional_scores(&Scoring::HardLearner { learner: Learner(learner) }, &rows));
        let logits = conditional_scores(&exact, &rows).into_iter().zip(conditional_scores(&rounded, &rows));
        let pairs = logits.enumerate().skip(rows.len());
        for (x, (exact, rounded)) in pairs {
            let ScoredBy::Learnability { learner, reference } = terms.as_ref().map(|terms| terms[x].abs())
            else {
                panic!("scored by learnability")
            };
            // a similarity moves by about 2⁻⁹·√(2/64) as a rule; sums of hundreds by a few thousandths of their terms
            let bound = 4e-3 * (1.0 + learner.0 + reference.0);
            assert!((exact - rounded).abs() < bound, "{exact} {rounded} {bound}");
        }
        // and what a whole draw keeps
        for chance in [Chance::TopK, Chance::Gumbel] {
            let plan = DrawPlan { chance, ..plan(300, 8) };
            let rows = |scoring| -> std::collections::BTreeSet<usize> {
                draw(&ids, &scoring, &plan).drawn.iter().map(|drawn| drawn.row).collect()
            };
            let both = rows(exact).intersection(&rows(rounded)).count();
            assert!(both >= 294, "{both} of 300 with {objective:?} {chance:?}");
        }
    }
}

#[test]
fn ties_go_by_sample_id() {
    let same = Matrix::new([0.6, 0.8].repeat(6), 2);
    let scoring = Scoring::HardLearner { learner: Learner(PairModel::new(&same, &same, LEARNER)) };
    let ids: Vec<SampleId> = [("b", 1), ("a", 9), ("b", 0), ("a", 10), ("a", 2), ("c", 0)]
        .map(|(shard, sample_idx)| SampleId { shard, sample_idx })
        .to_vec();
    let plan = DrawPlan { chance: Chance::TopK, ..plan(5, 2) };
    let rows: Vec<usize> = draw(&ids, &scoring, &plan).drawn.iter().map(|drawn| drawn.row).collect();
    assert_eq!(rows, [4, 1, 3, 2, 0]);
}

#[test]
fn the_uniform_draw_forgets_the_order_of_the_samples() {
    let ids = ids(50);
    let key = PassKey { seed: 3, round: 0, pass: 0 };
    let reversed: Vec<SampleId> = ids.iter().rev().copied().collect();
    let drawn = draw_uniform(&ids, 20, key);
    assert_eq!(drawn.len(), 20);
    for (one, other) in drawn.iter().zip(draw_uniform(&reversed, 20, key)) {
        assert_eq!(one.row, 49 - other.row);
        assert_eq!((one.chunk, one.conditional_score), (0, 0.0));
    }
    assert_ne!(drawn, draw_uniform(&ids, 20, PassKey { pass: 1, ..key }));
}

#[test]
fn gumbel_noise_draws_in_proportion_to_the_exponential() {
    // two samples, S = ln 3 and 0: the first is drawn with probability 3/4
    let ids = ids(2);
    let values = [3f64.ln(), 0.0];
    let n_first = (0..4000u64).filter(|pass| {
        let key = PassKey { seed: 0, round: 0, pass: *pass }.chunk(0);
        largest(&ids, &[false; 2], 1, |row| values[row] + gumbel(key, ids[row].shard, ids[row].sample_idx))
            == [0]
    });
    assert!((n_first.count() as f64 / 4000.0 - 0.75).abs() < 4.0 * (0.75f64 * 0.25 / 4000.0).sqrt());
}

#[test]
fn a_device_draws_what_the_kernels_draw() {
    let engine = Engine::Device(Box::new(Algebra::open(Place::CPU, Products::Exact).unwrap()));
    let (n, size) = (600, 120);
    let embeddings = Embeddings::random(n);
    for objective in [Objective::Sigmoid, Objective::Softmax] {
        let scoring = embeddings.learnability(objective);
        let (ids, plan) = (ids(n), plan(size, 4));
        let expected = draw(&ids, &scoring, &plan);
        let found = draw_remaining_on(&engine, &ids, &scoring, &vec![false; n], &plan).unwrap();
        assert_eq!(found.scores, expected.scores);
        let rows = |draw: &JointDraw| {
            let mut rows: Vec<usize> = draw.drawn.iter().map(|drawn| drawn.row).collect();
            rows.sort_unstable();
            rows
        };
        let overlap = Overlap::of_sorted(&rows(&found), &rows(&expected));
        assert!(overlap.n_both as f64 >= 0.98 * size as f64, "{overlap:?}");
        for drawn in &found.drawn {
            let same = expected.drawn.iter().find(|of| (of.row, of.chunk) == (drawn.row, drawn.chunk));
            let Some(same) = same else { continue };
            let bound = 1e-2 * (1.0 + same.conditional_score.abs());
            assert!((drawn.conditional_score - same.conditional_score).abs() < bound);
        }
    }
}
