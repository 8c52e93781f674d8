//! Similarities in, losses of single pairs out, in f64: a model's objective, its logit scale and its logit bias.

use serde::{Deserialize, Serialize};

/// The loss of a pair, by which models were trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// SigLIP's: each pair by itself; needs a logit bias.
    #[default]
    Sigmoid,
    /// CLIP's: each pair against all others of its batch.
    Softmax,
}

/// The inner product of two stored embeddings: a cosine as far as the stored rows have unit length. The
/// products are exact in f64 and summed in f64 in eight fixed lanes.
pub fn similarity(image: &[f32], caption: &[f32]) -> f64 {
    assert_eq!(image.len(), caption.len());
    let mut lanes = [0.0f64; 8];
    for (image, caption) in image.chunks(8).zip(caption.chunks(8)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(image.iter().zip(caption)) {
            *lane += f64::from(*x) * f64::from(*y);
        }
    }
    lanes.iter().sum()
}

/// `ln(1 + e^l)`, exact to f64: the loss in nats of a pair whose logit should have been −∞.
pub fn softplus(logit: f64) -> f64 {
    logit.max(0.0) + (-logit.abs()).exp().ln_1p()
}

/// `ln(e^a + e^b)`, exact to f64; minus infinity is the sum of nothing.
pub fn log_add_exp(a: f64, b: f64) -> f64 {
    let (larger, smaller) = if a > b { (a, b) } else { (b, a) };
    if smaller == f64::NEG_INFINITY { larger } else { larger + (smaller - larger).exp().ln_1p() }
}

/// How a model turns the similarity of an image and a caption into nats.
///
/// ```text
/// logit                l = logit_scale · similarity + logit_bias
/// positive, sigmoid    softplus(−l)      the pair (i, i)
/// positive, softmax    −l                what of the loss is the pair's own; the rest is its batch's
/// ```
///
/// The positive loss is high where the model holds image and caption for a poor match. The losses of other
/// pairs are softplus(l) with the sigmoid objective; with softmax they are under one logarithm in the loss of
/// the sample, see [`batch_learnability`](super::batch_learnability).
///
/// # Source
///
/// Sigmoid: SigLIP, arXiv:2303.15343, with its sign of the bias (about −10 at the start of training). JEST,
/// arXiv:2406.17711, writes the logit `−α·s + β`: its β is minus this bias. Softmax: CLIP, arXiv:2103.00020;
/// the bias cancels in every loss of a batch, and stays in the positive alone.
///
/// # Example
///
/// ```
/// use superbatch::select::{Objective, PairLoss};
/// let loss = PairLoss { logit_scale: 10.0, logit_bias: -10.0, objective: Objective::Sigmoid };
/// assert_eq!(loss.positive(1.0), 2f64.ln()); // logit 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// Linear (checkpoints store its logarithm), above 0.
    pub logit_scale: f64,
    pub logit_bias: f64,
    pub objective: Objective,
}

impl PairLoss {
    /// ActiveCLIP's scoring loss, minus the similarity: the own part of a softmax loss at scale 1 and bias 0.
    ///
    /// Learner minus reference is then `reference_similarity − learner_similarity`.
    ///
    /// # Source
    ///
    /// arXiv:2312.05328.
    pub const DOT_PRODUCT: PairLoss =
        PairLoss { logit_scale: 1.0, logit_bias: 0.0, objective: Objective::Softmax };

    /// `logit_scale · similarity + logit_bias`.
    pub fn logit(&self, similarity: f64) -> f64 {
        self.logit_scale * similarity + self.logit_bias
    }

    /// The loss of a sample's own pair, in nats.
    pub fn positive(&self, similarity: f64) -> f64 {
        let logit = self.logit(similarity);
        match self.objective {
            Objective::Sigmoid => softplus(-logit),
            Objective::Softmax => -logit,
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.logit_scale.is_finite() && self.logit_scale > 0.0 && self.logit_bias.is_finite()
    }
}

/// A sample among negatives under one model: from it follows its share in a sub-batch of any size.
///
/// | | sigmoid | softmax |
/// |---|---|---|
/// | `image` | mean_j softplus(l_ij) | ln mean_j e^(l_ij) − l_ii |
/// | `caption` | mean_j softplus(l_ji) | ln mean_j e^(l_ji) − l_ii |
///
/// Nats; high where the image (the caption) of sample i is close to the captions (the images) of the negatives j.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AmongNegatives {
    pub image: f64,
    pub caption: f64,
}

impl Objective {
    /// A sample's share in the loss of a sub-batch with `sub_batch_size − 1` negatives like these, in nats.
    ///
    /// ```text
    /// sigmoid    own_loss + (b − 1) · ½ (image + caption)
    /// softmax    ½ [softplus(ln(b − 1) + image) + softplus(ln(b − 1) + caption)]
    ///          = ½ Σ_directions [ln(e^(l_ii) + (b − 1)·mean_j e^(l_ij)) − l_ii]
    /// ```
    ///
    /// `own_loss` is the model's positive loss; the softmax form has it inside `image` and `caption`.
    ///
    /// # Source
    ///
    /// The contrastive per-sample score of ActiveCLIP, arXiv:2312.05328, and the share of x in F(A) of JEST,
    /// arXiv:2406.17711, §3, for negatives that stand for those of a batch.
    pub fn share(self, own_loss: f64, among: AmongNegatives, sub_batch_size: usize) -> f64 {
        assert!(sub_batch_size > 0, "a sub-batch without samples");
        let n_negatives = (sub_batch_size - 1) as f64;
        match self {
            Objective::Sigmoid => own_loss + n_negatives * 0.5 * (among.image + among.caption),
            Objective::Softmax => {
                0.5 * (softplus(n_negatives.ln() + among.image) + softplus(n_negatives.ln() + among.caption))
            }
        }
    }

    /// The share of a sample that is alone in its sub-batch.
    pub(super) fn share_alone(self, own_loss: f64) -> f64 {
        match self {
            Objective::Sigmoid => own_loss,
            Objective::Softmax => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_hand() {
        let loss = PairLoss { logit_scale: 2.0, logit_bias: -1.0, objective: Objective::Sigmoid };
        // logits 1 and −2: ln(1 + e^−1), ln(1 + e^2)
        assert!((loss.positive(1.0) - 0.313_261_687_518_222_8).abs() < 1e-15);
        assert!((loss.positive(-0.5) - 2.126_928_011_042_972_7).abs() < 1e-15);
        let loss = PairLoss { objective: Objective::Softmax, ..loss };
        assert_eq!((loss.positive(1.0), loss.positive(-0.5)), (-1.0, 2.0));
        assert_eq!(PairLoss::DOT_PRODUCT.positive(0.25), -0.25);
        assert_eq!(softplus(1e4), 1e4);
        assert_eq!(softplus(-1e4), 0.0);
        assert_eq!(similarity(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], &[1.0; 9]), 45.0);
    }

    #[test]
    fn log_add_exp_by_hand() {
        assert!((log_add_exp(2f64.ln(), 3f64.ln()) - 5f64.ln()).abs() < 1e-15);
        assert_eq!(log_add_exp(1e4, -1e4), 1e4);
        assert_eq!(log_add_exp(f64::NEG_INFINITY, -3.0), -3.0);
        assert_eq!(log_add_exp(-3.0, f64::NEG_INFINITY), -3.0);
        assert_eq!(log_add_exp(f64::NEG_INFINITY, f64::NEG_INFINITY), f64::NEG_INFINITY);
    }

    #[test]
    fn shares_by_hand() {
        // two negatives in both directions
        let among = AmongNegatives { image: 0.25, caption: 0.75 };
        assert_eq!(Objective::Sigmoid.share(2.0, among, 5), 2.0 + 4.0 * 0.5);
        // own logit ln 2, negatives' mean e^l 3 and 5, b − 1 = 4: ½[ln(14/2) + ln(22/2)]
        let among = AmongNegatives { image: 1.5f64.ln(), caption: 2.5f64.ln() };
        let expected = 0.5 * (7f64.ln() + 11f64.ln());
        assert!((Objective::Softmax.share(-(2f64.ln()), among, 5) - expected).abs() < 1e-15);
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            assert_eq!(objective.share(2.0, among, 1), objective.share_alone(2.0));
        }
    }
}
