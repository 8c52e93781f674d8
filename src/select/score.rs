//! Both models' embeddings of some samples in; the score of each sample's own pair, and of a sub-batch as a whole,
//! out.
//!
//! A score is a log-weight in nats and may be negative. `S = learner_loss − reference_loss` (or one of the
//! two alone) over all pairs is the `[n, n]` score matrix, row = image, column = caption.

use rayon::prelude::*;

use crate::fold::Precision;
use crate::matrix::Matrix;

use super::loss::{Objective, PairLoss, similarity};
use super::reduce::{Mask, Pairs, reduce};

/// One model's view of some samples: `images` and `captions` are `[n_samples, d]`, unit rows, row i of both
/// belongs to sample i.
#[derive(Clone, Copy, Debug)]
pub struct PairModel<'a> {
    images: &'a Matrix,
    captions: &'a Matrix,
    loss: PairLoss,
    precision: Precision,
}

/// What belongs to the model that is to be trained on what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learner<T>(pub T);

/// What belongs to the model that says what can be learnt at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reference<T>(pub T);

/// What is scored by, with something of each model that it takes: its embeddings, its losses, one loss.
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoredBy<T> {
    HardLearner { learner: Learner<T> },
    EasyReference { reference: Reference<T> },
    Learnability { learner: Learner<T>, reference: Reference<T> },
}

/// What a super-batch is scored by: its embeddings under each model.
pub type Scoring<'a> = ScoredBy<PairModel<'a>>;

/// The samples' own pairs under one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagonal {
    /// `⟨image, caption⟩`, summed in f64.
    pub similarities: Vec<f64>,
    /// The loss of the positive pair, nats.
    pub losses: Vec<f64>,
}

impl<'a> PairModel<'a> {
    pub fn new(images: &'a Matrix, captions: &'a Matrix, loss: PairLoss) -> PairModel<'a> {
        assert_eq!(images.n_rows(), captions.n_rows(), "every image has its caption");
        assert_eq!(images.n_cols(), captions.n_cols(), "both towers of a model embed in one space");
        assert!(loss.is_usable(), "{loss:?}");
        PairModel { images, captions, loss, precision: Precision::F32 }
    }

    /// The same with other products for the pairs of different samples; a sample's own pair stays in f64.
    pub fn with_precision(self, precision: Precision) -> PairModel<'a> {
        PairModel { precision, ..self }
    }

    pub fn n_samples(&self) -> usize {
        self.images.n_rows()
    }

    pub(super) fn images(&self) -> &'a Matrix {
        self.images
    }

    pub(super) fn captions(&self) -> &'a Matrix {
        self.captions
    }

    pub fn loss(&self) -> PairLoss {
        self.loss
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

    /// The embeddings at these rows, side by side.
    pub(super) fn gather(&self, rows: &[usize]) -> GatheredModel {
        GatheredModel {
            images: self.images.gather(rows),
            captions: self.captions.gather(rows),
            loss: self.loss,
            precision: self.precision,
        }
    }

    /// The images of these samples with the captions of those.
    pub(super) fn images_with(self, others: PairModel<'a>) -> Pairs<'a> {
        self.pairs(others, others.captions, self.images)
    }

    /// The captions of these samples with the images of those.
    pub(super) fn captions_with(self, others: PairModel<'a>) -> Pairs<'a> {
        self.pairs(others, others.images, self.captions)
    }

    fn pairs(self, others: PairModel<'a>, rows: &'a Matrix, columns: &'a Matrix) -> Pairs<'a> {
        assert_eq!(self.loss, others.loss, "two samples of one model");
        Pairs { rows, columns, loss: self.loss, precision: self.precision }
    }
}

/// One model's embeddings of some rows of a super-batch.
pub(super) struct GatheredModel {
    images: Matrix,
    captions: Matrix,
    loss: PairLoss,
    precision: Precision,
}

impl GatheredModel {
    pub(super) fn view(&self) -> PairModel<'_> {
        let GatheredModel { images, captions, loss, precision } = self;
        PairModel { images, captions, loss: *loss, precision: *precision }
    }
}

impl<T> ScoredBy<T> {
    pub fn as_ref(&self) -> ScoredBy<&T> {
        match self {
            ScoredBy::HardLearner { learner } => ScoredBy::HardLearner { learner: Learner(&learner.0) },
            ScoredBy::EasyReference { reference } => {
                ScoredBy::EasyReference { reference: Reference(&reference.0) }
            }
            ScoredBy::Learnability { learner, reference } => {
                ScoredBy::Learnability { learner: Learner(&learner.0), reference: Reference(&reference.0) }
            }
        }
    }

    /// Something else of each model.
    pub fn map<U>(self, mut of_model: impl FnMut(T) -> U) -> ScoredBy<U> {
        match self {
            ScoredBy::HardLearner { learner } => {
                ScoredBy::HardLearner { learner: Learner(of_model(learner.0)) }
            }
            ScoredBy::EasyReference { reference } => {
                ScoredBy::EasyReference { reference: Reference(of_model(reference.0)) }
            }
            ScoredBy::Learnability { learner, reference } => ScoredBy::Learnability {
                learner: Learner(of_model(learner.0)),
                reference: Reference(of_model(reference.0)),
            },
        }
    }

    /// Something else of each model, if it can be had of all.
    pub(super) fn try_map<U, E>(self, mut of_model: impl FnMut(T) -> Result<U, E>) -> Result<ScoredBy<U>, E> {
        Ok(match self {
            ScoredBy::HardLearner { learner } => {
                ScoredBy::HardLearner { learner: Learner(of_model(learner.0)?) }
            }
            ScoredBy::EasyReference { reference } => {
                ScoredBy::EasyReference { reference: Reference(of_model(reference.0)?) }
            }
            ScoredBy::Learnability { learner, reference } => ScoredBy::Learnability {
                learner: Learner(of_model(learner.0)?),
                reference: Reference(of_model(reference.0)?),
            },
        })
    }

    /// Two things of each model side by side.
    pub fn zip<U>(self, other: ScoredBy<U>) -> ScoredBy<(T, U)> {
        match (self, other) {
            (ScoredBy::HardLearner { learner }, ScoredBy::HardLearner { learner: other }) => {
                ScoredBy::HardLearner { learner: Learner((learner.0, other.0)) }
            }
            (ScoredBy::EasyReference { reference }, ScoredBy::EasyReference { reference: other }) => {
                ScoredBy::EasyReference { reference: Reference((reference.0, other.0)) }
            }
            (
                ScoredBy::Learnability { learner, reference },
                ScoredBy::Learnability { learner: other_learner, reference: other_reference },
            ) => ScoredBy::Learnability {
                learner: Learner((learner.0, other_learner.0)),
                reference: Reference((reference.0, other_reference.0)),
            },
            _ => panic!("two things that are scored by different models"),
        }
    }
}

impl ScoredBy<f64> {
    /// One sample's score from each model's loss, nats. This is the one place where the models get their signs.
    pub fn score(self) -> f64 {
        match self {
            ScoredBy::HardLearner { learner } => learner.0,
            ScoredBy::EasyReference { reference } => -reference.0,
            ScoredBy::Learnability { learner, reference } => learner.0 - reference.0,
        }
    }
}

impl ScoredBy<Vec<f64>> {
    /// The scores of many samples from each model's losses, nats.
    pub fn scores(&self) -> Vec<f64> {
        let any = self.any();
        let lengths = self.as_ref().map(Vec::len);
        assert!(lengths.map(|n| n == any.len()).all(), "every model sees the same samples");
        (0..any.len()).map(|row| self.as_ref().map(|losses| losses[row]).score()).collect()
    }
}

impl<T> ScoredBy<T> {
    /// The first of the models.
    fn any(&self) -> &T {
        match self {
            ScoredBy::HardLearner { learner } | ScoredBy::Learnability { learner, .. } => &learner.0,
            ScoredBy::EasyReference { reference } => &reference.0,
        }
    }
}

impl ScoredBy<bool> {
    fn all(self) -> bool {
        match self {
            ScoredBy::HardLearner { learner } => learner.0,
            ScoredBy::EasyReference { reference } => reference.0,
            ScoredBy::Learnability { learner, reference } => learner.0 && reference.0,
        }
    }
}

impl Scoring<'_> {
    pub fn n_samples(&self) -> usize {
        self.any().n_samples()
    }

    /// The score of every sample's own pair, `S[i, i]`, nats.
    pub fn scores(&self) -> Vec<f64> {
        self.own_losses().scores()
    }

    /// Each model's positive losses, nats.
    pub(super) fn own_losses(&self) -> ScoredBy<Vec<f64>> {
        self.map(|model| model.diagonal().losses)
    }
}

/// The learnability of a batch made of these rows (or its other score), a sample, in nats.
///
/// ```text
/// sigmoid    F(A) / |A|,  F(A) = Σ_{i,j∈A} S[i, j]
/// softmax    1/|A| · Σ_{i∈A} L_i,  L_i = ½ [(ln Σ_{j∈A} e^(l_ij) − l_ii) + (ln Σ_{j∈A} e^(l_ji) − l_ii)]
///            learner minus reference, or one of them
/// ```
///
/// High: the batch as a whole is worth learning. Work: 2·|A|²·d FLOPs a model, twice that for softmax.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §3, per sample so that batches of different sizes compare.
pub fn batch_learnability(scoring: &Scoring, rows: &[usize]) -> f64 {
    assert!(!rows.is_empty(), "a batch without samples");
    scoring.map(|model| model.gather(rows).view().mean_loss()).score()
}

impl PairModel<'_> {
    /// The model's loss on a batch of all its samples, a sample, in nats.
    fn mean_loss(self) -> f64 {
        let own = self.diagonal().losses;
        let total: f64 = match self.loss.objective {
            Objective::Sigmoid => {
                let negatives = reduce(&[self.images_with(self)], Mask::Own).remove(0);
                own.iter().zip(negatives).map(|(own, negatives)| own + negatives).sum()
            }
            Objective::Softmax => {
                let both = reduce(&[self.images_with(self), self.captions_with(self)], Mask::Nothing);
                let log_sums = both[0].iter().zip(&both[1]);
                own.iter().zip(log_sums).map(|(own, (image, caption))| own + 0.5 * (image + caption)).sum()
            }
        };
        total / self.n_samples() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMOID: PairLoss = PairLoss { logit_scale: 1.0, logit_bias: 0.0, objective: Objective::Sigmoid };
    const SOFTMAX: PairLoss = PairLoss { objective: Objective::Softmax, ..SIGMOID };

    /// Similarities [[0, 0], [1, 1]].
    fn two_samples() -> (Matrix, Matrix) {
        (Matrix::new(vec![1.0, 0.0, 0.0, 1.0], 2), Matrix::new(vec![0.0, 1.0, 0.0, 1.0], 2))
    }

    #[test]
    fn two_samples_by_hand_sigmoid() {
        let (images, captions) = two_samples();
        let model = PairModel::new(&images, &captions, SIGMOID);
        // own pairs softplus(0), softplus(−1); others softplus(0), softplus(1)
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
    fn two_samples_by_hand_softmax() {
        let (images, captions) = two_samples();
        let model = PairModel::new(&images, &captions, SOFTMAX);
        assert_eq!(model.diagonal().losses, [0.0, -1.0]);
        // images: ln 2 − 0 and ln 2e − 1; captions: ln(1 + e) − 0 and ln(1 + e) − 1
        let column = (1.0 + 1f64.exp()).ln();
        let expected = 0.25 * (2.0 * 2f64.ln() + column + column - 1.0);
        let hard = Scoring::HardLearner { learner: Learner(model) };
        assert!((batch_learnability(&hard, &[0, 1]) - expected).abs() < 1e-6);
        assert!(batch_learnability(&hard, &[1]).abs() < 1e-6);
    }

    #[test]
    fn learnability_is_high_where_only_the_learner_fails() {
        let (images, away) = (Matrix::new(vec![1.0, 0.0], 2), Matrix::new(vec![-1.0, 0.0], 2));
        for loss in [SIGMOID, SOFTMAX].map(|loss| PairLoss { logit_scale: 8.0, ..loss }) {
            let (wrong, right) =
                (PairModel::new(&images, &away, loss), PairModel::new(&images, &images, loss));
            let score = |learner, reference| {
                Scoring::Learnability { learner: Learner(learner), reference: Reference(reference) }.scores()
                    [0]
            };
            assert!(score(wrong, right) > 7.9);
            assert!(score(right, wrong) < -7.9);
            assert_eq!(score(wrong, wrong), 0.0);
        }
    }

    #[test]
    fn dot_products_score_by_the_difference_of_similarities() {
        let (images, captions) = two_samples();
        let learner = Learner(PairModel::new(&images, &captions, PairLoss::DOT_PRODUCT));
        let reference = Reference(PairModel::new(&images, &images, PairLoss::DOT_PRODUCT));
        assert_eq!(learner.0.diagonal().losses, [0.0, -1.0]);
        // similarities 0 and 1 under the learner, 1 and 1 under the reference
        assert_eq!(Scoring::Learnability { learner, reference }.scores(), [1.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "different models")]
    fn two_scores_by_different_models_do_not_meet() {
        let _ = ScoredBy::HardLearner { learner: Learner(1) }
            .zip(ScoredBy::EasyReference { reference: Reference(1) });
    }
}
