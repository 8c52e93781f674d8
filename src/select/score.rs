//! Both models' embeddings of a super-batch in, scores out: of each sample's own pair, of a sub-batch, of a
//! sample among the hard negatives of its cluster.
//!
//! A score is a log-weight in nats and may be negative. `S = learner_loss − reference_loss` (or one of the
//! two alone) over all pairs is the `[n, n]` score matrix, row = image, column = caption; its negative pairs
//! exist a tile at a time.

use rayon::prelude::*;

use crate::divide::Exclusions;
use crate::matrix::Matrix;
use crate::tile::{Tile, map_strips, ranges};

use super::loss::{SigmoidLoss, similarity};

/// One model's view of some samples: `images` and `captions` are `[n_samples, d]`, unit rows, row i of both
/// belongs to sample i.
#[derive(Clone, Copy, Debug)]
pub struct PairModel<'a> {
    images: &'a Matrix,
    captions: &'a Matrix,
    loss: SigmoidLoss,
}

/// The model that is to be trained on what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Learner<'a>(pub PairModel<'a>);

/// The model that says what can be learnt at all.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a>(pub PairModel<'a>);

/// What a super-batch is scored by, with the models that it takes.
///
/// ```text
/// hard learner     L(learner)                   high: the learner still fails
/// easy reference   −L(reference)                high: the reference finds it easy, probably clean
/// learnability     L(learner) − L(reference)    high: worth learning and learnable; low for noise and for the learnt
/// ```
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3.
#[derive(Clone, Copy, Debug)]
pub enum Scoring<'a> {
    HardLearner { learner: Learner<'a> },
    EasyReference { reference: Reference<'a> },
    Learnability { learner: Learner<'a>, reference: Reference<'a> },
}

/// The samples' own pairs under one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagonal {
    /// `⟨image, caption⟩`, summed in f64.
    pub similarities: Vec<f64>,
    /// The loss of the positive pair, nats.
    pub losses: Vec<f64>,
}

impl<'a> PairModel<'a> {
    pub fn new(images: &'a Matrix, captions: &'a Matrix, loss: SigmoidLoss) -> PairModel<'a> {
        assert_eq!(images.n_rows(), captions.n_rows(), "every image has its caption");
        assert_eq!(images.n_cols(), captions.n_cols(), "both towers of a model embed in one space");
        assert!(
            loss.logit_scale.is_finite() && loss.logit_scale > 0.0 && loss.logit_bias.is_finite(),
            "{loss:?}"
        );
        PairModel { images, captions, loss }
    }

    pub fn n_samples(&self) -> usize {
        self.images.n_rows()
    }

    /// Similarity and loss of every sample's own pair.
    pub fn diagonal(&self) -> Diagonal {
        let (similarities, losses) = (0..self.n_samples())
            .into_par_iter()
            .map(|row| {
                let similarity = similarity(self.images.row(row), self.captions.row(row));
                (similarity, self.loss.positive(similarity))
            })
            .unzip();
        Diagonal { similarities, losses }
    }
}

impl<'a> Scoring<'a> {
    pub fn n_samples(&self) -> usize {
        self.terms()[0].model.n_samples()
    }

    /// The score of every sample's own pair, `S[i, i]`, nats.
    pub fn scores(&self) -> Vec<f64> {
        own_scores(&self.terms())
    }

    /// The score as a sum of the models' losses. This is the one place where the models get their signs.
    fn terms(&self) -> Vec<Term<'a>> {
        match *self {
            Scoring::HardLearner { learner } => vec![Term { model: learner.0, weight: 1.0 }],
            Scoring::EasyReference { reference } => vec![Term { model: reference.0, weight: -1.0 }],
            Scoring::Learnability { learner, reference } => {
                assert_eq!(
                    learner.0.n_samples(),
                    reference.0.n_samples(),
                    "both models embed the same samples"
                );
                vec![Term { model: learner.0, weight: 1.0 }, Term { model: reference.0, weight: -1.0 }]
            }
        }
    }
}

/// One model's part of a score.
#[derive(Clone, Copy)]
struct Term<'a> {
    model: PairModel<'a>,
    weight: f32,
}

fn own_scores(terms: &[Term]) -> Vec<f64> {
    let mut scores = vec![0.0; terms[0].model.n_samples()];
    for term in terms {
        for (score, loss) in scores.iter_mut().zip(term.model.diagonal().losses) {
            *score += f64::from(term.weight) * loss;
        }
    }
    scores
}

/// The embeddings of some rows of a super-batch, side by side, for each term of its score.
struct GatheredRows(Vec<(Matrix, Matrix)>);

impl GatheredRows {
    fn new(scoring: &Scoring, rows: &[usize]) -> GatheredRows {
        let gather = |term: &Term| (term.model.images.gather(rows), term.model.captions.gather(rows));
        GatheredRows(scoring.terms().iter().map(gather).collect())
    }

    fn terms<'a>(&'a self, scoring: &Scoring) -> Vec<Term<'a>> {
        let gathered = self.0.iter().zip(scoring.terms());
        gathered
            .map(|((images, captions), term)| Term {
                model: PairModel { images, captions, ..term.model },
                ..term
            })
            .collect()
    }
}

/// The negative pairs of each row with each column under one model, rows on one side of the pair.
struct Negatives<'a> {
    rows: &'a Matrix,
    columns: &'a Matrix,
    loss: SigmoidLoss,
    weight: f32,
}

/// The images of the rows with the captions of the columns.
fn image_rows<'a>(rows: &[Term<'a>], columns: &[Term<'a>]) -> Vec<Negatives<'a>> {
    negatives(rows, columns, |rows, columns| (rows.images, columns.captions))
}

/// The captions of the rows with the images of the columns.
fn caption_rows<'a>(rows: &[Term<'a>], columns: &[Term<'a>]) -> Vec<Negatives<'a>> {
    negatives(rows, columns, |rows, columns| (rows.captions, columns.images))
}

fn negatives<'a>(
    rows: &[Term<'a>],
    columns: &[Term<'a>],
    sides: impl Fn(PairModel<'a>, PairModel<'a>) -> (&'a Matrix, &'a Matrix),
) -> Vec<Negatives<'a>> {
    let same_models = rows.len() == columns.len()
        && rows.iter().zip(columns).all(|(row, column)| {
            row.weight.to_bits() == column.weight.to_bits() && row.model.loss == column.model.loss
        });
    assert!(same_models, "rows and columns are scored by different models");
    let pairs = rows.iter().zip(columns);
    pairs
        .map(|(row, column)| {
            let (rows, columns) = sides(row.model, column.model);
            Negatives { rows, columns, loss: column.model.loss, weight: column.weight }
        })
        .collect()
}

/// Scratch space of one thread.
#[derive(Default)]
struct ScoreTile {
    scores: Tile,
    losses: Tile,
}

impl ScoreTile {
    /// Sets the tile to the scores of these negative pairs, the sum over the models.
    fn fill(&mut self, models: &[Negatives], rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
        for (model_idx, negatives) in models.iter().enumerate() {
            let tile = if model_idx == 0 { &mut self.scores } else { &mut self.losses };
            tile.fill(negatives.rows, rows.clone(), negatives.columns, columns.clone());
            negatives.loss.weigh_negatives(tile, negatives.weight);
            if model_idx > 0 {
                self.scores.add(&self.losses);
            }
        }
    }
}

/// What the rows add to the marginal of every sample of the super-batch.
///
/// ```text
/// marginals[x] = Σ_k (S[k, x] + S[x, k])     k over the rows, x ≠ k
/// ```
///
/// The entries of samples that are among the rows themselves mean nothing. Losses in f32, sums as in
/// [`Tile::add_column_sums`]. Work: 4·n_rows·n_samples·d FLOPs a model. Memory: O(n_samples).
pub(super) fn marginals(scoring: &Scoring, rows: &[usize]) -> Vec<f64> {
    let gathered = GatheredRows::new(scoring, rows);
    let (row_terms, column_terms) = (gathered.terms(scoring), scoring.terms());
    let directions = [image_rows(&row_terms, &column_terms), caption_rows(&row_terms, &column_terms)];
    let strips = map_strips(scoring.n_samples(), |tile: &mut ScoreTile, strip| {
        let mut sums = vec![0.0; strip.len()];
        for models in &directions {
            for range in ranges(rows.len()) {
                tile.fill(models, range, strip.clone());
                tile.scores.add_column_sums(&mut sums);
            }
        }
        sums
    });
    strips.concat()
}

/// The learnability of a batch made of these rows (or its other score), a sample, in nats.
///
/// ```text
/// F(A) / |A|,  F(A) = Σ_{i,j∈A} S[i, j]
/// ```
///
/// High: the batch as a whole is worth learning. Work: 2·|A|²·d FLOPs a model.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3, per sample so that batches of different sizes compare.
pub fn batch_learnability(scoring: &Scoring, rows: &[usize]) -> f64 {
    assert!(!rows.is_empty(), "a batch without samples");
    let gathered = GatheredRows::new(scoring, rows);
    let terms = gathered.terms(scoring);
    let models = image_rows(&terms, &terms);
    let strips = map_strips(rows.len(), |tile: &mut ScoreTile, strip| {
        let mut sums = vec![0.0; strip.len()];
        for range in ranges(rows.len()) {
            tile.fill(&models, range.clone(), strip.clone());
            if range == strip {
                for own in 0..strip.len() {
                    tile.scores.set(own, own, 0.0);
                }
            }
            tile.scores.add_column_sums(&mut sums);
        }
        sums.iter().sum::<f64>()
    });
    let own_pairs: f64 = own_scores(&terms).iter().sum();
    (own_pairs + strips.iter().sum::<f64>()) / rows.len() as f64
}

/// The score of each query in a sub-batch with `sub_batch_size − 1` negatives like those of its bank, in nats.
///
/// ```text
/// hard_learnability[i] = S[i, i] + (sub_batch_size − 1) · mean_{j∈A} ½(S[i, j] + S[j, i])
/// ```
///
/// A are the rows of the bank that are not excluded for i: the same as of the other hardness columns. `None`
/// where A is empty. High: worth learning against the hard negatives of its cluster.
///
/// # Shapes
///
/// `queries` and `bank` are views of the same models, `[n_queries, d]` and `[n_bank, d]`; `exclusions` is
/// `[n_queries, n_bank]`.
pub fn hard_learnability(
    queries: &Scoring,
    bank: &Scoring,
    exclusions: &Exclusions,
    sub_batch_size: usize,
) -> Vec<Option<f64>> {
    let (n_queries, n_bank) = (queries.n_samples(), bank.n_samples());
    assert_eq!((exclusions.n_queries(), exclusions.n_bank()), (n_queries, n_bank));
    assert!(sub_batch_size > 0);
    let (row_terms, column_terms) = (bank.terms(), queries.terms());
    let directions = [image_rows(&row_terms, &column_terms), caption_rows(&row_terms, &column_terms)];
    let strips = map_strips(n_queries, |tile: &mut ScoreTile, strip| {
        let mut sums = vec![0.0; strip.len()];
        for models in &directions {
            for range in ranges(n_bank) {
                tile.fill(models, range.clone(), strip.clone());
                for (column, query) in strip.clone().enumerate() {
                    for bank_row in exclusions.of(query, range.clone()) {
                        tile.scores.set(bank_row - range.start, column, 0.0);
                    }
                }
                tile.scores.add_column_sums(&mut sums);
            }
        }
        sums
    });
    let sums = strips.into_iter().flatten();
    let shares = queries.scores().into_iter().zip(sums).enumerate();
    shares
        .map(|(query, (own, sum))| {
            let n_negatives = n_bank - exclusions.n_of(query);
            (n_negatives > 0).then(|| own + (sub_batch_size - 1) as f64 * 0.5 * sum / n_negatives as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divide::{HardnessParams, Samples, exclusions};
    use crate::noise::SampleId;
    use crate::tile::random_unit_rows;

    const LEARNER: SigmoidLoss = SigmoidLoss { logit_scale: 8.0, logit_bias: -3.0 };
    const REFERENCE: SigmoidLoss = SigmoidLoss { logit_scale: 20.0, logit_bias: -9.0 };

    /// Images and captions of the learner, then of the reference.
    fn learnability(embeddings: &[Matrix; 4]) -> Scoring<'_> {
        let [x, y, x_reference, y_reference] = embeddings;
        Scoring::Learnability {
            learner: Learner(PairModel::new(x, y, LEARNER)),
            reference: Reference(PairModel::new(x_reference, y_reference, REFERENCE)),
        }
    }

    fn hard_learner(embeddings: &[Matrix; 4]) -> Scoring<'_> {
        Scoring::HardLearner { learner: Learner(PairModel::new(&embeddings[0], &embeddings[1], LEARNER)) }
    }

    #[test]
    fn two_samples_by_hand() {
        let images = Matrix::new(vec![1.0, 0.0, 0.0, 1.0], 2);
        let captions = Matrix::new(vec![0.0, 1.0, 0.0, 1.0], 2);
        let loss = SigmoidLoss { logit_scale: 1.0, logit_bias: 0.0 };
        let model = PairModel::new(&images, &captions, loss);
        // similarities [[0, 0], [1, 1]]: own pairs softplus(0), softplus(−1); others softplus(0), softplus(1)
        let (zero, minus_one, one) = (2f64.ln(), (-1f64).exp().ln_1p(), 1f64.exp().ln_1p());
        assert_eq!(
            model.diagonal(),
            Diagonal { similarities: vec![0.0, 1.0], losses: vec![zero, minus_one] }
        );
        let hard = Scoring::HardLearner { learner: Learner(model) };
        assert!((batch_learnability(&hard, &[0, 1]) - (2.0 * zero + minus_one + one) / 2.0).abs() < 1e-6);
        assert_eq!(batch_learnability(&hard, &[1]), minus_one);
        let easy = Scoring::EasyReference { reference: Reference(model) };
        assert_eq!(easy.scores(), [-zero, -minus_one]);
        assert!((batch_learnability(&easy, &[0, 1]) + batch_learnability(&hard, &[0, 1])).abs() < 1e-12);
    }

    #[test]
    fn learnability_is_high_where_only_the_learner_fails() {
        let (images, away) = (Matrix::new(vec![1.0, 0.0], 2), Matrix::new(vec![-1.0, 0.0], 2));
        let (wrong, right) =
            (PairModel::new(&images, &away, LEARNER), PairModel::new(&images, &images, LEARNER));
        let score = |learner, reference| {
            Scoring::Learnability { learner: Learner(learner), reference: Reference(reference) }.scores()[0]
        };
        assert!(score(wrong, right) > 10.0);
        assert!(score(right, wrong) < -10.0);
        assert_eq!(score(wrong, wrong), 0.0);
    }

    #[test]
    fn hard_learnability_is_the_share_among_the_negatives_that_are_left() {
        let (n_queries, n_bank, sub_batch_size) = (300, 270, 64);
        let queries = [1, 2, 3, 4].map(|seed| random_unit_rows(n_queries, 6, seed));
        let bank = [5, 6, 7, 8].map(|seed| random_unit_rows(n_bank, 6, seed));
        let ids: Vec<SampleId> = (0..600).map(|sample_idx| SampleId { shard: "s", sample_idx }).collect();
        // the queries' ids overlap the bank's, and a low threshold excludes many
        let query_samples =
            Samples { ids: &ids[..n_queries], images: &queries[0], captions: None, caption_hashes: None };
        let bank_samples =
            Samples { ids: &ids[200..200 + n_bank], images: &bank[0], captions: None, caption_hashes: None };
        let params = HardnessParams { near_duplicate_similarity: 0.6, ..HardnessParams::default() };
        let mask = exclusions(&query_samples, &bank_samples, &params);
        assert!((0..n_queries).any(|query| mask.n_of(query) > 5));
        let scorings =
            [(learnability as fn(&[Matrix; 4]) -> Scoring<'_>, [1.0, -1.0]), (hard_learner, [1.0, 0.0])];
        for (scoring, weights) in scorings {
            let shares = hard_learnability(&scoring(&queries), &scoring(&bank), &mask, sub_batch_size);
            for (i, share) in shares.iter().enumerate() {
                let negatives: Vec<usize> = {
                    let excluded: Vec<usize> = mask.of(i, 0..n_bank).collect();
                    (0..n_bank).filter(|j| !excluded.contains(j)).collect()
                };
                let terms = [(LEARNER, 0), (REFERENCE, 2)].into_iter().zip(weights);
                let expected: f64 = terms
                    .map(|((loss, side), weight)| {
                        let own = loss.positive(similarity(queries[side].row(i), queries[side + 1].row(i)));
                        let others = negatives.iter().map(|&j| {
                            loss.negative(similarity(queries[side].row(i), bank[side + 1].row(j)))
                                + loss.negative(similarity(bank[side].row(j), queries[side + 1].row(i)))
                        });
                        let mean = others.sum::<f64>() / 2.0 / negatives.len() as f64;
                        weight * (own + (sub_batch_size - 1) as f64 * mean)
                    })
                    .sum();
                assert!((share.unwrap() - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{i}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "different models")]
    fn rows_and_columns_of_different_models_do_not_meet() {
        let rows = random_unit_rows(3, 4, 1);
        let ids: Vec<SampleId> = (0..3).map(|sample_idx| SampleId { shard: "s", sample_idx }).collect();
        let samples = Samples { ids: &ids, images: &rows, captions: None, caption_hashes: None };
        let mask = exclusions(&samples, &samples, &HardnessParams::default());
        let learner = Scoring::HardLearner { learner: Learner(PairModel::new(&rows, &rows, LEARNER)) };
        let reference =
            Scoring::EasyReference { reference: Reference(PairModel::new(&rows, &rows, LEARNER)) };
        hard_learnability(&learner, &reference, &mask, 8);
    }
}
